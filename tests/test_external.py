"""What may be called external: copies of the training data are found under any name, lookalikes are let through."""

import shutil

import cv2
import numpy as np
import pytest
from conftest import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from bus_smp.data.images import pixel_sha256, read_image
from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.data.near_duplicates.search import dhash
from bus_smp.errors import EvaluationError
from bus_smp.evaluation.external import check_external, near_pairs


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
        phash=[dhash(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)) for picture in pictures],
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
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_near_duplicate_under_another_name_is_refused_and_the_pair_is_named(training, tmp_path, change):
    clinic = _clinic(training, tmp_path, CHANGES[change])
    with pytest.raises(EvaluationError, match="4 near-duplicates of images of clinic") as caught:
        check_external(training, clinic)
    first = clinic.frame.iloc[0]["image_id"]
    assert f"{first} is bus-uclm {first}" in caught.value.what
    assert "excluded" in caught.value.hint


def test_a_lookalike_by_hash_whose_speckle_differs_is_let_through(training, tmp_path):
    other = _clinic(training, tmp_path, _speckle)
    same_hash = other.frame.assign(phash=training.used("train").head(4)["phash"].to_numpy())
    check_external(training, Manifest(same_hash, other.roots))


def test_a_lookalike_that_cannot_be_verified_is_refused_and_says_how_to_give_the_images(training, tmp_path):
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    gone = Manifest(training.frame, {"bus-uclm": tmp_path / "nowhere"})
    with pytest.raises(EvaluationError, match="cannot be verified") as caught:
        check_external(gone, clinic)
    assert "--root bus-uclm=FOLDER" in caught.value.hint


def test_a_lookalike_is_not_judged_by_exchanged_images(training, tmp_path):
    """Else a folder of other images under the same names would pass copies off as unseen."""
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    exchanged = shutil.copytree(training.roots["bus-uclm"], tmp_path / "exchanged")
    for name in training.used("train").head(4)["image"]:
        cv2.imwrite(str(exchanged / name), _speckle(cv2.imread(str(exchanged / name))))
    with pytest.raises(EvaluationError, match="has changed since the manifest"):
        check_external(Manifest(training.frame, {"bus-uclm": exchanged}), clinic)


def test_excluded_rows_are_no_reason_to_refuse(training, tmp_path):
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    frame = clinic.frame.copy()
    frame.loc[frame.index[:3], ["excluded", "split"]] = ["near-duplicate", ""]
    with pytest.raises(EvaluationError, match="1 near-duplicates"):
        check_external(training, Manifest(frame, clinic.roots))
    frame.loc[frame.index[3], ["excluded", "split"]] = ["near-duplicate", ""]
    check_external(training, Manifest(frame, clinic.roots))


def test_a_manifest_without_hashes_of_the_whole_image_is_refused(training):
    unknown = training.frame.assign(dataset="x", phash="", group_id="x:" + training.frame["image_id"])
    with pytest.raises(EvaluationError, match="the target manifest has images without phash"):
        check_external(training, Manifest(unknown, {"x": training.roots["bus-uclm"]}))


def test_crosseval_finds_moved_training_images_where_it_is_shown_by_first(training, trained, tmp_path):
    clinic = _clinic(training, tmp_path, CHANGES["rescaled"])
    run = shutil.copytree(trained, tmp_path / "outputs" / "run", ignore=shutil.ignore_patterns("eval-*"))
    write_manifest(Manifest(training.frame, {"bus-uclm": tmp_path / "moved"}), run / "manifest.csv")
    without = clinic.frame.assign(masks="", label="normal", mask_format="")
    write_manifest(Manifest(without, clinic.roots), tmp_path / "clinic.csv")
    command = ["crosseval", "--out", run.parent, "--target", tmp_path / "clinic.csv"]
    lost = invoke(*command)
    assert lost.exit_code == 1
    assert "--root bus-uclm=FOLDER" in lost.stderr
    found = invoke(*command, "--root", f"bus-uclm={training.roots['bus-uclm']}")
    assert found.exit_code == 1
    assert "near-duplicates of images of clinic were used in training" in found.stderr


HASHES = st.lists(st.integers(0, 2**256 - 1), max_size=8)


@settings(max_examples=50, deadline=None)
@given(HASHES, HASHES, st.integers(0, 256))
def test_blockwise_distances_find_exactly_the_pairs_that_counting_bits_finds(first, second, most):
    first, second = ([f"{number:064x}" for number in numbers] for numbers in (first, second))
    expected = [
        [i, j]
        for i, a in enumerate(first)
        for j, b in enumerate(second)
        if (int(a, 16) ^ int(b, 16)).bit_count() <= most
    ]
    assert near_pairs(first, second, most).tolist() == expected


def test_pairs_are_found_across_the_borders_of_blocks():
    random = np.random.default_rng(0)
    first = [random.bytes(32).hex() for _ in range(4100)]
    second = [random.bytes(32).hex() for _ in range(5000)]
    second[4500] = first[4099]
    assert near_pairs(first, second).tolist() == [[4099, 4500]]
