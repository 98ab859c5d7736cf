"""Several networks and views as one predictor: the mean at the image's own size, with a folder of its own."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import ended, invoke, settings_options

import bus_smp
from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.errors import ConfigError
from bus_smp.inference.backends import open_ensemble
from bus_smp.inference.ensemble import EnsemblePredictor, MirrorPredictor
from bus_smp.inference.predictor import Prediction, Predictor, Prepared
from bus_smp.measures.decision import DecisionRules
from bus_smp.measures.uncertainty import mean_pairwise_dice
from bus_smp.model.checkpoint import load_model, write_checkpoint
from bus_smp.runs.ensemble import make_ensemble, read_ensemble
from bus_smp.runs.evaluations import read_summary
from bus_smp.runs.experiment import Experiment, Member, begin_experiment
from bus_smp.runs.find import find_ensemble, find_scored
from bus_smp.runs.run import Run


@pytest.fixture(scope="module")
def second(manifests, trained):
    """A run on the same images as ``trained``, with a larger grid and another geometry."""
    out = trained.parent
    options = settings_options(manifests, "data.geometry=letterbox", "data.size=96", "train.epochs=1")
    ended(invoke("train", "--out", out, "--run", "second", *options), 0)
    return out / "second"


@pytest.fixture
def scans():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in ((70, 91), (120, 64))]


def _load(*runs, **more):
    return bus_smp.load(list(runs), device="cpu", precision="fp32", **more)


class _Known(Predictor):
    """Predicts the same probabilities for each image, on a grid of one size."""

    weights, batch_size = ("0" * 64,), 4
    computed_in = {"backend": "torch", "device": "cpu", "precision": "fp32"}

    def __init__(self, grid, threshold=0.5):
        self.grid, self.size = np.asarray(grid, np.float32), len(grid[0])
        self.rules = DecisionRules(threshold)

    def prepare(self, image):
        return Prepared(image.shape[:2], ())

    def predict_prepared(self, images):
        return [Prediction(self.grid, self.grid, image.shape, self.rules) for image in images]


def _lesion(*pixels, size=4, sure=0.9):
    """Probabilities of a benign lesion at (row, column) ``pixels``, and of background elsewhere."""
    grid = np.zeros((3, size, size))
    grid[0] = 1
    for row, column in pixels:
        grid[:, row, column] = 1 - sure, sure, 0
    return grid


def test_a_run_with_itself_is_the_run(trained, scans):
    one, twice = _load(trained), _load(trained, trained)
    for plain, mean in zip(one.predict(scans), twice.predict(scans), strict=True):
        for name in ("native", "mask", "grid", "raw_grid", "image"):
            np.testing.assert_array_equal(getattr(mean, name), getattr(plain, name))
        assert (mean.score, mean.label, mean.rules) == (plain.score, plain.label, plain.rules)
        assert mean.disagreement == {"networks": 0} and not mean.spread.any()
    assert twice.weights == one.weights


def test_networks_of_other_sizes_meet_at_the_size_of_the_image(trained, second, scans):
    both = _load(trained, second).predict(scans)
    for mean, *alone in zip(both, _load(trained).predict(scans), _load(second).predict(scans), strict=True):
        expected = (alone[0].native + alone[1].native) / 2
        np.testing.assert_allclose(mean.native, expected, atol=1e-6)
        np.testing.assert_allclose(mean.native.sum(0), 1, atol=1e-5)
        assert mean.grid.shape == alone[1].grid.shape, "scores are taken on the larger grid"
        thresholds = [one.rules.threshold for one in alone]
        assert mean.rules.threshold == pytest.approx(np.mean(thresholds))


def test_a_large_image_gets_the_same_mask_in_bands(trained, second, scans, monkeypatch):
    whole = _load(trained, second).predict(scans[0])
    monkeypatch.setattr("bus_smp.inference.predictor._LARGE", 1)
    assert (_load(trained, second).predict(scans[0]).mask == whole.mask).mean() > 0.999


def test_the_mirror_of_an_image_gives_the_mirror_of_the_result(trained, second, scans):
    for run, image in zip((trained, second), scans, strict=True):
        model = _load(run, views="mirror")
        found, mirrored = (model.predict(one) for one in (image, np.ascontiguousarray(image[:, ::-1])))
        np.testing.assert_allclose(mirrored.grid[..., ::-1], found.grid, atol=1e-6)
        np.testing.assert_allclose(mirrored.native[..., ::-1], found.native, atol=1e-6)
        assert found.disagreement.keys() == {"views"}
        assert not np.allclose(found.grid, _load(run).predict(image).grid, atol=1e-6)


def test_disagreement_and_spread_by_hand(scans):
    """Three masks of 2, 2 and 0 pixels; the first two share one: pairs 1/2, 0 and 0."""
    grids = [_lesion((0, 0), (0, 1)), _lesion((0, 1), (0, 2)), _lesion()]
    found = EnsemblePredictor([_Known(grid) for grid in grids]).predict(scans[0])
    assert found.disagreement["networks"] == pytest.approx(1 - (0.5 + 0 + 0) / 3)
    assert found.spread[0, 1] == pytest.approx(np.std([0.9, 0.9, 0.0]), abs=1e-6)
    assert found.spread[3].max() == 0
    np.testing.assert_allclose(found.grid, np.mean(grids, axis=0), atol=1e-7)
    assert mean_pairwise_dice([np.zeros((2, 2), bool)] * 2) == 1, "two empty masks agree"


def test_the_order_in_which_runs_are_named_changes_nothing(scans):
    """Of equal size, one letterboxed: its grid has fewer columns."""
    stretched, boxed = _Known(_lesion((1, 0), (2, 2))), _Known(_lesion((1, 1), sure=0.7)[..., :3])
    boxed.weights = ("1" * 64,)
    one, two = (
        EnsemblePredictor(members).predict(scans[0]) for members in ((stretched, boxed), (boxed, stretched))
    )
    np.testing.assert_array_equal(one.grid, two.grid)
    np.testing.assert_array_equal(one.native, two.native)


def test_networks_with_views_keep_both_disagreements_apart(scans):
    left, right = _Known(_lesion((1, 0))), _Known(_lesion((1, 3)))
    views = [EnsemblePredictor([one, MirrorPredictor(one)], "views") for one in (left, left)]
    found = EnsemblePredictor(views).predict(scans[0])
    assert found.disagreement == {"networks": 0, "views": 1}
    views[1] = EnsemblePredictor([right, right], "views")
    assert EnsemblePredictor(views).predict(scans[0]).disagreement["views"] == 0.5


def test_no_threshold_where_one_network_has_none(scans):
    known, unknown = _Known(_lesion()), _Known(_lesion(), threshold=None)
    assert EnsemblePredictor([known, unknown]).predict(scans[0]).rules.threshold is None


def test_one_network_after_the_other_gets_a_batch(scans):
    """The memory of an ensemble does not grow with the number of images, nor of networks."""
    calls = []

    class Counting(_Known):
        def predict_prepared(self, images):
            calls.append((id(self), len(images)))
            return super().predict_prepared(images)

    members = [Counting(_lesion()) for _ in range(3)]
    EnsemblePredictor(members).predict([scans[0]] * 10)
    assert calls == [(id(member), size) for size in (4, 4, 2) for member in members]


def test_networks_of_other_classes_have_no_mean(trained, tmp_path):
    model, header = load_model(trained / "best.safetensors")
    weights = {"num_classes": 2}
    shutil.copytree(trained, tmp_path / "two", ignore=shutil.ignore_patterns("eval-*"))
    smaller = bus_smp.HybridResNet50(**{**header["model"], **weights, "encoder_weights": None})
    about = {**header, "model": {**header["model"], **weights}}
    write_checkpoint(tmp_path / "two" / "best.safetensors", smaller, about)
    with pytest.raises(ConfigError, match="two has 2 classes and first 3"):
        open_ensemble(make_ensemble([Run(trained), Run(tmp_path / "two")]), device="cpu")


def test_predict_takes_several_runs_and_an_experiment(trained, second, tmp_path, scans):
    import cv2

    cv2.imwrite(str(tmp_path / "scan.png"), scans[0])
    said = []
    for number, options in enumerate((["--run", "first"], ["--run", "first", "--run", "first"])):
        said.append(ended(invoke("predict", tmp_path / "scan.png", "--out", trained.parent, "--to", tmp_path / str(number), *options), 0))  # fmt: skip
    alone, twice = (pd.read_csv(tmp_path / number / "predictions.csv") for number in "01")
    assert alone.pop("disagreement_networks").isna().all() and (twice.pop("disagreement_networks") == 0).all()
    pd.testing.assert_frame_equal(alone, twice)
    assert "2 passes for each image" in said[1] and "passes" not in said[0]
    assert "mirror" in ended(
        invoke("predict", tmp_path / "scan.png", "--out", trained.parent, "--views", "tilt"), 2
    )


@pytest.fixture(scope="module")
def scored(manifests, trained, second):
    """Both runs as one, with the mirror view, on their test split; the folder and the command's result."""
    result = invoke(
        "evaluate",
        "--out",
        trained.parent,
        "--run",
        "first",
        "--run",
        "second",
        "--views",
        "mirror",
        "--json",
    )
    ended(result, 0)
    return trained.parent / "first+second+mirror", json.loads(result.stdout)


def test_an_ensemble_has_a_folder_of_its_own_that_names_runs_and_views(scored, trained, second):
    folder, summary = scored
    evaluation = folder / "eval-bus-uclm-test"
    assert read_summary(evaluation) == summary
    assert summary["ensemble"] == {"runs": ["first", "second"], "views": ["mirror"], "experiment": ""}
    members = summary["checkpoint"]["members"]
    assert [one["sha256"] for one in members] == [
        make_ensemble([Run(one)]).weights_sha256() for one in (trained, second)
    ]
    assert [run.name for run in read_ensemble(folder).runs] == ["first", "second"]
    assert len(pd.read_csv(evaluation / "per_image.csv"))
    shown = invoke("info", folder).stdout
    assert "ensemble of 2 runs" in shown and "plain, mirror" in shown and "  second: finished" in shown
    refused = ended(invoke("calibrate", "--out", folder.parent, "--run", folder.name), 1)
    assert "name one of them: first, second" in refused
    assert "letterboxed to 96 x 96 px" in invoke("info", second).stdout


@pytest.mark.slow
def test_what_was_scored_is_found_again_by_its_folder(scored, trained):
    folder, _ = scored
    out = trained.parent
    again = ended(invoke("evaluate", "--out", out, "--run", folder.name), 0)
    assert "Already scored" in again
    ended(invoke("evaluate", "--out", out, "--run", "second"), 0)
    compared = invoke("compare", "second", folder.name, "--out", out, "--json")
    ended(compared, 0)
    assert json.loads(compared.stdout)["b"] == folder.name
    report = invoke("report", folder.name, "--out", out)
    ended(report, 0)
    page = (folder / "report.html").read_text()
    assert "bus-smp evaluate --run first --run second --views mirror" in page
    assert "bus-smp train --run first+second" not in page + report.output


def test_images_that_a_later_run_was_trained_on_are_seen(scored, trained, manifests, tmp_path):
    """The test split of the first run, in the training data of the second."""
    out = tmp_path / "outputs"
    shutil.copytree(trained, out / "first", ignore=shutil.ignore_patterns("eval-*"))
    manifest = read_manifest(trained / "manifest.csv", images=False)
    swapped = manifest.frame["split"].replace({"test": "train", "train": "test"})
    data = tmp_path / "data_manifests"
    write_manifest(Manifest(manifest.frame.assign(split=swapped), manifest.roots), data / "bus-uclm.csv")
    options = [*settings_options(manifests, "train.epochs=1"), "--set", f"data.manifests={data}"]
    ended(invoke("train", "--out", out, "--run", "other", *options), 0)
    both = ("--out", out, "--run", "first", "--run", "other")
    assert "were used to train other" in ended(invoke("evaluate", *both), 1)
    assert not (out / "first+other").exists()
    # and of what any of them was trained on, none is external
    target = shutil.copytree(manifests / "data_manifests", tmp_path / "targets") / "busi.csv"
    busi = ["--data", "busi", "--set", f"data.manifests={target.parent}"]
    ended(invoke("train", "--out", out, "--run", "third", *options[:-2], *busi), 0)
    crossed = ("crosseval", "--out", out, "--manifests", target.parent, "--target", "busi")
    assert "busi was used in training" in ended(invoke(*crossed, "--run", "first", "--run", "third"), 1)


def test_an_experiment_is_scored_run_by_run_unless_asked_for_as_one(trained, second, tmp_path):
    for seed, run in enumerate((trained, second)):
        shutil.copytree(run, tmp_path / f"x-seed{seed}", ignore=shutil.ignore_patterns("eval-*"))
    members = tuple(Member(f"x-seed{seed}", seed, None) for seed in (0, 1))
    begin_experiment(Experiment(tmp_path / "x", members))
    assert isinstance(find_scored(["x"], tmp_path), Experiment)
    with pytest.raises(ConfigError, match="one by one") as error:
        find_scored(["x"], tmp_path, ["mirror"])
    assert "--ensemble" in error.value.hint
    ensemble = find_scored(["x"], tmp_path, ["mirror"], ensemble=True)
    assert [run.name for run in ensemble.runs] == ["x-seed0", "x-seed1"]
    assert ensemble.name == "x+ensemble+mirror"
    assert find_ensemble(["x"], tmp_path).name == "x+ensemble", "predict takes the runs as one"
    assert find_scored(["x-seed0"], tmp_path, ensemble=True).name == "x-seed0"


def test_a_folder_that_is_something_else_is_not_written_into(manifests, trained, tmp_path):
    out = tmp_path / "outputs"
    shutil.copytree(trained, out / "first", ignore=shutil.ignore_patterns("eval-*"))
    (out / "first+mirror").mkdir()
    (out / "first+mirror" / "notes.txt").write_text("mine")
    assert "rename that folder" in ended(
        invoke("evaluate", "--out", out, "--run", "first", "--views", "mirror"), 1
    )
    assert [path.name for path in (out / "first+mirror").iterdir()] == ["notes.txt"]
