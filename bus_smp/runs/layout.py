"""The names of all files that a run, an experiment and an evaluation consist of. No other module spells them.

outputs/<run>/              a run: one training (``Run``)
outputs/<experiment>/       an experiment: its runs are folders next to it (``Experiment``)
outputs/<A>+<B>+<view>/     an ensemble of runs and views (``runs.ensemble``)
.../eval-<data>-<split>/    an evaluation, in the folder of what was scored (``runs.evaluations``)
outputs/compare-<A>-<B>/    a comparison of two runs or experiments (``runs.comparisons``)
outputs/matrix/             all runs against all data sets (``evaluation.matrix``)
"""

from pathlib import Path

# A run. SETTINGS makes a folder a run and is therefore written after the manifest.
SETTINGS = "config.yaml"
MANIFEST = "manifest.csv"
MANIFEST_SIDECAR = "manifest.json"
BEST = "best.safetensors"
STATE = "last.ckpt"
ENVIRONMENT = "environment.json"
METRICS = "metrics.csv"
LOSS_CURVES = "loss_curves.png"
DICE_CURVE = "dice_curve.png"
ANCESTORS = "ancestors.json"
LOCK = ".lock"
EXPORTS = "export"

# An experiment. The file makes a folder an experiment.
EXPERIMENT = "experiment.json"

# An ensemble of runs or views. The file makes a folder an ensemble.
ENSEMBLE = "ensemble.json"

# An evaluation. SUMMARY is written last and means that the folder is complete.
SUMMARY = "summary.json"
DATA = "data.json"
PER_IMAGE = "per_image.csv"
BASELINE_ROWS = "baselines.csv"
COMPONENTS = "components.csv"
PIXEL_ROC = "pixel_roc.csv"
RELIABILITY = "reliability.csv"
MEMBERS = "members.csv"
MASKS = "masks"

# For a paper; in an evaluation and in a comparison.
TABLE_CSV = "table.csv"
TABLE_TEX = "table.tex"

# A comparison. COMPARISON is written last and means that the folder is complete.
COMPARISON = "comparison.json"

# The matrix.
MATRIX = "matrix"
MATRIX_CSV = "matrix.csv"
MATRIX_JSON = "matrix.json"
MATRIX_FIGURE = "matrix.png"

_EVALUATION = "eval-"


def evaluation_folder(folder: Path, dataset: str, split: str, network: str = "") -> Path:
    """Folder of one evaluation of a run or experiment.

    Args:
        folder: of the run or experiment.
        split: ``test``, ``val``, ``oof`` (out-of-fold) or ``all``.
        network: ``-int8`` for the quantised network, whose results never replace the run's own.
    """
    return Path(folder) / f"{_EVALUATION}{dataset}-{split}{network}"


def ancestor_manifest(sha256: str) -> str:
    """Name of the manifest of a run that another one was started from, by the hash of its rows."""
    return f"ancestor-{sha256[:12]}.csv"


def list_evaluations(folder: Path) -> list[Path]:
    """The evaluation folders of a run or experiment, sorted by name."""
    return sorted(path for path in Path(folder).glob(f"{_EVALUATION}*") if path.is_dir())


def evaluated(folder: Path) -> tuple[str, str]:
    """Data set and split of an evaluation folder, from its name; the split of one in 8 bits is ``int8``."""
    dataset, _, split = folder.name.removeprefix(_EVALUATION).rpartition("-")
    return dataset, split


def comparison_folder(out: Path, a: str, b: str) -> Path:
    """Folder of the comparison of two runs or experiments, by their names."""
    return Path(out) / f"compare-{a}-{b}"
