"""evaluate and crosseval: honest targets, whole folders, numbers that can be made again from the tables."""

import json
import shlex
import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import invoke

from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.errors import EvaluationError, ManifestError
from bus_smp.evaluation.draw import draw_figures
from bus_smp.evaluation.external import check_external
from bus_smp.evaluation.score_images import score_images
from bus_smp.inference.predictor import load_predictor
from bus_smp.runs.evaluations import mask_path, read_summary, read_tables
from bus_smp.statistics.legacy import legacy_metrics
from bus_smp.statistics.summary import read_per_image, summarise
from bus_smp.system.engine import make_engine
from bus_smp.system.threads import read_ahead


@pytest.fixture(scope="module")
def crossed(manifests, trained):
    """The evaluation folder and JSON of the synthetic BUSI, with the legacy numbers."""
    result = invoke(
        "crosseval", "--out", trained.parent, "--run", "first", "--manifests", manifests / "data_manifests",
        "--target", "busi", "--legacy-metrics", "--json",
    )  # fmt: skip
    assert result.exit_code == 0, result.stderr
    return trained / "eval-busi-all", json.loads(result.stdout)


def test_the_folder_holds_tables_figures_and_a_mask_for_every_image(crossed, manifests):
    folder, summary = crossed
    used = read_manifest(manifests / "data_manifests" / "busi.csv").used()
    names = {path.name for path in folder.iterdir()}
    figures = (
        "roc_curves", "confusion_matrix", "qualitative", "calibration", "detection", "difficulty", "agreement", "failures",
        "pixel_roc_curves", "coverage", "uncertainty",
    )  # fmt: skip
    assert names == {
        "per_image.csv", "components.csv", "baselines.csv", "pixel_roc.csv", "reliability.csv", "masks",
        "summary.json", "data.json", "table.csv", "table.tex",
        *(f"{name}.{kind}" for name in figures for kind in ("png", "pdf")),
    }  # fmt: skip
    for name in figures:
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert (
        len(pd.read_csv(folder / "per_image.csv"))
        == len(used)
        == summary["summaries"]["model"]["counts"]["images"]
    )
    for row in used.to_dict("records"):
        mask = cv2.imread(str(mask_path(folder, row)))
        assert mask.shape[:2] == (row["height"], row["width"]), "masks return at the image's own size"
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_every_number_can_be_computed_again_from_the_tables(crossed):
    folder, summary = crossed
    table = read_per_image(folder / "per_image.csv")
    assert summarise(table) == summary["summaries"]["model"]
    baselines = pd.read_csv(folder / "baselines.csv")
    for name in ("all-background", "largest-dark-blob"):
        own = baselines[baselines["baseline"] == name]
        assert own["dice_lesion"].mean() == pytest.approx(
            summary["summaries"][name]["metrics"]["dice_lesion"]["mean"]
        )
        assert legacy_metrics(own) == summary["legacy"][name]


def test_figures_can_be_drawn_again_without_the_model_to_the_same_bytes(crossed, manifests, tmp_path):
    folder, _ = crossed
    copy = shutil.copytree(folder, tmp_path / "again")
    before = {path.name: path.read_bytes() for path in copy.glob("*.p[nd][gf]")}
    assert len(before) == 22
    for name in before:
        (copy / name).unlink()
    manifest = read_manifest(manifests / "data_manifests" / "busi.csv")
    draw_figures(copy, read_tables(copy), read_summary(copy), manifest)
    assert {path.name: path.read_bytes() for path in copy.glob("*.p[nd][gf]")} == before


def test_empty_references_have_empty_cells_and_never_enter_dice(crossed):
    folder, summary = crossed
    table = pd.read_csv(folder / "per_image.csv")
    normal = table["label"] == "normal"
    assert normal.any()
    assert table.loc[normal, ["dice_lesion", "iou_lesion", "sensitivity_lesion"]].isna().all(axis=None)
    dice = summary["summaries"]["model"]["metrics"]["dice_lesion"]
    assert (dice["n"], dice["n_undefined"]) == (int((~normal).sum()), int(normal.sum()))
    background = summary["summaries"]["all-background"]
    assert background["metrics"]["dice_lesion"]["mean"] == 0
    assert summary["legacy"]["all-background"]["dice_mean"] > 0.5, (
        "the number that made nothing look like something"
    )


def test_what_readers_must_know_is_in_the_summary(crossed):
    _, summary = crossed
    assert any("no patient ids" in warning for warning in summary["warnings"])
    assert summary["external"] is True
    assert summary["patient_known"] is False


@pytest.fixture(scope="module")
def long_name(manifests, trained, tmp_path_factory):
    """Options of crosseval on the synthetic BUSI under a name of 70 characters."""
    busi = read_manifest(manifests / "data_manifests" / "busi.csv")
    name = "clinic-" + "x" * 63
    folder = tmp_path_factory.mktemp("long")
    write_manifest(
        Manifest(busi.frame.assign(dataset=name), {name: busi.roots["busi"]}), folder / f"{name}.csv"
    )
    run = shutil.copytree(
        trained, folder / "outputs" / ("run-" + "y" * 70), ignore=shutil.ignore_patterns("eval-*")
    )
    return "crosseval", "--out", run.parent, "--run", run.name, "--manifests", folder, "--target", name


def test_six_lines_come_first_and_the_rest_on_request(long_name):
    short = invoke(*long_name)
    assert short.exit_code == 0, short.stderr
    full = invoke(*long_name, "--full", "--legacy-metrics")
    assert full.exit_code == 0, full.stderr
    lines = short.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("Dice lesion "))
    shown = [" ".join(line.split()[:2]) for line in lines[first : first + 4]]
    assert shown == ["Dice lesion", "Missed lesions", "False alarms", "AUC malignant"]
    assert lines[first + 4].startswith("Verdict  ")
    assert "external test" in " ".join(" ".join(lines[:first]).split())
    assert not any(word in lines[1] for word in ("groups", "patients")), "their number is not known"
    for words in ("Is a lesion found?", "Dice malignant", "MISLEADING"):
        assert (words in short.stdout, words in full.stdout) == (False, True)
    assert full.stdout.index("MISLEADING") > full.stdout.index("Dice malignant"), (
        "in a table of its own, at the end"
    )
    for line in [*lines, *full.stdout.splitlines()]:
        assert len(line) <= 80


def test_what_is_scored_already_is_scored_again_only_on_request(long_name):
    assert invoke(*long_name).exit_code == 0
    table = next(long_name[2].glob("*/eval-*/per_image.csv"))
    before = table.stat().st_mtime_ns
    again = invoke(*long_name)
    assert "Already scored" in again.stderr
    assert "--again" in again.stderr
    assert table.stat().st_mtime_ns == before
    assert invoke(*long_name, "--again").exit_code == 0
    assert table.stat().st_mtime_ns > before


def test_the_command_named_next_works_as_typed(long_name):
    following = invoke(*long_name).stderr.splitlines()[-1].removeprefix("Next: bus-smp ")
    result = invoke(*shlex.split(following))
    assert result.exit_code == 0, result.stderr


def test_the_tables_for_a_paper_hold_the_numbers_of_the_summary(crossed):
    folder, summary = crossed
    table = pd.read_csv(folder / "table.csv").set_index("key")
    for name, column in summary["summaries"].items():
        for key, one in {**column["metrics"], **column["rates"]}.items():
            if key in table.index and one["mean"] is not None:
                assert table.loc[key, name] == pytest.approx(one["mean"])
                assert table.loc[key, f"{name}_n"] == one["n"]
    lines = (folder / "table.tex").read_text().splitlines()
    rows = [line for line in lines if line.endswith("\\\\") and "multicolumn" not in line]
    assert len(rows) == 1 + len(table), "the head and a row for each"
    assert all(line.count(" & ") == 4 for line in rows)
    assert any("90 \\%" in line for line in rows)


def test_a_data_set_of_the_training_is_no_external_target(manifests, trained):
    result = invoke(
        "crosseval",
        "--out",
        trained.parent,
        "--manifests",
        manifests / "data_manifests",
        "--target",
        "bus-uclm",
    )
    assert result.exit_code == 1
    assert "bus-uclm was used in training" in result.stderr
    assert result.stdout == ""


def test_the_same_pictures_under_another_name_are_found_out(trained):
    training = read_manifest(trained / "manifest.csv")
    disguised = training.frame.assign(
        dataset="hospital",
        group_id="hospital:" + training.frame["image_id"],
        patient_id=training.frame["image_id"],
    )
    with pytest.raises(EvaluationError, match="pictures of hospital were used in training"):
        check_external([training], Manifest(disguised, {"hospital": training.roots["bus-uclm"]}))


def test_a_group_that_was_joined_across_data_sets_is_found_out(trained):
    training = read_manifest(trained / "manifest.csv")
    follow_up = training.frame.assign(dataset="clinic")
    follow_up["sha256"] = [f"{number:064x}" for number in range(len(follow_up))]
    with pytest.raises(EvaluationError, match="groups of clinic were used in training"):
        check_external([training], Manifest(follow_up, {"clinic": training.roots["bus-uclm"]}))


def test_a_target_whose_pictures_cannot_be_compared_is_refused(trained):
    training = read_manifest(trained / "manifest.csv")
    unknown = training.frame.assign(dataset="x", sha256="", group_id="x:" + training.frame["image_id"])
    with pytest.raises(EvaluationError, match="without sha256"):
        check_external([training], Manifest(unknown, {"x": training.roots["bus-uclm"]}))


def test_pictures_exchanged_after_the_manifest_was_made_are_not_scored(manifests, trained, tmp_path):
    manifest = read_manifest(manifests / "data_manifests" / "busi.csv")
    copy = shutil.copytree(manifest.roots["busi"], tmp_path / "busi")
    row = manifest.used().iloc[0]
    changed = cv2.imread(str(copy / row["image"]))
    changed[0, 0] ^= 1
    cv2.imwrite(str(copy / row["image"]), changed)
    predictor, _ = load_predictor(trained / "best.safetensors", make_engine("cpu", "fp32"))
    moved = Manifest(manifest.frame, {"busi": copy})
    with pytest.raises(ManifestError, match="has changed since the manifest"):
        score_images(predictor, moved, moved.used())


def test_long_foreign_and_equal_names_get_separate_masks(tmp_path):
    rows = [
        {"dataset": d, "image_id": i}
        for d in ("a", "b")
        for i in ("乳" * 90, "乳" * 91, "../x", "a/b", "scan")
    ]
    paths = {mask_path(tmp_path, row) for row in rows}
    assert len(paths) == len(rows)
    for path in paths:
        assert path.resolve().is_relative_to(tmp_path / "masks")
        assert len(path.name.encode()) <= 255


def test_all_means_every_manifest_that_is_external_and_says_which_is_not(manifests, trained):
    result = invoke(
        "crosseval",
        "--out",
        trained.parent,
        "--run",
        "first",
        "--manifests",
        manifests / "data_manifests",
        "--target",
        "all",
    )
    assert result.exit_code == 0, result.stderr
    assert "Not scored" in result.stderr
    assert "bus-uclm was used in training" in result.stderr
    assert "busi: external test" in result.stdout


def test_evaluation_computes_as_training_did_by_default(trained):
    summary = json.loads(invoke("evaluate", "--out", trained.parent, "--run", "first", "--json").stdout)
    assert summary["computed_in"]["precision"] == summary["checkpoint"]["precision"]
    assert make_engine("cpu", "auto", trained_in="fp32").precision == "fp32"
    assert make_engine("cpu", "auto", trained_in="fp16").precision in ("fp32", "bf16")


def test_a_wrong_target_leaves_no_half_done_work(manifests, trained):
    before = sorted(path.name for path in trained.iterdir())
    result = invoke(
        "crosseval", "--out", trained.parent, "--manifests", manifests / "data_manifests",
        "--target", "busi", "--target", "bus-uclm",
    )  # fmt: skip
    assert result.exit_code == 1
    assert sorted(path.name for path in trained.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target", "udiat"], "bus-smp make-manifest --dataset udiat"),
        (["--target", "busi", "--run", "absent"], "has: first"),
        (["--target", "busi", "--device", "cuda:7", "--again"], "CUDA"),
        (["--target", "busi", "--device", "gpu", "--again"], "use auto, cpu, cuda"),
        (["--target", "busi", "--root", "bsui=x"], "did you mean busi?"),
        (["--target", "busi", "--precision", "fp16", "--device", "cpu", "--again"], "fp16 needs a GPU"),
    ],
)
def test_what_is_missing_is_named_with_the_next_command(manifests, trained, arguments, said):
    if "cuda:7" in arguments and torch.cuda.device_count() > 7:
        pytest.skip("this machine has that device")
    result = invoke(
        "crosseval", "--out", trained.parent, "--manifests", manifests / "data_manifests", *arguments
    )
    assert result.exit_code == 1
    assert said in result.stderr


def test_an_image_that_vanished_is_named_and_no_summary_is_written(manifests, trained, tmp_path):
    manifest = read_manifest(manifests / "data_manifests" / "busi.csv")
    copy = shutil.copytree(manifest.roots["busi"], tmp_path / "busi")
    gone = manifest.used().iloc[-1]["image"]
    (copy / gone).unlink()
    write_manifest(Manifest(manifest.frame, {"busi": copy}), tmp_path / "busi.csv")
    run = shutil.copytree(trained, tmp_path / "outputs" / "run", ignore=shutil.ignore_patterns("eval-*"))
    result = invoke("crosseval", "--out", tmp_path / "outputs", "--target", tmp_path / "busi.csv")
    assert result.exit_code == 1
    assert gone.split("/")[-1] in result.stderr
    assert not (run / "eval-busi-all" / "summary.json").exists()


def test_a_network_that_returns_nan_is_an_error_not_a_score(manifests, trained):
    predictor, _ = load_predictor(trained / "best.safetensors", make_engine("cpu", "fp32"))
    with torch.no_grad():
        next(predictor.network.model.parameters()).fill_(float("nan"))
    manifest = read_manifest(manifests / "data_manifests" / "busi.csv")
    with pytest.raises(EvaluationError, match="the network returned NaN"):
        score_images(predictor, manifest, manifest.used().head(2))


def test_probabilities_come_back_at_native_size_and_sum_to_one(trained):
    predictor, _ = load_predictor(trained / "best.safetensors", make_engine("cpu", "fp32"))
    rng = np.random.default_rng(0)
    images = [
        rng.integers(0, 256, (height, width, 3), np.uint8)
        for height, width in ((70, 91), (200, 33), (1, 1), (64, 64))
    ]
    found = predictor.at_temperature(2.5).predict(images)
    for image, prediction in zip(images, found, strict=True):
        assert prediction.native.shape == (3, *image.shape[:2])
        assert prediction.grid.shape == prediction.raw_grid.shape == (3, 64, 64)
        for probabilities in (prediction.native, prediction.grid, prediction.raw_grid):
            assert probabilities.dtype == np.float32
            np.testing.assert_allclose(probabilities.sum(axis=0), 1, atol=1e-5)


def test_reading_ahead_keeps_the_order_holds_few_and_passes_errors_on():
    loaded = []

    def load(number):
        loaded.append(number)
        if number == 30:
            raise ValueError("thirty")
        return number

    numbers = read_ahead(load, range(100), ahead=4)
    assert [next(numbers) for _ in range(30)] == list(range(30))
    with pytest.raises(ValueError, match="thirty"):
        next(numbers)
    assert len(loaded) <= 36


def test_evaluate_scores_only_the_test_split(trained):
    result = invoke("evaluate", "--out", trained.parent, "--run", "first")
    assert result.exit_code == 0, result.stderr
    scored = read_per_image(trained / "eval-bus-uclm-test" / "per_image.csv")
    expected = read_manifest(trained / "manifest.csv").used("test")
    assert set(scored["image_id"]) == set(expected["image_id"])
    assert "test split of the run's own data" in result.stdout


@pytest.mark.parametrize(
    "labels",
    [
        ("normal",),
        pytest.param(("benign", "normal"), marks=pytest.mark.slow),
        pytest.param(("malignant",), marks=pytest.mark.slow),
    ],
)
def test_a_target_of_one_patient_or_without_lesions_has_reasons_where_numbers_cannot_be(
    trained, busi_tree, tmp_path, labels
):
    root = next(path for path in (busi_tree, *busi_tree.rglob("*")) if (path / "normal").is_dir())
    rows = ["image,masks,label,patient_id,split"]
    for label in labels:
        images = [path for path in sorted((root / label).glob("*.png")) if "_mask" not in path.name][:3]
        for image in images:
            mask = "" if label == "normal" else f"{label}/{image.stem}_mask.png"
            rows.append(f"{label}/{image.name},{mask},{label},anna,test")
    table = tmp_path / "one.csv"
    table.write_text("\n".join(rows) + "\n")
    made = invoke(
        "make-manifest", "--csv", table, "--root", root, "--out", tmp_path / "m", "--duplicates", "keep"
    )
    assert made.exit_code == 0, made.stderr

    result = invoke(
        "crosseval",
        "--out",
        trained.parent,
        "--run",
        "first",
        "--target",
        tmp_path / "m" / "one.csv",
        "--json",
    )
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    estimates = {**summary["summaries"]["model"]["metrics"], **summary["summaries"]["model"]["rates"]}
    for name, estimate in estimates.items():
        assert estimate["low"] is None, f"{name}: one patient gives no interval"
        assert estimate["no_interval"], f"{name}: and a reason is given"
    lesions = set(labels) - {"normal"}
    assert (estimates["dice_lesion"]["mean"] is None) == (not lesions)
    assert (estimates["miss_rate"]["mean"] is None) == (not lesions)
    assert (estimates["false_alarm_rate"]["mean"] is None) == ("normal" not in labels)
    assert estimates["auc_malignant"]["mean"] is None
    report = invoke("report", "first", "--out", trained.parent, "--to", tmp_path / "report.html")
    assert report.exit_code == 0, report.stderr
    shutil.rmtree(trained / "eval-one-all")
