"""``import bus_smp``: instant, typed, and README's lines run as they are printed."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import invoke, settings_options
from PIL import Image

import bus_smp
from bus_smp.errors import BusSmpError, ConfigError

README = Path(__file__).resolve().parents[1] / "README.md"


def test_importing_the_package_loads_neither_torch_nor_numpy_and_lists_its_names():
    code = (
        "import sys, bus_smp; print([name in dir(bus_smp) for name in bus_smp.__all__]);"
        "print([name for name in ('torch', 'numpy', 'pandas', 'cv2') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split("\n")[:2] == [str([True] * len(bus_smp.__all__)), "[]"]


def test_every_public_name_is_there_and_the_type_checker_sees_the_same():
    text = Path(bus_smp.__file__).read_text(encoding="utf-8")
    typed = re.findall(r"^    from (bus_smp\.\S+) import (\w+) as \2$", text, re.MULTILINE)
    assert sorted(name for _, name in typed) == sorted(bus_smp.__all__)
    for module, name in typed:
        assert getattr(bus_smp, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = bus_smp.nothing
    assert (Path(bus_smp.__file__).parent / "py.typed").is_file()


@pytest.fixture(scope="module", params=[True, False], ids=["four heads", "one head"])
def network_run(request, trained, manifests, tmp_path_factory):
    """A run with and one without deep supervision."""
    if request.param:
        return trained
    out = tmp_path_factory.mktemp("one-head")
    options = settings_options(manifests, "train.epochs=1", "model.deep_supervision=false")
    result = invoke("train", "--out", out, "--run", "single", *options)
    assert result.exit_code == 0, result.stderr
    return out / "single"


def test_the_lines_of_the_readme_run(network_run, manifests, tmp_path, monkeypatch, capsys):
    section = README.read_text(encoding="utf-8").split("## From Python")[1]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    shutil.copytree(network_run, tmp_path / "outputs" / "bus-uclm", ignore=shutil.ignore_patterns("eval-*"))
    # the manifest finds its images from where it lies
    code = code.replace("data_manifests/busi.csv", str(manifests / "data_manifests" / "busi.csv"))
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    names = {}
    exec(code, names)
    assert names["picture"].shape == (50, 40, 3) and names["picture"].dtype == np.uint8
    assert names["prediction"].mask.shape == names["truth"].shape
    label = capsys.readouterr().out.split()[0]
    assert label in ("normal", "benign", "malignant")
    assert len(names["network"].weights) == 1


def test_an_array_predicts_as_the_command_does_and_grey_as_its_rgb(trained, tmp_path):
    network = bus_smp.load_run("first", out=trained.parent, precision="fp32")
    grey = np.random.default_rng(1).integers(0, 256, (30, 70), np.uint8)
    Image.fromarray(grey).save(tmp_path / "scan.png")
    first, second = network.predict([grey, np.stack([grey] * 3, axis=2)])
    np.testing.assert_array_equal(first.native, second.native)
    result = invoke(
        "predict", tmp_path / "scan.png", "--out", trained.parent, "--to", tmp_path / "p", "--precision", "fp32", "--json"
    )  # fmt: skip
    (row,) = __import__("json").loads(result.stdout)
    assert row["predicted_label"] == first.label
    assert row["malignant_score"] == pytest.approx(first.malignant_score, abs=1e-5)
    assert row["malignant_area"] == pytest.approx(float((first.mask == 2).mean()), abs=1e-6)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((0, 4), np.uint8),
        np.zeros((4,), np.uint8),
        [[0, 1], [2, 3]],
        "scan.png",
    ],
)
def test_what_is_no_image_is_one_clear_error(trained, image):
    network = bus_smp.load_run(trained)
    with pytest.raises(ConfigError, match="an image must be an array of uint8") as caught:
        network.predict([image])
    assert "read_image" in caught.value.hint


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3), np.uint8), Path("scan.png"), None])
def test_one_image_instead_of_a_list_is_one_clear_error(trained, image):
    """The rows of an RGB image would pass as grey images."""
    with pytest.raises(ConfigError, match="takes a list of images") as caught:
        bus_smp.load_run(trained).predict(image)
    assert "predict([image])" in caught.value.hint


def test_an_unknown_run_or_backend_is_one_clear_error(trained):
    with pytest.raises(BusSmpError, match="no trained run nosuch"):
        bus_smp.load_run("nosuch", out=trained.parent)
    with pytest.raises(ConfigError, match="backend=tensorrt is unknown"):
        bus_smp.load_run(trained, backend="tensorrt")
