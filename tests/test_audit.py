"""Looking at files: every oddity is found and written down, nothing is lost."""

import numpy as np
import pytest
from PIL import Image

from bus_smp.classes import LABELS
from bus_smp.data.audit import audit_folder, guess_mask_format
from bus_smp.data.exclusions import Problem
from bus_smp.data.images import color_mask
from bus_smp.data.make_manifests import group_unit, make_manifests
from bus_smp.data.sources import Record, bus_uclm, busi
from bus_smp.data.synthetic import SIZE, UCLM_PATIENTS, draw, write_bus_uclm


def record(name, label="benign", **changes):
    about = {"masks": (f"{name}_mask.png",), "mask_format": "binary", "patient_id": f"patient {name}"}
    return Record(**{"image_id": name, "image": f"{name}.png", "label": label, **about, **changes})


def write_case(folder, name, label="benign", mask_label=None, size=SIZE):
    """An image and its colour mask; the same name is the same picture."""
    grey, masks = draw(np.random.default_rng(list(name.encode())), label, size)
    mask = np.any(masks, axis=0) if masks else np.zeros(grey.shape, bool)
    if mask_label and not masks:
        mask[10:30, 10:30] = True
    Image.fromarray(grey).save(folder / f"{name}.png")
    colours = color_mask(mask * np.uint8(LABELS.index(mask_label or label)))
    Image.fromarray(colours).save(folder / f"{name}_mask.png")


def audit(folder, *records):
    return {image.record.image_id: image for image in audit_folder("set", records, folder).images}


def first_problem(image):
    return str(image.problems[0]) if image.problems else ""


def test_a_sound_image_has_its_size_hash_and_no_flag(tmp_path):
    write_case(tmp_path, "a")
    image = audit(tmp_path, record("a", mask_format="color"))["a"]
    assert (image.width, image.height) == SIZE
    assert len(image.sha256) == len(image.fingerprint.phash) == 64
    assert (image.flags, image.problems) == ((), ())


def test_a_truncated_image_or_mask_is_excluded_with_its_file_named_without_the_folder(tmp_path):
    for name in "ab":
        write_case(tmp_path, name)
    for file in ("a.png", "b_mask.png"):
        data = (tmp_path / file).read_bytes()
        (tmp_path / file).write_bytes(data[: len(data) // 2])
    found = audit(tmp_path, record("a", mask_format="color"), record("b", mask_format="color"))
    assert found["a"].flags == found["b"].flags == ("unreadable",)
    assert first_problem(found["a"]).startswith("unreadable: a.png")
    assert first_problem(found["b"]).startswith("unreadable: b_mask.png")
    assert found["b"].sha256  # the image itself can still be compared


def test_an_unlisted_colour_is_excluded_with_file_and_colour(tmp_path):
    write_case(tmp_path, "a")
    mask = np.array(Image.open(tmp_path / "a_mask.png"))
    mask[3, 4] = (0, 0, 255)
    Image.fromarray(mask).save(tmp_path / "a_mask.png")
    image = audit(tmp_path, record("a", mask_format="color"))["a"]
    assert image.flags == ("mask_colours",)
    assert "a_mask.png" in first_problem(image)
    assert "(0, 0, 255)" in first_problem(image)


def test_a_label_that_contradicts_the_mask_is_excluded(tmp_path):
    write_case(tmp_path, "red", "benign", mask_label="malignant")
    write_case(tmp_path, "green", "malignant", mask_label="benign")
    write_case(tmp_path, "lesion", "normal", mask_label="benign")
    found = audit(
        tmp_path,
        record("red", "benign", mask_format="color"),
        record("green", "malignant", mask_format="color"),
        record("lesion", "normal", mask_format="color"),
    )
    for image in found.values():
        assert image.flags == ("label_mismatch",)
    assert (
        first_problem(found["red"])
        == "label-mismatch: labelled benign, but the mask marks a malignant lesion"
    )
    assert first_problem(found["lesion"]).startswith("label-mismatch: labelled normal")


def test_a_binary_lesion_mask_contradicts_normal_and_an_empty_one_contradicts_a_lesion(tmp_path):
    for name, marked in (("n", True), ("b", False)):
        write_case(tmp_path, name, "normal")
        mask = np.zeros(SIZE[::-1], np.uint8)
        mask[5:9, 5:9] = 255 * marked
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    found = audit(tmp_path, record("n", "normal"), record("b", "benign"))
    assert found["n"].flags == ("label_mismatch",)
    assert found["b"].flags == ("empty_mask",)
    assert first_problem(found["b"]) == "empty-mask: the image is labelled benign"


def test_images_without_mask_and_masks_without_image_keep_their_rows(tmp_path):
    write_case(tmp_path, "a")
    write_case(tmp_path, "n", "normal")
    found = audit(
        tmp_path,
        record("a", masks=()),
        record("n", "normal", masks=()),
        record("m", image="", masks=("a_mask.png",)),
    )
    assert (found["a"].flags, first_problem(found["a"])) == (("no_mask",), "no-mask: image without mask")
    assert (found["n"].flags, first_problem(found["n"])) == ((), "")  # a normal image needs none
    assert first_problem(found["m"]) == "no-image: mask without image"


def test_a_size_mismatch_is_a_problem_with_both_sizes(tmp_path):
    write_case(tmp_path, "a")
    Image.open(tmp_path / "a.png").resize((80, 60)).save(tmp_path / "a.png")
    image = audit(tmp_path, record("a", mask_format="color"))["a"]
    assert image.flags == ("size_mismatch",)
    assert image.problems == (Problem("size-mismatch", "mask 160x120, image 80x60"),)


def test_what_the_source_knows_is_kept(tmp_path):
    write_case(tmp_path, "a")
    image = audit(
        tmp_path,
        record("a", mask_format="color", flags=("doppler",), problems=(Problem("copy", "copy of b.png"),)),
    )["a"]
    assert (image.flags, first_problem(image)) == (("doppler",), "copy: copy of b.png")


def test_the_format_of_a_mask_is_guessed_from_its_values_and_colours(tmp_path):
    for values, expected in (
        ([0, 255], "binary"), ([0, 1], "binary"), ([0, 0], "binary"), ([0, 2], "index"), ([0, 1, 2], "index"),
    ):  # fmt: skip
        Image.fromarray(np.resize(np.array(values, np.uint8), (8, 8))).save(tmp_path / "grey.png")
        assert guess_mask_format([tmp_path / "grey.png"]) == expected, values
    Image.fromarray(color_mask(np.ones((8, 8), np.uint8))).save(tmp_path / "green.png")
    assert guess_mask_format([tmp_path / "grey.png", tmp_path / "green.png"]) == "color"


def test_rows_come_in_natural_order_from_records_in_any_order(tmp_path):
    for name in ("x2", "x10", "x1"):
        write_case(tmp_path, name)
    assert list(audit(tmp_path, record("x10"), record("x2"), record("x1"))) == ["x1", "x2", "x10"]


# The synthetic trees hold the oddities of the real ones.


def test_bus_uclm_oddities_come_out_as_in_the_real_data(tmp_path):
    patients = {code: UCLM_PATIENTS[code] for code in ("CHCO", "CHVI", "HESN", "PAGY", "SIBA")}
    tree = write_bus_uclm(tmp_path, patients, size=(96, 72))
    (manifest,) = make_manifests([audit_folder("bus-uclm", bus_uclm.records(tree), tree)])
    frame = manifest.frame.set_index("image_id")
    assert set(frame.loc[frame["patient_id"].isin(["CHCO", "CHVI"]), "group_id"]) == {"bus-uclm:CHCO"}
    assert frame["group_id"].nunique() == frame["patient_id"].nunique() - 1
    assert (frame.loc[["HESN_000", "HESN_001"], "flags"] == "size_mismatch").all()
    assert frame.loc["HESN_000", "excluded"].startswith("size-mismatch: mask 96x72")
    assert frame.loc["SIBA_001 (1)", "excluded"] == "copy: copy of SIBA_001.png"
    assert frame.loc["SIBA_003", "excluded"] == ""
    assert "copy" in frame.loc["SIBA_003", "flags"].split("|")
    assert "doppler" in frame.loc["PAGY_001", "flags"].split("|")  # the stray Y
    assert "duplicate:CHVI_001" in frame.loc["CHCO_000", "flags"].split("|")
    assert manifest.about["audit"]["merged_groups"] == {"bus-uclm:CHCO": ["CHCO", "CHVI"]}
    assert group_unit(manifest.frame) == "patients"


def test_busi_oddities_come_out_as_in_the_real_data(busi_tree):
    (manifest,) = make_manifests([audit_folder("busi", busi.records(busi_tree), busi_tree)])
    frame = manifest.frame.set_index("image_id")
    assert frame.loc["malignant (4)", "masks"].count("|") == 2
    assert frame.loc["malignant (4)", "flags"] == "several_masks"
    assert frame.loc["benign (6)", "excluded"] == "near-duplicate: of benign (5)"
    assert frame.loc["benign (5)", "excluded"] == ""
    for image, other in (("malignant (5)", "benign (4)"), ("malignant (8)", "benign (11)")):
        assert "label_conflict" in frame.loc[image, "flags"].split("|")
        assert other in frame.loc[image, "excluded"]
        assert image in frame.loc[other, "excluded"]
    assert not frame["patient_known"].any()
    assert "no patient ids" in group_unit(manifest.frame)


# The real data.


@pytest.fixture(scope="module")
def real(real_data, tmp_path_factory):
    """Both real data sets made together, without and with near-duplicates dropped."""
    from bus_smp.data.sources import find_known

    folders = [audit_folder(m.NAME, m.records(root), root) for m, root in find_known(real_data)]
    return {manifest.datasets[0]: manifest for manifest in make_manifests(folders)}


@pytest.mark.real
@pytest.mark.slow
def test_real_bus_uclm(real):
    manifest = real["bus-uclm"]
    frame = manifest.frame
    flags = frame["flags"].str.split("|")
    assert len(frame) == 683
    assert frame["patient_id"].nunique() == 38
    assert frame["group_id"].nunique() == 37
    assert set(frame.loc[frame["patient_id"] == "CHVI", "group_id"]) == {"bus-uclm:CHCO"}
    mismatched = frame[flags.map(lambda f: "size_mismatch" in f)]
    assert set(mismatched["patient_id"]) == {"HESN"}
    assert len(mismatched) == 13
    assert mismatched["excluded"].str.startswith("size-mismatch: ").all()
    assert flags.map(lambda f: "doppler" in f or "combined" in f).sum() == 43
    malignant = frame[frame["label"] == "malignant"]
    assert malignant["patient_id"].nunique() == 17
    assert malignant["group_id"].nunique() == 16
    assert "HESN" not in set(malignant["patient_id"])  # so the counts hold with and without it
    assert len(manifest.used()) == 670


@pytest.mark.real
@pytest.mark.slow
def test_real_busi(real):
    manifest = real["busi"]
    frame = manifest.frame.set_index("image_id")
    assert len(frame) == 780
    assert frame["masks"].str.contains("|", regex=False).sum() == 17
    groups = "B131,B42,M51 B164,B85,M52 B333,M77 B399,M93 B406,M94 B433,M145 B269,N1 B437,N34"
    words = {"B": "benign", "M": "malignant", "N": "normal"}
    for group in groups.split():
        images = [f"{words[short[0]]} ({short[1:]})" for short in group.split(",")]
        assert frame.loc[images, "group_id"].nunique() == 1
        assert frame.loc[images, "excluded"].str.startswith("label-conflict: ").all()
    conflicts = frame[frame["flags"].str.contains("label_conflict")]
    assert conflicts["group_id"].nunique() == 8
    assert 200 <= frame["flags"].str.contains("duplicate:").sum() <= 340
