import math
import socket

import pytest
import segmentation_models_pytorch as smp
import torch
from safetensors.torch import save_file

from bus_smp.errors import CheckpointError, ConfigError
from bus_smp.model.hybrid import IMAGENET_MEAN, IMAGENET_STD, HybridResNet50, normalise


def small_model(**arguments):
    return HybridResNet50(**{"encoder_weights": None, "encoder_name": "resnet18", **arguments})


@pytest.mark.parametrize("attention", [None, "scse"])
def test_the_main_output_equals_smps_unet_bit_for_bit(attention):
    torch.manual_seed(0)
    original = smp.Unet("resnet18", encoder_weights=None, decoder_attention_type=attention, classes=3).eval()
    model = small_model(attention=attention).eval()
    model.encoder.load_state_dict(original.encoder.state_dict())
    # smp's last block has an attention module that its forward pass never calls
    used = {
        k: v for k, v in original.decoder.state_dict().items() if not k.startswith("blocks.4.attention1.")
    }
    model.decoder.load_state_dict(used)
    model.heads[0].load_state_dict(original.segmentation_head.state_dict())
    for size in ((64, 64), (37, 50)):
        images = torch.randn(2, 3, *size)
        assert torch.equal(model(images)[0], original(images))


def test_resnet50_is_supervised_at_256_128_64_and_32_pixels():
    model = HybridResNet50(encoder_weights=None).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 3, 256, 256))
    assert [tuple(logits.shape) for logits in outputs] == [(1, 3, n, n) for n in (256, 128, 64, 32)]
    assert torch.argmax(outputs[0], dim=1).shape == (1, 256, 256)
    assert 32e6 < sum(parameter.numel() for parameter in model.parameters()) < 33e6


@pytest.mark.parametrize("height_width", [(1, 1), (1, 70), (31, 33), (37, 50), (64, 96)])
@pytest.mark.parametrize("bottleneck", [None, "aspp"])
def test_any_size_goes_in_and_each_head_gives_its_share_of_it(height_width, bottleneck):
    with torch.no_grad():
        outputs = small_model(bottleneck=bottleneck).eval()(torch.randn(1, 3, *height_width))
    for logits, stride in zip(outputs, (1, 2, 4, 8), strict=True):
        assert logits.shape == (1, 3, *(math.ceil(n / stride) for n in height_width))
        assert logits.isfinite().all()


def test_without_deep_supervision_there_is_one_tensor_and_no_auxiliary_weight():
    model = small_model(deep_supervision=False, num_classes=5)
    assert len(model.heads) == 1
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 5, 64, 64)


def test_predict_is_the_main_output_and_computes_no_auxiliary_head():
    model = small_model().eval()
    images = torch.randn(1, 3, 64, 64)
    expected = model(images)[0]

    def refuse(*_):
        raise AssertionError("an auxiliary head was computed")

    for head in model.heads[1:]:
        head.register_forward_hook(refuse)
    assert torch.equal(model.predict(images).logits, expected)


@pytest.mark.parametrize("arguments", [{}, {"attention": "scse"}, {"bottleneck": "aspp"}])
def test_the_seed_decides_every_weight(arguments):
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(small_model(**arguments).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["heads.0.0.weight"], states[2]["heads.0.0.weight"])


def test_options_change_the_network():
    sizes = [sum(p.numel() for p in small_model(**options).parameters()) for options in (
        {}, {"attention": "scse"}, {"bottleneck": "aspp"}, {"deep_supervision": False}
    )]  # fmt: skip
    assert len(set(sizes)) == 4


@pytest.mark.parametrize("bottleneck", [None, "aspp"])
def test_training_is_deterministic_and_a_batch_of_one_can_be_trained_on(bottleneck):
    model = small_model(bottleneck=bottleneck).train()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images)[0], model(images)[0])


@pytest.mark.parametrize(
    ("argument", "value"), [("attention", "cbam"), ("bottleneck", "ppm"), ("encoder_name", "vgg99")]
)
def test_an_unknown_option_is_refused_and_the_known_ones_named(argument, value):
    with pytest.raises(ConfigError, match=f"model.{argument}={value}") as caught:
        small_model(**{argument: value})
    assert {"attention": "scse", "bottleneck": "aspp", "encoder_name": "resnet50"}[argument] in str(
        caught.value
    )


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tu-convnext_atto", "0 channels"),
        ("tu-vit_tiny_patch16_224", "does not fit"),
        ("tu-dla34", "does not fit"),  # only of sizes that 32 divides
        ("mit_b0", "does not fit"),
        ("tu-nosuchnet", "unknown"),
        ("nosuchnet", "unknown"),
        (["resnet18"], "unknown"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_and_some_that_fit_are_named(name, reason):
    with pytest.raises(ConfigError, match="model.encoder_name=") as caught:
        small_model(encoder_name=name)
    assert reason in caught.value.what
    assert "resnet50" in caught.value.hint and "tu-tf_efficientnet_lite0" in caught.value.hint


@pytest.mark.parametrize("name", ["tu-test_resnet", "tu-test_efficientnet", "mobilenet_v2", "vgg11"])
@pytest.mark.parametrize("options", [{}, {"attention": "scse", "bottleneck": "aspp"}])
def test_encoders_of_smp_and_timm_are_supervised_at_four_sizes(name, options):
    model = small_model(encoder_name=name, **options).eval()
    with torch.no_grad():
        outputs = model(torch.randn(2, 3, 64, 96))
    assert [tuple(logits.shape[2:]) for logits in outputs] == [(64, 96), (32, 48), (16, 24), (8, 12)]


def test_normalise_agrees_with_the_formula_and_lies_channels_last():
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    normalised = normalise(images)
    assert normalised.dtype == torch.float32 and normalised.shape == (2, 3, 5, 7)
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    expected = (images[1, 2, 3] / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    torch.testing.assert_close(normalised[1, :, 2, 3], expected)
    torch.testing.assert_close(normalise(images, (0, 0, 0), (1, 1, 1))[0, 0], images[0, :, :, 0] / 255)


def test_imagenet_weights_without_a_network_are_one_error_with_two_ways_out(monkeypatch, tmp_path):
    asked = []

    def no_network(host, *_args, **_kwargs):
        asked.append(host)
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.lower(), raising=False)
    with pytest.raises(CheckpointError, match="ImageNet weights of resnet18") as caught:
        small_model(encoder_weights="imagenet")
    assert "model.safetensors of smp-hub/resnet18.imagenet, revision 3f2325ff" in caught.value.what
    assert "bus-smp fetch-weights --encoder resnet18 " in caught.value.hint
    assert "--set model.encoder_weights=null" in caught.value.hint
    assert "--set model.encoder_weights=path/to/file" in caught.value.hint
    assert len(asked) == 1  # no storm of retries


def encoder_state():
    torch.manual_seed(7)
    return small_model().encoder.state_dict()


def classifier(state):
    return state | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def inside_a_larger_model(state):
    prefixed = {f"encoder.{key}": value for key, value in state.items()}
    return prefixed | {"decoder.weight": torch.zeros(3)}


def without_counters(state):
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("dress", [dict, classifier, inside_a_larger_model, without_counters])
def test_a_local_state_dict_becomes_the_encoder(tmp_path, suffix, dress):
    path = tmp_path / f"weights{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(dress(encoder_state()), path)
    model = small_model(encoder_weights=str(path))
    loaded = model.encoder.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in encoder_state().items())


def test_a_nested_state_dict_becomes_the_encoder(tmp_path):
    torch.save({"epoch": 3, "state_dict": encoder_state()}, tmp_path / "weights.pth")
    loaded = small_model(encoder_weights=tmp_path / "weights.pth").encoder.state_dict()
    assert torch.equal(loaded["conv1.weight"], encoder_state()["conv1.weight"])


def test_weights_that_do_not_fit_are_refused_and_the_differences_listed(tmp_path):
    state = encoder_state()
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["conv1.weight"] = torch.zeros(64, 1, 7, 7)
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="other.pth: does not fit the encoder resnet18") as caught:
        small_model(encoder_weights=tmp_path / "other.pth")
    for difference in (
        "1 missing (layer1.0.conv1.weight)",
        "1 unexpected (layer9.weight)",
        "conv1.weight (64, 1, 7, 7) instead of (64, 3, 7, 7)",
    ):
        assert difference in str(caught.value)


class Hostile:
    def __reduce__(self):
        return (print, ("a weights file ran code",))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", ["text", "nothing", "object", "list", "absent", "folder"])
def test_a_file_that_holds_no_weights_is_refused_and_runs_no_code(tmp_path, capfd, suffix, content):
    path = tmp_path / f"weights{suffix}"
    if content == "text":
        path.write_text("these are no weights")
    elif content == "nothing":
        path.write_bytes(b"")
    elif content == "object":
        torch.save({"conv1.weight": Hostile()}, path)
    elif content == "list":
        torch.save([1, 2, 3], path)
    elif content == "folder":
        path.mkdir()
    with pytest.raises(CheckpointError, match="weights"):
        small_model(encoder_weights=path)
    assert "ran code" not in capfd.readouterr().out


@pytest.mark.parametrize("deep_supervision", [True, False])
def test_the_record_of_the_heads_holds_what_the_network_returns(deep_supervision):
    model = HybridResNet50(
        encoder_name="tu-test_resnet", encoder_weights=None, deep_supervision=deep_supervision
    ).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        output, returned = model.compute(images), model(images)
    heads = returned if deep_supervision else (returned,)
    assert len(output.aux) == (3 if deep_supervision else 0)
    assert all(torch.equal(*pair) for pair in zip((output.logits, *output.aux), heads, strict=True))
