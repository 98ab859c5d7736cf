"""``import bus_smp``: instant, typed, and README's lines run as they are printed."""

import json
import pydoc
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
from bus_smp.errors import BusSmpError, ConfigError, ImageError
from bus_smp.measures.decision import DecisionRules

README = Path(__file__).resolve().parents[1] / "README.md"


def test_importing_the_package_loads_neither_torch_nor_numpy_and_lists_its_names():
    code = (
        "import sys, bus_smp; print(*[name for name in dir(bus_smp) if name[0] != '_']);"
        "print([name for name in ('torch', 'numpy', 'pandas', 'cv2') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, loaded = result.stdout.splitlines()
    assert {"load", "Prediction", "read_image", "HybridResNet50"} <= set(listed.split())
    assert loaded == "[]"


def test_the_type_checker_the_package_and_its_table_of_contents_have_the_same_names():
    text = Path(bus_smp.__file__).read_text(encoding="utf-8")
    typed = re.findall(r"^    from (bus_smp\.\S+) import (\w+) as \2$", text, re.MULTILINE)
    listed = re.findall(r"^    (\w+)  +", bus_smp.__doc__, re.MULTILINE)
    assert sorted(name for _, name in typed) == sorted(bus_smp._MODULES) == sorted(listed)
    for module, name in typed:
        assert getattr(bus_smp, name) is getattr(sys.modules[module], name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = bus_smp.nothing
    assert (Path(bus_smp.__file__).parent / "py.typed").is_file()


def test_help_of_the_package_is_a_table_of_contents():
    shown = pydoc.render_doc(bus_smp, renderer=pydoc.plaintext).splitlines()
    assert len(shown) < 80
    assert max(shown.index(line) for line in shown if "DeepSupervisionLoss " in line) < 30


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
    assert names["scan"].mask.shape == (50, 40) and names["scan"].mask.dtype == np.uint8
    assert names["prediction"].mask.shape == names["truth"].shape
    label, score = capsys.readouterr().out.split()[:2]
    assert label == names["scan"].label and float(score) == names["scan"].score
    assert len(names["model"].weights) == 1


def test_an_array_predicts_as_the_command_does(trained, tmp_path):
    model = bus_smp.load("first", out=trained.parent, precision="fp32")
    grey = np.random.default_rng(1).integers(0, 256, (30, 70), np.uint8)
    Image.fromarray(grey).save(tmp_path / "scan.png")
    found = model.predict(grey)
    result = invoke(
        "predict", tmp_path / "scan.png", "--out", trained.parent, "--to", tmp_path / "p", "--precision", "fp32", "--json"
    )  # fmt: skip
    (row,) = json.loads(result.stdout)
    assert row["decision"] == found.label
    assert row["malignant_score"] == pytest.approx(found.score, abs=1e-5)
    assert row["malignant_area_px"] == int((found.mask == 2).sum())
    assert f"{found.label}, score {found.score:.3f}" in repr(found) and "70 x 30 px" in repr(found)


def test_a_path_or_an_array_gives_one_prediction_and_a_list_gives_a_list(trained, tmp_path):
    model = bus_smp.load(trained, precision="fp32")
    grey = np.random.default_rng(1).integers(0, 256, (30, 70), np.uint8)
    rgba = np.dstack([grey, grey, grey, grey // 2])
    for name, pixels in (("grey.png", grey), ("rgba.png", rgba)):
        Image.fromarray(pixels).save(tmp_path / name)
    alike = [
        grey,
        grey[..., None],
        np.stack([grey] * 3, axis=2),
        rgba,
        tmp_path / "grey.png",
        str(tmp_path / "rgba.png"),
    ]
    expected = model.predict(grey)
    for image in alike:
        np.testing.assert_array_equal(model.predict(image).native, expected.native)
    found = model.predict(alike)
    assert isinstance(found, list) and len(found) == len(alike)
    assert model.predict([]) == []
    np.testing.assert_array_equal(
        found[0].overlay(), bus_smp.overlay(np.stack([grey] * 3, axis=2), found[0].mask)
    )
    with pytest.raises(ImageError, match="absent.png: no such file"):
        model.predict("absent.png")


@pytest.mark.parametrize("threshold, lesion, label", [
    (0.5, 0, "malignant"), (0.7, 1, "benign"), (0.7, 2, "benign"), (0.7, 0, "normal"),
    (None, 0, "normal"), (None, 1, "benign"), (None, 2, "malignant"),
])  # fmt: skip
def test_the_decision_goes_by_the_score_and_without_a_threshold_by_the_mask(threshold, lesion, label):
    raw = np.full((3, 4, 4), 0.1, np.float32)
    raw[lesion] = 0.8
    scaled = np.stack([np.full((4, 4), value, np.float32) for value in (0.2, 0.2, 0.6)])
    found = bus_smp.Prediction(scaled, raw, (9, 9), DecisionRules(threshold))
    assert found.label == label
    assert (found.mask == lesion).all()


@pytest.mark.parametrize("image, hint", [
    (np.zeros((4, 4, 3), np.float32), "image * 255"),
    (np.zeros((4, 4), np.uint16), "image / image.max()"),
    (np.zeros((4, 4), np.int64), "image / image.max()"),
    (np.zeros((4, 4), bool), "is a mask"),
    (np.zeros((2, 4, 4, 3), np.uint8), "predict(list(images))"),
    (np.zeros((3, 4, 5), np.uint8), "image.transpose(1, 2, 0)"),
    (np.zeros((9, 9, 2), np.uint8), "read_image"),
    (np.zeros((0, 4), np.uint8), "read_image"),
    (np.zeros((4,), np.uint8), "read_image"),
    (Image.new("L", (4, 4)), "numpy.asarray"),
    (None, "numpy.asarray"),
], ids=lambda value: getattr(value, "dtype", None) and f"{value.dtype}{value.shape}")  # fmt: skip
def test_what_is_no_image_is_one_clear_error(trained, image, hint):
    model = bus_smp.load(trained)
    for given in (image, [image]):
        with pytest.raises(ConfigError, match="an image must be an array of uint8") as caught:
            model.predict(given)
        assert hint in caught.value.hint


def test_an_unknown_run_or_backend_is_one_clear_error(trained):
    with pytest.raises(BusSmpError, match="no trained run nosuch"):
        bus_smp.load("nosuch", out=trained.parent)
    with pytest.raises(ConfigError, match="backend=tensorrt is unknown"):
        bus_smp.load(trained, backend="tensorrt")
