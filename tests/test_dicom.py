"""DICOM in: every encoding, right millimetres or none, each bad kind one line, nothing of the patient."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
import pytest
from conftest import invoke
from dicom_files import (
    BIRTH,
    CLIP,
    NAME,
    PATIENT,
    dataset,
    encapsulated,
    jpeg,
    region,
    transcoded,
    write,
)
from PIL import Image
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from bus_smp.data import dicom
from bus_smp.data.dicom import NotUltrasoundError, find_panes, list_views, read_dicom, read_view
from bus_smp.data.examples import read_example
from bus_smp.data.images import read_image
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import ImageError
from bus_smp.inference.predict_files import find_images, list_pictures

HEIGHT, WIDTH = 48, 64
REAL = Path(pydicom.__file__).parent / "data" / "test_files"


def _grey() -> np.ndarray:
    """A smooth picture, so that lossy codings change it little."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (127 + 60 * np.sin(x / 9) + 60 * np.cos(y / 7)).astype(np.uint8)


def _colour() -> np.ndarray:
    grey = _grey()
    return np.stack([grey, grey // 2 + 40, 255 - grey // 2], axis=2)


def _rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def _stored(path, found, syntax):
    if syntax == RLELossless:
        found.compress(RLELossless)
    found.file_meta.TransferSyntaxUID = syntax
    return write(path, found)


def _palette(path, bits):
    """An index image of 200 entries whose colours are not grey; with 16 bits the high byte counts."""
    shift = bits - 8
    found = dataset(_grey() % 200, "PALETTE COLOR")
    for colour, factor in (("Red", 1), ("Green", 2), ("Blue", 3)):
        table = ((np.arange(200) * factor % 256).astype(np.uint16) << shift).astype(f"<u{bits // 8}")
        setattr(found, f"{colour}PaletteColorLookupTableDescriptor", [200, 0, bits])
        setattr(found, f"{colour}PaletteColorLookupTableData", table.tobytes())
        found[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        found[f"{colour}PaletteColorLookupTableData"].VR = "OW"
    index = (_grey() % 200).astype(int)
    return write(path, found), np.stack([index * k % 256 for k in (1, 2, 3)], axis=2)


def _compressed(path, pixels, streams, syntax, photometric):
    return write(path, encapsulated(dataset(pixels), streams, syntax, photometric))


def _gdcm(path, pixels, syntax):
    return transcoded(write(path.with_name("raw.dcm"), dataset(pixels)), path, syntax)


# name -> (writer of the file, what it shows, how far pixels may be off)
ENCODINGS = {
    "MONOCHROME2": lambda p: (write(p, dataset(_grey())), _rgb(_grey()), 0),
    "MONOCHROME1": lambda p: (write(p, dataset(255 - _grey(), "MONOCHROME1")), _rgb(_grey()), 0),
    "12 bits": lambda p: (write(p, dataset(_grey().astype(np.uint16) * 16, BitsStored=12, HighBit=11)), _rgb(_grey()), 1),
    "a window": lambda p: (write(p, dataset(_grey() // 2, WindowCenter=64, WindowWidth=128)), _rgb(_grey()), 2),
    "RGB": lambda p: (write(p, dataset(_colour())), _colour(), 0),
    "RGB by plane": lambda p: (
        write(p, dataset(_colour(), PlanarConfiguration=1, PixelData=_colour().transpose(2, 0, 1).tobytes())), _colour(), 0),
    "palette of 8 bits": lambda p: (*_palette(p, 8), 0),
    "palette of 16 bits": lambda p: (*_palette(p, 16), 0),
    "YBR_FULL": lambda p: (
        write(p, dataset(np.asarray(Image.fromarray(_colour()).convert("YCbCr")), "YBR_FULL")), _colour(), 3),
    "implicit": lambda p: (_stored(p, dataset(_colour()), ImplicitVRLittleEndian), _colour(), 0),
    "big endian": lambda p: (_stored(p, dataset(_colour()), ExplicitVRBigEndian), _colour(), 0),
    "deflated": lambda p: (_stored(p, dataset(_colour()), DeflatedExplicitVRLittleEndian), _colour(), 0),
    "RLE": lambda p: (_stored(p, dataset(_colour()), RLELossless), _colour(), 0),
    "JPEG baseline": lambda p: (
        _compressed(p, _colour(), [jpeg(_colour(), quality=95, subsampling=1)], "1.2.840.10008.1.2.4.50", "YBR_FULL_422"),
        _colour(), 16),
    "JPEG called RGB": lambda p: (
        _compressed(p, _colour(), [jpeg(_colour(), quality=95, subsampling=0)], "1.2.840.10008.1.2.4.50", "RGB"), _colour(), 8),
    "JPEG 2000": lambda p: (
        _compressed(p, _colour(), [jpeg(_colour(), format="JPEG2000", irreversible=False, no_jp2=True, mct=1)],
                    "1.2.840.10008.1.2.4.90", "YBR_RCT"), _colour(), 0),
    "JPEG 2000, lossy": lambda p: (
        _compressed(p, _colour(), [jpeg(_colour(), format="JPEG2000", irreversible=True, no_jp2=True, mct=1)],
                    "1.2.840.10008.1.2.4.91", "YBR_ICT"), _colour(), 8),
    "JPEG lossless": lambda p: (_gdcm(p, _grey(), "JPEGLosslessProcess14_1"), _rgb(_grey()), 0),
    "JPEG lossless, RGB": lambda p: (_gdcm(p, _colour(), "JPEGLosslessProcess14_1"), _colour(), 0),
    "JPEG-LS": lambda p: (_gdcm(p, _grey(), "JPEGLSLossless"), _rgb(_grey()), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_encoding_shows_the_same_picture_from_a_file_and_from_bytes(tmp_path, name):
    path, expected, tolerance = ENCODINGS[name](tmp_path / "x.dcm")
    found = read_image(path)
    assert found.dtype == np.uint8 and found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance
    assert np.array_equal(read_image(path.read_bytes()), found)
    # all of them can be cut short, and none shows something then
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(ImageError, match="cannot be decoded|cut short") as error:
        read_image(path)
    assert "NoneType" not in str(error.value)


def test_frames_of_a_clip_are_read_one_by_one(tmp_path):
    frames = np.stack([np.full((240, 320, 3), 4 * k, np.uint8) for k in range(60)])
    path = write(tmp_path / "clip.dcm", dataset(frames))
    read_view(path, 1)
    tracemalloc.start()
    try:
        found = [read_image(f"{path}#{k}")[0, 0, 0] for k in (1, 31, 60)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == [0, 120, 236]
    assert peak < 6 * frames[0].nbytes < frames.nbytes / 9
    with pytest.raises(ImageError, match="holds 60 frames; name one, such as .*clip.dcm#1"):
        read_image(path)
    with pytest.raises(ImageError, match="has no frame 61, only 60"):
        read_image(f"{path}#61")
    (tmp_path / "a#1.png").write_bytes(b"")
    assert dicom.split_address(tmp_path / "a#1.png")[1:] == (None, None)


TISSUE = (10, 5, 59, 44)
_NO_LENGTH = {"PhysicalUnitsXDirection": 4}
_ECG = region((0, 40, 63, 47), 0.01, RegionSpatialFormat=4, RegionDataType=10, PhysicalUnitsXDirection=4)
# name -> (regions of a frame of 64 x 48, boxes, sizes of pixels in mm, words of the first source)
REGIONS = {
    "one": ([region(TISSUE)], [(10, 5, 60, 45)], [(0.1, 0.1)], "region 1 of 1"),
    "the second": ([_ECG, region(TISSUE)], [(10, 5, 60, 45)], [(0.1, 0.1)], "region 2 of 2"),
    "negative": ([region(TISSUE, (0.01, -0.01))], [(10, 5, 60, 45)], [(0.1, 0.1)], "region 1 of 1"),
    "not square": ([region(TISSUE, (0.01, 0.02))], [(10, 5, 60, 45)], [(0.1, 0.2)], "region 1 of 1"),
    "exclusive ends": ([region((10, 5, 64, 48))], [(10, 5, 64, 48)], [(0.1, 0.1)], "region 1 of 1"),
    "two panes": (
        [region((0, 0, 31, 47)), region((32, 0, 63, 47), 0.02)], [(0, 0, 32, 48), (32, 0, 64, 48)],
        [(0.1, 0.1), (0.2, 0.2)], "region 1 of 2"),
    "Doppler inside": (
        [region(TISSUE), region((20, 10, 40, 30), RegionDataType=2)], [(10, 5, 60, 45)], [(0.1, 0.1)], "region 1 of 2"),
    "Doppler inside without a size": (
        [region(TISSUE), region((20, 10, 40, 30), RegionDataType=2, **_NO_LENGTH)], [(10, 5, 60, 45)], [(0.1, 0.1)],
        "region 1 of 2"),
    "several sizes in one place": (
        [region(TISSUE), region((20, 10, 40, 30), 0.02)], [(10, 5, 60, 45)], [None], "pixels of another size"),
    "time across": ([region(TISSUE, **_NO_LENGTH)], [(10, 5, 60, 45)], [None], "no lengths on both axes"),
    "metres": ([region(TISSUE, 1e-4)], [(10, 5, 60, 45)], [None], "no size of breast ultrasound"),
    "no delta": ([region(TISSUE, 0)], [(10, 5, 60, 45)], [None], "no size of breast ultrasound"),
    "shrunk afterwards": ([region((20, 10, 119, 89))], [(0, 0, 64, 48)], [None], "reaches to x 119, y 89 of 64x48"),
    "cut afterwards": (
        [region(TISSUE), region((0, 50, 63, 60), RegionSpatialFormat=4)], [(0, 0, 64, 48)], [None], "region 2 reaches to"),
    "spectral Doppler": ([region(TISSUE, RegionSpatialFormat=3, RegionDataType=3)], [(0, 0, 64, 48)], [None],
                         "no region shows tissue"),
}  # fmt: skip


@pytest.mark.parametrize("name", REGIONS)
def test_right_millimetres_or_none(name):
    regions, boxes, sizes, source = REGIONS[name]
    panes, lines = find_panes(regions, 64, 48)
    assert [pane.box for pane in panes] == boxes
    for pane, size in zip(panes, sizes, strict=True):
        assert pane.pixel_mm == (None if size is None else pytest.approx(size))
    assert source in panes[0].source
    assert panes[0].doppler == ("Doppler inside" in name)
    assert len(lines) == len(regions)
    assert any(line.endswith(": used") for line in lines) == (panes[0].box != (0, 0, 64, 48))


def test_pixel_spacing_counts_only_where_no_region_is(tmp_path):
    spaced = {"PixelSpacing": [0.2, 0.1]}
    alone = read_dicom(write(tmp_path / "a.dcm", dataset(_grey(), **spaced))).panes[0]
    assert (alone.pixel_mm, alone.source) == ((0.1, 0.2), "PixelSpacing")
    both = dataset(_grey(), regions=[region(TISSUE, **_NO_LENGTH)], **spaced)
    assert read_dicom(write(tmp_path / "b.dcm", both)).panes[0].pixel_mm is None
    wrong = read_dicom(write(tmp_path / "c.dcm", dataset(_grey(), PixelSpacing=[1, 1]))).panes[0]
    assert wrong.pixel_mm is None and "PixelSpacing is no size" in wrong.source
    data = (tmp_path / "a.dcm").read_bytes()
    (tmp_path / "comma.dcm").write_bytes(data.replace(rb"0.2\0.1", rb"0,2\0,1"))
    comma = read_dicom(tmp_path / "comma.dcm").panes[0]
    assert comma.pixel_mm is None and "PixelSpacing is no size" in comma.source


def test_half_a_window_is_no_window_and_a_clip_without_its_number_of_frames_has_a_note(tmp_path):
    half = write(tmp_path / "half.dcm", dataset(_grey(), WindowWidth=100))
    assert np.array_equal(read_image(half), _rgb(_grey()))
    clip = dataset(np.stack([_grey()] * 2))
    del clip.NumberOfFrames
    notes = read_dicom(write(tmp_path / "clip.dcm", clip)).notes
    assert any("only the first is read" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "mm", "source"),
    [
        ("examples_ybr_color.dcm", None, "reaches to x 595, y 414 of 320x240"),
        ("examples_palette.dcm", None, "reaches to x 800, y 518 of 800x350"),
        ("examples_rgb_color.dcm", None, "neither regions nor PixelSpacing"),
    ],
)
def test_real_files_that_others_measure_wrongly_have_no_millimetres(name, mm, source):
    found = read_dicom(REAL / name)
    assert found.panes[0].pixel_mm is mm and source in found.panes[0].source
    address, view = next(list_views(found))
    assert read_image(f"{REAL / name}{address}").shape[:2] == (view.file.height, view.file.width)


def _bad_files(folder):
    """File name -> what its line says."""
    good = write(folder / "good.dcm", dataset(_grey(), regions=[region(TISSUE)]))
    data = good.read_bytes()
    write(folder / "hsv.dcm", dataset(_colour(), "HSV"))
    write(folder / "signed.dcm", dataset(_grey(), PixelRepresentation=1))
    write(folder / "large.dcm", dataset(_grey(), Rows=60_000, Columns=60_000))
    write(folder / "frames.dcm", dataset(_grey(), NumberOfFrames=2_000_000_000))
    video = encapsulated(dataset(_grey()), [b"x" * 20], "1.2.840.10008.1.2.4.102", "YBR_FULL_422")
    write(folder / "video.dcm", video)
    htj2k = encapsulated(dataset(_grey()), [b"x" * 20], "1.2.840.10008.1.2.4.201", "MONOCHROME2")
    write(folder / "htj2k.dcm", htj2k)
    empty = dataset(_grey())
    del empty.PixelData
    write(folder / "empty.dcm", empty)
    (folder / "cut.dcm").write_bytes(data[: len(data) - 1000])
    (folder / "head.dcm").write_bytes(data[:300])
    (folder / "headless.dcm").write_bytes(data[data.index(b"\x08\x00\x16\x00") :])
    return {
        "hsv": "colours are stored in a way that is not known .*; export it as RGB",
        "signed": "pixels that ultrasound does not have; export it with 8 bits",
        "large": "60000x60000 pixels is more than",
        "frames": "declares 2,000,000,000 frames",
        "video": r"holds video \(MPEG-4.*\), which is not read; export its frames",
        "htj2k": "no decoder for High-Throughput JPEG 2000.*; pip install 'bus_smp",
        "empty": r"cannot be decoded \(the file holds none\)",
        "cut": "the file is cut short",
        "head": "damaged or cut short",
        "headless": "without the header of a file; export it again",
    }


def test_predict_gives_each_picture_a_row_and_each_bad_file_a_line_and_shows_nothing_of_the_patient(
    trained, tmp_path
):
    folder = tmp_path / "in"
    lines = _bad_files(folder)
    clip = np.stack([_colour(), 255 - _colour()])
    write(folder / "clip.dcm", dataset(clip, regions=[region(TISSUE, (0.01, 0.02))]))
    panes = [region((0, 0, 31, 47)), region((32, 0, 63, 47), **_NO_LENGTH)]
    write(folder / "two.dcm", dataset(_colour(), regions=panes))
    write(folder / "mr.dcm", dataset(_grey(), Modality="MR"))
    Image.fromarray(_rgb(_grey())[5:45, 10:60]).save(folder / "same.png")
    result = invoke("predict", folder, "--run", trained, "--to", tmp_path / "p", "--json")
    assert result.exit_code == 1
    rows = {Path(row["file"]).name: row for row in json.loads(result.stdout)}
    for name, words in lines.items():
        assert pd.Series([rows[f"{name}.dcm"]["error"]]).str.contains(words, regex=True).all(), rows[
            f"{name}.dcm"
        ]["error"]
    good, same = rows["good.dcm"], rows["same.png"]
    assert good["malignant_score"] == same["malignant_score"]
    assert np.array_equal(
        read_image(tmp_path / "p" / good["mask"]), read_image(tmp_path / "p" / same["mask"])
    )
    assert (good["region"], good["pixel_mm_x"], good["mm_source"]) == ("10 5 60 45", 0.1, "region 1 of 1")
    assert good["malignant_area_mm2"] == pytest.approx(good["malignant_area_px"] * 0.01, abs=1e-3)
    frame = rows["clip.dcm#2"]
    assert frame["benign_area_mm2"] == pytest.approx(frame["benign_area_px"] * 0.02, abs=1e-3)
    assert (frame["mask"], frame["width"], frame["height"]) == ("clip_frame002_predicted.png", 50, 40)
    assert rows["two.dcm#1.1"]["pixel_mm_x"] == 0.1 and rows["two.dcm#1.2"]["pixel_mm_x"] == ""
    assert rows["two.dcm#1.2"]["mm_source"].startswith("none: region 2 of 2 has no lengths")
    assert "mr.dcm" not in rows and "1 .dcm): DICOM without ultrasound images" in result.stderr
    assert "names or dates may be burnt into the pixels" in result.stderr
    written = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    for secret in (NAME, PATIENT, BIRTH, "SECRET", "20200102"):
        assert secret not in result.stdout + result.stderr
        assert not any(secret.encode() in path.read_bytes() or secret in path.name for path in written)


def test_a_frame_can_be_named_and_a_typed_size_fills_only_what_the_file_leaves_open(trained, tmp_path):
    clip = write(tmp_path / "clip.dcm", dataset(np.stack([_colour()] * 3)))
    still = write(tmp_path / "still.dcm", dataset(_grey(), regions=[region(TISSUE)]))
    done = invoke(
        "predict", f"{clip}#3", still, "--run", trained, "--to", tmp_path / "p", "--pixel-mm", "0.2", "--json"
    )
    rows = json.loads(done.stdout)
    assert [row["mask"] for row in rows] == ["clip_frame003_predicted.png", "still_predicted.png"]
    assert [row["pixel_mm_x"] for row in rows] == [0.2, 0.1]
    assert [row["mm_source"] for row in rows] == ["--pixel-mm", "region 1 of 1"]


def test_without_the_extra_one_line_names_the_command_that_installs_it(tmp_path, monkeypatch):
    path = write(tmp_path / "in" / "x.dcm", dataset(_grey()))
    Image.fromarray(_grey()).save(tmp_path / "in" / "y.png")
    monkeypatch.setitem(sys.modules, "pydicom", None)
    dicom._import_pydicom.cache_clear()
    with pytest.raises(ImageError, match=r"reading DICOM needs pip install 'bus_smp\[dicom\]'"):
        read_image(path)
    said = []
    assert [name for _, name in find_images([tmp_path / "in"], say=said.append)] == ["y"]
    assert said == ["Left out: 1 file (1 .dcm): DICOM; to predict them: pip install 'bus_smp[dicom]'"]


def test_info_says_why_there_are_millimetres_or_not_without_torch(tmp_path):
    path = write(tmp_path / "x.dcm", dataset(_grey(), regions=[_ECG, region(TISSUE)]))
    code = f"import sys; from bus_smp.cli import main; main(['info', {str(path)!r}]); assert 'torch' not in sys.modules"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "region 1: a waveform, x 0-63, y 40-47: not used" in shown.stdout
    assert "picture 1  x 10-59, y 5-44; a pixel is 0.1 x 0.1 mm (region 2 of 2)" in shown.stdout
    assert "may be burnt into the pixels" in shown.stdout and "SECRET" not in shown.stdout
    about = json.loads(invoke("info", path, "--json").stdout)
    assert about["kind"] == "DICOM" and about["panes"][0]["pixel_mm"] == pytest.approx([0.1, 0.1])
    assert not {"SECRET-ID-77"} & set(map(str, about.values()))


def test_a_table_of_dicom_files_becomes_a_manifest_with_their_millimetres_and_masks_of_either_size(tmp_path):
    lesion = np.zeros((HEIGHT, WIDTH), np.uint8)
    lesion[15:30, 20:45] = 255
    Image.fromarray(lesion).save(tmp_path / "whole.png")
    Image.fromarray(lesion[5:45, 10:60]).save(tmp_path / "region.png")
    stray = lesion.copy()
    stray[46, 60:] = 255
    Image.fromarray(stray).save(tmp_path / "stray.png")
    pictures = [np.roll(_grey(), shift, axis=1) for shift in (0, 9, 22, 31, 43)]
    write(tmp_path / "a.dcm", dataset(pictures[0], regions=[region(TISSUE)]))
    write(
        tmp_path / "clip.dcm", dataset(np.stack([pictures[1], pictures[2]]), regions=[region(TISSUE, 0.02)])
    )
    write(tmp_path / "flat.dcm", dataset(pictures[3], regions=[region(TISSUE, (0.01, 0.02))]))
    write(tmp_path / "stray.dcm", dataset(pictures[4], regions=[region(TISSUE)]))
    rows = [
        "a.dcm,whole.png,benign,P1,", "clip.dcm#2,region.png,malignant,P2,", "clip.dcm#1,whole.png,malignant,P2,0.3",
        "flat.dcm,whole.png,benign,P3,", "stray.dcm,stray.png,benign,P4,",
    ]  # fmt: skip
    (tmp_path / "own.csv").write_text("\n".join(["image,masks,label,patient_id,pixel_mm", *rows]))
    made = invoke(
        "make-manifest", "--csv", tmp_path / "own.csv", "--out", tmp_path / "m", "--accept", "same-mask"
    )
    assert made.exit_code == 0, made.output
    manifest = read_manifest(tmp_path / "m" / "own.csv")
    found = manifest.frame.set_index("image")
    assert found["pixel_mm"].fillna("").astype(str).to_dict() == {
        "a.dcm": "0.1", "clip.dcm#2": "0.2", "clip.dcm#1": "0.3", "flat.dcm": "", "stray.dcm": "0.1",
    }  # fmt: skip
    assert found.loc["stray.dcm", "excluded"] == "other: 4 pixels of the mask outside of the B-mode region"
    for image, picture in (("a.dcm", pictures[0]), ("clip.dcm#2", pictures[2])):
        pixels, mask = read_example(
            manifest, found.reset_index().set_index("image", drop=False).loc[image].to_dict()
        )
        assert np.array_equal(pixels, _rgb(picture)[5:45, 10:60])
        assert np.array_equal(mask > 0, lesion[5:45, 10:60] > 0)
    (tmp_path / "own.csv").write_text(
        "image,masks,label,patient_id\nclip.dcm,whole.png,benign,P1\nb.dcm#2,,normal,P2\n"
    )
    refused = invoke("make-manifest", "--csv", tmp_path / "own.csv", "--out", tmp_path / "n")
    assert refused.exit_code == 1 and "no file" in refused.stderr and "b.dcm#2" in refused.stderr


def test_not_ultrasound_is_an_error_of_its_own_and_a_capture_has_a_note(tmp_path):
    with pytest.raises(NotUltrasoundError, match=r"no ultrasound image \(modality MR\)"):
        read_dicom(write(tmp_path / "a.dcm", dataset(_grey(), Modality="MR")))
    capture = read_dicom(write(tmp_path / "b.dcm", dataset(_grey(), Modality="SC", BurnedInAnnotation="NO")))
    assert capture.notes == ("modality SC: a capture, taken for ultrasound",)
    assert PATIENT not in repr(capture) and CLIP not in repr(capture)
    found = list_pictures([(tmp_path / "b.dcm", "b")])
    assert found == [(tmp_path / "b.dcm", "b")]
