"""The five recipes of CONTRIBUTING.md work: their code is taken from the page, put into a copy of the package and run."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

import bus_smp

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```\w+\n# (\S+?)(?:, after: ([^\n]+))?\n(.*?)^```$", re.M | re.S)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A checkout with all five additions."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("bus_smp", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    blocks = BLOCK.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))
    assert len(blocks) == 9
    for name, after, code in blocks:
        path = folder / name
        if not after:
            assert not path.exists()
            path.write_text(code, encoding="utf-8")
            continue
        text = path.read_text(encoding="utf-8")
        assert text.count(f"\n{after}\n") == 1, f"{name} has not exactly one line {after!r}"
        path.write_text(text.replace(f"\n{after}\n", f"\n{after}\n{code}"), encoding="utf-8")
    return folder


def run(copy: Path, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_data_set_is_one_file_and_a_command_one_file_and_one_line(copy, tmp_path):
    rng = np.random.default_rng(0)
    for name in ("scan", "mask"):
        (tmp_path / "clinic" / name).mkdir(parents=True)
    for patient in range(6):
        mask = np.zeros((72, 96), np.uint8)
        mask[20:40, 30 + patient : 60] = 255
        cv2.imwrite(
            str(tmp_path / "clinic" / "scan" / f"P{patient:02}_1.png"), rng.integers(0, 256, mask.shape)
        )
        cv2.imwrite(str(tmp_path / "clinic" / "mask" / f"P{patient:02}_1.png"), mask)
    run(copy, "-m", "bus_smp", "make-manifest", "--root", tmp_path / "clinic", "--out", tmp_path)
    assert run(copy, "-m", "bus_smp", "count-images", tmp_path / "clinic.csv").strip() == "6"
    assert "count-images" in run(copy, "-m", "bus_smp", "--help")


HEADS = """
import torch
from bus_smp.classes import CLASSES
from bus_smp.model.hybrid import HybridResNet50
from bus_smp.model.losses import DeepSupervisionLoss

model = HybridResNet50(encoder_name="tu-test_resnet", encoder_weights=None)
outputs = model(torch.randn(2, 3, 64, 64))
DeepSupervisionLoss(len(CLASSES))(outputs, torch.randint(0, 3, (2, 64, 64)))[0].backward()
assert all(parameter.grad.abs().sum() > 0 for head in model.heads for parameter in head.parameters())
print(*(type(head).__name__ for head in model.heads), *(output.shape[2] for output in outputs))
"""


def test_a_head_is_one_file_and_one_line(copy):
    assert run(copy, "-c", HEADS).split() == ["WideHead"] * 4 + ["64", "32", "16", "8"]


@pytest.mark.slow
def test_a_metric_is_one_entry_and_a_figure_one_file_one_call_and_one_caption(
    copy, trained, bus_uclm_tree, tmp_path
):
    # The network of this run has the package's heads.
    own = shutil.copytree(copy, tmp_path / "checkout")
    shutil.copy(ROOT / "bus_smp" / "model" / "hybrid.py", own / "bus_smp" / "model" / "hybrid.py")
    shutil.copytree(trained, tmp_path / "first", ignore=shutil.ignore_patterns("eval-*"))
    printed = run(
        own,
        "-m",
        "bus_smp",
        "evaluate",
        "--full",
        "--out",
        tmp_path,
        "--run",
        "first",
        "--root",
        bus_uclm_tree,
    )
    assert "Lesions with Dice above .5" in printed
    (folder,) = (tmp_path / "first").glob("eval-*")
    model = json.loads((folder / "summary.json").read_text())["summaries"]["model"]
    assert 0 <= model["rates"]["dice_above_half"]["mean"] <= 1
    assert (folder / "dice_histogram.png").stat().st_size > 2_000
    run(own, "-m", "bus_smp", "report", "first", "--out", tmp_path)
    page = (tmp_path / "first" / "report.html").read_text(encoding="utf-8")
    assert "Lesions with Dice above .5" in page and "Images at 0 are missed lesions." in page


def test_docs_reliability_names_tests_that_exist():
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    names = re.findall(r"def (test_\w+)", tests)
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    parts = [
        re.escape(part).replace(r"\*", r"\w*") for part in re.findall(r"`\.\.\._([\w*]+)(?:\.\.\.)?`", page)
    ]
    assert len(parts) > 30
    assert [part for part in parts if not any(re.search(part, name) for name in names)] == []
    files = set(re.findall(r"`(test_\w+)`", page))
    assert files <= {path.stem for path in (ROOT / "tests").glob("test_*.py")}


def test_the_citation_is_of_this_version():
    about = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert about["version"] == bus_smp.__version__ and about["license"] == "MIT"
    assert {"cff-version", "message", "title", "authors"} <= set(about)
