"""Fine-tuning: a run started from another one's weights; what the ancestors were trained on stays seen."""

import shutil

import pandas as pd
import pytest
import torch
from conftest import ended, invoke, settings_options
from headers import change_about, rewrite_header

from bus_smp.config import load_settings
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import CheckpointError
from bus_smp.model.checkpoint import load_model, read_header, weights_sha256
from bus_smp.runs.run import Run
from bus_smp.training.start import train

EPOCH = "train.epochs=1"


@pytest.fixture(scope="module")
def descended(manifests, trained, tmp_path_factory):
    """``second`` on BUSI from ``first`` (BUS-UCLM), and ``third`` on BUSI again from ``second``."""
    out = tmp_path_factory.mktemp("descended")
    shutil.copytree(trained, out / "first")
    for name, parent in (("second", "first"), ("third", "second")):
        options = settings_options(manifests, "data.train=busi", EPOCH)
        ended(invoke("train", "--out", out, "--run", name, "--start-from", parent, *options), 0)
    shutil.rmtree(out / "first")
    return out


def test_the_weights_of_the_run_are_the_start(manifests, trained, tmp_path):
    options = settings_options(manifests, "data.train=busi", EPOCH, "train.lr=1e-12")
    ended(invoke("train", "--out", tmp_path, "--run", "x", "--start-from", trained, *options), 0)
    before, after = (load_model(path / "best.safetensors")[0] for path in (trained, tmp_path / "x"))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.allclose(old, new, atol=1e-9), name


def test_the_header_names_all_ancestors_and_the_folder_holds_what_they_were_trained_on(trained, descended):
    header = read_header(descended / "third" / "best.safetensors")
    assert [(one["run"], one["datasets"]) for one in header["ancestors"]] == [
        ("second", ["busi"]),
        ("first", ["bus-uclm"]),
    ]
    assert header["ancestors"][1]["weights_sha256"] == weights_sha256(trained / "best.safetensors")
    # second was trained on the same rows as third
    assert [one.datasets for one in Run(descended / "third").manifests()] == [["busi"], ["bus-uclm"]]
    shown = invoke("info", descended / "third").stdout
    assert "started from second, epoch 1, trained on busi" in shown and "started from first, epoch" in shown


def test_what_an_ancestor_was_trained_on_is_no_external_target(manifests, descended):
    result = invoke("crosseval", "--out", descended, "--run", "third", "--target", "bus-uclm", "--manifests",
                    manifests / "data_manifests")  # fmt: skip
    assert "bus-uclm was used in training" in ended(result, 1)


def test_a_folder_without_the_ancestors_manifest_is_refused(manifests, descended, tmp_path):
    run = shutil.copytree(descended / "third", tmp_path / "third")
    (path,) = run.glob("ancestor-*.csv")
    path.unlink()
    target = ("--target", "bus-uclm", "--manifests", manifests / "data_manifests")
    shown = ended(invoke("crosseval", "--run", run, *target), 1)
    assert f"{path}: is missing; it lists what first was trained on" in shown


class Stopped(Exception):
    pass


def stop_at(beginning: str):
    """For ``train``: stop when a line begins so."""

    def say(text: str) -> None:
        if text.startswith(beginning):
            raise Stopped

    return say


@pytest.mark.slow
def test_a_run_goes_on_without_its_ancestor_to_the_same_bits(manifests, trained, tmp_path):
    parent = shutil.copytree(trained, tmp_path / "parent")
    options = settings_options(manifests, "data.train=busi", f"model.init={parent}", "train.ema=0.9")
    ended(invoke("train", "--out", tmp_path, "--run", "whole", *options), 0)
    settings = Run(tmp_path / "whole").settings()
    manifest = read_manifest(manifests / "data_manifests" / "busi.csv")
    with pytest.raises(Stopped):
        train(settings, manifest, tmp_path / "stopped", say=stop_at("epoch 1/2"))
    shutil.rmtree(parent)
    ended(invoke("train", "--out", tmp_path, "--run", "stopped", *options), 0)
    paths = [tmp_path / name / "best.safetensors" for name in ("whole", "stopped")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert "1 of 2" not in ended(invoke("train", "--out", tmp_path, "--run", "whole", *options), 0)


def test_a_run_without_an_epoch_does_not_start_again_from_other_weights(manifests, trained, tmp_path):
    parent = shutil.copytree(trained, tmp_path / "parent")
    settings = load_settings(Run(trained).settings_path, [f"model.init={parent}", "data.train=busi"])
    manifest = read_manifest(manifests / "data_manifests" / "busi.csv")
    with pytest.raises(Stopped):
        train(settings, manifest, tmp_path / "x", say=stop_at("Training"))
    rewrite_header(trained / "best.safetensors", parent / "best.safetensors", change_about(epoch=9))
    with pytest.raises(CheckpointError, match="has changed since"):
        train(settings, manifest, tmp_path / "x")


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("model.attention=scse", "model.attention None, here scse"),
        ("model.encoder_name=resnet18", "model.encoder_name tu-test_resnet, here resnet18"),
        ("model.deep_supervision=false", "--set model.deep_supervision=true"),
        ("model.init=nobody", "no trained run nobody"),
    ],
)
def test_a_start_that_cannot_be_is_refused_with_the_reason(manifests, trained, tmp_path, setting, words):
    options = settings_options(manifests, "data.train=busi", f"model.init={trained}", setting)
    assert words in ended(invoke("train", "--out", tmp_path, "--run", "x", *options), 1)
    assert not (tmp_path / "x" / "config.yaml").exists()


def test_weights_with_other_classes_are_refused(manifests, trained, tmp_path):
    parent = shutil.copytree(trained, tmp_path / "parent")
    model = read_header(trained / "best.safetensors")["model"] | {"num_classes": 5}
    rewrite_header(trained / "best.safetensors", parent / "best.safetensors", change_about(model=model))
    options = settings_options(manifests, "data.train=busi")
    refused = invoke("train", "--out", tmp_path, "--run", "x", "--start-from", parent, *options)
    assert "has 5 classes, a training has 3" in ended(refused, 1)


def test_images_that_trained_an_ancestor_cannot_test_its_descendant(
    manifests, trained, tmp_path, bus_uclm_tree
):
    """The same data set, split again."""
    rows = pd.read_csv(trained / "manifest.csv", dtype=str, keep_default_na=False)
    rows["split"] = rows["split"].replace({"train": "test", "test": "train"})
    rows.to_csv(tmp_path / "again.csv", index=False)
    options = settings_options(manifests, f"data.train={tmp_path / 'again.csv'}")
    arguments = ("train", "--out", tmp_path, "--run", "x", "--root", bus_uclm_tree, *options)
    assert "images of the test split were used to train first" in ended(
        invoke(*arguments, "--start-from", trained), 1
    )
    assert not (tmp_path / "x" / "config.yaml").exists()


def test_a_header_cannot_name_a_file_elsewhere(trained, tmp_path):
    ancestors = [{"run": "x", "manifest_sha256": "/../../../x"}]
    rewrite_header(
        trained / "best.safetensors", tmp_path / "x.safetensors", change_about(ancestors=ancestors)
    )
    with pytest.raises(CheckpointError, match="as ancestors its header gives"):
        read_header(tmp_path / "x.safetensors")
