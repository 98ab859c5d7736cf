"""A short run of the fuzzer, the same files every time; ``python tests/torture/fuzz.py --seconds 600`` is the long one."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent / "torture"))

import fuzz

from bus_smp.data.images import read_image

FILES = {"image": 220, "checkpoint": 40, "manifest": 50, "sidecar": 40}


@pytest.mark.parametrize("name", fuzz.READERS)
def test_no_damaged_file_brings_a_reader_down(name, tmp_path):
    read, taken, findings = fuzz.fuzz(
        name, 0, tmp_path / "kept" / "findings", executions=FILES.get(name, 100)
    )
    assert not findings, "\n".join(f"{finding.what}: {finding.file}" for finding in findings)
    assert 0 < taken <= read  # whole files were among them


def test_the_same_seed_gives_the_same_files():
    data = fuzz.READERS["yaml"].seeds()

    def some(seed):
        rng = fuzz.Random(seed)
        return [fuzz.damaged(data[0], data, (b"nan",), rng) for _ in range(50)]

    assert some(1) == some(1) != some(2)


def test_a_reader_that_lets_another_error_through_is_found_and_its_file_kept(tmp_path, monkeypatch):
    def careless(path):
        if read_image(path).mean() < 100:
            raise KeyError("careless")

    monkeypatch.setitem(fuzz.READERS, "image", fuzz.Reader(".png", fuzz._image_seeds, careless))
    _, _, (finding,) = fuzz.fuzz("image", 0, tmp_path / "kept" / "findings", executions=100)
    assert "KeyError" in finding.what and "careless" in finding.what
    assert read_image(finding.file).mean() < 100
