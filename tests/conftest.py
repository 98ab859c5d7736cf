"""Synthetic raw trees, written once per run and never changed by a test (copy one to change it), and the real data."""

import os
from pathlib import Path

# Set before torch is imported, here and in every process that a test starts: for networks this small, one thread is
# faster than two that wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

from bus_smp.system.threads import spin_briefly

spin_briefly()

import click
import hypothesis
import pytest
from click.testing import CliRunner, Result

from bus_smp.cli import main
from bus_smp.data import synthetic

# The time of an example depends on how busy the machine is, so there is no deadline.
hypothesis.settings.register_profile(
    "bus_smp", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("bus_smp")

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
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("BUS_SMP_REAL_DATA") or default)
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set BUS_SMP_REAL_DATA to their folder")
    return folder


def invoke(*arguments: object, catch: bool = True) -> Result:
    """Run ``bus-smp`` in this process as the shell would; returns click's Result (exit_code, stdout, stderr)."""

    @click.command()
    def through_main() -> None:
        main([str(argument) for argument in arguments])

    return CliRunner().invoke(through_main, [], catch_exceptions=catch)


def ended(result, code):
    """The command's stderr, once it has ended with ``code`` and with no bug."""
    assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    return result.stderr


# The smallest network of timm and small images, for tests that only need a training. Everything else is as users have it.
TINY = (
    "model.encoder_name=tu-test_resnet",
    "model.encoder_weights=null",
    "data.size=64",
    "train.lr=1e-3",
    "train.epochs=2",
    "train.save_every=0",
    "runtime.workers=0",
)


def settings_options(folder: Path, *more: str) -> list[str]:
    """``--set`` options for a tiny training that reads and writes only below ``folder``."""
    own = (f"data.manifests={folder / 'data_manifests'}", f"runtime.cache={folder / 'cache'}")
    return [part for setting in (*own, *TINY, *more) for part in ("--set", setting)]


@pytest.fixture(scope="session")
def manifests(tmp_path_factory, bus_uclm_tree, busi_tree) -> Path:
    """A folder with data_manifests/bus-uclm.csv and busi.csv of the synthetic trees."""
    folder = tmp_path_factory.mktemp("work")
    for tree in (bus_uclm_tree, busi_tree):
        result = invoke("make-manifest", "--root", tree, "--out", folder / "data_manifests")
        assert result.exit_code == 0, result.stderr
    return folder


@pytest.fixture(scope="session")
def trained(manifests) -> Path:
    """A run folder trained on the synthetic BUS-UCLM for two epochs; do not change it."""
    result = invoke("train", "--out", manifests / "outputs", "--run", "first", *settings_options(manifests))
    assert result.exit_code == 0, result.stderr
    return manifests / "outputs" / "first"
