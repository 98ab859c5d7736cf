"""How unsure a mask is, and how far an image is from the training images."""

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ended, invoke
from tables import lesion, table_row

import bus_smp
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import CheckpointError
from bus_smp.measures.out_of_distribution import Reference, project
from bus_smp.measures.uncertainty import lesion_entropy
from bus_smp.model.checkpoint import load_model, read_header, write_checkpoint
from bus_smp.statistics.summary import summarise


def _grid(*lesion_probabilities):
    grid = np.zeros((3, 1, len(lesion_probabilities)), np.float32)
    grid[1] = lesion_probabilities
    grid[0] = 1 - grid[1]
    return grid


def test_entropy_is_taken_in_the_mask():
    def entropy(p):
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    assert lesion_entropy(_grid(0.4, 0.6, 0.9)) == pytest.approx((entropy(0.6) + entropy(0.9)) / 2, abs=1e-5)
    assert lesion_entropy(_grid(0.4, 0.1, 0)) == pytest.approx(entropy(0.4), abs=1e-5), (
        "no mask, and not sure"
    )
    assert lesion_entropy(_grid(0, 0, 0)) < 1e-4, "surely none"


def test_the_auc_of_bad_masks_by_hand():
    """Dice 1, 2/3 and 0: of the two pairs with the bad one, one is ordered by this uncertainty."""
    rows = [
        table_row(f"{number}", f"g{number}", "benign", lesion("benign", found), ood_score=unsure)
        for number, (found, unsure) in enumerate(((20, 0.2), (10, 0.9), (0, 0.5)))
    ]
    rows.append(table_row("n", "n", "normal", lesion("normal", 0), ood_score=1.5))
    rates = summarise(pd.DataFrame(rows), draws=0)["rates"]
    found = rates["auc_bad_mask_ood_score"]
    assert found["mean"] == 0.5 and found["n"] == 3
    assert rates["ood_rate"]["mean"] == 0.25


def test_distances_are_those_of_the_features(trained):
    features = np.random.default_rng(0).standard_normal((300, 2048))
    exact = np.linalg.norm(features[:200] - features[200:201], axis=1)
    near = np.linalg.norm(project(features[:200]) - project(features[200:201]), axis=1)
    assert np.abs(near / exact - 1).mean() < 0.08
    reference = Reference(np.eye(128, dtype=np.float32)[:6], limit=2.0)
    assert reference._distances(np.zeros((1, 128))) == pytest.approx(1), "all are one away"


@pytest.fixture(scope="module")
def model(trained):
    return bus_smp.load(trained, device="cpu", precision="fp32")


def test_what_is_no_scan_is_out_of_distribution_and_validation_images_are_not(trained, model):
    manifest = read_manifest(trained / "manifest.csv")
    rows = manifest.used("val").to_dict("records")
    own = [bus_smp.read_example(manifest, row) for row in rows]
    scores = [found.ood_score for found in model.predict([image for image, _ in own])]
    assert max(scores) < 1.01, "of so few images the limit is the farthest"
    rng = np.random.default_rng(0)
    from skimage import data

    strange = [
        rng.integers(0, 256, (72, 96, 3), np.uint8),
        np.where(own[0][1][..., None] > 0, 255, 0).astype(np.uint8).repeat(3, axis=2),
        data.astronaut(),
        np.zeros((72, 96, 3), np.uint8),
    ]
    assert all(found.ood_score > 1 for found in model.predict(strange))


def test_the_reference_is_small_and_a_damaged_one_is_named(trained, tmp_path):
    network, header = load_model(trained / "best.safetensors")
    assert len(header["ood"]["features"]) < 100_000
    path = tmp_path / "best.safetensors"
    write_checkpoint(path, network, header | {"ood": header["ood"] | {"features": "AAAA"}})
    with pytest.raises(CheckpointError, match="as ood its header gives"):
        read_header(path)
    write_checkpoint(path, network, {key: value for key, value in header.items() if key != "ood"})
    assert np.isnan(bus_smp.load(path).predict(np.zeros((9, 9, 3), np.uint8)).ood_score), "an older run"


def test_predict_says_what_is_out_of_distribution_and_draws_where_it_is_unsure(trained, tmp_path):
    noise = np.random.default_rng(1).integers(0, 256, (60, 80, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    options = ("--out", trained.parent, "--to", tmp_path / "p", "--run", "first", "--uncertainty")
    result = invoke("predict", tmp_path / "noise.png", *options)
    ended(result, 0)
    assert "1 image is out of distribution" in " ".join(result.output.split())
    row = pd.read_csv(tmp_path / "p" / "predictions.csv").iloc[0]
    assert row["ood_score"] > 1 and 0 <= row["lesion_entropy"] <= 1
    assert np.isnan(row["disagreement_networks"]) and np.isnan(row["disagreement_views"])
    assert cv2.imread(str(tmp_path / "p" / "noise_uncertainty.png")).shape == (60, 80, 3)
    again = invoke("predict", tmp_path / "p", "--out", trained.parent, "--to", tmp_path / "q")
    assert "results of an earlier prediction" in ended(again, 1)
    ended(invoke("predict", tmp_path / "noise.png", *options[:-1]), 0)
    assert not (tmp_path / "p" / "noise_uncertainty.png").exists(), "it belongs to the mask that was replaced"
