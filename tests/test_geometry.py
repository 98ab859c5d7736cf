"""Onto the network's grid and back: stretched or letterboxed, in colour or grey, in every backend."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from bus_smp.classes import IGNORED
from bus_smp.data.geometry import Geometry
from bus_smp.data.images import restore_probabilities, write_png
from bus_smp.errors import CheckpointError
from bus_smp.inference.folding import MainHead
from bus_smp.inference.formats.contract import FromPixels
from bus_smp.inference.formats.onnx import load_onnx, write_onnx
from bus_smp.inference.formats.openvino import load_openvino, write_openvino
from bus_smp.inference.formats.pth import load_pth, write_pth
from bus_smp.inference.predictor import Outputs, TorchNetwork, load_predictor, predictor_of
from bus_smp.model.checkpoint import read_header, write_checkpoint
from bus_smp.model.hybrid import HybridResNet50, normalise
from bus_smp.model.losses import DeepSupervisionLoss
from bus_smp.system.engine import make_engine

SHAPES = [(90, 270), (270, 90), (64, 64), (7, 5), (61, 200), (1, 300), (413, 397)]


def scan(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_mask_comes_back_from_a_letterbox_where_it_was(shape):
    height, width = shape
    mask = np.zeros(shape, np.uint8)
    mask[height // 4 : max(1, height * 3 // 4), width // 5 : max(1, width // 2)] = 2
    geometry = Geometry(64, letterbox=True)
    grid = geometry.mask(mask)
    inside = geometry.cut(grid[None], shape)[0]
    assert grid.shape == (64, 64) and max(inside.shape) == 64
    assert (grid == IGNORED).sum() == 64 * 64 - inside.size and not (inside == IGNORED).any()
    assert abs(inside.shape[1] / inside.shape[0] - width / height) <= 1 / min(inside.shape) * max(
        width / height, 1
    )
    back = restore_probabilities(np.eye(3, dtype=np.float32)[inside].transpose(2, 0, 1), shape).argmax(0)
    cell = max(1, -(-max(shape) // 64))
    wrong = back != mask
    # only within a cell of the outline
    rows, columns = slice(height // 4, max(1, height * 3 // 4)), slice(width // 5, max(1, width // 2))
    core = np.zeros(shape, bool)
    core[rows.start + cell : max(0, rows.stop - cell), columns.start + cell : max(0, columns.stop - cell)] = (
        True
    )
    far = np.ones(shape, bool)
    far[max(0, rows.start - cell) : rows.stop + cell, max(0, columns.start - cell) : columns.stop + cell] = (
        False
    )
    assert not wrong[core].any() and not wrong[far].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("letterbox", [False, True])
def test_an_image_that_fits_is_not_resized_again(shape, letterbox):
    geometry = Geometry(64, letterbox, grey=letterbox)
    fitted = geometry.fit(scan(shape))
    assert np.array_equal(geometry.fit(fitted), fitted)
    assert np.array_equal(geometry.image(fitted), geometry.image(scan(shape)))
    rows, columns = geometry.place(shape)
    outside = geometry.image(scan(shape))
    assert np.array_equal(outside[rows, columns], fitted)
    outside[rows, columns] = 0
    assert not outside.any()


def test_grey_is_the_mean_of_the_channels_in_each_of_them():
    image = scan((64, 64))
    grey = Geometry(64, grey=True).image(image)
    expected = np.rint(image.astype(float).mean(2)).astype(np.uint8)
    assert all(np.array_equal(grey[..., channel], expected) for channel in range(3))
    inside = normalise(torch.from_numpy(image[None]), (0, 0, 0), (1, 1, 1), grey=True)
    assert torch.equal(inside.mul(255).round().to(torch.uint8)[0, 0], torch.from_numpy(expected))


def header(**more) -> dict:
    model = {"num_classes": 3, "deep_supervision": True, "encoder_name": "tu-test_resnet"}
    return {
        "model": model, "size": 64, "mean": [0.5] * 3, "std": [0.2] * 3, "epoch": 1, "precision": "fp32",
        "datasets": ["own"], **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def network() -> HybridResNet50:
    torch.manual_seed(0)
    model = HybridResNet50(encoder_name="tu-test_resnet", encoder_weights=None)
    # in training mode: statistics that are not 0 and 1
    model(torch.randn(4, 3, 64, 64))
    return model.eval()


LETTERBOX = {"geometry": "letterbox", "grey": True, "calibration": {"temperature": 1.5, "threshold": 0.5}}


@pytest.fixture(scope="module")
def written(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("geometry") / "best.safetensors"
    write_checkpoint(path, network, header(**LETTERBOX))
    return path


def test_every_backend_returns_the_same_probabilities_at_the_size_of_the_image(
    network, written, tmp_path, monkeypatch
):
    engine = make_engine("cpu", "fp32")
    predictor, about = load_predictor(written, engine)
    assert predictor.geometry == Geometry(64, letterbox=True, grey=True)
    pytest.importorskip("onnx")
    write_onnx(FromPixels(MainHead(network), about).eval(), tmp_path / "model.onnx", 64, about)
    write_openvino(tmp_path / "model.onnx", tmp_path / "model.xml", about)
    write_pth(network, tmp_path / "model.pth", about)
    plain, in_file = load_pth(tmp_path / "model.pth")
    networks = {
        "onnx": load_onnx(tmp_path / "model.onnx"),
        "openvino": load_openvino(tmp_path / "model.xml"),
        "pth": TorchNetwork(plain, engine, in_file["mean"], in_file["std"]),
    }
    images = [scan(shape, seed) for seed, shape in enumerate(SHAPES)]
    expected = predictor.predict(images)
    for other in networks.values():
        found = predictor_of(other, {"device": "cpu", "precision": "fp32"}, about, 8).predict(images)
        for image, one, two in zip(images, expected, found, strict=True):
            assert two.native.shape == (3, *image.shape[:2])
            np.testing.assert_allclose(two.native, one.native, atol=1e-4)

    # and the recipe for those who have only the ONNX file; its image is in colour
    text = (Path(__file__).resolve().parents[1] / "docs" / "export.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    smooth = cv2.resize(images[0][:8, :8], (205, 413), interpolation=cv2.INTER_CUBIC)
    write_png(Path("scan.png"), smooth)
    names: dict = {}
    exec(code, names)
    in_package = predictor.predict(smooth)
    assert names["mask"].shape == (64, 32) and (names["mask"] == in_package.grid.argmax(0)).mean() > 0.99
    assert names["malignant_score"] == pytest.approx(in_package.score, abs=1e-3)


def test_what_lies_in_the_padding_changes_no_prediction(written):
    predictor, _ = load_predictor(written, make_engine("cpu", "fp32"))
    image = scan((40, 120))
    before = predictor.predict(image)
    network = predictor.network

    def loud(images: np.ndarray) -> Outputs:
        logits = network(images).logits
        rows, columns = predictor.geometry.place(image.shape)
        padding = np.ones(logits.shape[2:], bool)
        padding[rows, columns] = False
        logits[:, 2, padding] = 1e4
        return Outputs(logits)

    predictor.network = loud
    after = predictor.predict(image)
    assert np.array_equal(after.native, before.native) and after.score == before.score


def test_a_tinted_copy_of_an_image_is_predicted_as_the_grey_one(written):
    predictor, _ = load_predictor(written, make_engine("cpu", "fp32"))
    grey = np.repeat(scan((50, 80))[..., :1] // 2 + 40, 3, axis=2)
    tinted = grey + np.array([-9, 0, 9]).astype(np.int8).view(np.uint8)
    assert np.array_equal(predictor.predict(tinted).native, predictor.predict(grey).native)


def test_older_checkpoints_are_stretched_and_older_versions_refuse_a_letterbox(network, written, tmp_path):
    assert read_header(written)["format"] == 2
    path = tmp_path / "old.safetensors"
    write_checkpoint(path, network, header())
    predictor, about = load_predictor(path, make_engine("cpu", "fp32"))
    assert about["format"] == 1 and predictor.geometry == Geometry(64)
    write_checkpoint(path, network, header(geometry="cropped"))
    with pytest.raises(CheckpointError, match="as geometry its header gives 'cropped'"):
        load_predictor(path, make_engine("cpu", "fp32"))


def test_the_loss_is_that_of_the_pixels_that_belong_to_the_image():
    logits = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.randint(0, 3, (2, 16, 16), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    cut, _ = DeepSupervisionLoss()(logits[:, :, 4:12], target[:, 4:12])
    target[:, :4] = target[:, 12:] = IGNORED
    whole, _ = DeepSupervisionLoss(padded=True)(logits, target)
    torch.testing.assert_close(whole, cut)
    whole.backward()
    assert not logits.grad[:, :, :4].any() and logits.grad[:, :, 4:12].all()
