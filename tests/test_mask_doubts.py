"""Wrong truth does not pass: each kind is found, not used, and read rightly once the user has answered."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from conftest import ended, invoke
from PIL import Image

from bus_smp.classes import LABELS
from bus_smp.data.audit import audit_folder
from bus_smp.data.examples import read_example
from bus_smp.data.images import color_mask
from bus_smp.data.make_manifests import make_manifests
from bus_smp.data.manifest import read_manifest
from bus_smp.data.mask_doubts import MaskAnswers
from bus_smp.data.sources import Record, breast, bus_bra, bus_uclm, busi, udiat
from bus_smp.data.synthetic import draw
from bus_smp.errors import DataError

SIZE = (96, 72)


def lesion_of(number, label):
    grey, masks = draw(np.random.default_rng(number), label, SIZE)
    return grey, masks[0]


def write_set(folder, write, count=6, suffix=".png", wrong=range(100), mask_format=""):
    """Images with a lesion each, benign and malignant in turn.

    ``write``: (lesion bool (H, W), label) -> image file, for the numbers ``wrong``; the others are 0 and 255.
    """
    records, truth = [], {}
    for number in range(count):
        label = LABELS[1 + number % 2]
        grey, lesion = lesion_of(number, label)
        Image.fromarray(grey).save(folder / f"{number}.png")
        mask = write(lesion, label) if number in wrong else Image.fromarray(lesion)
        file = f"{number}_mask{suffix}" if number in wrong else f"{number}_mask.png"
        mask.save(folder / file)
        records.append(Record(str(number), f"{number}.png", (file,), mask_format, label, f"P{number}"))
        truth[str(number)] = lesion * LABELS.index(label)
    return records, truth


def audit(folder, records, **answers):
    return audit_folder("set", records, folder, answers=MaskAnswers(**answers))


def codes(folder):
    return [image.problems[0].code if image.problems else "" for image in folder.images]


def grey(levels):
    return Image.fromarray(levels.astype(np.uint8))


def soft(levels):
    return cv2.GaussianBlur(levels.astype(np.uint8), (3, 3), 0)


def numbered(lesion, numbers):
    """Strips of the lesion, numbered in turn and parted by a gap."""
    columns = np.arange(lesion.shape[1]) // 4
    return lesion * np.array(numbers)[columns % len(numbers)]


def classes(lesion, label, exchanged=False):
    return lesion * np.uint8(3 - LABELS.index(label) if exchanged else LABELS.index(label))


def with_alpha(lesion, value):
    return Image.fromarray(np.dstack([np.full((*lesion.shape, 3), value, np.uint8), lesion * np.uint8(255)]))


def palette(lesion):
    """Index 1 in the dark red of VOC's palette, as labelme writes it."""
    image = Image.fromarray(lesion.astype(np.uint8), "L").convert("P")
    image.putdata(lesion.astype(int).ravel().tolist())
    image.putpalette([0, 0, 0, 128, 0, 0])
    return image


KINDS = {
    "inverted": (lambda m, label: grey(~m * 255), "inverted-mask", {"invert": True}),
    "inverted, 1-bit": (lambda m, label: Image.fromarray(~m), "inverted-mask", {"invert": True}),
    "inverted, in colours": (
        lambda m, label: Image.fromarray(color_mask(classes(~m, label))), "inverted-mask", {"invert": True},
    ),
    "inverted and soft": (
        lambda m, label: grey(soft(~m * 255)), "soft-mask", {"invert": True, "values": ("half",)},
    ),
    "numbers 1 and 2": (lambda m, label: grey(numbered(m, [1, 2])), "both-classes", {"values": ("any",)}),
    "numbers 1 to 5": (lambda m, label: grey(numbered(m, [1, 2, 3, 4, 5])), "lesion-numbers", {"values": ("any",)}),
    "numbers far apart": (lambda m, label: grey(numbered(m, [80, 160])), "lesion-numbers", {"values": ("any",)}),
    "value 128": (lambda m, label: grey(m * 128), "mask-colours", {"values": ("any",)}),
    "a palette of its own": (lambda m, label: palette(m), "mask-colours", {"values": ("any",)}),
    "colours exchanged": (
        lambda m, label: Image.fromarray(color_mask(classes(m, label, True))),
        "swapped-classes", {"values": ("swapped",)},
    ),
    "outlines": (
        lambda m, label: grey(255 * (m & (cv2.erode(m * np.uint8(1), np.ones((3, 3))) == 0))),
        "outline-mask", {"values": ("filled",)},
    ),
    "soft edges": (lambda m, label: grey(soft(m * 255)), "soft-mask", {"values": ("half",)}),
    "soft colours": (
        lambda m, label: Image.fromarray(soft(color_mask(classes(m, label)))), "soft-mask", {"values": ("half",)},
    ),
    "white, the lesion in alpha": (lambda m, label: with_alpha(m, 255), "alpha-mask", {"values": ("alpha",)}),
    "black, the lesion in alpha": (lambda m, label: with_alpha(m, 0), "alpha-mask", {"values": ("alpha",)}),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_masks_in_doubt_are_not_used_until_the_answer_and_are_then_read_rightly(name, tmp_path):
    write, code, answer = KINDS[name]
    records, truth = write_set(tmp_path, write)
    doubted = audit(tmp_path, records)
    assert codes(doubted) == [code] * 6
    with pytest.raises(DataError, match=f"all 6 images are excluded.*{code}") as caught:
        make_manifests([doubted])
    assert "answer: --" in caught.value.hint
    (manifest,) = make_manifests([audit(tmp_path, records, **answer)])
    assert (manifest.frame["excluded"] == "").all()
    assert manifest.about["audit"]["findings"][code.replace("-", "_")]["count"] == 6
    recorded = {"values": "mask_values", "invert": "invert_masks"}
    for option, value in answer.items():
        assert manifest.about["options"][recorded[option]] == (value if value is True else list(value))
    for row in manifest.frame.to_dict("records"):
        mask = read_example(manifest, row)[1]
        right = truth[row["image_id"]]
        assert set(np.unique(mask)) == set(np.unique(right))
        assert (mask != right).mean() < 0.01, "soft edges move by a pixel"
        assert "soft" in name or np.array_equal(mask, right)


def test_jpeg_masks_are_soft_and_what_jpeg_adds_is_no_lesion(tmp_path):
    for number, label in enumerate(("benign", "malignant", "benign")):
        picture, lesion = lesion_of(number, label)
        Image.fromarray(picture).save(tmp_path / f"{number}.png")
        grey(lesion * 255).save(tmp_path / f"{number}.jpg", quality=50)
    records = [Record(f"{n}", f"{n}.png", (f"{n}.jpg",), "", LABELS[1 + n % 2], f"P{n}") for n in range(3)]
    assert codes(audit(tmp_path, records)) == ["soft-mask"] * 3
    assert "lie between" in str(audit(tmp_path, records).images[0].problems[0])
    (manifest,) = make_manifests([audit(tmp_path, records, values=("half",))])
    for row in manifest.frame.to_dict("records"):
        _, lesion = lesion_of(int(row["image_id"]), row["label"])
        assert ((read_example(manifest, row)[1] > 0) != lesion).mean() < 0.01


def test_jpeg_of_other_values_than_0_and_255_is_never_read_in_part(tmp_path):
    for value in (3, 128):
        records, _ = write_set(tmp_path, lambda m, label, value=value: grey(m * value), suffix=".jpg")
        assert codes(audit(tmp_path, records)) == ["soft-mask"] * 6
        assert set(codes(audit(tmp_path, records, values=("half", "any")))) <= {"soft-mask", "empty-mask"}


@pytest.mark.parametrize("name", ["inverted", "soft edges", "numbers 1 to 5", "black, the lesion in alpha"])
def test_single_masks_in_doubt_are_found_in_a_good_set_and_the_good_ones_are_used(name, tmp_path):
    write, code, answer = KINDS[name]
    records, truth = write_set(tmp_path, write, count=9, wrong=(4,))
    assert codes(audit(tmp_path, records)) == [*[""] * 4, code, *[""] * 4]
    (manifest,) = make_manifests([audit(tmp_path, records, **answer)])
    formats = manifest.frame.set_index("image_id")["mask_format"]
    assert (formats.drop("4") == "binary").all() and formats["4"] != "binary"
    rows = manifest.frame.to_dict("records")
    assert all((read_example(manifest, row)[1] != truth[row["image_id"]]).mean() < 0.01 for row in rows)


def test_numbers_1_and_2_are_lesion_numbers_where_others_of_the_set_go_further(tmp_path):
    records, _ = write_set(tmp_path, lambda m, label: grey(numbered(m, [1, 2, 3])), wrong=(0, 1))
    for number, numbers in ((2, [1, 2]), (4, [2])):
        _, lesion = lesion_of(number, "benign")
        grey(numbered(lesion, numbers)).save(tmp_path / f"{number}_mask.png")
    assert codes(audit(tmp_path, records)) == ["lesion-numbers"] * 3 + ["", "lesion-numbers", ""]
    assert codes(audit(tmp_path, records, values=("any",))) == [""] * 6


def test_a_frame_around_the_picture_is_no_inverted_mask(tmp_path):
    frame = np.pad(np.zeros((SIZE[1] - 4, SIZE[0] - 4), bool), 2, constant_values=True)
    records, _ = write_set(tmp_path, lambda m, label: grey((m | frame) * 255), wrong=(4,))
    assert codes(audit(tmp_path, records, invert=True)) == [*[""] * 4, "large-lesion", ""]


def test_the_inverted_mask_of_a_normal_image_is_inverted_with_the_others(tmp_path):
    records, _ = write_set(tmp_path, KINDS["inverted"][0])
    picture, _ = draw(np.random.default_rng(50), "normal", SIZE)
    Image.fromarray(picture).save(tmp_path / "n.png")
    grey(np.full(picture.shape, 255)).save(tmp_path / "n_mask.png")
    records.append(Record("n", "n.png", ("n_mask.png",), "", "normal", "N"))
    assert codes(audit(tmp_path, records)) == ["inverted-mask"] * 7
    (manifest,) = make_manifests([audit(tmp_path, records, invert=True)])
    row = next(row for row in manifest.frame.to_dict("records") if row["image_id"] == "n")
    assert not read_example(manifest, row)[1].any()


def test_masks_that_are_right_all_the_same_are_accepted_and_stay_a_finding(tmp_path):
    def large(m, label):
        return grey(np.pad(np.full((m.shape[0] - 10, m.shape[1] - 10), 255), 5) * ~m)

    for code, write in (
        ("large-lesion", large),
        ("both-classes", lambda m, label: Image.fromarray(color_mask(numbered(m, [1, 2]).astype(np.uint8)))),
    ):
        records, _ = write_set(tmp_path, write, count=8)
        records = [record for record in records if record.label == "malignant"]
        assert codes(audit(tmp_path, records)) == [code] * 4
        accepted = audit(tmp_path, records, accept=(code,))
        assert codes(accepted) == [""] * 4
        assert all(code.replace("-", "_") in image.flags for image in accepted.images)
        assert make_manifests([accepted])[0].about["options"]["accept"] == [code]


def test_one_mask_for_several_pictures_is_found_but_not_where_the_pictures_are_copies(tmp_path):
    records, _ = write_set(tmp_path, lambda m, label: grey(lesion_of(0, "benign")[1] * 255), wrong=(0, 2, 4))
    assert codes(audit(tmp_path, records)) == ["same-mask", ""] * 3
    picture = np.asarray(Image.open(tmp_path / "0.png"))
    for number in (2, 4):  # the same picture, re-coloured
        Image.fromarray(np.clip(picture * (0.7 + number / 10), 0, 255).astype(np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    assert codes(audit(tmp_path, records)) == [""] * 6


PLACES = {
    "mirrored": lambda m, label: grey(m[:, ::-1] * 255),
    "upside down": lambda m, label: grey(m[::-1] * 255),
    "turned by 180 degrees": lambda m, label: grey(m[::-1, ::-1] * 255),
}


@pytest.mark.parametrize("place", PLACES)
def test_masks_that_fit_their_pictures_mirrored_or_turned_are_found(place, tmp_path):
    records, _ = write_set(tmp_path, PLACES[place], count=16)
    found = audit(tmp_path, records)
    assert codes(found) == ["misplaced-mask"] * 16
    assert place in found.images[0].problems[0].words
    assert codes(audit(tmp_path, records, accept=("misplaced-mask",))) == [""] * 16
    right, _ = write_set(tmp_path, PLACES[place], count=16, wrong=())
    assert codes(audit(tmp_path, right)) == [""] * 16


def test_masks_that_belong_to_the_next_picture_are_found(tmp_path):
    records, _ = write_set(tmp_path, None, count=16, wrong=())
    shifted = [
        replace(record, masks=records[(k + 1) % 16].masks, label=records[(k + 1) % 16].label)
        for k, record in enumerate(records)
    ]
    found = audit(tmp_path, shifted)
    assert codes(found) == ["misplaced-mask"] * 16
    assert "on the next picture" in found.images[0].problems[0].words


def test_bounding_boxes_are_a_finding_and_used(tmp_path):
    def box(m, label):
        return grey(np.outer(m.any(axis=1), m.any(axis=0)) * 255)

    records, _ = write_set(tmp_path, box)
    assert all("box_mask" in image.flags for image in audit(tmp_path, records).images)
    assert codes(audit(tmp_path, records)) == [""] * 6
    records, _ = write_set(tmp_path, box, wrong=(0, 1))
    assert not any("box_mask" in image.flags for image in audit(tmp_path, records).images)


def test_an_image_exchanged_with_its_mask_is_found_whatever_the_format(tmp_path):
    for mask_format in ("", "binary", "color", "index"):
        records, _ = write_set(tmp_path, KINDS["soft edges"][0], wrong=(), mask_format="binary")
        wrong = records[3]
        records[3] = Record("3", wrong.masks[0], (wrong.image,), mask_format, wrong.label, "P3")
        found = audit(tmp_path, records)
        assert codes(found) == ["", "", "", "exchanged", "", ""]
        assert "the image's file holds a mask" in str(found.images[3].problems[0])
    records[3] = Record("3", wrong.masks[0], wrong.masks, "", wrong.label, "P3")
    assert codes(audit(tmp_path, records))[3] == "exchanged"


@pytest.mark.parametrize("orientation", range(2, 9))
def test_masks_of_pictures_that_exif_turns_wait_for_the_answer_unless_their_shape_tells(
    orientation, tmp_path
):
    exif = Image.Exif()
    exif[0x0112] = orientation
    records, truth = write_set(tmp_path, KINDS["soft edges"][0], wrong=(), count=4)
    for number in range(4):  # the lesion is right on the stored pixels
        Image.open(tmp_path / f"{number}.png").save(tmp_path / f"{number}.png", exif=exif)
    assert codes(audit(tmp_path, records)) == ["orientation"] * 4
    (manifest,) = make_manifests([audit(tmp_path, records, orientation="stored")])
    for row in manifest.frame.to_dict("records"):
        image, mask = read_example(manifest, row)
        assert (
            image.shape[:2] == mask.shape == (truth["0"].shape[::-1] if orientation > 4 else truth["0"].shape)
        )
        upright = np.asarray(Image.open(tmp_path / row["image"]))  # stored pixels
        assert abs(image[mask > 0].mean() - upright[truth[row["image_id"]] > 0].mean()) < 1e-6
    for number in range(4):
        mask = Image.open(tmp_path / f"{number}_mask.png").copy()
        turned = {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(orientation)
        if turned is None:
            return
        mask.transpose(turned).save(tmp_path / f"{number}_mask.png")
    assert codes(audit(tmp_path, records)) == [""] * 4


def test_a_mask_of_half_size_is_stretched_once_the_user_says_so(tmp_path):
    half = lambda m, label: grey(cv2.resize(m * np.uint8(255), None, fx=0.5, fy=0.5))  # noqa: E731 - one line
    records, truth = write_set(tmp_path, half)
    rows = ["image,masks,label,patient_id"]
    rows += [f"{r.image},{r.masks[0]},{r.label},{r.patient_id}" for r in records]
    (tmp_path / "own.csv").write_text("\n".join(rows))
    command = ("make-manifest", "--csv", tmp_path / "own.csv", "--out", tmp_path / "m")
    assert "--mask-values half" in ended(invoke(*command), 1)
    assert "--on-mismatch resize" in ended(invoke(*command, "--mask-values", "half"), 1)
    ended(invoke(*command, "--mask-values", "half", "--on-mismatch", "resize"), 0)
    manifest = read_manifest(tmp_path / "m" / "own.csv")
    for row in manifest.frame.to_dict("records"):
        assert (read_example(manifest, row)[1] != truth[row["image_id"]]).mean() < 0.02
    assert "is none of any, half" in ended(invoke(*command, "--mask-values", "halb"), 2)


def test_an_answer_to_which_nothing_belongs_is_a_note(tmp_path):
    records, _ = write_set(tmp_path, KINDS["inverted"][0], wrong=(1,))
    answers = {"invert": True, "values": ("half",), "accept": ("same-mask",), "orientation": "shown"}
    (manifest,) = make_manifests([audit(tmp_path, records, **answers)])
    assert [note.partition(" changed nothing")[0] for note in manifest.about["audit"]["notes"]] == [
        "--mask-values half", "--accept same-mask", "--mask-orientation shown",
    ]  # fmt: skip


def test_no_mask_of_the_known_data_sets_is_doubted(
    bus_uclm_tree, busi_tree, udiat_tree, bus_bra_tree, breast_tree
):
    for source, tree in (
        (bus_uclm, bus_uclm_tree), (busi, busi_tree), (udiat, udiat_tree), (bus_bra, bus_bra_tree), (breast, breast_tree),
    ):  # fmt: skip
        folder = audit_folder(source.NAME, source.records(tree), tree)
        found = {problem.code for image in folder.images for problem in image.problems}
        assert found <= {"size-mismatch", "copy"}, source.NAME
