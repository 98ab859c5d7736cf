import hashlib
import struct
import subprocess
import sys

import pytest
import torch
from headers import change_about, header_only, rewrite_header
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bus_smp.errors import BusSmpError, CheckpointError
from bus_smp.model.checkpoint import FORMAT, load_model, read_header, weights_sha256, write_checkpoint
from bus_smp.model.hybrid import HybridResNet50

ARGUMENTS = {"num_classes": 3, "attention": "scse", "bottleneck": "aspp", "encoder_name": "resnet18"}
ABOUT = {
    "model": {**ARGUMENTS, "encoder_weights": "imagenet"},
    "classes": ["background", "benign", "malignant"],
    "epoch": 7,
    "size": 64,
    "mean": [0.4, 0.4, 0.4],
    "std": [0.2, 0.2, 0.2],
    "precision": "fp32",
    "datasets": ["demo"],
    "score": {"dice_lesion": 0.5, "dice_malignant": float("nan")},
    "comment": "Größe 256 µm",
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = HybridResNet50(**ARGUMENTS, encoder_weights=None)
    model.train()(torch.randn(2, 3, 64, 64))  # batch norm's statistics are no longer the initial ones
    return model.eval()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "best.safetensors"
    write_checkpoint(path, model, ABOUT)
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_loaded_model_computes_the_same_bits(model, written):
    torch.manual_seed(1)
    loaded, header = load_model(written)
    assert not loaded.training and header == read_header(written)
    for _ in range(3):
        images = torch.randn(1, 3, 37, 50)
        assert all(torch.equal(a, b) for a, b in zip(model(images), loaded(images), strict=True))


def test_an_encoder_with_buffers_that_no_file_holds_computes_the_same_bits(tmp_path):
    """Blur kernels are constants of the network; loading must not leave them unset, nor touch the random numbers."""
    name = "tu-resnetblur18"
    model = HybridResNet50(encoder_name=name, encoder_weights=None).eval()
    assert dict(model.named_buffers()).keys() - model.state_dict().keys()
    write_checkpoint(tmp_path / "best.safetensors", model, ABOUT | {"model": {"encoder_name": name}})
    before = torch.get_rng_state()
    loaded, _ = load_model(tmp_path / "best.safetensors")
    assert torch.equal(torch.get_rng_state(), before)
    images = torch.randn(1, 3, 37, 50)
    assert torch.equal(model(images)[0], loaded(images)[0])


def test_a_loaded_model_can_be_trained_on(written):
    loaded, _ = load_model(written)
    loaded.train()(torch.randn(2, 3, 64, 64))[0].sum().backward()
    assert all(p.requires_grad and p.device.type == "cpu" for p in loaded.parameters())


def test_loading_draws_no_random_numbers(written):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_model(written)
    assert torch.equal(torch.rand(1), expected)


def test_the_header_is_what_was_written(written):
    header = read_header(written)
    assert header["format"] == 1
    assert header["model"] == ABOUT["model"] and header["comment"] == ABOUT["comment"]
    assert header["score"] == {"dice_lesion": 0.5, "dice_malignant": None}


def test_equal_weights_give_equal_bytes(model, written, tmp_path):
    write_checkpoint(tmp_path / "again.safetensors", model, dict(reversed(ABOUT.items())))
    assert sha256(tmp_path / "again.safetensors") == sha256(written)


def test_memory_format_changes_no_byte(model, written, tmp_path):
    other = load_model(written)[0].to(memory_format=torch.channels_last)
    write_checkpoint(tmp_path / "last.safetensors", other, ABOUT)
    assert sha256(tmp_path / "last.safetensors") == sha256(written)


def test_weights_are_written_as_float32(written, tmp_path):
    half = load_model(written)[0].bfloat16()
    write_checkpoint(tmp_path / "half.safetensors", half, ABOUT)
    loaded, _ = load_model(tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert weights_sha256(tmp_path / "half.safetensors") == weights_sha256(half)


def test_the_hash_of_the_weights_does_not_depend_on_the_header(model, written, tmp_path):
    write_checkpoint(tmp_path / "other.safetensors", model, {**ABOUT, "epoch": 8})
    assert sha256(tmp_path / "other.safetensors") != sha256(written)
    assert weights_sha256(written) == weights_sha256(tmp_path / "other.safetensors") == weights_sha256(model)


def test_the_hash_of_the_weights_sees_one_bit_and_one_counter(written):
    for name in ("heads.3.0.bias", "encoder.bn1.running_mean", "encoder.bn1.num_batches_tracked"):
        other, _ = load_model(written)
        values = other.state_dict()[name]
        flat = values.view(-1)
        flat[0] = flat[0] + 1 if values.dtype == torch.int64 else torch.nextafter(flat[0], torch.tensor(9.0))
        assert weights_sha256(other) != weights_sha256(written), name


def test_a_failed_write_leaves_the_old_file_and_nothing_else(model, tmp_path, monkeypatch):
    path = tmp_path / "best.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("pathlib.Path.write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(BusSmpError, match="the disk is full"):
        write_checkpoint(path, model, ABOUT)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_the_header_is_read_without_torch_or_numpy(written):
    code = (
        "import sys; from bus_smp.model.checkpoint import read_header, weights_sha256;"
        f"print(read_header({str(written)!r})['epoch'], weights_sha256({str(written)!r}));"
        "print({'torch', 'numpy', 'safetensors'} & set(sys.modules))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.split("\n")[:2] == [f"7 {weights_sha256(written)}", "set()"]


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.002])
def test_a_truncated_file_is_reported_as_truncated(written, tmp_path, kept):
    data = written.read_bytes()
    short = tmp_path / "short.safetensors"
    short.write_bytes(data[: int(len(data) * kept)])
    message = rf"short.safetensors: is truncated: {int(len(data) * kept)} of \d+ bytes"
    for read in (read_header, load_model, weights_sha256):
        with pytest.raises(CheckpointError, match=message):
            read(short)


def test_a_header_cut_short_is_reported_as_truncated(written, tmp_path):
    (tmp_path / "short.safetensors").write_bytes(written.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="is truncated: 100 of"):
        read_header(tmp_path / "short.safetensors")


def test_a_file_too_long_is_reported_as_damaged(written, tmp_path):
    (tmp_path / "long.safetensors").write_bytes(written.read_bytes() + b"123")
    with pytest.raises(CheckpointError, match="3 bytes too long"):
        read_header(tmp_path / "long.safetensors")


def test_offsets_with_a_gap_are_reported_as_damaged(written, tmp_path):
    def shift(header):
        header["heads.0.0.bias"]["data_offsets"][0] += 4

    with pytest.raises(CheckpointError, match="is damaged"):
        read_header(rewrite_header(written, tmp_path / "gap.safetensors", shift))


def test_a_tensor_of_another_shape_than_its_bytes_is_reported_as_damaged(written, tmp_path):
    def widen(header):
        header["heads.0.0.bias"]["shape"] = [4]

    with pytest.raises(CheckpointError, match="is damaged"):
        load_model(rewrite_header(written, tmp_path / "wide.safetensors", widen))


ALIEN = {
    "a few bytes": b"123",
    "eight bytes": b"12345678",
    "text": b"image_id,dice\nbenign (1),0.5\n",
    "png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "zip": b"PK\x03\x04" + bytes(100),
    "header of more than 100 MB": struct.pack("<Q", 2**60) + b"{" + bytes(100),
    "no json": header_only(b"{not json}"),
    "json list": header_only(b"[]"),
    "nested json": header_only(b'{"a":' * 100_000),
    "no metadata": header_only(b"{}"),
    "metadata of a list": header_only(b'{"__metadata__": []}'),
    "no format": header_only(b'{"__metadata__": {"bus_smp": "{}"}}'),
    "tensor without offsets": header_only(b'{"__metadata__": {"bus_smp": "{}"}, "t": 3}'),
}


@pytest.mark.parametrize("content", ALIEN)
def test_any_other_file_is_no_checkpoint(tmp_path, content):
    path = tmp_path / "best.safetensors"
    path.write_bytes(ALIEN[content])
    for read in (read_header, load_model, weights_sha256):
        with pytest.raises(CheckpointError, match="best.safetensors: is not a bus_smp checkpoint"):
            read(path)


def test_safetensors_of_somebody_else_are_no_checkpoint(tmp_path):
    for metadata in (None, {"format": "pt"}):
        save_file({"weight": torch.zeros(3)}, tmp_path / "other.safetensors", metadata)
        with pytest.raises(CheckpointError, match="is not a bus_smp checkpoint"):
            read_header(tmp_path / "other.safetensors")


class Hostile:
    def __reduce__(self):
        return (print, ("a checkpoint ran code",))


def test_a_pickle_is_never_loaded(tmp_path, capfd):
    path = tmp_path / "best.safetensors"
    torch.save({"model": Hostile()}, path)
    with pytest.raises(CheckpointError, match="is not a bus_smp checkpoint"):
        load_model(path)
    assert "ran code" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("make", "message"), [("mkdir", "is a folder"), ("touch", "is empty"), (None, "no such file")]
)
def test_what_cannot_be_read_is_named(tmp_path, make, message):
    path = tmp_path / "best.safetensors"
    if make:
        getattr(path, make)()
    with pytest.raises(CheckpointError, match=f"best.safetensors: {message}"):
        read_header(path)


def test_a_newer_format_asks_for_an_upgrade(written, tmp_path):
    newer = rewrite_header(written, tmp_path / "new.safetensors", change_about(format=FORMAT + 1))
    with pytest.raises(CheckpointError, match=f"has format {FORMAT + 1}") as caught:
        read_header(newer)
    assert "upgrade" in caught.value.hint


def test_a_checkpoint_with_the_attention_that_nothing_uses_still_loads(written, tmp_path):
    """Versions before wrote the weights of the last block's attention to a skip connection."""
    weights = load_file(written) | {
        "decoder.blocks.4.attention1.attention.cSE.1.weight": torch.zeros(2, 32, 1, 1)
    }
    with safe_open(written, "pt") as file:
        save_file(weights, tmp_path / "old.safetensors", file.metadata())
    loaded = load_model(tmp_path / "old.safetensors")[0]
    assert weights_sha256(loaded) == weights_sha256(written)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({**ARGUMENTS, "attention": None}, "unexpected"),
        ({**ARGUMENTS, "num_classes": 4}, r"heads.0.0.weight \(3, 16, 3, 3\) instead of \(4, 16, 3, 3\)"),
        ({**ARGUMENTS, "encoder_name": "vgg99"}, "model.encoder_name=vgg99"),
        ({**ARGUMENTS, "wings": 2}, "wings"),
        (None, "as model its header gives None"),
    ],
)
def test_weights_of_another_model_are_refused(written, tmp_path, arguments, message):
    other = rewrite_header(written, tmp_path / "other.safetensors", change_about(model=arguments))
    with pytest.raises(CheckpointError, match=message):
        load_model(other)
