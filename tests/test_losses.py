import math

import pytest
import torch
import torch.nn.functional as F

from bus_smp.errors import ConfigError
from bus_smp.model.hybrid import HybridResNet50
from bus_smp.model.losses import DeepSupervisionLoss, cross_entropy, dice_loss, resize_target

HEAD_WEIGHTS = (1.0, 0.5, 0.25, 0.125)


def random_heads(size=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    heads = tuple(torch.randn(2, 3, size >> k, size >> k, generator=generator) for k in range(4))
    return heads, torch.randint(0, 3, (2, size, size), generator=generator, dtype=torch.uint8)


def logits_of(target, confidence):
    return confidence * F.one_hot(target.long(), 3).movedim(-1, 1).float()


def test_cross_entropy_agrees_with_torch():
    (logits, *_), target = random_heads()
    expected = F.cross_entropy(logits, target.long())
    torch.testing.assert_close(cross_entropy(F.log_softmax(logits, dim=1), target.long()), expected)


# One row of pixels; per pixel the target and the probabilities of benign and malignant. Expected: by hand.
DICE_CASES = {
    "perfect": ([0, 1, 2], [0, 1, 0], [0, 0, 1], 0.0),
    "nothing predicted": ([0, 1, 2], [0, 0, 0], [0, 0, 0], 1.0),
    "half of one class": ([1, 1, 0], [1, 0, 0], [0, 0, 0], 1 - 2 / 3),
    "soft": ([1, 0, 0], [0.5, 0.5, 0], [0, 0, 0], 1 - 2 * 0.5 / 2),
    "classes swapped": ([1, 2, 0], [0, 1, 0], [1, 0, 0], 1.0),
    "mean of two classes": ([1, 1, 2], [1, 0, 0], [0, 0, 1], (1 - 2 / 3 + 0) / 2),
    "absent class predicted, left out": ([1, 0, 0], [1, 0, 0], [0, 1, 1], 0.0),
    "no lesion": ([0, 0, 0], [1, 0.3, 0], [0, 0.3, 1], 0.0),
}


@pytest.mark.parametrize("case", DICE_CASES)
def test_dice_loss_equals_the_hand_computed_value(case):
    target, benign, malignant, expected = DICE_CASES[case]
    lesions = torch.tensor([benign, malignant], dtype=torch.float32)
    probabilities = torch.cat([1 - lesions.sum(0, keepdim=True), lesions])[None, :, None, :]
    loss = dice_loss(probabilities, torch.tensor(target)[None, None, :])
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_dice_is_summed_over_the_batch_before_it_is_divided():
    probabilities = torch.zeros(2, 3, 1, 4)
    probabilities[0, 1, 0, :2] = 1  # found 2 of 2
    probabilities[1, 1, 0, :1] = 1  # one false alarm on a normal image
    target = torch.tensor([[[1, 1, 0, 0]], [[0, 0, 0, 0]]])
    assert dice_loss(probabilities, target).item() == pytest.approx(1 - 2 * 2 / (3 + 2))


def test_the_total_is_the_weighted_mean_over_the_heads():
    heads, target = random_heads()
    total, losses = DeepSupervisionLoss(head_weights=HEAD_WEIGHTS)(heads, target)
    expected = sum(w * loss for w, loss in zip(HEAD_WEIGHTS, losses, strict=True)) / sum(HEAD_WEIGHTS)
    torch.testing.assert_close(total, expected)
    assert len(losses) == 4 and not any(loss.requires_grad for loss in losses)


@pytest.mark.parametrize("factor", [0.01, 100])
def test_only_the_proportions_of_the_head_weights_count(factor):
    heads, target = random_heads()
    scaled = DeepSupervisionLoss(head_weights=[factor * weight for weight in HEAD_WEIGHTS])
    torch.testing.assert_close(scaled(heads, target)[0], DeepSupervisionLoss()(heads, target)[0])


@pytest.mark.parametrize(("ce", "dice"), [(1.0, 0.0), (0.0, 1.0), (0.3, 2.0)])
def test_each_head_is_weighted_cross_entropy_plus_dice(ce, dice):
    heads, target = random_heads()
    _, losses = DeepSupervisionLoss(cross_entropy=ce, dice=dice)(heads, target)
    for k, (logits, loss) in enumerate(zip(heads, losses, strict=True)):
        small = target.long()[:, (1 << k) // 2 :: 1 << k, (1 << k) // 2 :: 1 << k]  # centre of each cell
        parts = F.cross_entropy(logits, small), dice_loss(logits.softmax(1), small)
        torch.testing.assert_close(loss, ce * parts[0] + dice * parts[1])


def test_a_model_without_deep_supervision_is_scored_by_its_one_output():
    (logits, *_), target = random_heads()
    for outputs in (logits, (logits,)):
        total, losses = DeepSupervisionLoss()(outputs, target)
        torch.testing.assert_close(total, losses[0])
        assert len(losses) == 1


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (37, 50), (64, 64)])
def test_targets_of_any_size_shrink_to_classes_that_were_there(size, dtype):
    target = torch.randint(0, 2, (2, *size), dtype=dtype) * 2
    for stride in (1, 2, 4, 8):
        small = resize_target(target, [math.ceil(n / stride) for n in size])
        assert small.dtype == torch.int64 and small.shape[1:] == tuple(math.ceil(n / stride) for n in size)
        assert set(small.unique().tolist()) <= {0, 2}


@pytest.mark.parametrize("encoder", ["resnet18", "tu-test_resnet"])
def test_every_head_and_the_encoder_receive_gradient(encoder):
    torch.manual_seed(0)
    model = HybridResNet50(encoder_weights=None, encoder_name=encoder).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    target = torch.zeros(2, 64, 64, dtype=torch.uint8)
    target[0, 16:48, 16:48] = 2
    # timm starts with residual branches that are multiplied by zero: only the second step reaches behind it
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        total, _ = DeepSupervisionLoss()(model(torch.randn(2, 3, 64, 64)), target)
        total.backward()
    assert len(model.heads) == 4
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0, name


def test_a_perfect_prediction_costs_nothing():
    _, target = random_heads()
    heads = tuple(logits_of(resize_target(target, (64 >> k, 64 >> k)), 30.0) for k in range(4))
    total, losses = DeepSupervisionLoss()(heads, target)
    assert total.item() < 1e-5 and all(loss.item() < 1e-5 for loss in losses)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", ["background only", "all three"])
@pytest.mark.parametrize("confidence", [-1e4, 0.0, 1e4])
def test_extreme_logits_give_finite_loss_and_gradient(dtype, classes, confidence):
    _, target = random_heads()
    target = target * (classes == "all three")
    logits = logits_of(target, confidence).to(dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = DeepSupervisionLoss()(logits, target)
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all()


def test_only_background_still_teaches_not_to_raise_false_alarms():
    logits = torch.zeros(1, 3, 8, 8, requires_grad=True)
    total, _ = DeepSupervisionLoss()(logits, torch.zeros(1, 8, 8, dtype=torch.uint8))
    total.backward()
    assert total.item() == pytest.approx(math.log(3))
    assert (logits.grad[:, 1:] > 0).all()


def test_the_loss_is_float32_under_autocast():
    (logits, *_), target = random_heads(size=256)
    half = logits.bfloat16()
    expected, _ = DeepSupervisionLoss()(half.float(), target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = DeepSupervisionLoss()(half, target)
    assert total.dtype == torch.float32 and total == expected


@pytest.mark.parametrize(
    "arguments",
    [
        {"head_weights": (1.0, 0.5, 0.0, 0.1)},
        {"head_weights": (1.0, -0.5, 0.2, 0.1)},
        {"head_weights": (1.0, math.nan, 0.2, 0.1)},
        {"head_weights": (1.0, math.inf, 0.2, 0.1)},
        {"head_weights": ()},
        {"cross_entropy": 0.0, "dice": 0.0},
        {"cross_entropy": -1.0},
        {"dice": math.nan},
    ],
)
def test_weights_out_of_range_are_refused(arguments):
    with pytest.raises(ConfigError, match="loss."):
        DeepSupervisionLoss(**arguments)


def test_another_number_of_heads_than_weights_is_refused():
    heads, target = random_heads()
    with pytest.raises(ConfigError, match="3 weights, the model has 4 heads"):
        DeepSupervisionLoss(head_weights=(1.0, 0.5, 0.25))(heads, target)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize(("attention", "bottleneck"), [(None, None), ("scse", "aspp")])
def test_a_training_step_on_cuda_is_deterministic(monkeypatch, attention, bottleneck):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    images = torch.randn(2, 3, 64, 64, device="cuda").contiguous(memory_format=torch.channels_last)
    target = torch.randint(0, 3, (2, 64, 64), device="cuda", dtype=torch.uint8)

    def gradients():
        torch.manual_seed(0)
        model = HybridResNet50(
            encoder_weights=None, encoder_name="resnet18", attention=attention, bottleneck=bottleneck
        )
        model = model.to("cuda", memory_format=torch.channels_last)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            total, _ = DeepSupervisionLoss()(model(images), target)
        total.backward()
        return [parameter.grad for parameter in model.parameters()]

    torch.use_deterministic_algorithms(True)
    try:
        pairs = zip(gradients(), gradients(), strict=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first, second) for first, second in pairs)
