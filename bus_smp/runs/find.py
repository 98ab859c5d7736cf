"""The folder of runs: which files make a folder a run or an experiment, and finding one by its name."""

from pathlib import Path

from bus_smp.errors import CheckpointError

BEST = "best.safetensors"
EXPORTS = "export"  # folder of a run with its network in other formats
EXPERIMENT = "experiment.json"  # makes a folder an experiment of several runs


def find_folder(run: str | None, out: Path) -> Path:
    """Folder of the run or experiment named ``run`` (below ``out``, or a path); None: of the newest run with weights.

    A run that has no weights (any more) counts too: its settings and evaluations can still be read.

    Raises:
        CheckpointError: if there is none; lists those that there are.
    """
    weights = sorted(Path(out).glob(f"*/{BEST}"), key=lambda path: path.stat().st_mtime)
    if run is None:
        if not weights:
            raise CheckpointError(f"{out} holds no trained run", hint="train one first: bus-smp train")
        return weights[-1].parent
    for folder in (Path(out) / run, Path(run)):
        if any((folder / name).is_file() for name in (BEST, EXPERIMENT, "config.yaml")) or any(
            folder.glob("eval-*/")
        ):
            return folder
    names = {path.parent.name for name in (BEST, EXPERIMENT) for path in Path(out).glob(f"*/{name}")}
    raise CheckpointError(
        f"no trained run {run}; {out} has: {', '.join(sorted(names)) or 'none'}",
        hint="bus-smp train --run NAME",
    )
