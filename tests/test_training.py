"""Training: continues bit for bit, refuses what cannot be right, writes what it promises."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import invoke, settings_options

from bus_smp.config import load_settings
from bus_smp.data.examples import ExampleReader, read_example
from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.errors import BusSmpError, ImageError, TrainingError
from bus_smp.model.checkpoint import load_model, read_header, weights_sha256, write_checkpoint
from bus_smp.runs.run import Run
from bus_smp.statistics.summary import read_per_image
from bus_smp.system.engine import make_engine
from bus_smp.training.loop import cosine_rate
from bus_smp.training.preflight import check_disk, check_trainable, explained_memory
from bus_smp.training.resume import StateWriter, read_state, write_state
from bus_smp.training.start import train


def _sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _state(run):
    return read_state(Run(run).state_path, make_engine("cpu", "fp32"))


def test_a_run_folder_holds_what_is_promised(trained):
    names = {path.name for path in trained.iterdir()}
    assert names >= {
        "config.yaml", "manifest.csv", "manifest.json", "environment.json", "metrics.csv", "best.safetensors",
        "loss_curves.png", "dice_curve.png",
    }  # fmt: skip
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not [name for name in names if name.startswith(".")], "neither a temporary file nor a lock is left"
    assert "last.ckpt" not in names, (
        "a finished run needs no state, which is four times as large as its weights"
    )
    metrics = pd.read_csv(trained / "metrics.csv")
    assert metrics["epoch"].tolist() == [1, 2]
    assert {"train_loss", "train_loss_main", "train_loss_aux_8", "val_dice_lesion", "lr"} <= set(
        metrics.columns
    )
    assert str(trained.parent) not in (trained / "environment.json").read_text()


def _train_until(manifests, run, words, *more):
    """Train in ``run`` until the line that begins with ``words``, where the user presses Ctrl-C; None: to the end."""

    def say(text):
        if words and text.startswith(words):
            raise KeyboardInterrupt

    settings = load_settings(None, settings_options(manifests, *more)[1::2])
    manifest = read_manifest(manifests / "data_manifests" / "bus-uclm.csv")
    with pytest.raises(KeyboardInterrupt) if words else contextlib.nullcontext():
        return train(settings, manifest, run, say=say)


@pytest.fixture(scope="module")
def stopped(manifests, tmp_path_factory):
    """``trained`` as it was after its first epoch; do not change it."""
    run = tmp_path_factory.mktemp("stopped") / "first"
    _train_until(manifests, run, "epoch 1/2")
    return run


def test_another_seed_gives_another_run(manifests, trained, tmp_path):
    other = invoke(
        "train",
        "--out",
        tmp_path,
        "--run",
        "x",
        *settings_options(manifests, "train.seed=43", "train.epochs=1"),
    )
    assert other.exit_code == 0, other.stderr
    theirs, ours = (weights_sha256(run / "best.safetensors") for run in (tmp_path / "x", trained))
    assert theirs != ours


def test_a_finished_run_is_left_as_it_is(manifests, trained):
    before = {path.name: path.stat().st_mtime_ns for path in trained.glob("*.*")}
    result = invoke("train", "--out", trained.parent, "--run", "first", *settings_options(manifests))
    assert result.exit_code == 0
    assert "2 of 2 epochs" in result.stdout
    assert "Warning" not in result.stderr, "where a finished run was computed does not matter"
    assert before == {path.name: path.stat().st_mtime_ns for path in trained.glob("*.*")}


def test_other_settings_in_the_same_folder_are_refused_and_shown(manifests, trained):
    result = invoke(
        "train",
        "--out",
        trained.parent,
        "--run",
        "first",
        *settings_options(manifests, "train.lr=5e-4", "loss.dice=2"),
    )
    assert result.exit_code == 1
    assert "train.lr: 0.001 in the run, 0.0005 now" in result.stderr
    assert "loss.dice: 1.0 in the run, 2.0 now" in result.stderr
    assert "--run NAME" in result.stderr


def test_changed_data_in_the_same_folder_are_refused(manifests, trained):
    manifest = read_manifest(trained / "manifest.csv")
    frame = manifest.frame.copy()
    used = frame.index[(frame["excluded"] == "") & (frame["split"] == "train")]
    frame.loc[used[0], ["excluded", "split"]] = ["by hand", ""]
    settings = load_settings(trained / "config.yaml")
    with pytest.raises(TrainingError, match="changed since .* 1 image is gone"):
        Run(trained).check_same(settings, Manifest(frame, manifest.roots))
    frame = manifest.frame.copy()
    frame.loc[used[1:3], "group_id"] += "x"
    with pytest.raises(TrainingError, match="2 images have another group_id"):
        Run(trained).check_same(settings, Manifest(frame, manifest.roots))


def test_a_folder_that_is_no_run_is_not_written_into(manifests, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    result = invoke("train", "--out", tmp_path, "--run", "mine", *settings_options(manifests))
    assert result.exit_code == 1
    assert "thesis.txt" in result.stderr
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_two_trainings_in_one_folder_are_refused(manifests, trained):
    with Run(trained).locked():
        result = invoke("train", "--out", trained.parent, "--run", "first", *settings_options(manifests))
    assert result.exit_code == 1
    assert "another process is training" in result.stderr


def test_a_loss_that_is_not_finite_stops_with_the_place_and_a_way_out(manifests, tmp_path):
    result = invoke(
        "train",
        "--out",
        tmp_path,
        "--run",
        "x",
        *settings_options(manifests, "train.lr=1e30", "train.precision=fp32"),
    )
    assert result.exit_code == 1
    assert "the loss became" in result.stderr
    assert "epoch 1, step" in result.stderr
    assert "train.lr=3e+29" in result.stderr
    assert not (tmp_path / "x" / "best.safetensors").exists()


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("kept", ["nothing", "normals"])
def test_a_split_that_cannot_train_or_judge_is_refused(trained, split, kept):
    manifest = read_manifest(trained / "manifest.csv")
    frame = manifest.frame
    keep = frame["split"] != split
    if kept == "normals":
        keep |= frame["label"] == "normal"
    with pytest.raises(TrainingError, match=f"the {split} split"):
        check_trainable(Manifest(frame[keep], manifest.roots))


def test_a_class_missing_from_a_split_is_a_warning(trained):
    manifest = read_manifest(trained / "manifest.csv")
    frame = manifest.frame[(manifest.frame["split"] != "val") | (manifest.frame["label"] != "malignant")]
    assert check_trainable(Manifest(frame, manifest.roots)) == ["the val split has no malignant image"]


def test_a_disk_without_room_is_refused_before_the_first_step(tmp_path):
    with pytest.raises(TrainingError, match="GB free"):
        check_disk(tmp_path / "outputs" / "run", needed=10**18)


def test_a_damaged_state_is_named_and_nothing_in_it_is_run(trained, tmp_path):
    marker = tmp_path / "ran"

    class Hostile:
        def __reduce__(self):
            return (os.mkdir, (str(marker),))

    path = tmp_path / "last.ckpt"
    torch.save({"format": 2, "model": Hostile()}, path)
    for damage in (None, b"\x00" * 100):
        if damage:
            path.write_bytes(damage)
        with pytest.raises(Exception, match=r"last\.ckpt cannot be read"):
            read_state(path, make_engine("cpu", "fp32"))
    assert not marker.exists()


@pytest.mark.parametrize(
    "wrong", [{"model": {}}, {"history": 3}, {"optimizer": {"state": 1}}, {"best_score": None}]
)
def test_a_state_of_something_else_is_one_clear_error(manifests, stopped, tmp_path, wrong):
    run = shutil.copytree(stopped, tmp_path / "first")
    write_state(Run(run).state_path, _state(run) | wrong)
    result = invoke("train", "--out", tmp_path, "--run", "first", *settings_options(manifests))
    assert result.exit_code == 1, result.output
    assert "last.ckpt does not hold the state of this run" in result.stderr


@pytest.fixture(scope="module")
def other_run(manifests, tmp_path_factory):
    """A run trained on BUSI, while ``trained`` has seen BUS-UCLM alone."""
    out = tmp_path_factory.mktemp("other")
    options = settings_options(manifests, "data.train=[busi]", "train.epochs=1")
    result = invoke("train", "--out", out, "--run", "other", *options)
    assert result.exit_code == 0, result.stderr
    return out / "other"


def test_files_of_another_run_are_refused(manifests, stopped, other_run, tmp_path):
    def train(name, exchange):
        folder = shutil.copytree(stopped, tmp_path / name)
        exchange(folder)
        result = invoke("train", "--out", tmp_path, "--run", name, *settings_options(manifests))
        assert result.exit_code == 1, result.output
        assert "bus-smp train --run NAME" in result.stderr or "or use --run NAME" in result.stderr
        return result.stderr

    theirs = _state(stopped) | {"manifest_sha256": "0" * 64}
    said = train("state", lambda run: write_state(run / "last.ckpt", theirs))
    assert "last.ckpt does not hold the state of this run" in said
    said = train(
        "weights", lambda run: shutil.copyfile(other_run / "best.safetensors", run / "best.safetensors")
    )
    assert "these weights were not trained on the manifest.csv next to them" in said
    said = train("gone", lambda run: (run / "best.safetensors").unlink())
    assert "best.safetensors is gone: it held this run's weights of epoch" in said

    def without_state(run):
        (run / "best.safetensors").unlink()
        (run / "last.ckpt").unlink()

    assert "best.safetensors is gone; it held the weights of this run" in train("both", without_state)

    def of_another_seed(run):
        header = read_header(run / "best.safetensors")
        model, _ = load_model(run / "best.safetensors")
        with torch.no_grad():
            next(model.parameters()).add_(1)
        write_checkpoint(run / "best.safetensors", model, header)

    assert "best.safetensors does not hold this run's weights" in train("changed", of_another_seed)


def test_a_run_whose_weights_and_manifest_are_of_two_trainings_is_not_scored(manifests, trained, other_run):
    """Weights that have seen BUSI, in a folder that says BUS-UCLM, would have BUSI as an external test."""
    run = shutil.copytree(trained, manifests / "mixed" / "first")  # as deep as before: roots are relative
    shutil.copyfile(other_run / "best.safetensors", run / "best.safetensors")
    named = ("--out", run.parent, "--run", "first")
    target = ("--target", "busi", "--manifests", manifests / "data_manifests")
    for command in (
        ("crosseval", *named, *target),
        ("evaluate", *named),
        ("export", "--format", "pth", *named),
    ):
        result = invoke(*command)
        assert result.exit_code == 1, command
        assert "these weights were not trained on the manifest.csv next to them" in result.stderr


def test_validation_and_evaluation_give_the_same_number(trained):
    """What training called the best lesion Dice is what `evaluate --split val` finds, to the last digit."""
    result = invoke("evaluate", "--out", trained.parent, "--run", "first", "--split", "val")
    assert result.exit_code == 0, result.stderr
    score = read_header(trained / "best.safetensors")["score"]
    table = read_per_image(trained / "eval-bus-uclm-val" / "per_image.csv")
    assert table["dice_lesion"].mean() == pytest.approx(score["val_dice_lesion"], abs=1e-12)


@pytest.mark.parametrize("most", [0, 10**9], ids=["no room", "room for all"])
def test_an_image_that_is_needed_again_is_neither_checked_again_nor_changed(manifests, tmp_path, most):
    manifest = read_manifest(manifests / "data_manifests" / "bus-uclm.csv")
    copy = shutil.copytree(manifest.roots["bus-uclm"], tmp_path / "tree")
    moved = manifest.at(copy)
    row = moved.used("val").to_dict("records")[0]
    read = ExampleReader(moved, most)
    first = read(moved, row)
    assert all(np.array_equal(*pair) for pair in zip(first, read_example(moved, row), strict=True))
    image, _ = read(moved, row | {"sha256": "0" * 64, "label": "none"})
    assert np.array_equal(image, first[0])
    moved.image_path(row).unlink()
    if most:
        assert read(moved, row)[0] is first[0]
    else:
        with pytest.raises(ImageError, match="no such file"):
            read(moved, row)
    with pytest.raises(ImageError):
        ExampleReader(moved, most)(moved, row)
    with pytest.raises(ValueError, match="no other"):
        read(manifest, row)


def test_early_stopping_waits_for_patience_and_keeps_the_best(manifests, tmp_path):
    options = settings_options(manifests, "train.epochs=40", "train.patience=1", "train.lr=1e-7")
    result = invoke("train", "--out", tmp_path, "--run", "x", *options)
    assert result.exit_code == 0, result.stderr
    assert "stopped early" in result.stdout
    dice = pd.read_csv(tmp_path / "x" / "metrics.csv")["val_dice_lesion"]
    best = int(dice.idxmax())
    assert len(dice) == best + 2, "one epoch without a better one, then the end"
    assert read_header(tmp_path / "x" / "best.safetensors")["epoch"] == best + 1


def test_several_data_sets_are_trained_on_together(manifests, tmp_path):
    options = settings_options(manifests, "data.train=[bus-uclm,busi]", "train.epochs=1")
    result = invoke("train", "--out", tmp_path, *options)
    assert result.exit_code == 0, result.stderr
    run = tmp_path / "bus-uclm+busi"
    assert read_header(run / "best.safetensors")["datasets"] == ["bus-uclm", "busi"]
    refused = invoke(
        "crosseval", "--out", tmp_path, "--manifests", manifests / "data_manifests", "--target", "busi"
    )
    assert refused.exit_code == 1
    assert "busi was used in training" in refused.stderr
    assert "bus-smp evaluate" in refused.stderr


def test_the_rate_falls_along_half_a_cosine():
    assert cosine_rate(1e-4, 0, 100) == 1e-4
    assert cosine_rate(1e-4, 50, 100) == pytest.approx(5e-5)
    assert 0 < cosine_rate(1e-4, 99, 100) < 1e-7


def test_the_rate_rises_along_a_line_in_the_warm_up():
    rates = [cosine_rate(1.0, step, 100, warmup=9) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9] == 1 and rates[9:] == sorted(rates[9:], reverse=True)
    assert cosine_rate(1.0, 9 + 45, 99, warmup=9) == pytest.approx(0.5)
    # a fraction of an epoch need not be a whole step
    assert cosine_rate(1.0, 0, 10, warmup=0.5) == pytest.approx(1 / 1.5)


def test_without_a_network_imagenet_weights_are_refused_with_a_way_out(manifests, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    code = "import sys; from bus_smp.cli import main; main(sys.argv[1:])"  # a new process: the hub reads its settings once
    options = settings_options(manifests, "model.encoder_weights=imagenet")
    result = subprocess.run(
        [sys.executable, "-c", code, "train", "--out", str(tmp_path), "--run", "x", *options],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "--set model.encoder_weights=null" in result.stderr
    assert "Traceback" not in result.stderr
    way_out = settings_options(manifests, "model.encoder_weights=null", "train.epochs=1")
    followed = invoke("train", "--out", tmp_path, "--run", "x", *way_out)
    assert followed.exit_code == 0, "the way out that the error names works in the same folder"


def test_the_weights_of_a_run_are_refused_as_encoder_weights(manifests, trained, tmp_path):
    """Else a network could be tested as external on what its first training has seen."""
    options = settings_options(manifests, f"model.encoder_weights={trained / 'best.safetensors'}")
    result = invoke("train", "--out", tmp_path, "--run", "x", *options)
    assert result.exit_code == 1
    assert "is the checkpoint of a run" in result.stderr


def test_a_run_goes_on_in_another_precision_with_a_warning(manifests, tmp_path):
    options = settings_options(manifests, "train.precision=auto")
    _train_until(manifests, tmp_path / "x", "epoch 1/2", "train.precision=auto")
    state = _state(tmp_path / "x")
    write_state(
        Run(tmp_path / "x").state_path,
        state | {"place": state["place"] | {"precision": "fp16", "threads": "64"}},
    )
    again = invoke("train", "--out", tmp_path, "--run", "x", *options)
    assert again.exit_code == 0, again.stderr
    assert "precision fp16, now" in again.stderr
    assert "threads 64, now" in again.stderr


def test_what_a_killed_write_left_behind_is_removed(manifests, trained, tmp_path):
    run = shutil.copytree(trained, tmp_path / "first")
    (run / "last.ckpt").write_bytes(b"of a version that kept it")
    (run / ".last.0123abcd.ckpt").write_bytes(b"half")
    (run / ".notes").write_text("the user's own")
    assert invoke("train", "--out", tmp_path, "--run", "first", *settings_options(manifests)).exit_code == 0
    assert not (run / ".last.0123abcd.ckpt").exists()
    assert (run / ".notes").exists()
    assert not (run / "last.ckpt").exists() and not (run / ".lock").exists()


def _bytes(run):
    names = ("metrics.csv", "loss_curves.png", "dice_curve.png", "manifest.csv")
    # a commit that is made meanwhile is no difference
    header = {**read_header(run / "best.safetensors"), "git_commit": None}
    weights = weights_sha256(run / "best.safetensors")
    return {name: (run / name).read_bytes() for name in names} | {"header": header, "weights": weights}


@pytest.mark.parametrize("state", ["of the epoch before", "none"])
def test_a_state_that_is_behind_leads_to_the_same_bytes(manifests, stopped, trained, tmp_path, state):
    """``last.ckpt`` is written now and then only: a kill leaves one of an earlier epoch, or none."""
    run = tmp_path / "run"
    _train_until(manifests, run, "Calibrating")
    assert len(_state(run)["history"]) == 2
    if state == "none":
        (run / "last.ckpt").unlink()
    else:
        shutil.copyfile(stopped / "last.ckpt", run / "last.ckpt")
    _train_until(manifests, run, None)
    assert _bytes(run) == _bytes(trained)


def test_a_state_that_cannot_be_written_ends_the_training_with_its_error(tmp_path):
    (tmp_path / "last.ckpt").mkdir()
    with (
        pytest.raises(BusSmpError, match="cannot be written"),
        StateWriter(tmp_path / "last.ckpt", 0) as states,
    ):
        states.keep({"history": []})
    with (
        pytest.raises(BusSmpError, match="cannot be written"),
        StateWriter(tmp_path / "last.ckpt", 99) as states,
    ):
        states.keep({"history": []})
    with pytest.raises(KeyboardInterrupt), StateWriter(tmp_path / "last.ckpt", 99) as states:
        states.keep({"history": []})
        raise KeyboardInterrupt


def test_ctrl_c_writes_the_last_state_as_it_was_when_it_was_kept(tmp_path):
    weights = torch.zeros(3)
    with pytest.raises(KeyboardInterrupt), StateWriter(tmp_path / "last.ckpt", 99) as states:
        states.keep({"format": 2, "model": {"a": [weights]}})
        weights += 1
        assert not (tmp_path / "last.ckpt").exists(), "it is not time yet"
        raise KeyboardInterrupt
    state = read_state(tmp_path / "last.ckpt", make_engine("cpu", "fp32"))
    assert state["model"]["a"][0].tolist() == [0, 0, 0]


FAILED_STARTS = {
    "encoder weights that are not there": (("model.encoder_weights=none/x.pth",), "no such file of encoder weights"),
    "encoder weights that are none": (("model.encoder_weights={tmp}/bad.pth",), "cannot be read"),
    "a device that is not there": (("runtime.device=cuda:7",), "no CUDA device|does not exist"),
    "images that are not there": (("data.manifests={tmp}/gone",), r"no such file \(and \d+ more of \d+ files\)"),
    "an image that is damaged": (("data.manifests={tmp}/damaged",), "cannot be read|is damaged|truncated"),
    "a recorded step that accumulates": (("runtime.graph=true", "train.accumulate=2"), "--set runtime.graph=false"),
    "one image at a time": (("train.batch_size=1", "data.size=32"), "one value per channel"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FAILED_STARTS)
def test_a_start_that_fails_leaves_nothing(manifests, tmp_path, bus_uclm_tree, kind):
    if kind == "encoder weights that are none":
        (tmp_path / "bad.pth").write_bytes(b"no weights")
    if "image" in kind and "batch" not in FAILED_STARTS[kind][0][0]:
        tree = shutil.copytree(bus_uclm_tree, tmp_path / "tree")
        name = FAILED_STARTS[kind][0][0].rpartition("/")[2]
        shutil.copytree(manifests / "data_manifests", tmp_path / name)
        manifest = read_manifest(tmp_path / name / "bus-uclm.csv", tree)
        write_manifest(manifest, tmp_path / name / "bus-uclm.csv")
        row = manifest.used("train").iloc[3]
        if name == "gone":
            shutil.rmtree(manifest.image_path(row).parent)
        else:
            manifest.image_path(row).write_bytes(manifest.image_path(row).read_bytes()[:200])
    before = sorted(tmp_path.rglob("*"))
    settings, words = FAILED_STARTS[kind]
    changed = [setting.format(tmp=tmp_path) for setting in (*settings, "runtime.cache={tmp}/outputs/.cache")]
    result = invoke("train", "--out", tmp_path / "outputs", *settings_options(manifests, *changed))
    assert result.exit_code == 1 and re.search(words, result.stderr), result.output
    assert sorted(tmp_path.rglob("*")) == before


def test_a_batch_that_batch_norm_cannot_use_is_refused_with_settings_that_work(manifests, tmp_path):
    """The network's smallest features are 1/32 of the image's size: one value per channel at 32 px."""
    own = ("data.size=32", "train.batch_size=1", "train.epochs=1")
    result = invoke("train", "--out", tmp_path, *settings_options(manifests, *own))
    assert result.exit_code == 1 and result.stderr.count("Error: ") == 1
    works = re.findall(r"--set (\S+?)(?=[,\s])", result.stderr.split("one value per channel")[1])
    assert works == ["train.batch_size=2", "data.size=64"]
    follow = invoke("train", "--out", tmp_path, *settings_options(manifests, *own, works[1]))
    assert follow.exit_code == 0, follow.stderr


def test_files_are_looked_for_before_pytorch_is_loaded(manifests, trained, tmp_path):
    """Both what is missing and what is finished are known in a second."""
    code = (
        "import sys\nfrom bus_smp.cli import main\n"
        "try: main(sys.argv[1:])\nfinally: print('torch' in sys.modules)"
    )

    def train(*arguments):
        command = [sys.executable, "-c", code, "train", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    missing = train("--out", tmp_path, "--root", tmp_path, *settings_options(manifests))
    assert missing.returncode == 1 and "no such file" in missing.stderr and missing.stdout == "False\n"
    assert "--root FOLDER" in missing.stderr and missing.stderr.startswith("Settings: ")
    finished = train("--out", trained.parent, "--run", "first", *settings_options(manifests))
    assert finished.returncode == 0 and finished.stdout.endswith("False\n"), finished.stderr
    assert "2 of 2 epochs" in finished.stdout


def test_folds_numbered_after_a_training_do_not_change_its_run(manifests, stopped, trained, tmp_path):
    """Nor do other words for why an image is left out; the run goes on with its own manifest."""
    run = shutil.copytree(stopped, tmp_path / "first")
    (tmp_path / "data_manifests").mkdir()
    path = tmp_path / "data_manifests" / "bus-uclm.csv"
    manifest = read_manifest(manifests / "data_manifests" / "bus-uclm.csv")
    frame = manifest.frame.copy()
    used = frame["excluded"] == ""
    frame.loc[used, "fold"] = frame.loc[used, "group_id"].rank(method="dense").astype("Int64") % 3
    frame.loc[~used, "excluded"] += "; in other words"
    write_manifest(Manifest(frame, manifest.roots, manifest.about), path)
    assert read_manifest(path).sha256 != manifest.sha256
    changed = settings_options(manifests, f"data.manifests={path.parent}")
    refused = invoke("train", "--out", tmp_path, "--run", "first", *changed)
    assert refused.exit_code == 1 and "data.manifests" in refused.stderr
    changed = load_settings(None, settings_options(manifests)[1::2])
    train(changed, read_manifest(path), run, say=lambda text: None)
    assert _bytes(run) == _bytes(trained)


def test_a_run_of_a_version_with_fewer_settings_goes_on(manifests, stopped, trained, tmp_path):
    run = shutil.copytree(stopped, tmp_path / "first")
    state = _state(run)
    settings = json.loads(state["settings"])
    del settings["train"]["save_every"], settings["model"]["bottleneck"]
    write_state(run / "last.ckpt", state | {"settings": json.dumps(settings, sort_keys=True)})
    result = invoke("train", "--out", tmp_path, "--run", "first", *settings_options(manifests))
    assert result.exit_code == 0, result.stderr
    assert _bytes(run) == _bytes(trained)


def test_too_little_memory_is_explained_and_anything_else_passes():
    settings = load_settings(None, [])
    words = "not enough memory for batches of 8 images at 256 px"
    with pytest.raises(TrainingError, match=words) as caught, explained_memory(settings):
        torch.empty(1 << 60)  # no machine has that: the error is PyTorch's own
    assert "train.batch_size=4 --set train.accumulate=2" in caught.value.hint
    with pytest.raises(RuntimeError, match="another"), explained_memory(settings):
        raise RuntimeError("another thing")
