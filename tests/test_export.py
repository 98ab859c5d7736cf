"""Exports: they say what the weights say, at any size; what differs, is damaged or out of date is never used."""

import json
import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import invoke

from bus_smp.data.geometry import Geometry
from bus_smp.data.images import read_image, resize_image
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import CheckpointError, ConfigError
from bus_smp.evaluation.evaluate import is_current
from bus_smp.inference import export as exports
from bus_smp.inference.backends import check_backend, choose_precision
from bus_smp.inference.export import describe_parity, export_path, export_run, find_export, record_path
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.inference.formats.onnx import load_onnx
from bus_smp.inference.formats.openvino import load_openvino
from bus_smp.inference.formats.pth import load_pth
from bus_smp.inference.parity import compare_networks, passes
from bus_smp.inference.predictor import Outputs
from bus_smp.model.checkpoint import load_model, read_header, write_checkpoint
from bus_smp.model.hybrid import HybridResNet50, normalise
from bus_smp.system.files import file_sha256

KINDS = ("onnx", "openvino", "pth")


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A copy of the trained run with every export in it; do not change it."""
    pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    run = tmp_path_factory.mktemp("exports") / "outputs" / "first"
    _copy_run(trained, run)
    for kind in KINDS:
        export_run(run, kind)
    export_run(run, "onnx", int8=True)
    return run


def _copy_run(source, target):
    """The run's files; its manifest goes on naming the images where they are."""
    manifest = read_manifest(source / "manifest.csv")
    ignore = shutil.ignore_patterns("eval-*", "export", "events.*")
    shutil.copytree(source, target, ignore=ignore)
    about = json.loads((target / "manifest.json").read_text(encoding="utf-8"))
    about["roots"] = {name: os.path.relpath(root, target) for name, root in manifest.roots.items()}
    (target / "manifest.json").write_text(json.dumps(about), encoding="utf-8")


@pytest.fixture
def scratch(exported, tmp_path):
    """A copy of ``exported`` to spoil."""
    run = tmp_path / "outputs" / "first"
    _copy_run(exported, run)
    shutil.copytree(exported / "export", run / "export")
    return run


def _network(run, kind):
    path = export_path(run, kind)
    if kind == "pth":
        model, about = load_pth(path)

        def network(images):
            with torch.inference_mode():
                return Outputs(
                    model(normalise(torch.from_numpy(images), about["mean"], about["std"])).numpy()
                )

        return network
    return {"onnx": load_onnx, "openvino": load_openvino}[kind](path)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_says_what_the_weights_say_at_any_batch_and_size(exported, kind):
    model, header = load_model(exported / "best.safetensors")
    network = _network(exported, kind)
    draw = np.random.default_rng(0)
    for shape in ((1, 64, 64), (3, 97, 131), (1, 40, 33), (2, 256, 64)):
        images = draw.integers(0, 256, (*shape, 3), np.uint8)
        with torch.inference_mode():
            inputs = normalise(torch.from_numpy(images), header["mean"], header["std"])
            expected = model.predict(inputs).logits.numpy()
        found = network(images).logits
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize(
    "options", [{"attention": "scse"}, {"bottleneck": "aspp"}, {"deep_supervision": False}]
)
def test_folding_changes_no_prediction_and_not_the_model(options):
    torch.manual_seed(0)
    model = HybridResNet50(encoder_name="resnet18", encoder_weights=None, **options)
    model(torch.randn(4, 3, 64, 64))  # in training mode: statistics that are not 0 and 1
    model.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    folded = fold_batch_norms(MainHead(model))
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    images = torch.randn(2, 3, 50, 70)
    with torch.inference_mode():
        torch.testing.assert_close(folded(images), model.predict(images).logits, atol=1e-3, rtol=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_that_cannot_be_traced_is_left_as_it_is():
    model = HybridResNet50(encoder_name="tu-tf_efficientnetv2_b0", encoder_weights=None).eval()
    images = torch.randn(1, 3, 50, 70)
    with torch.inference_mode():
        assert torch.equal(fold_batch_norms(MainHead(model))(images), model.predict(images).logits)


def test_a_predictor_follows_weights_that_change(trained):
    """In training one predictor sees the weights of every epoch, and the average of weights is never trained itself."""
    from bus_smp.inference.predictor import load_predictor
    from bus_smp.system.engine import make_engine
    from bus_smp.training.average import WeightAverage

    predictor, _ = load_predictor(trained / "best.safetensors", make_engine("cpu", "fp32"))
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    network = predictor.network
    model = network.model

    def agrees():
        with torch.inference_mode():
            inputs = normalise(torch.from_numpy(image[None]), network.mean, network.std)
            expected = model.eval().predict(inputs).logits
        return torch.allclose(
            torch.from_numpy(predictor.grid_logits([image])),
            expected,
            atol=1e-3 * expected.abs().max().item(),
        )

    assert agrees()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    model.train()
    sum(logits.square().mean() for logits in model(torch.randn(4, 3, 64, 64))).backward()
    optimizer.step()
    model.eval()  # as if somebody else had switched it back
    assert agrees()
    average = WeightAverage(model, 0.5)
    network.model = model = average.model
    assert agrees()
    other = HybridResNet50(encoder_name="tu-test_resnet", encoder_weights=None)
    for _ in range(3):
        average.update(other)
    assert agrees()
    model.load_state_dict(other.state_dict())
    assert agrees()


def _about(path):
    """What the file says of itself, as somebody without this package reads it."""
    if path.suffix == ".onnx":
        import onnx

        return json.loads({entry.key: entry.value for entry in onnx.load(path).metadata_props}["bus_smp"])
    if path.suffix == ".xml":
        import openvino

        return json.loads(openvino.Core().read_model(str(path)).get_rt_info(["bus_smp"]).astype(str))
    return torch.load(path, weights_only=True)["about"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_checkpoints_header_travels_with_the_file(exported, kind):
    header = read_header(exported / "best.safetensors")
    about = _about(export_path(exported, kind))
    for key in ("classes", "mean", "std", "size", "calibration", "versions", "manifest_sha256"):
        assert about[key] == header[key]
    assert about["sha256"] == file_sha256(exported / "best.safetensors")
    assert about["export"]["precision"] == "fp32"


@pytest.mark.parametrize("kind", KINDS)
def test_no_file_tells_of_the_machine_it_was_made_on(exported, kind):
    for part in exports._parts(export_path(exported, kind)):
        data = part.read_bytes()
        assert str(exported).encode() not in data
        assert b"site-packages" not in data
        assert b"hybrid.py" not in data


def test_auxiliary_heads_stay_behind(exported):
    content = torch.load(export_path(exported, "pth"), weights_only=True)
    assert {name.split(".")[1] for name in content["state_dict"] if name.startswith("heads.")} == {"0"}
    import onnx

    graph = onnx.load(export_path(exported, "onnx")).graph
    assert [value.name for value in graph.input] == ["images"]
    assert [value.name for value in graph.output] == ["logits"]
    model, _ = load_model(exported / "best.safetensors")
    main = fold_batch_norms(MainHead(model))
    convolutions = sum(isinstance(module, torch.nn.Conv2d) for module in main.modules())
    assert sum(node.op_type == "Conv" for node in graph.node) == convolutions


def test_the_record_tells_how_near_the_file_is(exported):
    for kind in KINDS:
        record = json.loads(record_path(export_path(exported, kind)).read_text(encoding="utf-8"))
        parity = record["parity"]
        assert parity["images"] == len(read_manifest(exported / "manifest.csv").used("val"))
        assert parity["argmax_agreement"] >= 0.9995
        assert abs(parity["dice_lesion_difference"]) <= 0.001
        assert record["checkpoint_sha256"] == file_sha256(exported / "best.safetensors")
        assert find_export(exported, kind, False, record["checkpoint_sha256"])


def test_a_file_that_predicts_otherwise_is_not_left(scratch, monkeypatch):
    """The real writer, given weights of another network: what a broken converter would do."""
    record_path(export_path(scratch, "onnx")).unlink()  # else OpenVINO's would be made from it
    before = {path: path.read_bytes() for path in (scratch / "export").iterdir()}
    written = exports.write_onnx

    def broken(module, *arguments, **options):
        torch.manual_seed(1)
        with torch.no_grad():
            for weight in module.parameters():
                weight += 0.2 * torch.randn_like(weight)
        written(module, *arguments, **options)

    monkeypatch.setattr(exports, "write_onnx", broken)
    result = invoke("export", "--format", "openvino", "--out", scratch.parent)
    assert result.exit_code == 1
    assert "does not predict as the weights" in result.stderr
    assert {path: path.read_bytes() for path in (scratch / "export").iterdir()} == before


def test_the_limits_of_the_comparison():
    good = {
        "finite": True,
        "argmax_agreement": 0.9996,
        "dice_lesion_difference": -0.0009,
        "lesion_overlap": None,
        "largest_head_difference": None,
    }
    assert passes(good)
    for change in (
        {"finite": False},
        {"argmax_agreement": 0.9994},
        {"argmax_agreement": None},
        {"dice_lesion_difference": 0.0011},
        {"dice_lesion_difference": -0.0011},
        {"dice_lesion_difference": None, "lesion_overlap": 0.9989},
    ):
        assert not passes(good | change)


def test_the_comparison_counts_what_differs():
    logits = np.zeros((2, 3, 4, 4), np.float32)
    logits[:, 0] = 1
    logits[0, 2, :2] = 5  # half of the first image malignant
    changed = logits.copy()
    changed[0, 2, 0, 0] = -5
    truth = np.zeros((4, 4), np.uint8)
    truth[:2] = 2
    examples = [(np.zeros((4, 4, 3), np.uint8), truth), (np.zeros((4, 4, 3), np.uint8), np.zeros_like(truth))]
    parity = compare_networks(lambda _: Outputs(logits), lambda _: Outputs(changed), examples, Geometry(4))
    assert parity["argmax_agreement"] == 31 / 32
    assert parity["dice_lesion_reference"] == 1
    assert parity["dice_lesion"] == pytest.approx(2 * 7 / (7 + 8))
    assert parity["largest_logit_difference"] == 10
    assert (parity["auc_malignant_reference"], parity["auc_malignant"]) == (1, 1)
    without = compare_networks(
        lambda _: Outputs(logits),
        lambda _: Outputs(changed),
        [(image, None) for image, _ in examples],
        Geometry(4),
    )
    # without truth it is agreement, and never called Dice of lesions
    assert without["lesion_overlap"] == pytest.approx(2 * 7 / (7 + 8))
    assert without["dice_lesion"] is without["dice_lesion_reference"] is without["auc_malignant"] is None
    words = describe_parity(without | {"on": "images of a folder"})
    assert "overlap of the marked lesions with those of the weights 0.9333" in words and "Dice" not in words
    changed[1, 0, 0, 0] = np.nan
    assert (
        compare_networks(lambda _: Outputs(logits), lambda _: Outputs(changed), examples, Geometry(4))[
            "finite"
        ]
        is False
    )


def test_int8_takes_its_ranges_only_from_training_images(scratch, monkeypatch):
    seen = []
    read = exports.read_example
    monkeypatch.setattr(
        exports, "read_example", lambda manifest, row: seen.append(row["split"]) or read(manifest, row)
    )
    given = []
    write = exports.write_int8

    def watched(source, path, batches, about=None):
        batches = list(batches)
        given.extend(np.concatenate(batches))
        assert set(seen) == {"train"}
        write(source, path, iter(batches), about)

    monkeypatch.setattr(exports, "write_int8", watched)
    export_run(scratch, "onnx", int8=True)
    manifest = read_manifest(scratch / "manifest.csv")
    train = manifest.used("train")
    pictures = {
        resize_image(read_image(manifest.image_path(row)), 64).tobytes() for row in train.to_dict("records")
    }
    assert given
    assert {image.tobytes() for image in given} <= pictures


def test_int8_is_quantised_and_its_loss_is_recorded(exported):
    import onnx

    path = export_path(exported, "onnx", int8=True)
    graph = onnx.load(path).graph
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) > 10
    assert path.stat().st_size < 0.35 * export_path(exported, "onnx").stat().st_size
    record = json.loads(record_path(path).read_text(encoding="utf-8"))
    assert record["precision"] == "int8"
    assert record["parity"]["dice_lesion"] is not None
    assert record["parity"]["auc_malignant"] is not None


@pytest.mark.parametrize("backend", ["onnx", "openvino"])
def test_predict_gives_the_same_with_every_backend(exported, tmp_path, backend):
    manifest = read_manifest(exported / "manifest.csv")
    files = [manifest.image_path(row) for row in manifest.used("test").head(5).to_dict("records")]
    tables = {}
    for name in ("torch", backend):
        result = invoke(
            "predict", *files, "--out", exported.parent, "--to", tmp_path / name, "--backend", name, "--precision", "fp32"
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        assert f"{name} fp32 on cpu" in result.stderr
        assert "exporting" not in result.stderr
        tables[name] = pd.read_csv(tmp_path / name / "predictions.csv")
        assert set(tables[name]["computed_in"]) == {f"{name} fp32 on cpu"}
    assert list(tables["torch"]["decision"]) == list(tables[backend]["decision"])
    pixels = tables["torch"]["width"] * tables["torch"]["height"]
    for column, whole in (("malignant_score", 1), ("benign_area_px", pixels), ("malignant_area_px", pixels)):
        np.testing.assert_allclose(
            tables["torch"][column] / whole, tables[backend][column] / whole, atol=2e-3
        )


def test_a_run_without_export_is_exported_first_and_a_stale_one_again(scratch, tmp_path):
    image = tmp_path / "scan.png"
    manifest = read_manifest(scratch / "manifest.csv")
    shutil.copyfile(manifest.image_path(manifest.used("test").iloc[0]), image)

    def predict():
        result = invoke(
            "predict", image, "--out", scratch.parent, "--to", tmp_path / "p", "--backend", "onnx", "--json"
        )
        assert result.exit_code == 0, result.stderr
        return json.loads(result.stdout)[0]["malignant_score"], "exporting" in result.stderr

    shutil.rmtree(scratch / "export")
    score, first = predict()
    again, second = predict()
    assert (first, second) == (True, False)
    assert again == score
    model, header = load_model(scratch / "best.safetensors")
    with torch.no_grad():
        model.heads[0][0].bias += torch.tensor([0.0, 0.0, 3.0])
    write_checkpoint(scratch / "best.safetensors", model, header)
    changed, third = predict()
    assert third
    assert changed > score


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_export_is_one_clear_error(scratch, tmp_path, kind, damage):
    part = exports._parts(export_path(scratch, kind))[0]
    data = part.read_bytes()
    if damage == "missing":
        part.unlink()
    else:
        half = len(data) // 2
        part.write_bytes(
            data[:half] if damage == "cut" else data[:half] + bytes([data[half] ^ 255]) + data[half + 1 :]
        )
    (tmp_path / "scan.png").write_bytes(b"")
    result = invoke(
        "predict", tmp_path / "scan.png", "--out", scratch.parent, "--to", tmp_path / "p", "--backend", kind
    )
    assert result.exit_code == 1
    assert part.name in result.stderr
    assert "is damaged" in result.stderr
    assert f"bus-smp export --run first --format {kind}" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_reading_what_is_no_export_is_an_error_of_ours(exported, tmp_path, kind):
    path = tmp_path / f"x{exports.SUFFIXES[kind]}"
    load = {"onnx": load_onnx, "openvino": load_openvino, "pth": load_pth}[kind]
    with pytest.raises(CheckpointError, match="no such file"):
        load(path)
    good = export_path(exported, kind).read_bytes()
    for content in (b"", b"nothing of the kind", good[: len(good) // 3]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=path.name):
            load(path)


def test_no_pickle_in_a_pth_file_is_executed(tmp_path):
    ran = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return (open, (str(ran), "w"))

    path = tmp_path / "model.pth"
    torch.save({"about": {}, "state_dict": Bomb()}, path)
    with pytest.raises(CheckpointError):
        load_pth(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        load_pth(path)
    assert not ran.exists()


@pytest.mark.parametrize(("package", "backend"), [("onnxruntime", "onnx"), ("openvino", "openvino")])
def test_a_missing_package_says_how_to_install_it(exported, tmp_path, monkeypatch, package, backend):
    monkeypatch.setitem(sys.modules, package, None)
    (tmp_path / "scan.png").write_bytes(b"")
    result = invoke(
        "predict", tmp_path / "scan.png", "--out", exported.parent, "--to", tmp_path / "p", "--backend", backend,
        "--precision", "fp32",
    )  # fmt: skip
    assert result.exit_code == 1
    assert 'pip install "bus_smp[export]"' in result.stderr
    assert "Traceback" not in result.stderr


def test_what_a_backend_cannot_do_is_said_before_anything_is_read():
    for backend, device, precision in (
        ("torch", "auto", "int8"),
        ("onnx", "auto", "bf16"),
        ("onnx", "cuda", "auto"),
        ("openvino", "auto", "fp16"),
    ):
        with pytest.raises(ConfigError, match=f"--backend {backend}"):
            check_backend(backend, device, precision)
    assert choose_precision("onnx", "auto", "bf16") == "fp32"
    assert choose_precision("openvino", "auto", "fp32") == "fp32"
    assert choose_precision("openvino", "int8", "fp32") == "int8"
    result = invoke("predict", "x.png", "--backend", "torch", "--precision", "int8")
    assert result.exit_code == 1
    assert "--backend onnx, openvino" in result.stderr


def test_int8_is_for_two_formats(exported):
    result = invoke("export", "--format", "pth", "--int8", "--out", exported.parent)
    assert result.exit_code == 1
    assert "pth has no int8" in result.stderr


@pytest.mark.slow
def test_an_evaluation_says_what_computed_it_and_never_passes_for_another(scratch):
    manifest = read_manifest(scratch / "manifest.csv", images=True)
    rows = manifest.used("test")
    sha = file_sha256(scratch / "best.safetensors")
    summaries = {}
    for backend, precision in (("torch", "fp32"), ("onnx", "int8"), ("onnx", "fp32")):
        result = invoke(
            "evaluate", "--out", scratch.parent, "--backend", backend, "--precision", precision, "--json"
        )
        assert result.exit_code == 0, result.stderr
        summaries[backend, precision] = summary = json.loads(result.stdout)
        assert summary["computed_in"] == {"backend": backend, "device": "cpu", "precision": precision}
        (folder,) = scratch.glob(f"eval-*-test{'-int8' if precision == 'int8' else ''}")
        current = {
            (other, its): is_current(folder, sha, manifest, rows, backend=other, precision=its)
            for other, its in (("torch", "auto"), ("torch", "fp32"), ("onnx", "fp32"), ("onnx", "int8"))
        }
        expected = {(backend, precision)} | ({("torch", "auto")} if backend == "torch" else set())
        assert {pair for pair, is_so in current.items() if is_so} == expected
        quantised = any("int8" in warning for warning in summary["warnings"])
        assert quantised == (precision == "int8")
    dice = [
        summaries[key]["summaries"]["model"]["metrics"]["dice_lesion"]["mean"]
        for key in (("torch", "fp32"), ("onnx", "fp32"))
    ]
    assert dice[0] == pytest.approx(dice[1], abs=1e-3)
    page = invoke("report", scratch.name, "--out", scratch.parent)
    assert page.exit_code == 0, page.stderr
    shown = (scratch / "report.html").read_text()
    assert "test, int8" in shown and "own data, by the quantised network" in shown
    assert "--backend onnx --precision int8" in shown


@pytest.mark.slow
def test_a_matrix_scores_again_what_another_backend_scored(scratch, manifests, tmp_path):
    def matrix(*options):
        result = invoke(
            "crosseval", "--matrix", "--out", scratch.parent, "--manifests", manifests / "data_manifests",
            "--target", "busi", *options,
        )  # fmt: skip
        assert result.exit_code == 0, result.stderr
        return "Already scored:" in result.stderr

    assert not matrix("--backend", "onnx")
    assert matrix("--backend", "onnx")
    before = (scratch.parent / "matrix" / "matrix.csv").read_bytes()
    assert not matrix("--backend", "onnx", "--precision", "int8")
    assert (scratch.parent / "matrix" / "matrix.csv").read_bytes() == before, "of another network"
    assert (scratch.parent / "matrix-int8" / "matrix.csv").is_file()
    assert matrix("--backend", "onnx")
    assert not matrix()


def test_the_record_and_info_tell_what_is_there(exported):
    result = invoke("export", "--format", "pth", "--out", exported.parent, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["parity"]["argmax_agreement"] == 1
    told = invoke("info", exported).stdout
    assert "model.onnx" in told
    assert "model-int8.onnx" in told


def test_images_of_a_folder_can_be_compared_on(scratch, tmp_path):
    manifest = read_manifest(scratch / "manifest.csv")
    (tmp_path / "scans").mkdir()
    for row in manifest.used("test").head(3).to_dict("records"):
        shutil.copy(manifest.image_path(row), tmp_path / "scans")
    (scratch / "manifest.csv").unlink()  # a run that was passed on without its data
    result = invoke(
        "export", "--format", "pth", "--out", scratch.parent, "--check", tmp_path / "scans", "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["parity"]["images"] == 3


def test_the_ten_lines_of_the_docs_run_and_say_what_predict_says(exported, tmp_path, monkeypatch):
    text = (Path(__file__).resolve().parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "bus_smp" not in code.replace('["bus_smp"]', "")
    manifest = read_manifest(exported / "manifest.csv")
    monkeypatch.chdir(tmp_path)
    shutil.copy(export_path(exported, "onnx"), tmp_path)
    shutil.copy(manifest.image_path(manifest.used("test").iloc[0]), "scan.png")
    names = {}
    exec(code, names)
    result = invoke(
        "predict", "scan.png", "--out", exported.parent, "--to", "p", "--precision", "fp32", "--json"
    )
    (row,) = json.loads(result.stdout)
    assert names["malignant_score"] == pytest.approx(row["malignant_score"], abs=1e-3)
    assert names["mask"].shape == (64, 64)
    area = float((names["mask"] == 2).mean())
    assert area == pytest.approx(row["malignant_area_px"] / (row["width"] * row["height"]), abs=0.05)
