"""DICOM out: what is written is read back as it was by programs that nobody here wrote."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request

import highdicom as hd
import numpy as np
import pydicom
import pytest
from conftest import invoke
from dicom_files import dataset, region, write
from PIL import Image

from bus_smp.data.dicom import list_views, read_dicom
from bus_smp.exchange.dicom import Finding, Maker, make_report, make_segmentation
from bus_smp.text import NOT_CLINICAL

MAKER = Maker("run-a", "ab" * 32, "malignant if malignant_score >= 0.5")
FRAMES = 4


def _program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: apt-get install dicom3tools dcmtk orthanc")
    return found


def _lesion(shape, k):
    """Nothing in frame 2; else a benign rectangle, and in frame 3 a malignant one."""
    mask = np.zeros(shape, np.uint8)
    if k != 1:
        mask[5:15, 10 + k : 30 + k] = 1
    if k == 2:
        mask[20:28, 30:46] = 2
    return mask


def _one_class(shape, k):
    return np.minimum(_lesion(shape, k), 1)


def _made(folder, kind):
    """The file of a source, its data set, and what was found in it."""
    picture = np.random.default_rng(0).integers(0, 256, (FRAMES, 48, 64), np.uint8)
    regions = [region((0, 4, 59, 43), (0.01, 0.02))]
    if kind == "two panes":
        regions = [region((0, 0, 31, 47)), region((32, 0, 63, 47), PhysicalUnitsXDirection=4)]
    is_clip, draw = kind.startswith("clip"), _one_class if kind == "clip, one class" else _lesion
    path = write(folder / "source.dcm", dataset(picture if is_clip else picture[0], regions=regions))
    views = [view for _, view in list_views(read_dicom(path))]
    findings = [Finding(view, draw(view.shape, k), "benign", 0.1 + 0.2 * k) for k, view in enumerate(views)]
    return path, pydicom.dcmread(path), findings


def _whole(findings):
    frames = {}
    for finding in findings:
        left, top, right, bottom = finding.view.pane.box
        frame = frames.setdefault(finding.view.frame, np.zeros((48, 64), np.uint8))
        frame[top:bottom, left:right] = finding.mask
    return np.stack(list(frames.values()))


@pytest.mark.parametrize("kind", ["still", "two panes", "clip", "clip, one class"])
def test_a_segmentation_is_read_back_as_the_masks_in_their_place_and_is_the_same_again(tmp_path, kind):
    _, source, findings = _made(tmp_path, kind)
    made = make_segmentation(source, findings, MAKER)
    made.save_as(tmp_path / "seg.dcm")
    found = hd.seg.segread(tmp_path / "seg.dcm")
    options = {
        "combine_segments": True,
        "ignore_spatial_locations": True,
        "assert_missing_frames_are_empty": True,
    }
    if kind.startswith("clip"):
        frames = list(range(1, FRAMES + 1))
        masks = found.get_pixels_by_source_frame(source.SOPInstanceUID, frames, **options)
    else:
        masks = found.get_pixels_by_source_instance([source.SOPInstanceUID], **options)
    assert np.array_equal(masks, _whole(findings))
    assert (found.StudyInstanceUID, found.PatientID) == (source.StudyInstanceUID, source.PatientID)
    assert found.SeriesInstanceUID != source.SeriesInstanceUID and NOT_CLINICAL in found.SeriesDescription
    again = make_segmentation(source, findings, MAKER)
    assert (again.SOPInstanceUID, again.SeriesInstanceUID) == (made.SOPInstanceUID, made.SeriesInstanceUID)
    assert (
        make_segmentation(source, findings, Maker("run-a", "cd" * 32)).SOPInstanceUID != made.SOPInstanceUID
    )
    assert (
        "PixelData" in source and source.SOPClassUID == pydicom.dcmread(tmp_path / "source.dcm").SOPClassUID
    )


def test_nothing_marked_is_no_segmentation_and_a_report_that_says_normal(tmp_path):
    _, source, findings = _made(tmp_path, "still")
    empty = [Finding(findings[0].view, np.zeros_like(findings[0].mask), "normal", 0.02)]
    assert make_segmentation(source, empty, MAKER) is None
    shown = str(make_report(source, empty, MAKER))
    assert "'Normal'" in shown and "'Image Region'" not in shown


def test_a_report_has_outline_and_right_millimetres_or_only_the_outline(tmp_path):
    _, source, findings = _made(tmp_path, "two panes")
    report = make_report(source, findings, MAKER)
    report.save_as(tmp_path / "sr.dcm")
    groups = hd.sr.srread(tmp_path / "sr.dcm").content.get_planar_roi_measurement_groups()
    sizes = [{m.name.meaning: m.value for m in group.get_measurements()} for group in groups]
    # 20 x 10 pixels of 0.1 mm: corner to corner
    assert sizes[0] == {
        "Long axis": pytest.approx(2.24),
        "Short axis": pytest.approx(1.79, abs=0.01),
        "Area": 2.0,
    }
    assert len(groups) == 1
    _, source, findings = _made(tmp_path, "clip")
    report = make_report(source, findings, MAKER)
    report.save_as(tmp_path / "clip.dcm")
    groups = hd.sr.srread(tmp_path / "clip.dcm").content.get_planar_roi_measurement_groups()
    # frame 4 has the highest score, frame 3 the largest lesions
    names = [group.tracking_identifier for group in groups]
    assert names == ["frame 4 of 4, highest score, lesion 1", "frame 3 of 4, largest lesions, lesion 1",
                     "frame 3 of 4, largest lesions, lesion 2"]  # fmt: skip
    outline = groups[0].roi.value
    assert outline.min(axis=0).tolist() == [13.5, 9.5] and outline.max(axis=0).tolist() == [32.5, 18.5]
    # pixels of 0.1 x 0.2 mm
    assert next(m.value for m in groups[0].get_measurements() if m.name.meaning == "Area") == pytest.approx(
        4.0
    )
    for words in (MAKER.weights, MAKER.rule, NOT_CLINICAL):
        assert words.encode() in (tmp_path / "clip.dcm").read_bytes()


@pytest.mark.parametrize("kind", ["still", "two panes", "clip", "clip, one class"])
def test_dciodvfy_finds_no_error_and_dsrdump_shows_the_numbers(tmp_path, kind):
    check, dump = _program("dciodvfy"), _program("dsrdump")
    _, source, findings = _made(tmp_path, kind)
    for name, make in (("seg", make_segmentation), ("sr", make_report)):
        make(source, findings, MAKER).save_as(tmp_path / f"{name}.dcm")
        shown = subprocess.run(
            [check, tmp_path / f"{name}.dcm"], capture_output=True, text=True, check=False
        ).stderr
        assert not [line for line in shown.splitlines() if line.startswith("Error")], shown
    text = subprocess.run([dump, tmp_path / "sr.dcm"], capture_output=True, text=True, check=True).stdout
    assert '"Long axis"' in text and "(mm,UCUM" in text and "frame 3 of 4" in text or kind != "clip"


def test_predict_writes_both_next_to_the_masks_and_says_what_it_does_not_write(trained, tmp_path):
    path, _, _ = _made(tmp_path / "in", "clip")
    before = path.read_bytes()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64), np.uint8)).save(
        tmp_path / "in" / "b.png"
    )
    options = ("--run", trained, "--to", tmp_path / "p")
    done = invoke("predict", tmp_path / "in", *options, "--dicom-out", "seg,sr")
    assert done.exit_code == 0, done.stderr
    assert "No SEG or SR of 1 picture: the file is no DICOM" in done.stderr
    report = pydicom.dcmread(tmp_path / "p" / "source_sr.dcm")
    assert report.Modality == "SR" and path.read_bytes() == before
    marked = (tmp_path / "p" / "source_seg.dcm").exists()
    assert marked or "No SEG of" in done.stderr
    # a folder of results is left out when the next prediction searches it
    again = invoke("predict", tmp_path / "p", *options[:2], "--to", tmp_path / "q")
    assert again.exit_code == 1 and "DICOM without ultrasound images" in again.stderr
    wrong = invoke("predict", path, *options, "--dicom-out", "rt")
    assert wrong.exit_code == 2 and "'rt' is none of seg, sr" in wrong.stderr


@pytest.mark.slow
def test_orthanc_stores_and_finds_them_next_to_their_source(tmp_path):
    program = _program("Orthanc")
    path, source, findings = _made(tmp_path, "clip")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "HttpPort": port, "RemoteAccessAllowed": False, "AuthenticationEnabled": False, "DicomServerEnabled": False,
        "StorageDirectory": str(tmp_path / "db"), "IndexDirectory": str(tmp_path / "db"), "OverwriteInstances": True,
        "Plugins": [],
    }  # fmt: skip
    (tmp_path / "orthanc.json").write_text(json.dumps(settings))

    def ask(where, data=None):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{where}", data, timeout=20) as answer:
            return json.load(answer)

    with subprocess.Popen(
        [program, tmp_path / "orthanc.json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(100):
                try:
                    ask("system")
                    break
                except OSError:
                    time.sleep(0.2)
            files = {"source": path.read_bytes()}
            for name, make in (("seg", make_segmentation), ("sr", make_report)):
                make(source, findings, MAKER).save_as(tmp_path / f"{name}.dcm")
                files[name] = (tmp_path / f"{name}.dcm").read_bytes()
            for data in (*files.values(), files["seg"]):
                assert ask("instances", data)["Status"] == "Success"
            query = {
                "Level": "Series",
                "Query": {"StudyInstanceUID": str(source.StudyInstanceUID)},
                "Expand": True,
            }
            found = ask("tools/find", json.dumps(query).encode())
            # one study, one series of each, and the second SEG replaced the first
            assert sorted(one["MainDicomTags"]["Modality"] for one in found) == ["SEG", "SR", "US"]
            assert all(len(one["Instances"]) == 1 for one in found)
        finally:
            server.terminate()
            server.wait(20)
