"""What follows from the findings: which images are used, which patients form a group, and where shared pictures go."""

import ast
from dataclasses import replace
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
from bus_smp.errors import ConfigError, DataError, ImageError


def write_set(folder, rows, dataset="set", known=True, **changes):
    """An audited data set. ``rows``: (image id, patient, label, picture); equal pictures are equal pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for name, patient, label, picture in rows:
        grey, masks = draw(np.random.default_rng(picture), "benign", (96, 72))
        Image.fromarray(grey).save(folder / f"{name}.png")
        mask = masks[0] * np.uint8(LABELS.index(label))
        Image.fromarray(color_mask(mask)).save(folder / f"{name}_mask.png")
        records.append(
            Record(
                name, f"{name}.png", (f"{name}_mask.png",), "color", label, patient,
                patient_known=known, **changes,
            )
        )  # fmt: skip
    return audit_folder(dataset, records, folder)


COPIES = [
    ("a", "P", "benign", 1),
    ("b", "Q", "benign", 1),
    ("c", "R", "benign", 2),
    ("d", "S", "malignant", 3),
]
CONFLICT = [*COPIES, ("e", "T", "malignant", 2)]


@pytest.fixture(scope="module")
def copies(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("copies"), COPIES)


@pytest.fixture(scope="module")
def conflict(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("conflict"), CONFLICT)


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Eight patients with an image each, none alike."""
    return write_set(tmp_path_factory.mktemp("eight"), many("p", 0))


@pytest.fixture(scope="module")
def sharing(tmp_path_factory):
    """Two data sets that share a picture under one label, five pictures, and a picture under two labels."""
    shared = [(f"s{k}", f"s{k}", "benign", 100 + k) for k in range(5)]
    one = [*many("p", 0), *shared, ("x", "X", "benign", 99), ("c", "C", "benign", 98)]
    two = [*many("q", 20), *shared, ("y", "Y", "benign", 99), ("d", "D", "malignant", 98)]
    folder = tmp_path_factory.mktemp("sharing")
    return write_set(folder / "1", one, "one"), write_set(folder / "2", two, "two")


def excluded(rows):
    return dict(zip(rows.frame["image_id"], rows.frame["excluded"], strict=True))


def groups(rows):
    return dict(zip(rows.frame["image_id"], rows.frame["group_id"], strict=True))


def test_patients_who_share_a_picture_are_one_group_and_the_policy_says_which_images_are_used(conflict):
    words = "label-conflict: labelled {}, same picture as {}"
    contradicting = {
        "c": words.format("benign", "e (malignant)"),
        "e": words.format("malignant", "c (benign)"),
    }
    for duplicates, out in (
        ("drop", {"b": "duplicate: of a", **contradicting}),
        ("group", contradicting),
        ("keep", {}),
    ):
        (rows,) = make_rows([conflict], Policy(duplicates=duplicates))
        assert groups(rows) == {"a": "set:P", "b": "set:P", "c": "set:R", "d": "set:S", "e": "set:R"}
        assert {image: why for image, why in excluded(rows).items() if why} == out
        flags = dict(zip(rows.frame["image_id"], rows.frame["flags"], strict=True))
        assert flags["c"] == "duplicate:e|label_conflict"


def test_one_picture_many_times_is_one_group_and_its_findings_grow_linearly_with_the_images(tmp_path):
    same = [(f"i{n}", f"P{n}", "malignant" if n == 14 else "benign", 1) for n in range(15)]
    one = write_set(tmp_path / "one", same[:14], dataset="one")
    two = write_set(tmp_path / "two", same, dataset="two")
    first, second = make_rows([one, two], Policy(duplicates="group"))
    assert set(groups(first).values()) | set(groups(second).values()) == {"one:P0"}
    # Each with the next, and the first with the other set's first.
    assert len(first.pairs) == 13 + 1 and len(second.pairs) == 14 + 1
    assert first.frame["flags"].str.contains("duplicate:").all()
    for reason in excluded(first).values():
        assert "two/i14 (malignant)" in reason, "the contradicting label is named"
        assert reason.endswith("17 more") or reason.endswith("16 more")
    assert excluded(second)["i14"].startswith(
        "label-conflict: labelled malignant, same picture as one/i0 (benign)"
    )


def test_drop_does_not_keep_an_image_that_is_excluded_anyway(tmp_path):
    data = write_set(tmp_path, COPIES)
    Image.fromarray(np.zeros((10, 10, 3), np.uint8)).save(tmp_path / "a_mask.png")
    again = audit_folder("set", [image.record for image in data.images], tmp_path)
    (rows,) = make_rows([again], Policy(duplicates="drop"))
    assert excluded(rows)["a"] != ""
    assert excluded(rows)["b"] == ""


def test_images_without_patient_ids_form_groups_of_copies_called_after_the_first_which_alone_is_used(
    tmp_path, copies
):
    rows = [("x10", "", "benign", 1), ("x9", "", "benign", 1), ("x1", "", "benign", 2)]
    (rows,) = make_rows([write_set(tmp_path, rows, known=False)], Policy())
    assert groups(rows) == {"x1": "set:x1", "x9": "set:x9", "x10": "set:x9"}
    assert rows.duplicates == "drop" and make_rows([copies], Policy())[0].duplicates == "group"


def test_excluded_flags_exclude_with_the_option_as_reason_and_an_unknown_one_is_refused(tmp_path, copies):
    (rows,) = make_rows([write_set(tmp_path, COPIES[:2], flags=("doppler",))], Policy(exclude=("doppler",)))
    assert set(excluded(rows).values()) == {"flagged: --exclude doppler"}
    (rows,) = make_rows([copies], Policy(exclude=("duplicate",)))
    reason = "flagged: --exclude duplicate"
    assert excluded(rows) == {"a": reason, "b": reason, "c": "", "d": ""}
    with pytest.raises(ConfigError, match="dopler.*\n.*doppler"):
        make_rows([copies], Policy(exclude=("dopler",)))


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


def test_a_mask_of_another_size_excludes_the_image_or_is_resized_or_stops(tmp_path):
    data = write_set(tmp_path, [(f"i{k}", f"P{k}", "benign", k) for k in range(4)])
    Image.open(tmp_path / "i0.png").resize((48, 36)).save(tmp_path / "i0.png")
    mismatched = audit_folder("set", [image.record for image in data.images], tmp_path)
    frame = make_manifests([mismatched])[0].frame.set_index("image_id")
    assert frame.loc["i0", "excluded"] == "size-mismatch: mask 96x72, image 48x36"
    assert frame.loc["i0", "split"] == ""
    (manifest,) = make_manifests([mismatched], Policy(on_mismatch="resize"))
    row = manifest.frame.set_index("image_id", drop=False).loc["i0"]
    assert (row["excluded"], row["flags"]) == ("", "size_mismatch")
    image, mask = read_example(manifest, row)
    assert image.shape == (36, 48, 3)
    assert mask.shape == (36, 48)
    assert set(np.unique(mask)) == {0, 1}
    with pytest.raises(DataError, match="1 mask.*set/i0.*\n.*--on-mismatch"):
        make_rows([mismatched], Policy(on_mismatch="error"))


# Reading examples.


def test_an_example_is_the_image_and_the_mask_of_its_row(copies):
    (manifest,) = make_manifests([copies])
    for row in (*manifest.frame.itertuples(), manifest.frame.iloc[0], manifest.frame.iloc[0].to_dict()):
        image, mask = read_example(manifest, row)
        assert (image == read_image(manifest.image_path(row))).all()
        assert mask.max() in (1, 2)
    edited = manifest.frame.set_index("image_id", drop=False).loc["d"].to_dict() | {"label": "benign"}
    with pytest.raises(ImageError, match="labelled benign, but its mask marks malignant"):
        read_example(manifest, edited)


def test_a_file_that_is_missing_or_has_another_size_than_it_had_is_an_error(tmp_path):
    (manifest,) = make_manifests([write_set(tmp_path, COPIES)])
    Image.open(tmp_path / "a_mask.png").resize((48, 36)).save(tmp_path / "a_mask.png")
    with pytest.raises(ImageError, match=r"a_mask\.png"):
        read_example(manifest, manifest.frame.iloc[0])
    Image.open(tmp_path / "a.png").resize((48, 36)).save(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is 48x36, but was 96x72"):
        read_example(manifest, manifest.frame.iloc[0])
    (tmp_path / "a.png").unlink()
    with pytest.raises(ImageError, match=r"a\.png: no such file"):
        read_example(manifest, manifest.frame.iloc[0])


# Several data sets.


def many(prefix, start, count=8):
    return [(f"{prefix}{k}", f"{prefix}{k}", LABELS[1 + k % 2], start + k) for k in range(count)]


def test_a_picture_in_two_data_sets_is_one_group_in_one_split_or_excluded_where_labels_contradict(sharing):
    one, two = sharing
    manifests = make_manifests([two, one])
    # combine refuses a group or a picture in two splits.
    rows = combine(manifests).frame.set_index("image_id")
    assert rows.loc["x", "flags"] == "duplicate:two/y"
    assert rows.loc["y", "flags"] == "duplicate:one/x"
    assert rows.loc["x", "group_id"] == rows.loc["y", "group_id"] == "one:X"
    assert rows.loc["x", "split"] == rows.loc["y", "split"]
    assert manifests[1].about["audit"]["other_datasets"] == ["one"]
    assert rows.loc["c", "excluded"] == "label-conflict: labelled benign, same picture as two/d (malignant)"
    assert rows.loc["d", "excluded"] == "label-conflict: labelled malignant, same picture as one/c (benign)"


def test_shared_pictures_never_end_in_two_splits_or_folds(sharing):
    for seed in range(6):
        manifests = make_manifests(sharing, Policy(duplicates="group"), SplitPlan(seed=seed, folds=3))
        assert set(combine(manifests).used()["split"]) == {"train", "val", "test"}


def earlier_image(data, image_id, group_id, place):
    """The image as one of a manifest made earlier."""
    image = next(image for image in data.images if image.record.image_id == image_id)
    return ComparedImage(
        "old", f"old {image_id}", image.record.label, group_id, image.sha256, image.fingerprint, place=place
    )


def test_a_picture_of_an_earlier_manifest_takes_its_group_and_split(eight):
    for split in ("train", "val", "test"):
        (manifest,) = make_manifests([eight], earlier=[earlier_image(eight, "p2", "old:Z", (split, ""))])
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


def test_test_patients_or_an_official_split_that_do_not_exist_are_refused(eight):
    with pytest.raises(ConfigError, match="nobody.*\n.*p0"):
        make_manifests([eight], plan=SplitPlan(test_patients=("nobody",)))
    with pytest.raises(ConfigError, match="published no split"):
        make_manifests([eight], plan=SplitPlan(official=True))


def test_nothing_left_to_use_is_an_error_with_the_reasons(copies):
    images = [replace(image, problems=(Problem("no-mask"),)) for image in copies.images]
    data = replace(copies, images=images)
    with pytest.raises(DataError, match="all 4 images are excluded.*4 no-mask"):
        make_manifests([data])


def test_a_label_that_no_used_image_has_is_a_warning(tmp_path):
    rows = [(f"i{n}", f"p{n}", "benign", n) for n in range(4)]
    manifest = make_manifests([write_set(tmp_path / "set", rows)])[0]
    assert "no malignant image is used: the data set has none" in manifest.about["splits"]["warnings"]
    assert not any("normal" in warning for warning in manifest.about["splits"]["warnings"])


def test_a_label_that_contradicted_its_mask_elsewhere_does_not_condemn_the_right_one(tmp_path):
    rows = [(f"i{n}", f"p{n}", LABELS[1 + n % 2], n) for n in range(4)]
    earlier = make_manifests([write_set(tmp_path / "earlier", rows, dataset="earlier")])[0]
    frame = earlier.frame.copy()
    wrong = frame["image_id"] == "i0"
    cells = {"label": "malignant", "flags": "label_mismatch", "excluded": "label mismatch", "split": ""}
    frame.loc[wrong, list(cells)] = list(cells.values())
    write_manifest(Manifest(frame, earlier.roots, earlier.about), tmp_path / "out" / "earlier.csv")
    known, _ = fingerprint_earlier(tmp_path / "out", ["new"])
    rows = make_rows([write_set(tmp_path / "new", rows, dataset="new")], Policy(), known)[0]
    assert rows.frame.set_index("image_id").loc["i0", "excluded"] == ""
