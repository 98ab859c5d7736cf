"""Finding runs and experiments by their names, or all of them."""

from collections.abc import Sequence
from pathlib import Path

from bus_smp.errors import CheckpointError, TrainingError
from bus_smp.runs.experiment import Experiment, is_experiment, read_experiment
from bus_smp.runs.layout import BEST, EXPERIMENT, list_evaluations
from bus_smp.runs.run import Run
from bus_smp.text import did_you_mean


def find_folder(name: str | None, out: Path) -> Path:
    """Folder of the run or experiment called ``name`` (below ``out``, or a path); None: of the newest run with weights.

    A run without weights counts too: its settings and evaluations can still be read.

    Raises:
        CheckpointError: if there is none; lists those that there are.
    """
    if name is None:
        weights = sorted(Path(out).glob(f"*/{BEST}"), key=lambda path: path.stat().st_mtime)
        if not weights:
            raise CheckpointError(f"{out} holds no trained run", hint="train one first: bus-smp train")
        return weights[-1].parent
    for folder in (Path(out) / name, Path(name)):
        run = Run(folder)
        if run.has_weights() or is_experiment(folder) or run.exists() or list_evaluations(folder):
            return folder
    raise _no_run(name, out, (BEST, EXPERIMENT))


def _no_run(name: str | None, out: Path, files: Sequence[str]) -> CheckpointError:
    names = sorted({path.parent.name for file in files for path in Path(out).glob(f"*/{file}")})
    near = did_you_mean(Path(str(name)).name, names)
    return CheckpointError(
        f"no trained run {name}; {out} has: {', '.join(names) or 'none'}",
        hint=near or "bus-smp train --run NAME",
    )


def find_run(name: str | None, out: Path) -> Run:
    """The run called ``name`` (below ``out``, or a folder), or the newest; it has weights.

    Raises:
        CheckpointError: if there is none, or it is an experiment; lists the runs that there are.
    """
    run = Run(find_folder(name, out))
    if run.has_weights():
        return run
    if is_experiment(run.folder):
        members = ", ".join(member.run for member in read_experiment(run.folder).members)
        raise CheckpointError(
            f"{run.folder} is an experiment of several runs", hint=f"name one of them: {members}"
        )
    raise _no_run(name, out, (BEST,))


def find_trained(name: str | None, out: Path) -> Run | Experiment:
    """The experiment or run called ``name`` (below ``out``, or a folder); None: the newest run.

    Raises:
        CheckpointError: as ``find_run``.
    """
    folder = find_folder(name, out)
    return read_experiment(folder) if is_experiment(folder) else find_run(name, out)


def list_trained(out: Path) -> tuple[list[Run | Experiment], list[str]]:
    """The finished experiments and runs in ``out`` by name, without the runs of experiments; and why others are left out."""
    found: dict[str, Run | Experiment] = {}
    reasons, members = [], set()
    for path in Path(out).glob(f"*/{EXPERIMENT}"):
        experiment = read_experiment(path.parent)
        members |= {member.run for member in experiment.members}
        try:
            experiment.trained_runs()
            found[experiment.name] = experiment
        except TrainingError as error:
            reasons.append(error.what)
    for path in Path(out).glob(f"*/{BEST}"):
        run = Run(path.parent)
        if run.name in members:
            continue
        try:
            if run.is_finished():
                found[run.name] = run
            else:
                reasons.append(f"{run.folder} is not trained to the end")
        except CheckpointError as error:
            reasons.append(error.what)
    return [found[name] for name in sorted(found)], sorted(reasons)
