"""What may be called external: copies of the training data are found under any name, lookalikes are let through."""

import json
import shutil

import cv2
import numpy as np
import pytest
from conftest import invoke

from bus_smp.data.images import pixel_sha256, read_image
from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.data.near_duplicates import search
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.external import UNKNOWN, check_external


@pytest.fixture(scope="module")
def training(trained) -> Manifest:
    return read_manifest(trained / "manifest.csv")


def _clinic(training, folder, change):
    """Some training images, changed and saved again, as the manifest of a clinic nobody has heard of."""
    rows = training.used("train").head(4)
    pictures = [change(read_image(training.image_path(row))) for row in rows.to_dict("records")]
    for name, picture in zip(rows["image_id"], pictures, strict=True):
        cv2.imwrite(str(folder / f"{name}.png"), picture[..., ::-1])
    frame = rows.assign(
        dataset="clinic",
        patient_id=rows["image_id"],
        group_id="clinic:" + rows["image_id"],
        image=rows["image_id"] + ".png",
        sha256=[pixel_sha256(picture) for picture in pictures],
        phash="",
    )
    return Manifest(frame, {"clinic": folder})


def _speckle(image):
    return np.random.default_rng(0).integers(0, 256, image.shape).astype(np.uint8)


CHANGES = {
    "rescaled": lambda image: cv2.resize(image, None, fx=1.3, fy=1.3, interpolation=cv2.INTER_CUBIC),
    "brightened": lambda image: np.clip(image * 1.1 + 6, 0, 255).astype(np.uint8),
    "one pixel changed": lambda image: np.where(
        np.arange(image.size).reshape(image.shape) == 0, 1, image
    ).astype(np.uint8),
    "cropped to 70 % of the area": lambda image: image[6:66, 8:88],
    "put in a black frame": lambda image: cv2.copyMakeBorder(image, 9, 9, 12, 12, cv2.BORDER_CONSTANT),
    "mirrored": lambda image: image[:, ::-1],
    "upside down": lambda image: image[::-1],
    "turned by 90 degrees": np.rot90,
    "inverted": lambda image: 255 - image,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_near_duplicate_under_another_name_is_refused_and_the_pair_is_named(training, tmp_path, change):
    clinic = _clinic(training, tmp_path, CHANGES[change])
    with pytest.raises(EvaluationError, match="clinic: 4 near-duplicates of images") as caught:
        check_external([training], clinic)
    first = clinic.frame.iloc[0]["image_id"]
    assert f"{first} is bus-uclm {first}" in caught.value.what
    assert "excluded" in caught.value.hint


def test_other_images_of_the_same_shapes_are_let_through(training, tmp_path):
    found = check_external([training], _clinic(training, tmp_path, _speckle))
    assert found.external is True and found.warnings == []


def _lost(training, folder):
    return Manifest(training.frame, {"bus-uclm": folder / "nowhere"})


def test_a_target_is_not_called_external_where_the_training_images_cannot_be_read(training, tmp_path):
    found = check_external([_lost(training, tmp_path)], _clinic(training, tmp_path, CHANGES["rescaled"]))
    assert found.external == UNKNOWN
    assert "whether clinic is external to this run is not known" in found.warnings[0]
    assert "--root bus-uclm=FOLDER" in found.warnings[0]
    assert str(tmp_path) not in found.warnings[0]


def test_nor_where_they_are_exchanged_for_others_of_the_same_names(training, tmp_path):
    """Else a folder of other images under the same names would pass copies off as unseen."""
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    exchanged = shutil.copytree(training.roots["bus-uclm"], tmp_path / "exchanged")
    for name in training.used()["image"]:
        cv2.imwrite(str(exchanged / name), _speckle(cv2.imread(str(exchanged / name))))
    found = check_external([Manifest(training.frame, {"bus-uclm": exchanged})], clinic)
    assert found.external == UNKNOWN and "has changed since the manifest" in found.warnings[0]


def test_fingerprints_are_made_once_and_then_need_no_images(training, tmp_path, monkeypatch):
    clinic = _clinic(training, tmp_path, _speckle)
    assert check_external([training], clinic, tmp_path).external is True
    monkeypatch.setattr("bus_smp.evaluation.external.read_image", None)
    assert check_external([_lost(training, tmp_path)], clinic, tmp_path).external is True
    for path in (tmp_path / ".fingerprints").iterdir():
        path.write_bytes(path.read_bytes()[:-9])
    monkeypatch.undo()
    assert check_external([_lost(training, tmp_path)], clinic, tmp_path).external == UNKNOWN


def test_only_pairs_of_a_training_and_a_target_image_are_verified(training, tmp_path, monkeypatch):
    """A training set that is full of copies of its own costs nothing more."""
    verified = []
    correlation = search._correlation
    monkeypatch.setattr(search, "_correlation", lambda *pair: verified.append(pair[:2]) or correlation(*pair))
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    with pytest.raises(EvaluationError):
        check_external([training], clinic)
    assert 4 <= len(verified) <= 4 * search.CANDIDATES


def test_all_members_of_an_experiment_count(training, tmp_path):
    rows = training.used("train")
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    without = Manifest(
        training.frame[~training.frame["image_id"].isin(rows["image_id"].head(4))], training.roots
    )
    check_external([without], clinic)
    with pytest.raises(EvaluationError, match="4 near-duplicates"):
        check_external([without, training], clinic)


def test_the_same_names_of_patients_under_another_data_set_are_a_warning_and_numbers_are_none(
    training, tmp_path
):
    clinic = _clinic(training, tmp_path, _speckle)
    patients = training.used("train")["patient_id"].head(4).to_numpy()
    same = Manifest(clinic.frame.assign(patient_id=patients, patient_known=True), clinic.roots)
    found = check_external([training], same)
    assert found.external is True
    assert f"in the training data and in clinic ({sorted(set(patients))[0]}" in found.warnings[0]
    numbers = training.frame.assign(patient_id="7")
    counted = Manifest(clinic.frame.assign(patient_id="7", patient_known=True), clinic.roots)
    assert check_external([Manifest(numbers, training.roots)], counted).warnings == []


def test_excluded_rows_are_no_reason_to_refuse(training, tmp_path):
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    frame = clinic.frame.copy()
    frame.loc[frame.index[:3], ["excluded", "split"]] = ["near-duplicate", ""]
    with pytest.raises(EvaluationError, match="clinic: 1 near-duplicate of"):
        check_external([training], Manifest(frame, clinic.roots))
    frame.loc[frame.index[3], ["excluded", "split"]] = ["near-duplicate", ""]
    assert check_external([training], Manifest(frame, clinic.roots)).external is True


def test_crosseval_says_that_external_is_not_known_and_finds_moved_images_where_it_is_shown(
    training, trained, tmp_path
):
    clinic = _clinic(training, tmp_path, CHANGES["mirrored"])
    run = shutil.copytree(trained, tmp_path / "outputs" / "run", ignore=shutil.ignore_patterns("eval-*"))
    write_manifest(_lost(training, tmp_path), run / "manifest.csv")
    without = clinic.frame.assign(masks="", label="normal", mask_format="")
    write_manifest(Manifest(without, clinic.roots), tmp_path / "clinic.csv")
    command = ["crosseval", "--out", run.parent, "--manifests", tmp_path, "--target", tmp_path / "clinic.csv"]
    lost = invoke(*command)
    assert lost.exit_code == 0, lost.stderr
    assert "clinic: not known to be external" in lost.stdout
    assert "--root bus-uclm=FOLDER" in " ".join(lost.stdout.split())
    summary = json.loads((run / "eval-clinic-all" / "summary.json").read_text())
    assert summary["external"] == "unknown" and "is not known" in summary["warnings"][0]
    report = invoke("report", run, "--to", tmp_path / "report.html")
    assert report.exit_code == 0, report.stderr
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Not known to be external" in page and "No external test" in page
    found = invoke(*command, "--root", f"bus-uclm={training.roots['bus-uclm']}")
    assert found.exit_code == 1
    assert "clinic: 4 near-duplicates of images that were used in training" in found.stderr
