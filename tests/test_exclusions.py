"""What follows from the findings: which images are used, which patients form a group, and where shared pictures go."""

import ast
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bus_smp.classes import LABELS
from bus_smp.data.audit import audit_folder
from bus_smp.data.copies import ComparedImage
from bus_smp.data.examples import read_example
from bus_smp.data.exclusions import CODES, Problem, count_exclusions, exclusion_code
from bus_smp.data.images import color_mask, read_image
from bus_smp.data.make_manifests import SplitPlan, make_manifests
from bus_smp.data.manifest import Manifest, combine, write_manifest
from bus_smp.data.manifest_folder import fingerprint_earlier
from bus_smp.data.rows import Policy, make_rows
from bus_smp.data.sources import Record
from bus_smp.data.synthetic import draw
from bus_smp.errors import ConfigError, DataError, ImageError, ManifestError


def write_set(folder, rows, dataset="set", known=True, split_given=False, **changes):
    """An audited data set. ``rows``: (image id, patient, label, picture, split); equal pictures are equal pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, patient, label, picture, *split in rows:
        grey, masks = draw(np.random.default_rng(picture), "benign", (96, 72))
        Image.fromarray(grey).save(folder / f"{name}.png")
        mask = masks[0] * np.uint8(LABELS.index(label))
        Image.fromarray(color_mask(mask)).save(folder / f"{name}_mask.png")
        records.append(
            Record(
                name, f"{name}.png", (f"{name}_mask.png",), "color", label, patient,
                patient_known=known, official_split=split[0] if split else "", **changes,
            )
        )  # fmt: skip
    return audit_folder(dataset, records, folder, split_given=split_given)


COPIES = [
    ("a", "P", "benign", 1),
    ("b", "Q", "benign", 1),
    ("c", "R", "benign", 2),
    ("d", "S", "malignant", 3),
]
CONFLICT = [*COPIES, ("e", "T", "malignant", 2)]


def excluded(rows):
    return dict(zip(rows.frame["image_id"], rows.frame["excluded"], strict=True))


def groups(rows):
    return dict(zip(rows.frame["image_id"], rows.frame["group_id"], strict=True))


@pytest.mark.parametrize("duplicates", ["keep", "group", "drop"])
def test_patients_who_share_a_picture_are_one_group_under_every_policy(tmp_path, duplicates):
    (rows,) = make_rows([write_set(tmp_path, CONFLICT)], Policy(duplicates=duplicates))
    found = groups(rows)
    assert found["a"] == found["b"] == "set:P"
    assert found["c"] == found["e"] == "set:R"
    assert found["d"] == "set:S"


def test_drop_keeps_the_first_in_natural_order_and_names_it(tmp_path):
    (rows,) = make_rows([write_set(tmp_path, COPIES)], Policy(duplicates="drop"))
    assert excluded(rows) == {"a": "", "b": "duplicate: of a", "c": "", "d": ""}


def test_one_picture_many_times_is_one_group_and_its_findings_grow_linearly_with_the_images(tmp_path):
    """All pairs of 10,000 blank images would be 50 million."""
    same = [(f"i{n}", f"P{n}", "malignant" if n == 29 else "benign", 1) for n in range(30)]
    one = write_set(tmp_path / "one", same[:29], dataset="one")
    two = write_set(tmp_path / "two", same, dataset="two")
    first, second = make_rows([one, two], Policy(duplicates="group"))
    assert set(groups(first).values()) | set(groups(second).values()) == {"one:P0"}
    assert len(first.pairs) == 28 + 1 and len(second.pairs) == 29 + 1, (
        "with the next, and the other set's first"
    )
    assert first.frame["flags"].str.contains("duplicate:").all()
    for reason in excluded(first).values():
        assert "two/i29 (malignant)" in reason, "the contradicting label is named"
        assert reason.endswith("47 more") or reason.endswith("46 more")
    assert excluded(second)["i29"].startswith(
        "label-conflict: labelled malignant, same picture as one/i0 (benign)"
    )


def test_drop_does_not_keep_an_image_that_is_excluded_anyway(tmp_path):
    data = write_set(tmp_path, COPIES)
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / "a_mask.png")
    again = audit_folder("set", [image.record for image in data.images], tmp_path)
    (rows,) = make_rows([again], Policy(duplicates="drop"))
    assert excluded(rows)["a"] != ""
    assert excluded(rows)["b"] == ""


def test_group_uses_all_copies_but_none_whose_labels_contradict(tmp_path):
    (rows,) = make_rows([write_set(tmp_path, CONFLICT)], Policy(duplicates="group"))
    found = excluded(rows)
    assert found["a"] == found["b"] == ""
    assert found["c"] == "label-conflict: labelled benign, same picture as e (malignant)"
    assert found["e"] == "label-conflict: labelled malignant, same picture as c (benign)"


def test_keep_uses_even_contradicting_copies_but_flags_them(tmp_path):
    (rows,) = make_rows([write_set(tmp_path, CONFLICT)], Policy(duplicates="keep"))
    assert set(excluded(rows).values()) == {""}
    flags = dict(zip(rows.frame["image_id"], rows.frame["flags"], strict=True))
    assert flags["c"] == "duplicate:e|label_conflict"


@pytest.mark.parametrize(("known", "expected"), [(True, "group"), (False, "drop")])
def test_the_default_depends_on_whether_patients_are_known(tmp_path, known, expected):
    (rows,) = make_rows([write_set(tmp_path, COPIES, known=known)], Policy())
    assert rows.duplicates == expected


def test_images_without_patient_ids_form_groups_of_copies_called_after_the_first(tmp_path):
    rows = [("x10", "", "benign", 1), ("x9", "", "benign", 1), ("x1", "", "benign", 2)]
    (rows,) = make_rows([write_set(tmp_path, rows, known=False)], Policy())
    assert groups(rows) == {"x1": "set:x1", "x9": "set:x9", "x10": "set:x9"}


def test_excluded_flags_exclude_with_the_option_as_reason(tmp_path):
    (rows,) = make_rows([write_set(tmp_path, COPIES, flags=("doppler",))], Policy(exclude=("doppler",)))
    assert set(excluded(rows).values()) == {"flagged: --exclude doppler"}
    (rows,) = make_rows([write_set(tmp_path, COPIES)], Policy(exclude=("duplicate",)))
    assert excluded(rows) == {
        "a": "flagged: --exclude duplicate",
        "b": "flagged: --exclude duplicate",
        "c": "",
        "d": "",
    }


def test_an_unknown_flag_is_an_error_that_lists_the_known_ones(tmp_path):
    with pytest.raises(ConfigError, match="dopler.*\n.*doppler"):
        make_rows([write_set(tmp_path, COPIES)], Policy(exclude=("dopler",)))


# Codes.


def test_every_problem_that_the_package_reports_has_a_code_of_the_table():
    package = Path(__file__).resolve().parents[1] / "bus_smp"
    calls = [
        node
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Problem" and len(node.args) > 0
    ]
    codes = {node.args[0].value for node in calls if isinstance(node.args[0], ast.Constant)}
    # Duplicates are chosen by a variable; "other" is no problem that is reported.
    assert codes | {"duplicate", "near-duplicate", "other"} == set(CODES)


def test_a_reason_is_read_by_its_code_and_words_without_a_code_still_exclude():
    cells = [
        str(Problem("no-mask")),
        "",
        "size-mismatch: mask 4x3, image 5x3",
        "near-duplicate of a",
        "by hand",
    ]
    assert cells[0] == "no-mask: image without mask"
    assert [exclusion_code(cell) for cell in cells if cell] == ["no-mask", "size-mismatch", "other", "other"]
    assert count_exclusions(cells) == {"no-mask": 1, "other": 2, "size-mismatch": 1}


# Size mismatch.


@pytest.fixture
def mismatched(tmp_path):
    data = write_set(tmp_path, [(f"i{k}", f"P{k}", "benign", k) for k in range(4)])
    Image.open(tmp_path / "i0.png").resize((48, 36)).save(tmp_path / "i0.png")
    return audit_folder("set", [image.record for image in data.images], tmp_path)


def test_a_mismatched_image_is_excluded_by_default(mismatched):
    frame = make_manifests([mismatched])[0].frame.set_index("image_id")
    assert frame.loc["i0", "excluded"] == "size-mismatch: mask 96x72, image 48x36"
    assert frame.loc["i0", "split"] == ""


def test_resize_keeps_a_mismatched_image_and_reads_its_mask_at_the_images_size(mismatched):
    (manifest,) = make_manifests([mismatched], Policy(on_mismatch="resize"))
    row = manifest.frame.set_index("image_id", drop=False).loc["i0"]
    assert (row["excluded"], row["flags"]) == ("", "size_mismatch")
    image, mask = read_example(manifest, row)
    assert image.shape == (36, 48, 3)
    assert mask.shape == (36, 48)
    assert set(np.unique(mask)) == {0, 1}


def test_error_stops_and_names_the_mismatched_images(mismatched):
    with pytest.raises(DataError, match="1 mask.*set/i0.*\n.*--on-mismatch"):
        make_rows([mismatched], Policy(on_mismatch="error"))


# Reading examples.


def test_an_example_is_the_image_and_the_mask_of_its_row(tmp_path):
    (manifest,) = make_manifests([write_set(tmp_path, COPIES)])
    for row in (*manifest.frame.itertuples(), manifest.frame.iloc[0], manifest.frame.iloc[0].to_dict()):
        image, mask = read_example(manifest, row)
        assert (image == read_image(manifest.image_path(row))).all()
        assert mask.max() in (1, 2)


def test_a_missing_image_is_named(tmp_path):
    (manifest,) = make_manifests([write_set(tmp_path, COPIES)])
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        read_example(manifest, manifest.frame.iloc[0])


def test_sizes_that_differ_without_the_flag_are_an_error(tmp_path):
    (manifest,) = make_manifests([write_set(tmp_path, COPIES)])
    Image.open(tmp_path / "a_mask.png").resize((48, 36)).save(tmp_path / "a_mask.png")
    with pytest.raises(ImageError, match=r"a_mask\.png"):
        read_example(manifest, manifest.frame.iloc[0])
    Image.open(tmp_path / "a.png").resize((48, 36)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is 48x36, but was 96x72"):
        read_example(manifest, manifest.frame.iloc[0])


# Several data sets.


def many(prefix, start, count=8):
    return [(f"{prefix}{k}", f"{prefix}{k}", LABELS[1 + k % 2], start + k) for k in range(count)]


def test_a_picture_in_two_data_sets_is_flagged_in_both_and_is_one_group_in_one_split(tmp_path):
    one = write_set(tmp_path / "1", [*many("p", 0), ("x", "X", "benign", 99)], "one")
    two = write_set(tmp_path / "2", [*many("q", 20), ("y", "Y", "benign", 99)], "two")
    manifests = make_manifests([two, one])
    rows = combine(manifests).frame.set_index("image_id")  # combine refuses a leak
    assert rows.loc["x", "flags"] == "duplicate:two/y"
    assert rows.loc["y", "flags"] == "duplicate:one/x"
    assert rows.loc["x", "group_id"] == rows.loc["y", "group_id"] == "one:X"
    assert rows.loc["x", "split"] == rows.loc["y", "split"]
    assert manifests[1].about["audit"]["other_datasets"] == ["one"]


@pytest.mark.parametrize("seed", range(6))
def test_shared_pictures_never_end_in_two_splits_or_folds(tmp_path, seed):
    shared = [(f"s{k}", f"s{k}", "benign", 100 + k) for k in range(5)]
    one = write_set(tmp_path / "1", [*many("p", 0), *shared], "one")
    two = write_set(tmp_path / "2", [*many("q", 20), *shared], "two")
    manifests = make_manifests([one, two], Policy(duplicates="group"), SplitPlan(seed=seed, folds=3))
    assert set(combine(manifests).frame["split"]) == {"train", "val", "test"}


def test_contradicting_labels_in_two_data_sets_exclude_both(tmp_path):
    one = write_set(tmp_path / "1", [*many("p", 0), ("x", "X", "benign", 99)], "one")
    two = write_set(tmp_path / "2", [*many("q", 20), ("y", "Y", "malignant", 99)], "two")
    first, second = make_rows([one, two], Policy())
    assert excluded(first)["x"] == "label-conflict: labelled benign, same picture as two/y (malignant)"
    assert excluded(second)["y"] == "label-conflict: labelled malignant, same picture as one/x (benign)"


def earlier_image(data, image_id, group_id, place):
    """The image as one of a manifest made earlier."""
    image = next(image for image in data.images if image.record.image_id == image_id)
    return ComparedImage(
        "old", f"old {image_id}", image.record.label, group_id, image.sha256, image.fingerprint, place=place
    )


def test_a_picture_of_an_earlier_manifest_takes_its_group_and_split(tmp_path):
    data = write_set(tmp_path, many("p", 0))
    for split in ("train", "val", "test"):
        (manifest,) = make_manifests([data], earlier=[earlier_image(data, "p2", "old:Z", (split, ""))])
        row = manifest.frame.set_index("image_id").loc["p2"]
        assert (row["group_id"], row["split"], row["flags"]) == ("old:Z", split, "duplicate:old/old p2")


def test_a_patient_whose_pictures_lie_in_two_splits_elsewhere_is_excluded(tmp_path):
    data = write_set(tmp_path, [*many("p", 0), ("x", "p1", "benign", 50)])
    known = [
        earlier_image(data, "p1", "old:A", ("train", "")),
        earlier_image(data, "x", "old:B", ("test", "")),
    ]
    (manifest,) = make_manifests([data], earlier=known)
    frame = manifest.frame.set_index("image_id")
    assert set(frame.index[frame["excluded"] != ""]) == {"p1", "x"}
    assert frame.loc["x", "excluded"].startswith("shared-group: ")


# Splits.


def test_named_test_patients_are_the_test_split_with_all_who_share_their_pictures(tmp_path):
    data = write_set(tmp_path, [*many("p", 0), ("x", "X", "malignant", 3)])
    (manifest,) = make_manifests([data], plan=SplitPlan(test_patients=("X", "set:p5")))
    assert set(manifest.used("test")["patient_id"]) == {"X", "p3", "p5"}
    assert manifest.about["splits"]["notes"] == ["in test with a patient of the same group: p3"]


def test_an_unknown_test_patient_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="nobody.*\n.*p0"):
        make_manifests([write_set(tmp_path, many("p", 0))], plan=SplitPlan(test_patients=("nobody",)))


def test_an_official_split_is_taken_and_one_that_does_not_exist_is_refused(tmp_path):
    rows = [(*row, "test" if row[0] in ("p1", "p2") else "train") for row in many("p", 0)]
    (manifest,) = make_manifests([write_set(tmp_path / "1", rows)], plan=SplitPlan(official=True))
    assert set(manifest.used("test")["image_id"]) == {"p1", "p2"}
    assert manifest.about["splits"]["how"] == "official test patients"
    with pytest.raises(ConfigError, match="published no split"):
        make_manifests([write_set(tmp_path / "2", many("p", 0))], plan=SplitPlan(official=True))


def test_a_given_split_is_respected(tmp_path):
    rows = [(*row, ("train", "test", "val")[k % 3]) for k, row in enumerate(many("p", 0))]
    (manifest,) = make_manifests([write_set(tmp_path, rows, split_given=True)])
    assert dict(zip(manifest.frame["image_id"], manifest.frame["split"], strict=True)) == {
        r[0]: r[4] for r in rows
    }


def test_a_given_split_that_tears_a_group_is_an_error_that_names_it(tmp_path):
    rows = [(*row, "train") for row in many("p", 0)] + [("x", "X", "malignant", 3, "test")]
    with pytest.raises(ManifestError, match=r"(?s)group set:p3 \(patients p3, X\) in train: p3.*test: x"):
        make_manifests([write_set(tmp_path, rows, split_given=True)])


def test_nothing_left_to_use_is_an_error_with_the_reasons(tmp_path):
    data = write_set(tmp_path, COPIES, problems=(Problem("no-mask"),))
    with pytest.raises(DataError, match="all 4 images are excluded.*4 no-mask"):
        make_manifests([data])


def test_a_label_that_no_used_image_has_is_said(tmp_path):
    rows = [(f"i{n}", f"p{n}", "benign", n) for n in range(12)]
    manifest = make_manifests([write_set(tmp_path / "set", rows)])[0]
    assert "no malignant image is used: the data set has none" in manifest.about["splits"]["warnings"]
    assert not any("normal" in warning for warning in manifest.about["splits"]["warnings"])


def test_a_label_that_contradicted_its_mask_elsewhere_does_not_condemn_the_right_one(tmp_path):
    rows = [(f"i{n}", f"p{n}", LABELS[1 + n % 2], n) for n in range(8)]
    earlier = make_manifests([write_set(tmp_path / "earlier", rows, dataset="earlier")])[0]
    frame = earlier.frame.copy()
    wrong = frame["image_id"] == "i0"
    frame.loc[wrong, ["label", "flags", "excluded", "split"]] = [
        "malignant",
        "label_mismatch",
        "label mismatch",
        "",
    ]
    write_manifest(Manifest(frame, earlier.roots, earlier.about), tmp_path / "out" / "earlier.csv")
    known, _ = fingerprint_earlier(tmp_path / "out", ["new"])
    rows = make_rows([write_set(tmp_path / "new", rows, dataset="new")], Policy(), known)[0]
    assert rows.frame.set_index("image_id").loc["i0", "excluded"] == ""
