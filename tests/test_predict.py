"""predict: pictures at the image's own size, one row per image, bad files named."""

import json
import os

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import invoke
from PIL import Image

from bus_smp.errors import DataError
from bus_smp.inference.backends import open_predictor
from bus_smp.inference.predict_files import check_targets, find_images, predict_files
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
        assert mask.shape == overlay.shape == (row.height, row.width, 3)
        colours = {tuple(int(v) for v in colour) for colour in np.unique(mask.reshape(-1, 3), axis=0)}
        assert colours <= {(0, 0, 0), (0, 255, 0), (255, 0, 0)}
        assert np.mean((mask == (255, 0, 0)).all(-1)) == pytest.approx(row.malignant_area, abs=1e-6)


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
    assert len(list((tmp_path / "p").glob("*_mask.png"))) == 2


def test_files_of_one_name_get_results_of_their_own(tmp_path):
    inputs = [
        _write(tmp_path / folder / name)
        for folder in ("a", "b")
        for name in ("scan.png", "scan.jpg", "Scan.png")
    ]
    names = [name for _, name in find_images(inputs)]
    assert len({name.casefold() for name in names}) == len(inputs)


def test_results_of_an_earlier_prediction_are_not_predicted_again(tmp_path):
    _write(tmp_path / "scan.png")
    _write(tmp_path / "predictions" / "scan_mask.png")
    assert [name for _, name in find_images([tmp_path], skip=tmp_path / "predictions")] == ["scan"]


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
    """BUSI's true masks are called <image>_mask.png, as the predicted ones are."""
    _write(tmp_path / "benign (1).png")
    truth = _write(tmp_path / "benign (1)_mask.png").read_bytes()
    for given in (tmp_path, tmp_path / "benign (1).png"):
        result = invoke("predict", given, "--out", trained.parent, "--to", tmp_path)
        assert result.exit_code == 1
        assert "choose another folder" in result.stderr
    assert (tmp_path / "benign (1)_mask.png").read_bytes() == truth


def _everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["scan_mask.png", "scan_overlay.png", "predictions.csv"])
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
    table.write_text(table.read_text().replace(",computed_in", ""))  # as versions before wrote it
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
