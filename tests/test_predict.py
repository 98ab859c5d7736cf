"""predict: pictures at the image's own size, one row per image, bad files named."""

import json
import os
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ended, invoke
from dicom_files import dataset, write
from PIL import Image

from bus_smp.errors import DataError
from bus_smp.inference import predict_files as predict_module
from bus_smp.inference.backends import open_predictor
from bus_smp.inference.predict_files import check_targets, find_images, predict_files
from bus_smp.model.checkpoint import read_header
from bus_smp.system.locks import hold_lock


def _write(path, size=(50, 40)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0]), np.uint8)).save(path)
    return path


def test_masks_and_overlays_have_the_images_size_and_only_class_colours(trained, tmp_path):
    for name, size in (("a.png", (50, 40)), ("sub/b.jpg", (33, 90))):
        _write(tmp_path / "scans" / name, size)
    result = invoke("predict", tmp_path / "scans", "--out", trained.parent, "--to", tmp_path / "p")
    assert result.exit_code == 0, result.stderr
    table = pd.read_csv(tmp_path / "p" / "predictions.csv")
    assert len(table) == 2
    for row in table.itertuples():
        mask = cv2.imread(str(tmp_path / "p" / row.mask))[..., ::-1]
        overlay = cv2.imread(str(tmp_path / "p" / row.overlay))
        assert mask.shape == (row.height, row.width, 3)
        # the legend is below the image, or right of a narrow one
        assert overlay.shape[0] > row.height and overlay.shape[1] >= row.width
        colours = {tuple(int(v) for v in colour) for colour in np.unique(mask.reshape(-1, 3), axis=0)}
        assert colours <= {(0, 0, 0), (0, 255, 0), (255, 0, 0)}
        assert np.sum((mask == (255, 0, 0)).all(-1)) == row.malignant_area_px
        assert np.sum((mask == (0, 255, 0)).all(-1)) == row.benign_area_px


def test_a_bad_file_has_a_row_with_its_reason_and_the_others_are_predicted(trained, tmp_path):
    _write(tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes(_write(tmp_path / "x.png").read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    files = [tmp_path / f"{name}.png" for name in ("good", "broken", "text", "empty", "x")]
    result = invoke("predict", *files, "--out", trained.parent, "--to", tmp_path / "p")
    assert result.exit_code == 1
    table = pd.read_csv(tmp_path / "p" / "predictions.csv", keep_default_na=False)
    assert [bool(error) for error in table["error"]] == [False, True, True, True, False]
    for name in ("broken", "text", "empty"):
        assert f"{name}.png" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(list((tmp_path / "p").glob("*_predicted.png"))) == 2


def test_files_of_one_name_get_results_of_their_own(tmp_path):
    inputs = [
        _write(tmp_path / folder / name)
        for folder in ("a", "b")
        for name in ("scan.png", "scan.jpg", "Scan.png")
    ]
    names = [name for _, name in find_images(inputs)]
    assert len({name.casefold() for name in names}) == len(inputs)


def _masked(shape=(60, 80), value=255):
    mask = np.zeros(shape, np.uint8)
    mask[20:40, 30:60] = value
    return mask


def test_files_that_are_not_looked_at_are_counted_by_kind(tmp_path):
    folder = tmp_path / "scans"
    scan = _write(folder / "P1.png")
    picture = Image.open(scan)
    for name, form in (("P2.webp", "WEBP"), ("P3.jfif", "JPEG"), ("P4.gif", "GIF"), ("P5.bmp", "BMP"), ("P6.tif", "TIFF"), ("IMG7", "PNG")):  # fmt: skip
        picture.save(folder / name, form)
    (folder / "P8.jfif").write_bytes(b"cut")  # gets a row with the reason
    write(folder / "scan.dcm", dataset(np.zeros((8, 8), np.uint8), Modality="MR"))
    (folder / "series" / "1.2.840").parent.mkdir()
    (folder / "series" / "1.2.840").write_bytes(b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100" + bytes(200))
    for name in ("notes.txt", "more.txt", "video.mp4", "._P1.png"):
        (folder / name).write_text("BM no image")
    (folder / ".git").mkdir()
    lines = []
    found = [name for _, name in find_images([folder], say=lines.append)]
    # the last has no header and gets a row that says so
    assert found == ["IMG7", "P1", "P2", "P3", "P4", "P5", "P6", "P8", "series/1.2"]
    assert lines == [
        "Left out: 1 file (1 .dcm): DICOM without ultrasound images",
        "Left out: 1 file (1 no suffix): a hidden folder, the name begins with a dot",
        "Left out: 1 file (1 .png): hidden, the name begins with a dot",
        "Left out: 3 files (2 .txt, 1 .mp4): no images",
    ]
    scan.rename(folder / "P1.jpeg")
    (folder / "series" / "1.2.840").rename(folder / "scan.840")
    (folder / "scan.dcm").rename(folder / "series" / "scan.dcm")
    with pytest.raises(DataError, match="no image in(.|\n)*1 file .* DICOM"):
        find_images([folder / "series"])


def test_a_named_animation_has_a_row_that_says_what_to_do(trained, tmp_path):
    frames = [Image.fromarray(np.full((40, 50), value, np.uint8)) for value in (10, 200)]
    frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "c.tif", save_all=True, append_images=frames[1:])
    files = [tmp_path / name for name in ("b.gif", "c.tif")]
    result = invoke("predict", *files, "--out", trained.parent, "--to", tmp_path / "p", "--json")
    assert result.exit_code == 1
    errors = [row["error"] for row in json.loads(result.stdout)]
    assert len(errors) == 2
    assert all(
        "holds several pictures (" in error and "save the one that is meant" in error for error in errors
    )


def test_truth_masks_are_left_out_whatever_they_are_called(trained, tmp_path):
    folder = tmp_path / "data"
    _write(folder / "images" / "a.png", (80, 60))
    truth = {
        "images/a_mask.png": _masked(), "Other/b.png": _masked(), "GT/a.png": _masked(value=1),
        "labelsTr/a.png": cv2.GaussianBlur(_masked(), (9, 9), 0),
        "masks/a.png": np.stack([_masked(value=0), _masked(), _masked(value=0)], axis=2),
    }  # fmt: skip
    for name, mask in truth.items():
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(mask).save(folder / name)
    Image.fromarray(_masked()).save(folder / "images" / "mask_c.jpg")
    # a scan is predicted, whatever it is called
    _write(folder / "masks" / "scan_tumor.png", (80, 60))
    command = ("predict", folder, "--out", trained.parent)
    result = invoke(*command, "--to", tmp_path / "p")
    assert result.exit_code == 0, result.stderr
    table = pd.read_csv(tmp_path / "p" / "predictions.csv")
    assert list(table["overlay"]) == ["images/a_overlay.png", "masks/scan_tumor_overlay.png"]
    assert "Left out: 6 files (5 .png, 1 .jpg): masks by their few colours" in result.stderr
    assert "2 images predicted" in result.stdout
    result = invoke(*command, "--to", tmp_path / "q", "--include-masks")
    assert result.exit_code == 0 and len(pd.read_csv(tmp_path / "q" / "predictions.csv")) == 8
    result = invoke("predict", folder / "GT", "--out", trained.parent, "--to", tmp_path / "r")
    assert result.exit_code == 1 and "--include-masks" in result.stderr


def test_results_of_an_earlier_prediction_are_not_predicted_again(trained, tmp_path):
    _write(tmp_path / "sub" / "scan.png")
    command = ("predict", tmp_path, "--out", trained.parent, "--to")
    assert invoke(*command, tmp_path / "p").exit_code == 0
    # in another folder, and from the results themselves
    assert invoke(*command, tmp_path / "q").exit_code == 0
    assert len(pd.read_csv(tmp_path / "q" / "predictions.csv")) == 1
    result = invoke("predict", tmp_path / "p" / "sub", "--out", trained.parent, "--to", tmp_path / "r")
    assert result.exit_code == 1
    assert "Left out: 2 files (2 .png): results of an earlier prediction" in result.stderr
    assert not (tmp_path / "r").exists()
    lines = []
    assert len(find_images([tmp_path], skip=tmp_path / "q", say=lines.append)) == 1
    assert "the folder that the results go to" in "".join(lines)


def test_the_screen_and_the_table_state_one_decision_and_its_rule(trained, tmp_path):
    images = [_write(tmp_path / f"{number}.png", (40 + number, 50)) for number in range(3)]
    command = ("predict", *images, "--out", trained.parent, "--pixel-mm", "0.2", "--to")
    result = invoke(*command, tmp_path / "p")
    table = pd.read_csv(tmp_path / "p" / "predictions.csv")
    threshold = read_header(trained / "best.safetensors")["calibration"]["threshold"]
    assert not {"predicted_label", "called_malignant"} & set(table.columns)
    for row in table.itertuples():
        area = row.benign_area_px + row.malignant_area_px
        expected = "malignant" if row.malignant_score >= threshold else "benign" if area else "normal"
        assert row.decision == expected
        assert f"malignant_score >= {threshold:.6g}" in row.decision_rule
        assert row.malignant_area_mm2 == pytest.approx(row.malignant_area_px * 0.04, abs=1e-3)
    assert result.stdout.count("malignant_score >=") == 1
    for decision, count in table["decision"].value_counts().items():
        assert f"{count} {decision}" in result.stdout
    rows = json.loads(invoke(*command, tmp_path / "q", "--json").stdout)
    assert [row["decision"] for row in rows] == list(table["decision"])
    assert list(rows[0]) == list(table.columns)


def test_results_go_next_to_the_runs_where_they_are_asked_for(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "out" / "first", ignore=shutil.ignore_patterns("eval-*", "*.ckpt"))
    monkeypatch.chdir(tmp_path)
    image = _write(tmp_path / "scan.png")
    before = set(tmp_path.iterdir())
    assert invoke("predict", image, "--out", tmp_path / "out").exit_code == 0
    assert set(tmp_path.iterdir()) == before
    assert (tmp_path / "out" / "predictions" / "predictions.csv").is_file()


def test_a_large_picture_is_predicted_as_a_small_one(trained, tmp_path, monkeypatch):
    """Its mask and row are the same; its overlay is drawn on a smaller copy."""
    images = [(_write(tmp_path / f"{number}.png", (90, 70 + number)), str(number)) for number in range(2)]
    predictor, _ = open_predictor(trained, precision="fp32")
    tables = []
    for large in (True, False):
        monkeypatch.setattr(predict_module, "_LARGE", 2000 if large else 10**9)
        tables.append(predict_files(predictor, images, tmp_path / str(large)))
    pd.testing.assert_frame_equal(*tables)
    for row in tables[0].itertuples():
        assert (tmp_path / "True" / row.mask).read_bytes() == (tmp_path / "False" / row.mask).read_bytes()
        with Image.open(tmp_path / "True" / row.overlay) as picture:
            height = picture.height
        # with the strip of the legend
        assert height < row.height


def test_nothing_to_predict_is_an_error(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_images([tmp_path / "absent.png"])
    with pytest.raises(DataError, match="no image in"):
        find_images([tmp_path])


def test_the_same_image_gives_the_same_prediction_alone_and_among_others(trained, tmp_path):
    files = [_write(tmp_path / f"{number}.png", (40 + number, 50)) for number in range(3)]
    alone = invoke(
        "predict",
        files[1],
        "--out",
        trained.parent,
        "--to",
        tmp_path / "one",
        "--json",
        "--precision",
        "fp32",
    )
    among = invoke(
        "predict", *files, "--out", trained.parent, "--to", tmp_path / "all", "--json", "--precision", "fp32"
    )
    one, all_of_them = json.loads(alone.stdout), json.loads(among.stdout)
    assert one[0]["malignant_score"] == pytest.approx(all_of_them[1]["malignant_score"], abs=1e-4)


def test_a_file_name_that_is_a_formula_stays_text_in_the_table(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _write(tmp_path / "=1+1.png")
    result = invoke("predict", "=1+1.png", "--out", trained.parent, "--to", tmp_path / "p")
    assert result.exit_code == 0, result.stderr
    assert pd.read_csv(tmp_path / "p" / "predictions.csv")["file"][0].startswith("'=")


def test_results_never_stand_among_the_images(trained, tmp_path):
    _write(tmp_path / "benign (1).png")
    truth = _write(tmp_path / "benign (1)_predicted.png").read_bytes()
    for given in (tmp_path, tmp_path / "benign (1).png"):
        result = invoke("predict", given, "--out", trained.parent, "--to", tmp_path)
        assert result.exit_code == 1
        assert "choose another folder" in result.stderr
    assert (tmp_path / "benign (1)_predicted.png").read_bytes() == truth


def _everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["scan_predicted.png", "scan_overlay.png", "predictions.csv"])
def test_what_no_prediction_wrote_is_never_replaced(trained, tmp_path, name):
    """A doctor's own mask may have the name of ours. Told before the run is even looked for."""
    image = _write(tmp_path / "scan.png")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / name).write_text("file,label\nscan,benign\n")
    before = _everything(tmp_path)
    result = invoke("predict", image, "--out", trained.parent, "--run", "absent", "--to", tmp_path / "p")
    assert result.exit_code == 1
    assert f"{name}: would be replaced" in result.stderr and "another folder with --to" in result.stderr
    assert _everything(tmp_path) == before


def test_a_table_that_is_a_pipe_is_not_waited_for(trained, tmp_path):
    image = _write(tmp_path / "scan.png")
    (tmp_path / "p").mkdir()
    os.mkfifo(tmp_path / "p" / "predictions.csv")
    result = invoke("predict", image, "--out", trained.parent, "--to", tmp_path / "p")
    assert result.exit_code == 1 and "would be replaced" in result.stderr


def test_a_second_prediction_goes_into_the_same_folder(trained, tmp_path):
    image = _write(tmp_path / "scan.png")
    command = ("predict", image, "--out", trained.parent, "--to", tmp_path / "p")
    assert invoke(*command).exit_code == 0
    first = _everything(tmp_path / "p")
    table = tmp_path / "p" / "predictions.csv"
    # as an earlier version wrote it
    table.write_text(
        "file,width,height,predicted_label,malignant_score,called_malignant,benign_area,malignant_area,mask,overlay,error\n"
    )
    assert invoke(*command).exit_code == 0
    assert _everything(tmp_path / "p") == first


def test_a_prediction_that_was_interrupted_is_repeated_in_the_same_folder(trained, tmp_path):
    predictor, _ = open_predictor(trained)
    images = find_images([_write(tmp_path / f"{number}.png") for number in range(3)])
    folder = tmp_path / "p"
    with pytest.raises(KeyboardInterrupt):
        predict_files(predictor, images, folder, progress=_interrupt)
    assert list(folder.glob("*.png")) and not list(folder.glob(".*"))
    assert pd.read_csv(folder / "predictions.csv").empty
    check_targets(images, folder)
    assert len(predict_files(predictor, images, folder)) == 3


def _interrupt():
    raise KeyboardInterrupt


def test_what_a_killed_prediction_left_is_removed_by_the_next_one_and_nothing_else(trained, tmp_path):
    _write(tmp_path / "scans" / "sub" / "a.png")
    command = ("predict", tmp_path / "scans", "--out", trained.parent, "--to", tmp_path / "p")
    left = tmp_path / "p" / "sub" / ".a_overlay.0123abcd.png"
    own = tmp_path / "p" / "sub" / ".notes.txt"
    left.parent.mkdir(parents=True)
    for there in ([left, own], [own]):  # only the second time it is a folder of predictions
        left.touch()
        own.touch()
        assert invoke(*command).exit_code == 0
        assert sorted(left.parent.glob(".*")) == there


def test_two_predictions_at_once_never_share_a_folder(trained, tmp_path):
    image = _write(tmp_path / "scan.png")
    (tmp_path / "p").mkdir()
    with hold_lock(tmp_path / "p" / ".lock", lambda: None):
        before = _everything(tmp_path / "p")
        result = invoke("predict", image, "--out", trained.parent, "--to", tmp_path / "p")
        assert result.exit_code == 1 and "another bus-smp predict is writing" in result.stderr
        assert _everything(tmp_path / "p") == before
    assert invoke("predict", image, "--out", trained.parent, "--to", tmp_path / "p").exit_code == 0


def test_a_file_of_weights_is_taken_wherever_it_lies_and_whatever_its_name(trained, tmp_path):
    scan, weights = _write(tmp_path / "scan.png"), tmp_path / "far away" / "epoch 12.safetensors"
    weights.parent.mkdir()
    shutil.copy(trained / "best.safetensors", weights)
    found = []
    for number, run in enumerate((trained, weights)):
        ended(invoke("predict", scan, "--run", run, "--to", tmp_path / str(number)), 0)
        found.append((tmp_path / str(number) / "predictions.csv").read_bytes())
    assert found[0] == found[1]
    for command in (("evaluate",), ("crosseval", "--target", "busi"), ("export", "--format", "pth")):
        assert "--run FOLDER with the file as best.safetensors" in ended(
            invoke(*command, "--run", weights), 1
        )
    assert list(weights.parent.iterdir()) == [weights]
