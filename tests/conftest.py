"""Synthetic raw trees, written once per run and never changed by a test (copy one to change it), and the real data."""

import os
from pathlib import Path

import pytest

from bus_smp import synthetic

SMALL = (96, 72)


@pytest.fixture(scope="session")
def bus_uclm_tree(tmp_path_factory) -> Path:
    return synthetic.write_bus_uclm(tmp_path_factory.mktemp("bus_uclm"), size=SMALL)


@pytest.fixture(scope="session")
def busi_tree(tmp_path_factory) -> Path:
    return synthetic.write_busi(tmp_path_factory.mktemp("busi"), 12, 8, 3, size=SMALL)


@pytest.fixture(scope="session")
def udiat_tree(tmp_path_factory) -> Path:
    return synthetic.write_udiat(tmp_path_factory.mktemp("udiat"), 6, size=SMALL)


@pytest.fixture(scope="session")
def udiat_refoldered_tree(tmp_path_factory) -> Path:
    return synthetic.write_udiat(tmp_path_factory.mktemp("udiat2"), 6, "refoldered", size=SMALL)


@pytest.fixture(scope="session")
def bus_bra_tree(tmp_path_factory) -> Path:
    return synthetic.write_bus_bra(tmp_path_factory.mktemp("bus_bra"), 4, size=SMALL)


@pytest.fixture(scope="session")
def breast_tree(tmp_path_factory) -> Path:
    return synthetic.write_breast(tmp_path_factory.mktemp("breast"), 5, size=SMALL)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets; the test is skipped where there is none."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BUS_SMP_REAL_DATA") or beside)
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set BUS_SMP_REAL_DATA to their folder")
    return folder
