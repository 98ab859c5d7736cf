"""Train set against test set: each cell is what it says it is, or is empty and says why."""

import json
import os
import shutil

import pandas as pd
import pytest
from conftest import invoke

from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.evaluation.matrix import Cell, matrix_frame
from bus_smp.runs.experiment import Experiment, Member, begin_experiment

VALUES = ("dice_lesion", "miss_rate", "false_alarm_rate", "auc_malignant")


def _link(run, to, *without):
    """A run again, without copying a byte: files are replaced and never written over."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns(".lock", *without), copy_function=os.link)


@pytest.fixture(scope="module")
def place(manifests, trained, tmp_path_factory):
    """outputs/ with a run, scored, and an experiment of it twice; manifests of all kinds of targets."""
    folder = tmp_path_factory.mktemp("matrix")
    _link(trained, folder / "outputs" / "first", "eval-*", "manifest.*")
    write_manifest(read_manifest(trained / "manifest.csv"), folder / "outputs" / "first" / "manifest.csv")
    uclm, busi = (
        read_manifest(manifests / "data_manifests" / f"{name}.csv") for name in ("bus-uclm", "busi")
    )
    normal = busi.frame[busi.frame["label"] == "normal"].assign(dataset="screening")
    copied = uclm.frame.assign(
        dataset="hospital", patient_id=uclm.frame["image_id"], group_id="hospital:" + uclm.frame["image_id"]
    )
    lost = busi.frame.assign(dataset="lost")
    for name, manifest in {
        "bus-uclm": uclm,
        "busi": busi,
        "hospital": Manifest(copied, {"hospital": uclm.roots["bus-uclm"]}),
        "lost": Manifest(lost, {"lost": folder / "no such folder"}),
        "screening": Manifest(normal, {"screening": busi.roots["busi"]}),
    }.items():
        write_manifest(manifest, folder / "data_manifests" / f"{name}.csv")
    result = _matrix(folder)
    assert result.exit_code == 0, result.stderr
    members = tuple(Member(f"twice-seed{seed}", seed, None) for seed in (1, 2))
    for member in members:  # with their evaluations, which are current: the weights are the same
        _link(folder / "outputs" / "first", folder / "outputs" / member.run)
    begin_experiment(Experiment(folder / "outputs" / "twice", members))
    return folder


def _matrix(place, *arguments):
    return invoke(
        "crosseval",
        "--matrix",
        "--out",
        place / "outputs",
        "--manifests",
        place / "data_manifests",
        *arguments,
    )


@pytest.fixture(scope="module")
def made(place):
    result = _matrix(place)
    assert result.exit_code == 0, result.stderr
    return pd.read_csv(place / "outputs" / "matrix" / "matrix.csv"), result


def _cell(table, run, target):
    (row,) = table[(table["run"] == run) & (table["target"] == target)].to_dict("records")
    return row


def _summary(place, run, evaluation):
    return json.loads((place / "outputs" / run / evaluation / "summary.json").read_text())


def test_there_is_a_cell_for_every_run_and_target_and_no_other(made):
    table, _ = made
    targets = ["bus-uclm", "busi", "hospital", "lost", "screening"]
    assert list(zip(table["run"], table["target"], strict=True)) == [
        (run, target) for run in ("first", "twice") for target in targets
    ], "the runs of an experiment are in its own row"
    assert set(table["trained_on"]) == {"bus-uclm"}


def test_a_cell_of_the_training_data_is_marked_and_shows_the_runs_own_test_split(place, made):
    cell = _cell(made[0], "first", "bus-uclm")
    model = _summary(place, "first", "eval-bus-uclm-test")["summaries"]["model"]
    assert cell["kind"] == "in-domain"
    own = read_manifest(place / "outputs" / "first" / "manifest.csv").used("test")
    assert cell["images"] == len(own) == model["counts"]["images"]
    assert cell["dice_lesion"] == model["metrics"]["dice_lesion"]["mean"]


def test_an_external_cell_is_the_evaluation_of_crosseval_with_its_interval(place, made):
    cell = _cell(made[0], "first", "busi")
    model = _summary(place, "first", "eval-busi-all")["summaries"]["model"]
    assert cell["kind"] == "external"
    for name in VALUES:
        estimate = {**model["metrics"], **model["rates"]}[name]
        for column, key in ((name, "mean"), (f"{name}_low", "low"), (f"{name}_high", "high")):
            assert (None if pd.isna(cell[column]) else cell[column]) == estimate[key]


def test_a_refused_cell_is_empty_and_says_why(made):
    table, result = made
    for target, why in (("hospital", "pictures of hospital were used in training"), ("lost", "is not there")):
        cell = _cell(table, "first", target)
        assert cell["kind"] == "refused"
        assert why in cell["reason"]
        assert all(pd.isna(cell[name]) for name in ("images", *VALUES))
        assert f"{target}, refused" in result.stdout


def test_a_target_without_lesions_has_no_dice_and_says_so(made):
    cell = _cell(made[0], "first", "screening")
    assert cell["kind"] == "external"
    assert pd.isna(cell["dice_lesion"])
    assert pd.notna(cell["false_alarm_rate"])
    assert "Dice lesion: undefined" in cell["reason"]


def test_an_experiment_is_the_mean_of_its_runs_with_the_sd_between_them(made):
    table, _ = made
    once, twice = _cell(table, "first", "busi"), _cell(table, "twice", "busi")
    assert (once["runs"], twice["runs"]) == (1, 2)
    assert twice["dice_lesion"] == once["dice_lesion"]
    assert twice["dice_lesion_sd"] == 0, "the two runs are the same one here"
    assert pd.isna(once["dice_lesion_sd"])
    assert pd.isna(twice["dice_lesion_low"])


def test_json_holds_the_same_cells_and_the_picture_is_there(place, made):
    folder = place / "outputs" / "matrix"
    cells = json.loads((folder / "matrix.json").read_text())["cells"]
    table = made[0].astype(object).where(made[0].notna(), None)
    for cell, row in zip(cells, table.to_dict("records"), strict=True):
        assert {**cell, "reason": cell["reason"] or None} == row
    assert (folder / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert str(place) not in (folder / "matrix.csv").read_text(), "a table is passed on; folders are private"


def test_a_matrix_made_again_scores_nothing_again(place, made):
    def times():
        return {path: path.stat().st_mtime_ns for path in (place / "outputs").glob("*/eval-*/per_image.csv")}

    before = times()
    again = _matrix(
        place, "--run", "first", "--run", "twice", "--target", "busi", "--target", "hospital", "--json"
    )
    assert again.exit_code == 0, again.stderr
    assert times() == before
    cells = json.loads(again.stdout)["cells"]
    assert [(cell["run"], cell["target"]) for cell in cells] == [
        ("first", "busi"), ("first", "hospital"), ("twice", "busi"), ("twice", "hospital"),
    ]  # fmt: skip


def test_an_unfinished_experiment_is_left_out_and_said(place, made, tmp_path):
    out = tmp_path / "outputs"
    for name in ("first", "twice", "twice-seed1"):
        _link(place / "outputs" / name, out / name)
    result = invoke(
        "crosseval", "--matrix", "--out", out, "--manifests", place / "data_manifests", "--target", "hospital"
    )
    assert result.exit_code == 0, result.stderr
    assert "Left out" in result.stderr
    assert "twice is unfinished, 1 of 2 runs" in result.stderr
    assert pd.read_csv(out / "matrix" / "matrix.csv")["run"].tolist() == ["first"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--matrix", "--views", "mirror"], 2, "without --views"),
        ([], 2, "--target"),
        (["--matrix", "--target", "absent"], 1, "bus-smp make-manifest --dataset absent"),
        (["--matrix", "--run", "absent"], 1, "no trained run absent"),
        (["--matrix", "--root", "nobody=x"], 1, "there are bus-uclm"),
    ],
)
def test_what_was_mistyped_stops_it_before_any_cell(place, arguments, code, said):
    result = invoke(
        "crosseval", "--out", place / "outputs", "--manifests", place / "data_manifests", *arguments
    )
    assert result.exit_code == code
    assert said in result.stderr


def test_without_runs_or_manifests_the_next_command_is_named(place, tmp_path):
    nothing = invoke("crosseval", "--matrix", "--out", tmp_path, "--manifests", place / "data_manifests")
    assert (nothing.exit_code, "bus-smp train" in nothing.stderr) == (1, True)
    empty = invoke("crosseval", "--matrix", "--out", place / "outputs", "--manifests", tmp_path)
    assert (empty.exit_code, "bus-smp make-manifest" in empty.stderr) == (1, True)


def test_a_run_called_matrix_is_not_written_into(place, tmp_path):
    _link(place / "outputs" / "first", tmp_path / "matrix", "eval-*")
    result = invoke("crosseval", "--matrix", "--out", tmp_path, "--manifests", place / "data_manifests")
    assert (result.exit_code, "is a run" in result.stderr) == (1, True)
    assert not (tmp_path / "matrix" / "matrix.csv").exists()


def test_an_empty_or_all_refused_matrix_is_a_table_all_the_same():
    refused = Cell("x", "a", "b", "refused", None, "overlap")
    table = matrix_frame([refused])
    assert table["reason"].tolist() == ["overlap"]
    assert table[list(VALUES)].isna().all(axis=None)
    assert list(matrix_frame([]).columns) == list(table.columns)


def test_compare_names_no_command_that_is_refused_and_scores_the_own_test_split_itself(place, made, tmp_path):
    out = tmp_path / "outputs"
    _link(place / "outputs" / "first", out / "one", "eval-busi*", "eval-screening*")
    _link(place / "outputs" / "first", out / "two", "eval-*")

    def compare(*arguments):
        return invoke("compare", "one", "two", "--out", out, *arguments)

    own = compare("--target", "bus-uclm", "--split", "val")
    assert own.exit_code == 1
    assert f"bus-smp evaluate --run two --out {out} --split val" in own.stderr
    assert "crosseval" not in own.stderr
    assert f"bus-smp crosseval --run one --out {out} --target busi" in compare("--target", "busi").stderr
    assert "crosseval --run" not in compare("--split", "val").stderr
    result = compare()
    assert result.exit_code == 0, result.stderr
    assert "own test split is scored first" in result.stderr
    assert result.stdout.startswith("bus-uclm, test: ")


def test_runs_without_a_common_seed_are_refused_before_anything_is_scored(place, tmp_path):
    out = tmp_path / "outputs"
    for name in ("twice-seed1", "twice-seed2"):
        _link(place / "outputs" / "first", out / name, "eval-*")
    begin_experiment(
        Experiment(out / "twice", tuple(Member(f"twice-seed{seed}", seed, None) for seed in (1, 2)))
    )
    _link(place / "outputs" / "first", out / "one", "eval-*")
    result = invoke("compare", "one", "twice", "--out", out)
    assert result.exit_code == 1
    assert "no seed and fold in common: one run against seed 1, seed 2" in result.stderr
    assert not list(out.glob("*/eval-*"))
