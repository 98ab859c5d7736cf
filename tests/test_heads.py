"""Heads for the whole image, and changes of style during training: absent by default, exact to continue."""

from types import SimpleNamespace

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ended, invoke, settings_options
from tables import lesion, normal, table_row

from bus_smp.classes import LABELS
from bus_smp.config import load_settings
from bus_smp.data.loading import TrainingDataset
from bus_smp.data.sampler import Draw, EpochSampler, balancing_weights
from bus_smp.errors import ConfigError
from bus_smp.evaluation.calibration import at_temperature, fit_image_temperature
from bus_smp.evaluation.operating_point import FoundLesions, fit_operating_point
from bus_smp.inference.folding import MainHead, fold_batch_norms
from bus_smp.inference.formats.contract import FromPixels
from bus_smp.inference.formats.onnx import load_onnx, write_onnx
from bus_smp.inference.formats.openvino import load_openvino, write_openvino
from bus_smp.inference.formats.pth import load_pth, write_pth
from bus_smp.inference.predictor import outputs_of
from bus_smp.measures.decision import DecisionRules, MarkedLesions
from bus_smp.measures.shape import SHAPES, lesion_shape
from bus_smp.model.checkpoint import load_model, read_header, weights_sha256
from bus_smp.model.consistency import consistency_loss, learn_rule, soft_shape
from bus_smp.model.encoders import load_encoder
from bus_smp.model.hybrid import IMAGENET_MEAN, IMAGENET_STD, HybridResNet50
from bus_smp.model.image_head import image_loss
from bus_smp.model.perturb import change_shallow_features, exchange_style, perturb_norm
from bus_smp.model.shape_head import shape_loss, shapes_of, standardise
from bus_smp.runs.evaluations import read_summary, read_tables
from bus_smp.runs.run import Run
from bus_smp.statistics.metrics import IMAGE_COLUMNS
from bus_smp.statistics.summary import summarise
from bus_smp.system.engine import make_engine
from bus_smp.training.preflight import check_heads
from bus_smp.training.step import ImageTargets, TrainingStep

ALL = (
    "heads.image=0.2",
    "heads.shape=0.2",
    "heads.consistency=0.2",
    "model.perturb_norm=0.5",
    "model.exchange_style=0.5",
    "model.decoder_norm=instance",
)


def make_step(*more):
    torch.manual_seed(0)
    settings = load_settings(None, ["model.encoder_name=resnet18", "model.encoder_weights=null", *more])
    step = TrainingStep(settings, make_engine("cpu", "fp32"))
    step.model.train()
    return step


def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=generator)
    masks = torch.randint(0, 3, (4, 64, 64), dtype=torch.uint8, generator=generator)
    shapes = torch.tensor([[0.1, 0.7, 0.8, 0.9]]).repeat(4, 1)
    shapes[0] = torch.nan
    return {
        "images": images,
        "masks": masks,
        "whole": ImageTargets(torch.tensor([0, 1, 2, 0]), shapes, torch.ones(4)),
    }


@pytest.mark.parametrize("head", ["image_head", "shape_head"])
def test_a_head_adds_weights_and_changes_no_other(head):
    states = []
    for exists in (False, True):
        torch.manual_seed(0)
        model = HybridResNet50(encoder_weights=None, encoder_name="resnet18", **{head: exists})
        states.append(model.state_dict())
    plain, more = states
    assert more.keys() - plain.keys() == {f"{head}.weight", f"{head}.bias"}
    assert all(torch.equal(more[name], value) for name, value in plain.items())


@pytest.mark.parametrize("head", ["image", "shape"])
@pytest.mark.parametrize("detached", [True, False])
def test_a_head_learns_and_moves_the_encoder_only_if_attached(head, detached):
    steps = [
        make_step(f"heads.{head}={weight}", f"heads.detached={str(detached).lower()}") for weight in (0, 0.5)
    ]
    losses = [step(**batch()) for step in steps]
    assert losses[0].shape == (5,) and losses[1].shape == (6,)
    assert steps[1].loss_names == ("main", "aux_2", "aux_4", "aux_8", head)
    assert losses[1][0] == losses[0][0] + 0.5 * losses[1][5]
    start = getattr(make_step(f"heads.{head}=0.5").model, f"{head}_head").weight
    assert not torch.equal(getattr(steps[1].model, f"{head}_head").weight, start)
    same = torch.equal(*(step.model.encoder.conv1.weight for step in steps))
    assert same == detached


def test_the_shape_loss_leaves_images_without_a_lesion_out():
    shapes = torch.tensor([[0.05, 1.2, 0.8, 0.95], [torch.nan] * 4])
    output = standardise(shapes).nan_to_num(5.0).requires_grad_()
    torch.testing.assert_close(shapes_of(output)[0], shapes[0])
    assert shape_loss(output, shapes) == 0
    loss = shape_loss(output + 0.5, shapes, torch.tensor([2.0, 1.0]))
    torch.testing.assert_close(loss, torch.tensor(2 * 0.5**2 / 2))
    loss.backward()
    assert output.grad.isfinite().all() and not output.grad[1].any()
    assert shape_loss(output, shapes[1:].repeat(2, 1)) == 0
    limits = shapes_of(torch.full((1, 4), 9.0))[0]
    assert limits[0] == limits[2] == limits[3] == 1


def disc(down, across, size=96):
    mask = np.zeros((size, size), np.uint8)
    cv2.ellipse(mask, (44, 50), (across, down), 0, 0, 360, 1, -1)
    return mask


def test_the_soft_shape_of_a_mask_is_that_of_its_outline():
    lobed = disc(20, 20)
    for angle in range(0, 360, 60):
        centre = (int(44 + 20 * np.cos(np.radians(angle))), int(50 + 20 * np.sin(np.radians(angle))))
        cv2.circle(lobed, centre, 9, 0, -1)
    masks = torch.from_numpy(np.stack([disc(30, 30), disc(15, 30), disc(30, 15), lobed]))
    depth, circularity, roundness = soft_shape(masks).T
    torch.testing.assert_close(
        depth[:3], torch.tensor([0, -np.log(2.0), np.log(2.0)]).float(), atol=0.02, rtol=0
    )
    torch.testing.assert_close(roundness[:3], torch.ones(3), atol=0.01, rtol=0)
    assert circularity[0] > 0.95 > circularity[1] > circularity[3] and roundness[3] < 0.97


def test_mask_and_class_that_disagree_move_towards_each_other():
    masks = np.stack([disc(12, 30), disc(14, 30), disc(30, 12), disc(30, 14), 0 * disc(9, 9)])
    rule = learn_rule(masks, ["benign", "benign", "malignant", "malignant", "normal"])
    assert rule[0] > 0, "taller than wide is malignant here"
    logits = 8 * torch.from_numpy(np.stack([1 - masks, masks, 0 * masks], 1)).float().requires_grad_()
    logits.retain_grad()
    image = torch.tensor([[0.0, -2, 2]] * 5, requires_grad=True)
    labels = torch.tensor([1, 1, 2, 2, 0])
    loss = consistency_loss(logits, image, labels, rule)
    loss.backward()
    # a flat lesion that is called malignant: less malignant, and taller
    assert image.grad[0, 2] > 0 > image.grad[0, 1] and not image.grad[:, 0].any() and not image.grad[4].any()
    assert logits.grad[0].any() and not logits.grad[4].any()
    assert 0 < loss < 1
    nothing = torch.zeros_like(logits) + torch.tensor([90.0, 0, 0])[:, None, None]
    assert consistency_loss(nothing, image, labels, rule) == 0
    with pytest.raises(ConfigError, match="needs the image head"):
        load_settings(None, ["heads.consistency=0.1"])


def test_batches_have_the_shapes_of_their_own_augmented_masks(tmp_path):
    images, masks = np.zeros((2, 64, 64, 3), np.uint8), np.zeros((2, 64, 64), np.uint8)
    masks[1, 10:40, 20:30] = 2
    cache = SimpleNamespace(images=images, masks=masks)
    settings = load_settings(None, ["augment.horizontal_flip=0.5"]).augment
    dataset = TrainingDataset(cache, ["normal", "malignant"], settings, 0, measure=True)
    batch = dataset.__getitems__([Draw(0, place, place % 2) for place in range(6)])
    for mask, shape in zip(batch.masks.numpy(), batch.shapes.numpy(), strict=True):
        expected = lesion_shape(mask) if mask.any() else dict.fromkeys(SHAPES, np.nan)
        expected["area"] /= 64 * 64
        np.testing.assert_allclose(shape, list(expected.values()), rtol=1e-6)
    assert batch.shapes[0].isnan().all() and 0.02 < batch.shapes[1, 0] < 0.2


def test_the_image_loss_is_the_weighted_mean_of_the_cross_entropies():
    logits, labels = torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([2, 0])
    each = [-logits[n].softmax(0)[label].log() for n, label in enumerate(labels)]
    torch.testing.assert_close(image_loss(logits, labels), (each[0] + each[1]) / 2)
    weighted = image_loss(logits, labels, torch.tensor([3.0, 0.5]))
    torch.testing.assert_close(weighted, (3 * each[0] + each[1] / 2) / 2)


@pytest.mark.parametrize("balanced", [True, False])
def test_weights_let_each_data_set_and_class_count_the_same_over_a_training(balanced):
    labels = ["normal"] * 30 + ["benign"] * 12 + ["malignant"] * 6
    kinds = [f"{'ab'[n % 3 == 0]} {label}" for n, label in enumerate(labels)]
    sampler = EpochSampler(labels, 0, balanced)
    shares, weights = sampler.shares(), balancing_weights(kinds, sampler.shares())
    drawn = np.bincount(np.concatenate([sampler.indices(e) for e in range(60)]), minlength=48) / (60 * 48)
    np.testing.assert_allclose(drawn, shares, atol=0.004)
    for kind in set(kinds):
        chosen = np.array(kinds) == kind
        assert (shares * weights)[chosen].sum() == pytest.approx(1 / 6)
    lonely = balancing_weights(["a"] * 999 + ["b"], np.full(1000, 0.001))
    assert lonely[-1] == 10


@pytest.mark.parametrize("name", ["resnet18", "tu-test_resnet", "tu-test_efficientnet", "mobilenet_v2"])
@pytest.mark.parametrize("change", [perturb_norm, exchange_style])
def test_styles_change_in_training_at_two_places_and_nowhere_in_prediction(name, change):
    encoder = load_encoder(name, None)[0]
    images = torch.randn(4, 3, 64, 64)
    plain = encoder.eval()(images)
    change_shallow_features(encoder, change, 1.0)
    assert all(map(torch.equal, plain, encoder.eval()(images)))
    state = {key: value.clone() for key, value in encoder.state_dict().items()}
    torch.manual_seed(3)
    first = encoder.train()(images)
    encoder.load_state_dict(state)
    torch.manual_seed(3)
    assert all(map(torch.equal, first, encoder(images))), "the seed decides"
    unchanged = load_encoder(name, None)[0]
    unchanged.load_state_dict(state)
    plain = unchanged.train()(images)
    assert [torch.equal(a, b) for a, b in zip(plain, first, strict=True)][:3] == [True, False, False]


def test_a_change_of_style_changes_mean_and_spread_and_nothing_else():
    feature = torch.randn(6, 5, 9, 9) * 3 + 1
    for change in (perturb_norm, exchange_style):
        changed = change(feature)
        assert not torch.allclose(changed.mean((2, 3)), feature.mean((2, 3)))
        centred = [x - x.mean((2, 3), keepdim=True) for x in (feature, changed)]
        normal = [x / x.square().mean((2, 3), keepdim=True).sqrt() for x in centred]
        torch.testing.assert_close(normal[0].abs(), normal[1].abs(), rtol=1e-3, atol=1e-3)
    between = torch.stack([torch.zeros(5, 9, 9), torch.ones(5, 9, 9)])
    assert (exchange_style(between).mean((2, 3)) <= 1).all()


def test_an_encoder_without_visible_features_is_refused():
    class Hidden(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(3, 3, 1)

        def forward(self, images):
            return [self.layer(images) * factor for factor in range(6)]

    with pytest.raises(ConfigError, match="perturb_norm"):
        change_shallow_features(Hidden(), perturb_norm, 0.5)


def test_a_folded_network_with_instance_norm_predicts_as_before():
    model = HybridResNet50(encoder_weights=None, encoder_name="resnet18", decoder_norm="instance").eval()
    assert any(isinstance(part, torch.nn.InstanceNorm2d) for part in model.decoder.modules())
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in model.decoder.modules())
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(
            fold_batch_norms(MainHead(model))(images), model(images)[0], rtol=1e-3, atol=1e-4
        )


def test_exports_return_the_heads_by_name_and_say_what_the_weights_say(tmp_path):
    pytest.importorskip("onnx")
    torch.manual_seed(0)
    model = HybridResNet50(
        encoder_weights=None, encoder_name="tu-test_resnet", image_head=True, shape_head=True
    ).eval()
    about = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "model": {}}
    about["model"] = {"encoder_name": "tu-test_resnet", "image_head": True, "shape_head": True}
    whole = MainHead(model)
    assert whole.names == ("logits", "image", "shape")
    write_onnx(
        FromPixels(fold_batch_norms(whole), about).eval(), tmp_path / "m.onnx", 64, about, names=whole.names
    )
    write_openvino(tmp_path / "m.onnx", tmp_path / "m.xml", about)
    write_pth(model, tmp_path / "m.pth", about)
    plain = MainHead(load_pth(tmp_path / "m.pth")[0])
    images = np.random.default_rng(0).integers(0, 256, (2, 96, 64, 3), np.uint8)
    with torch.inference_mode():
        expected, from_pth = (
            outputs_of(FromPixels(one, about).eval()(torch.from_numpy(images)), one.names)
            for one in (whole, plain)
        )
    assert expected.image.shape == (2, 3) and expected.shape.shape == (2, 4)
    for found in (
        from_pth,
        load_onnx(tmp_path / "m.onnx")(images),
        load_openvino(tmp_path / "m.xml")(images),
    ):
        for name in whole.names:
            np.testing.assert_allclose(getattr(expected, name), getattr(found, name), atol=1e-3)


@pytest.fixture(scope="module")
def with_heads(manifests):
    """A run with all of it, trained at once."""
    out = manifests / "with_heads"
    result = invoke("train", "--out", out, "--run", "whole", *settings_options(manifests, *ALL))
    assert result.exit_code == 0, result.stderr
    return out / "whole"


def test_a_run_with_heads_that_was_stopped_ends_with_the_same_bits(manifests, with_heads, monkeypatch):
    from bus_smp.training.loop import _Training

    calibrate = _Training._record

    def stop(self, row, board):
        calibrate(self, row, board)
        raise KeyboardInterrupt

    command = (
        "train",
        "--out",
        manifests / "with_heads",
        "--run",
        "twice",
        *settings_options(manifests, *ALL),
    )
    monkeypatch.setattr(_Training, "_record", stop)
    assert invoke(*command).exit_code != 0
    monkeypatch.undo()
    shown = ended(invoke(*command), 0)
    assert "Continuing" in shown
    runs = [Run(with_heads.parent / name) for name in ("whole", "twice")]
    assert weights_sha256(runs[0].best_path) == weights_sha256(runs[1].best_path)
    assert runs[0].metrics_path.read_bytes() == runs[1].metrics_path.read_bytes()
    assert "train_loss_image" in runs[0].metrics()


def test_the_header_describes_the_network_with_its_heads(with_heads):
    model, header = load_model(with_heads / "best.safetensors")
    assert header["model"]["image_head"] and header["model"]["decoder_norm"] == "instance"
    assert "perturb_norm" not in header["model"]
    assert read_header(with_heads / "best.safetensors")["settings"]["heads"]["image"] == 0.2
    assert model.compute(torch.zeros(2, 3, 64, 64)).image.shape == (2, 3)
    shown = " ".join(invoke("info", with_heads).stdout.split())
    assert "instance norm in the decoder, image head, shape head" in shown


def test_a_head_that_the_first_run_lacks_starts_random_and_that_is_said(manifests, trained):
    options = settings_options(manifests, "heads.image=0.2", "train.epochs=1", f"model.init={trained}")
    shown = ended(invoke("train", "--out", manifests / "more", "--run", "added", *options), 0)
    assert "The image head starts from random weights" in " ".join(shown.split())
    options = settings_options(manifests, "train.epochs=1", f"model.init={manifests / 'more' / 'added'}")
    shown = ended(invoke("train", "--out", manifests / "more", "--run", "dropped", *options), 0)
    assert "random weights" not in shown
    norm = settings_options(manifests, "model.decoder_norm=instance", f"model.init={trained}")
    shown = ended(invoke("train", "--out", manifests / "more", "--run", "other", *norm), 1)
    assert "model.decoder_norm None, here instance" in shown


def test_a_data_set_of_one_class_is_warned_of_and_a_training_of_one_class_refused():
    class Rows:
        def __init__(self, *pairs):
            self.frame = pd.DataFrame(pairs, columns=["dataset", "label"])

        def used(self, split):
            return self.frame

    with_head, without = load_settings(None, ["heads.image=0.2"]), load_settings()
    mixed = Rows(("a", "normal"), ("a", "benign"), ("b", "malignant"), ("b", "malignant"))
    (warning,) = check_heads(with_head, mixed)
    assert "all training images of b are malignant" in warning
    with pytest.raises(ConfigError, match="benign and malignant"):
        check_heads(
            load_settings(None, ["heads.image=1", "heads.consistency=1"]),
            Rows(("a", "normal"), ("a", "benign")),
        )
    single = Rows(("a", "benign"), ("b", "benign"))
    assert check_heads(without, single) == []
    with pytest.raises(ConfigError, match="all images of the train split are benign") as caught:
        check_heads(with_head, single)
    assert "heads.image=0" in caught.value.hint


def found_lesions(probability, lesions=1):
    none = np.zeros(0 if not lesions else 1, int)
    return FoundLesions(lesions, np.array([0.9]), np.array([0.1]), none, none, probability)


def test_the_gate_closes_where_it_spares_false_alarms_and_loses_no_more_lesions_than_allowed():
    lesions = [found_lesions(value) for value in np.linspace(0.1, 0.5, 20)]
    normals = [found_lesions(value, lesions=0) for value in (0.3, 0.49, 0.6, 0.9)]
    point = fit_operating_point([*lesions, *normals])
    # of 20 lesions one may be lost: the one in the image that looks most normal
    assert point["most_normal"] == pytest.approx(lesions[18].normal, abs=1e-6)
    assert (point["found"], point["found_plain"], point["lesions"]) == (19, 20, 20)
    assert (point["false_alarms"], point["false_alarms_plain"]) == (1, 4)
    blind = fit_operating_point([*lesions, *(found_lesions(0.1, lesions=0) for _ in range(3))])
    assert "most_normal" not in blind, "a head that tells nothing apart closes no gate"
    rules = DecisionRules.of({"operating_point": point})
    mask = np.zeros((8, 8), np.uint8)
    mask[2:5, 2:5] = 1
    for probability, kept in ((0.2, True), (0.6, False)):
        marked = MarkedLesions.of(mask, [1.0 - mask], probability)
        assert marked.kept(mask, rules).any() == kept


def test_the_image_head_has_a_temperature_of_its_own():
    draw = np.random.default_rng(0)
    logits = 2 * draw.normal(size=(1000, 3))
    probabilities = at_temperature(np.exp(logits), 1.0)
    labels = [LABELS[draw.choice(3, p=one)] for one in at_temperature(probabilities, 2.0)]
    fitted = fit_image_temperature(probabilities, labels)
    assert 1.7 < fitted["temperature"] < 2.3 and fitted["nll_after"] < fitted["nll_before"]
    np.testing.assert_allclose(at_temperature(probabilities, 2.0), at_temperature(np.exp(logits / 2), 1.0))


def test_evaluation_and_prediction_show_what_the_heads_say(manifests, with_heads):
    header = read_header(with_heads / "best.safetensors")
    assert header["calibration"]["image"]["temperature"] > 0
    command = ("--out", with_heads.parent, "--run", "whole")
    ended(invoke("evaluate", *command, "--split", "val"), 0)
    (folder,) = Run(with_heads).evaluations()
    tables = read_tables(folder)
    assert "image_normal" in tables.model and all(
        "image_normal" not in one for one in tables.baselines.values()
    )
    table, model = pd.read_csv(folder / "per_image.csv"), read_summary(folder)["summaries"]["model"]
    probabilities = table[list(IMAGE_COLUMNS)]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    of_normals, of_lesions = (
        probabilities["image_normal"][(table["label"] == "normal") == one].to_numpy() for one in (True, False)
    )
    pairs = np.subtract.outer(of_normals, of_lesions)
    assert model["rates"]["image_head_auc_lesion"]["mean"] == pytest.approx(
        ((pairs > 0) + (pairs == 0) / 2).mean()
    )
    right = probabilities.to_numpy().argmax(1) == table["label"].map(LABELS.index)
    assert model["rates"]["image_head_accuracy"]["mean"] == pytest.approx(right.mean())
    assert set(model["agreement_head_truth"]) == set(model["agreement_head_mask"]) == set(SHAPES)

    scan = next((manifests.parent).rglob("*.png"))
    results = with_heads.parent / "results"
    ended(invoke("predict", scan, "--include-masks", *command, "--to", results, "--pixel-mm", 0.1), 0)
    row = pd.read_csv(results / "predictions.csv").iloc[0]
    assert row[list(IMAGE_COLUMNS)].sum() == pytest.approx(1, abs=1e-5)
    assert row["area_mm2_head"] == pytest.approx(row["area_px_head"] * 0.01, abs=1e-5)
    assert {"depth_to_width_head", "depth_to_width_mask", "solidity_head", "solidity_mask"} <= set(row.index)


def test_a_table_without_a_head_has_no_numbers_of_it():
    rows = [table_row(str(n), str(n), label, lesion_counts, 0.5) for n, (label, lesion_counts) in enumerate(
        [("normal", normal()), ("benign", lesion("benign", 10)), ("malignant", lesion("malignant", 5))]
    )]  # fmt: skip
    summary = summarise(pd.DataFrame(rows).drop(columns=list(IMAGE_COLUMNS)), draws=0)
    assert summary["rates"]["image_head_auc_lesion"]["mean"] is None
    assert summary["rates"]["image_head_accuracy"]["mean"] is None and "agreement_head_truth" not in summary
