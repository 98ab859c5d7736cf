"""Manifests and masks of any content: written and read they are the same, and every fault in them is named."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from bus_smp.data.images import read_image, read_mask, write_mask
from bus_smp.data.manifest import COLUMNS, Manifest, check, manifest_hash, read_manifest, write_manifest
from bus_smp.errors import ImageError, ManifestError

# A folder is made once and written over: nothing of an example is left for the next one.
OVER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)

# Ids as hospitals have them: digits, formulas, quotes, other scripts; no control characters, no spaces at the ends.
IDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8).filter(
    lambda t: t == t.strip()
)
PART = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="/\\|:"), min_size=1, max_size=6
).filter(lambda part: part not in (".", ".."))
PATHS = st.lists(PART, min_size=1, max_size=3).map("/".join)
FREE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8)


@st.composite
def frames(draw):
    """A sound table: whole patients in a split and a fold, lesions with masks, some rows excluded."""
    rows = []
    patients = draw(st.lists(IDS, min_size=1, max_size=4, unique=True))
    for patient in patients:
        split, fold = draw(st.sampled_from(["train", "val", "test"])), draw(st.sampled_from(["", "0", "7"]))
        known, note = draw(st.booleans()), draw(FREE)
        for _ in range(draw(st.integers(1, 2))):
            label, used = draw(st.sampled_from(["normal", "benign", "malignant"])), draw(st.booleans())
            masks = draw(st.lists(PATHS, min_size=int(label != "normal"), max_size=2))
            rows.append({
                "dataset": "demo", "image_id": "", "patient_id": patient, "patient_known": known, "group_id": f"demo:{patient}",
                "label": label, "split": split if used else "", "fold": fold if used else "", "image": "",
                "masks": "|".join(masks), "mask_format": draw(st.sampled_from(["binary", "color", "index"])) if masks else "",
                "width": draw(st.integers(1, 9_999_999)), "height": draw(st.integers(1, 9_999_999)),
                "sha256": "", "phash": "", "flags": draw(FREE), "excluded": "" if used else draw(FREE.filter(bool)), "note": note,
            })  # fmt: skip
    ids = draw(st.lists(IDS, min_size=len(rows), max_size=len(rows), unique=True))
    images = draw(st.lists(PATHS, min_size=len(rows), max_size=len(rows), unique=True))
    return pd.DataFrame(rows, columns=[*COLUMNS, "note"]).assign(image_id=ids, image=images)


@settings(OVER, max_examples=15)
@given(table=frames())
def test_a_manifest_that_is_written_is_read_as_it_was(table, tmp_path):
    assert check(table) == []
    path = write_manifest(Manifest(table, {"demo": tmp_path}), tmp_path / "m.csv")
    read = read_manifest(path)
    expected = table.sort_values(["dataset", "image_id"], kind="stable", ignore_index=True)
    for column in table.columns:
        texts = ["" if pd.isna(cell) else str(cell) for cell in read.frame[column]]
        assert texts == [str(cell) for cell in expected[column]], column
    assert manifest_hash(read.frame) == manifest_hash(table)
    assert write_manifest(read, tmp_path / "again.csv").read_bytes() == path.read_bytes()


FAULTS = {
    "label": "cyst", "split": "validation", "mask_format": "rgb", "width": "nan", "height": "-inf", "image": "a/../../x", "masks": "/etc/passwd",
    "image_id": " x", "patient_known": "maybe", "sha256": "12", "fold": "1.5", "flags": "a\nb", "dataset": "../x",
}  # fmt: skip


@settings(OVER, max_examples=15)
@given(
    table=frames(),
    faults=st.lists(st.tuples(st.integers(0, 99), st.sampled_from(sorted(FAULTS))), min_size=1, max_size=8),
)
def test_every_fault_of_a_manifest_is_named_with_its_row_and_column(table, faults, tmp_path):
    table = table.astype(object)
    placed = set()
    for number, column in faults:
        row = number % len(table)
        table.loc[row, column] = FAULTS[column]
        placed.add((row, column))
    problems = check(table)
    for row, column in placed:
        if column == "split" and table.loc[row, "excluded"] != "":
            continue  # an excluded row has no split at all: named, in other words
        assert any(
            problem.startswith(f"row {row + 2} (") and f"column {column}: " in problem for problem in problems
        ), (row, column, problems)
    with pytest.raises(ManifestError, match="was not written"):
        write_manifest(Manifest(table, {"demo": tmp_path}), tmp_path / "never.csv")
    assert not (tmp_path / "never.csv").exists()


PIECES = st.lists(
    st.sampled_from(["..", ".", "a", "b.png", "", "/", "C:", "\\", "~", "...", ".. ", "..a"]),
    min_size=1,
    max_size=6,
)


@given(pieces=PIECES)
def test_no_path_that_a_manifest_may_hold_leaves_the_root(pieces):
    """Whatever is accepted stays below the root; whatever would leave it is refused, with the row named."""
    path = "/".join(pieces)
    row = {"dataset": "demo", "image_id": "x", "image": path, "masks": path}
    manifest = Manifest(pd.DataFrame([row]), {"demo": Path("/data/root")})
    inside = os.path.normpath(f"/data/root/{path}").startswith("/data/root") and not path.startswith("/")
    for paths in (lambda: [manifest.image_path(row)], lambda: manifest.mask_paths(row)):
        try:
            for found in paths():
                assert os.path.normpath(found).startswith("/data/root")
                assert inside and ".." not in found.parts
        except ManifestError as error:
            assert "demo/x" in error.what


@OVER
@given(text=st.text(max_size=200) | st.binary(max_size=200))
def test_no_text_makes_reading_a_manifest_fail_in_any_other_way(text, tmp_path):
    (tmp_path / "m.csv").write_bytes(
        text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    )
    with pytest.raises(ManifestError, match="m.csv"):
        read_manifest(tmp_path / "m.csv", images=False)


SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=12)
CLASSES = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 2)))


@OVER
@given(mask=CLASSES)
def test_a_mask_that_is_written_is_read_as_it_was_in_every_format(mask, tmp_path):
    write_mask(tmp_path / "color.png", mask)
    Image.fromarray(mask).save(tmp_path / "index.png")
    for name in ("color", "index"):
        assert np.array_equal(read_mask([tmp_path / f"{name}.png"], name, "benign", mask.shape), mask)
    for label, index in (("benign", 1), ("malignant", 2)):
        lesion = mask == index
        Image.fromarray(lesion).save(tmp_path / "one.png")
        Image.fromarray(lesion.astype(np.uint8) * np.uint8(255)).save(tmp_path / "grey.tif")
        for name in ("one.png", "grey.tif"):
            assert np.array_equal(read_mask([tmp_path / name], "binary", label), lesion * np.uint8(index))


ANY = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape, elements=st.integers(0, 255)))


@OVER
@given(mask=ANY, label=st.sampled_from(["normal", "benign", "malignant"]))
def test_a_value_that_the_format_does_not_list_is_named(mask, label, tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    values = set(np.unique(mask).tolist())
    allowed = values <= {0, 255} or values <= {0, 1}
    right = {
        "index": values <= {0, 1, 2},
        "binary": allowed and (label != "normal" or values <= {0}),
        "color": values <= {0},
    }
    for name, is_right in right.items():
        if is_right:
            found = read_mask([path], name, label)
            assert np.array_equal(found > 0, mask > 0) and found.max() <= 2
        else:
            with pytest.raises(ImageError, match="mask.png"):
                read_mask([path], name, label)


COLOURS = SHAPES.flatmap(lambda s: arrays(np.uint8, (*s, 3), elements=st.sampled_from([0, 0, 255, 255, 254])))


@OVER
@given(mask=COLOURS)
def test_a_colour_is_a_class_or_named(mask, tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(mask).save(path)
    classes = {(0, 0, 0): 0, (0, 255, 0): 1, (255, 0, 0): 2}
    found = [tuple(pixel) for pixel in mask.reshape(-1, 3).tolist()]
    if set(found) <= set(classes):
        assert read_mask([path], "color", "benign").ravel().tolist() == [classes[pixel] for pixel in found]
    else:
        with pytest.raises(ImageError, match=r"mask.png: colour \(") as caught:
            read_mask([path], "color", "benign")
        assert any(str(pixel) in caught.value.what for pixel in set(found) - set(classes))


GREYS = SHAPES.flatmap(lambda shape: arrays(np.uint8, shape))


@OVER
@given(picture=GREYS, kept=st.floats(0, 0.999))
def test_a_picture_is_read_as_it_was_and_a_png_not_at_all_when_its_end_is_cut_off(picture, kept, tmp_path):
    for name in ("a.bmp", "a.tif", "a.png"):
        Image.fromarray(picture).save(tmp_path / name)
        assert np.array_equal(read_image(tmp_path / name)[..., 1], picture)
    data = (tmp_path / "a.png").read_bytes()
    # The last four bytes are the checksum of an empty chunk: without them no pixel is in doubt.
    (tmp_path / "a.png").write_bytes(data[: min(int(len(data) * kept), len(data) - 5)])
    with pytest.raises(ImageError, match="a.png"):
        read_image(tmp_path / "a.png")
