"""Reading images and masks: every bit depth, no invented class, no contradiction passed on."""

import numpy as np
import pytest
from PIL import Image

from bus_smp.data.images import (
    color_mask,
    read_image,
    read_mask,
    resize_mask,
    restore_in_bands,
    restore_probabilities,
    write_mask,
)
from bus_smp.errors import ImageError


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_a_scan_looks_the_same_at_every_bit_depth(tmp_path, bits):
    full = (1 << bits) - 1
    ramp = np.linspace(0, full, 256).round().astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "scan.png")
    found = read_image(tmp_path / "scan.png")[..., 0].reshape(-1).astype(int)
    assert np.abs(found - np.arange(256)).max() <= 1


def test_a_file_cut_short_is_refused_whatever_the_decoder_could_still_show(tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8))
    for name in ("x.png", "x.jpg", "x.bmp"):
        picture.save(tmp_path / name)
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) * 3 // 4])
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    picture.save(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:-1])
    with pytest.raises(ImageError, match="the end of the PNG is missing"):
        read_image(tmp_path / "x.png")


def test_bytes_are_read_and_refused_as_the_file_that_holds_them(tmp_path):
    path = tmp_path / "x.png"
    picture = np.random.default_rng(0).integers(0, 256, (60, 70, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(picture).save(path, exif=exif)
    whole = path.read_bytes()
    assert np.array_equal(read_image(whole), np.rot90(picture, -1))
    for data in (whole[:-1], whole[:40], b"", b"PATIENT^NAME" * 20, bytes(128) + b"DICM" + bytes(9)):
        path.write_bytes(data)
        with pytest.raises(ImageError) as of_file:
            read_image(path)
        with pytest.raises(ImageError) as of_bytes:
            read_image(data, name="scan 7")
        assert of_bytes.value.what == of_file.value.what.replace(str(path), "scan 7")


def test_a_png_without_pixels_and_one_of_a_transparent_palette_do_not_speak_with_a_library_s_words(tmp_path):
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.save(tmp_path / "x.png", transparency=bytes(range(64)))
    data = (tmp_path / "x.png").read_bytes()
    # Warnings are errors here.
    assert (read_image(tmp_path / "x.png")[..., 0] == np.arange(64).reshape(8, 8)).all()
    start, end = data.index(b"IDAT") - 4, data.index(b"IEND") - 4
    (tmp_path / "x.png").write_bytes(data[:start] + data[end:])
    with pytest.raises(ImageError, match="x.png: is a PNG without pixels"):
        read_image(tmp_path / "x.png")


def test_geometry_there_and_back_keeps_classes_and_size():
    mask = np.zeros((90, 130), np.uint8)
    mask[20:60, 30:100] = 2
    small = resize_mask(mask, 64)
    assert set(np.unique(small)) == {0, 2}
    restored = restore_probabilities(
        np.eye(3, dtype=np.float32)[small].transpose(2, 0, 1), mask.shape
    ).argmax(0)
    assert restored.shape == mask.shape
    assert (restored == mask).mean() > 0.97


def test_a_mask_that_is_written_has_the_colours_of_the_classes_and_is_read_back_as_it_was(tmp_path):
    mask = np.random.default_rng(0).integers(0, 3, (17, 23)).astype(np.uint8)
    write_mask(tmp_path / "mask.png", mask)
    assert np.array_equal(read_image(tmp_path / "mask.png"), color_mask(mask))
    assert np.array_equal(read_mask([tmp_path / "mask.png"], "color", "benign"), mask)


def test_the_classes_of_a_large_picture_computed_in_bands_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    probabilities = rng.random((3, 16, 16), np.float32)
    probabilities /= probabilities.sum(axis=0)
    for shape in ((600, 70), (16, 16), (9, 31)):
        whole = restore_probabilities(probabilities, shape)
        bands = np.concatenate(list(restore_in_bands(probabilities, shape)), axis=1)
        np.testing.assert_allclose(bands, whole, atol=1e-6)
