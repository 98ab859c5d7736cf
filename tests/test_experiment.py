"""Folds and repeats: every image tested once by who has not seen it, one table, and nothing done twice."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ended, invoke, settings_options

from bus_smp.config import load_settings
from bus_smp.data.manifest import Manifest, read_manifest
from bus_smp.errors import CheckpointError, ConfigError, EvaluationError, ManifestError, TrainingError
from bus_smp.evaluation.evaluate import is_current
from bus_smp.evaluation.pooling import cells, pool_folds, spread
from bus_smp.model.checkpoint import load_model, write_checkpoint
from bus_smp.runs.experiment import Experiment, Member, begin_experiment, plan_experiment, read_experiment
from bus_smp.runs.find import find_folder, find_run, find_trained, list_trained
from bus_smp.runs.run import Run
from bus_smp.statistics.summary import read_per_image, summarise
from bus_smp.system.files import file_sha256
from bus_smp.training.cross_validation import count_folds, fold_manifest

FOLDS = 3
WHOLE = ("--folds", FOLDS, "--seeds", 42)


@pytest.fixture(scope="module")
def work(tmp_path_factory, bus_uclm_tree, busi_tree):
    """A folder with data_manifests/ whose bus-uclm has folds."""
    folder = tmp_path_factory.mktemp("folds")
    for tree, more in ((bus_uclm_tree, ["--folds", FOLDS]), (busi_tree, [])):
        ended(invoke("make-manifest", "--root", tree, "--out", folder / "data_manifests", *more), 0)
    return folder


def _train(work, out, *arguments, settings=("train.epochs=1",)):
    return invoke("train", "--out", out, *arguments, *settings_options(work, *settings))


@pytest.fixture(scope="module")
def out(work):
    """outputs/ with the experiment ``x`` of 3 folds and a seed."""
    ended(_train(work, work / "outputs", "--run", "x", *WHOLE), 0)
    return work / "outputs"


@pytest.fixture(scope="module")
def folds(out):
    """The experiment's folder and what ``evaluate`` says of it."""
    scored = invoke("evaluate", "--out", out, "--run", "x", "--json")
    assert scored.exit_code == 0, scored.stderr
    return out / "x", json.loads(scored.stdout)


def _copy(out, folder, *without):
    """The runs of ``out`` again, without their evaluations; linked, since files are replaced and never written over."""
    ignore = shutil.ignore_patterns("eval-*", "both*", "repeats", ".lock", *without)
    return shutil.copytree(out, folder, ignore=ignore, copy_function=os.link)


def _times(folder, pattern="**/*"):
    return {path: path.stat().st_mtime_ns for path in folder.glob(pattern) if path.is_file()}


def test_every_fold_is_an_ordinary_run_and_the_experiment_says_which(out):
    experiment = read_experiment(out / "x")
    assert [member.run for member in experiment.members] == [f"x-seed42-fold{fold}" for fold in range(FOLDS)]
    for member in experiment.members:
        settings = Run(out / member.run).settings()
        assert (settings.train.seed, settings.data.fold) == (member.seed, member.fold)
    about = json.loads((out / "x" / "experiment.json").read_text())
    assert (about["kind"], about["folds"], about["seeds"]) == ("folds", FOLDS, [42])
    assert str(out) not in (out / "x" / "experiment.json").read_text()


def test_each_fold_is_tested_once_and_the_next_one_validates(work, out):
    manifest = read_manifest(work / "data_manifests" / "bus-uclm.csv")
    used = manifest.used()
    for fold in range(FOLDS):
        own = Run(out / f"x-seed42-fold{fold}").manifest().used()
        assert own["image_id"].tolist() == used["image_id"].tolist()
        for split, number in (("test", fold), ("val", (fold + 1) % FOLDS)):
            assert set(own.loc[own["split"] == split, "fold"]) == {number}
        assert set(own.loc[own["split"] == "train", "fold"]) == set(range(FOLDS)) - {fold, (fold + 1) % FOLDS}
        assert own.groupby("group_id")["split"].nunique().max() == 1


def test_a_fold_trained_on_its_own_completes_the_experiment_and_is_the_same_to_the_last_bit(
    work, out, tmp_path
):
    copy = _copy(out, tmp_path / "outputs", "x-seed42-fold2")
    lacking = invoke("evaluate", "--out", copy, "--run", "x")
    assert lacking.exit_code == 1
    assert "x-seed42-fold2 not trained to the end" in lacking.stderr
    ended(_train(work, copy, "--run", "x-seed42-fold2", "--fold", 2), 0)
    name = "x-seed42-fold2/best.safetensors"
    assert (copy / name).read_bytes() == (out / name).read_bytes()
    before = _times(copy, "x-*/[!.]*")
    ended(_train(work, copy, "--run", "x", *WHOLE), 0)
    assert _times(copy, "x-*/[!.]*") == before, "finished runs are not changed"


def test_the_experiment_is_written_down_before_the_first_training(work, tmp_path):
    diverging = ("train.lr=1e30", "train.precision=fp32")
    stopped = _train(work, tmp_path, "--run", "x", "--folds", FOLDS, "--seeds", "42,43", settings=diverging)
    assert stopped.exit_code == 1
    assert "the loss became" in stopped.stderr
    experiment = read_experiment(tmp_path / "x")
    assert [(m.seed, m.fold) for m in experiment.members] == [(s, f) for s in (42, 43) for f in range(FOLDS)]
    assert experiment.kind == "folds and seeds"
    assert {path.name for path in tmp_path.iterdir()} == {"x", "x-seed42-fold0"}


def test_the_members_settings_are_compared_before_any_is_trained(work, out, tmp_path):
    copy = _copy(out, tmp_path / "outputs", "x-seed42-fold0")
    other = _train(work, copy, "--run", "x", *WHOLE, settings=("train.epochs=5",))
    assert other.exit_code == 1
    assert "train.epochs: 1 in the run, 5 now" in other.stderr
    assert not (copy / "x-seed42-fold0").exists()


def test_another_fold_in_the_same_folder_is_refused_as_any_other_setting(work, out, tmp_path):
    run = _copy(out / "x-seed42-fold0", tmp_path / "x-fold1")
    assert "data.fold: 0 in the run, 1 now" in ended(_train(work, tmp_path, "--run", "x", "--fold", 1), 1)
    assert run.exists()


@pytest.mark.parametrize("there", ["a run", "files", "another experiment"])
def test_a_folder_of_another_kind_is_refused(work, out, tmp_path, there):
    if there == "a run":
        _copy(out / "x-seed42-fold0", tmp_path / "x")
    elif there == "files":
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "thesis.txt").write_text("three years")
    else:
        begin_experiment(Experiment(tmp_path / "x", (Member("x-seed7", 7, None),)))
    refused = _train(work, tmp_path, "--run", "x", "--folds", FOLDS)
    assert refused.exit_code == 1
    assert {"a run": "is a run", "files": "thesis.txt", "another experiment": "x-seed7"}[
        there
    ] in refused.stderr
    assert not (tmp_path / "x-fold0").exists()


def test_an_experiment_is_no_run_to_train_or_predict_with(work, out):
    assert "experiment.json" in ended(_train(work, out, "--run", "x"), 1)
    ended(invoke("predict", "--out", out, "--run", "x", work / "data_manifests" / "bus-uclm.csv"), 1)


def test_seeds_may_be_added_to_an_experiment(tmp_path):
    first, second = Member("x-seed1", 1, None), Member("x-seed2", 2, None)
    begin_experiment(Experiment(tmp_path / "x", (first,)))
    begin_experiment(Experiment(tmp_path / "x", (first, second)))
    assert read_experiment(tmp_path / "x").members == (first, second)
    with pytest.raises(TrainingError, match="another experiment"):
        begin_experiment(Experiment(tmp_path / "x", (second,)))


@pytest.mark.parametrize(
    "content", ["", "{}", '{"members": []}', '{"members": [{"run": "../x", "seed": 1, "fold": null}]}']
)
def test_a_damaged_experiment_is_named(tmp_path, content):
    (tmp_path / "experiment.json").write_text(content)
    with pytest.raises(TrainingError, match=r"experiment\.json: cannot be read"):
        read_experiment(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--folds", 4], "bus-smp make-manifest --folds 4"),
        (["--fold", 3], "folds 0 to 2"),
        (["--folds", 3, "--fold", 1], "leave one of them away"),
        (["--folds", 3, "--set", "data.train=busi"], "bus-smp make-manifest --folds 5"),
        (["--folds", 3, "--set", "data.train=[bus-uclm,busi]"], "the manifest of busi has no folds"),
    ],
)
def test_folds_that_are_not_there_are_an_error_with_the_next_command(work, tmp_path, arguments, said):
    assert said in ended(invoke("train", "--out", tmp_path, *settings_options(work), *arguments), 1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seeds", ["42,", "1.5", "-1", "42,42", "4294967296", "x"])
def test_seeds_that_are_none_are_a_usage_error(seeds):
    assert invoke("train", "--seeds", seeds).exit_code == 2


def test_folds_must_be_whole_complete_and_enough(work):
    manifest = read_manifest(work / "data_manifests" / "bus-uclm.csv")
    used = manifest.frame["excluded"] == ""
    number = manifest.frame["fold"]

    def refused(fold, said):
        frame = manifest.frame.assign(fold=fold.where(used))
        with pytest.raises(ManifestError, match=said):
            count_folds(Manifest(frame, manifest.roots))

    assert count_folds(manifest) == FOLDS
    refused(number.mask(number == 1, 5), "without gaps: 0, 2, 5")
    refused(number.mask(number == 2, 1), "none to train on")
    refused(number.mask(number == 2), "no fold for")
    with pytest.raises(ConfigError, match="there is no fold 3"):
        fold_manifest(manifest, 3)


def test_out_of_fold_predictions_are_one_table_of_every_image_with_one_interval(work, out, folds):
    folder, summary = folds
    table = read_per_image(folder / "eval-bus-uclm-oof" / "per_image.csv")
    used = read_manifest(work / "data_manifests" / "bus-uclm.csv").used()
    assert sorted(table["image_id"]) == sorted(used["image_id"])
    assert summary["summaries"]["model"] == json.loads(json.dumps(summarise(table)))
    assert summary["summaries"]["model"]["counts"]["groups"] == used["group_id"].nunique()
    for fold in range(FOLDS):
        own = read_per_image(out / f"x-seed42-fold{fold}" / "eval-bus-uclm-test" / "per_image.csv")
        pooled = table[table["image_id"].isin(own["image_id"])]
        columns = ["image_id", "dice_lesion", "malignant_score", "predicted_label"]
        left, right = (t[columns].sort_values("image_id", ignore_index=True) for t in (own, pooled))
        pd.testing.assert_frame_equal(left, right)
        assert set(own["image_id"]) == set(used.loc[used["fold"] == fold, "image_id"])
    masks = sorted(path.stem for path in (folder / "eval-bus-uclm-oof" / "masks" / "bus-uclm").iterdir())
    assert masks == sorted(used["image_id"])
    assert (folder / "eval-bus-uclm-oof" / "qualitative.png").is_file()


@pytest.mark.slow
def test_only_evaluations_that_are_damaged_are_made_again(out, folds):
    pattern = "x-seed42-fold*/eval-bus-uclm-test/per_image.csv"
    before = _times(out, pattern)
    assert len(before) == FOLDS
    stopped, lost = (out / f"x-seed42-fold{fold}" / "eval-bus-uclm-test" for fold in (1, 2))
    (stopped / "summary.json").unlink()
    next((lost / "masks").rglob("*.png")).unlink()
    again = invoke("evaluate", "--out", out, "--run", "x", "--json")
    assert again.exit_code == 0, again.stderr
    assert "Already scored: " + str(out / "x" / "eval-bus-uclm-oof") in again.stderr, "from the same tables"
    made = {path for path, time in _times(out, pattern).items() if time != before[path]}
    assert made == {stopped / "per_image.csv", lost / "per_image.csv"}
    assert json.loads(again.stdout)["summaries"] == folds[1]["summaries"]


@pytest.mark.parametrize(
    "name", ["summary.json", "per_image.csv", "components.csv", "pixel_roc.csv", "masks"]
)
def test_an_evaluation_without_one_of_its_files_is_not_current(out, folds, tmp_path, name):
    run = Run(out / "x-seed42-fold0")
    folder = shutil.copytree(run.evaluations()[0], tmp_path / "evaluation")
    manifest = run.manifest()
    known = (folder, file_sha256(run.best_path), manifest, manifest.used("test"))
    assert is_current(*known)
    shutil.rmtree(folder / name) if name == "masks" else (folder / name).unlink()
    assert not is_current(*known)


def test_folds_with_an_image_too_few_or_twice_are_not_pooled(out, folds, tmp_path):
    parts = [out / f"x-seed42-fold{fold}" / "eval-bus-uclm-test" for fold in range(FOLDS)]
    manifest = Run(parts[0].parent).manifest()
    about = {"run": "x", "dataset": "bus-uclm", "split": "oof", "external": False}
    for wrong in (parts[:2], [*parts, parts[0]]):
        with pytest.raises(EvaluationError, match="not scored exactly once|scored twice"):
            pool_folds(wrong, manifest.used(), tmp_path, about, manifest)
    assert not list(tmp_path.iterdir())


def test_several_seeds_give_the_mean_and_sd_of_their_pooled_numbers(out, folds):
    members = read_experiment(out / "x").members
    for member in members:  # the second seed is the first again, with its evaluation
        shutil.copytree(out / member.run, out / f"both-fold{member.fold}", copy_function=os.link)
    second = tuple(Member(f"both-fold{member.fold}", 43, member.fold) for member in members)
    begin_experiment(Experiment(out / "both", members + second))
    scored = invoke("evaluate", "--out", out, "--run", "both", "--json")
    assert scored.exit_code == 0, scored.stderr
    summary = json.loads(scored.stdout)
    pooled = folds[1]["summaries"]["model"]
    for seed in (42, 43):
        own = json.loads((out / "both" / f"eval-bus-uclm-oof-seed{seed}" / "summary.json").read_text())
        assert own["summaries"]["model"] == pooled == summary["summaries"][f"both-seed{seed}"]
    dice = pooled["metrics"]["dice_lesion"]["mean"]
    assert summary["members"]["metrics"]["dice_lesion"] == {"mean": dice, "sd": 0, "n": 2, "n_undefined": 0}
    table = pd.read_csv(out / "both" / "eval-bus-uclm-oof" / "members.csv")
    assert table["run"].tolist() == ["both-seed42", "both-seed43"]
    assert table["dice_lesion"].tolist() == [dice, dice]
    assert json.loads((out / "both" / "eval-bus-uclm-oof" / "summary.json").read_text()) == summary


@pytest.fixture(scope="module")
def repeats(out, folds):
    """Two of the runs as if they were repeats of one training, which all that follows cannot tell."""
    members = tuple(Member(f"x-seed42-fold{fold}", fold, None) for fold in (0, 1))
    begin_experiment(Experiment(out / "repeats", members))
    return out / "repeats"


def test_crosseval_of_an_experiment_is_mean_and_sd_over_its_runs_and_each_with_its_interval(
    work, out, repeats
):
    command = [
        "crosseval", "--out", out, "--run", "repeats", "--manifests", work / "data_manifests", "--target",
    ]  # fmt: skip
    scored = invoke(*command, "busi", "--full")
    assert scored.exit_code == 0, scored.stderr
    summary = json.loads((repeats / "eval-busi-all" / "summary.json").read_text())
    assert summary["external"] is True
    models = []
    for run in summary["runs"]:
        own = json.loads((out / run / "eval-busi-all" / "summary.json").read_text())
        assert summary["summaries"][run] == own["summaries"]["model"]
        models.append(own["summaries"]["model"]["metrics"]["dice_lesion"])
    found = summary["members"]["metrics"]["dice_lesion"]
    assert found["mean"] == pytest.approx(np.mean([one["mean"] for one in models]))
    assert found["sd"] == pytest.approx(np.std([one["mean"] for one in models], ddof=1))
    for words in ("mean of 2 runs", f"{found['mean']:.3f} [sd {found['sd']:.3f}] ", "largest-"):
        assert words in scored.stdout
    lines = scored.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for run, one in zip(summary["runs"], models, strict=True):
        assert f"{one['mean']:.2f} [{one['low']:.2f} {one['high']:.2f}]" in lines[lines.index(run) + 1]
    written = repeats / "eval-busi-all" / "summary.json"
    before = written.stat().st_mtime_ns
    assert invoke(*command, "busi").exit_code == 0
    assert written.stat().st_mtime_ns == before, "or a comparison would look older than what it compared"
    assert "was used in training" in ended(invoke(*command, "bus-uclm"), 1)


def test_repeats_without_folds_are_compared_on_the_test_split(out, repeats):
    assert read_experiment(repeats).kind == "seeds"
    scored = invoke("evaluate", "--out", out, "--run", "repeats")
    assert scored.exit_code == 0, scored.stderr
    table = pd.read_csv(repeats / "eval-bus-uclm-test" / "members.csv")
    assert table["run"].tolist() == ["x-seed42-fold0", "x-seed42-fold1"]
    assert "mean of 2 runs" in scored.stdout


def test_without_a_name_the_newest_that_is_finished_is_taken(out, tmp_path):
    runs, said = _copy(out, tmp_path / "outputs"), []
    found = find_trained(None, runs, said.append)
    assert isinstance(found, Experiment) and found.name == "x", "not one of its runs"
    newest = max(path.stat().st_mtime_ns for path in runs.glob("*/best.safetensors"))
    assert find_run(None, runs, said.append).best_path.stat().st_mtime_ns == newest
    assert said == []

    later = shutil.copytree(runs / "x-seed42-fold0", runs / "later")
    model, header = load_model(later / "best.safetensors")
    for name in ("config.yaml", "metrics.csv"):
        os.utime(later / name)
    write_checkpoint(later / "best.safetensors", model, header)
    assert find_trained(None, runs, said.append).name == "later" and said == []
    header["settings"]["train"]["epochs"] = 30
    write_checkpoint(later / "best.safetensors", model, header | {"calibration": None})
    assert find_trained(None, runs, said.append).name == "x"
    assert find_run(None, runs, said.append).name.startswith("x-seed42-fold")
    assert find_trained("later", runs, said.append).name == "later"
    words = "is unfinished, epoch 1 of 30"
    assert said[0] == f"Note: the newest, {later}, {words}; {runs / 'x'} is taken"
    assert said[1].startswith(f"Note: the newest, {later}, {words}; ")
    assert said[2:] == [f"Note: {later} {words}"]
    assert list_trained(runs)[1] == [f"{later} {words}"]
    only = tmp_path / "only"
    shutil.copytree(later, only / "later")
    assert find_folder(None, only, said.append).name == "later"
    assert said[3:] == [f"Note: the newest, {only / 'later'}, {words}"]


def test_the_run_of_a_name_is_no_experiment(out):
    with pytest.raises(CheckpointError, match="x is an experiment") as refused:
        find_run(str(out / "x"), Path("elsewhere"))
    assert refused.value.hint.startswith("name one of them: x-seed42-fold0, ")


def test_names_of_members_say_what_was_asked_for():
    settings = load_settings(None, ["train.seed=7"])
    assert [m.run for m in plan_experiment("x", settings)] == ["x"]
    assert plan_experiment("x", settings, range(2)) == (Member("x-fold0", 7, 0), Member("x-fold1", 7, 1))
    assert plan_experiment("x", settings, (), [1, 2]) == (
        Member("x-seed1", 1, None),
        Member("x-seed2", 2, None),
    )
    assert [m.run for m in plan_experiment("x", load_settings(None, ["data.fold=2"]))] == ["x-fold2"]


def test_the_spread_counts_what_is_undefined_and_one_run_has_no_sd():
    def summary(dice, rate):
        return {"metrics": {"dice_lesion": {"mean": dice}}, "rates": {"miss_rate": {"mean": rate}}}

    found = spread([summary(0.5, None), summary(0.7, 0.25), summary(0.6, None)])
    assert found["metrics"]["dice_lesion"] == {
        "mean": pytest.approx(0.6), "sd": pytest.approx(0.1), "n": 3, "n_undefined": 0,
    }  # fmt: skip
    assert found["rates"]["miss_rate"] == {"mean": 0.25, "sd": None, "n": 1, "n_undefined": 2}
    assert spread([summary(None, None)])["metrics"]["dice_lesion"]["mean"] is None
    assert cells(found, ["miss_rate"]) == {"miss_rate": 0.25, "miss_rate_sd": None}


def test_info_says_of_every_run_of_an_experiment_how_far_it_is(out, tmp_path):
    result = invoke("info", out / "x")
    assert result.exit_code == 0, result.stderr
    assert f"experiment of {FOLDS} runs" in result.stdout
    assert result.stdout.count(": finished, best epoch") == FOLDS
    runs = _copy(out, tmp_path / "outputs")
    (runs / "x-seed42-fold1" / "best.safetensors").unlink()
    assert "x-seed42-fold1: not trained yet" in invoke("info", runs / "x").stdout
    (runs / "x" / "experiment.json").unlink()
    (runs / "x" / "experiment.json").write_text("{")
    assert "cannot be read as an experiment" in ended(invoke("info", runs / "x"), 1)


def test_what_a_fold_is_split_by_is_said_in_its_manifest(out):
    about = read_experiment(out / "x").manifest().about
    assert about["splits"]["how"].startswith("cross-validation, fold 0 of 3")


def test_an_experiment_and_its_run_never_share_a_folder(work, tmp_path):
    assert "at once" in ended(_train(work, tmp_path / "outputs", "--run", "z-seed7", "--seeds", "7"), 1)
    assert not (tmp_path / "outputs" / "z-seed7").exists()
