"""Finding runs and experiments by their names, the newest, or all of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bus_smp.errors import CheckpointError, ConfigError, TrainingError
from bus_smp.runs.ensemble import Ensemble, is_ensemble, make_ensemble, read_ensemble
from bus_smp.runs.experiment import Experiment, is_experiment, read_experiment
from bus_smp.runs.layout import BEST, EXPERIMENT, list_evaluations
from bus_smp.runs.run import Run
from bus_smp.system.console import note
from bus_smp.text import did_you_mean

Say = Callable[[str], None]


def find_folder(name: str | None, out: Path, say: Say = note) -> Path:
    """Folder of the run or experiment called ``name`` (below ``out``, or a path); None: of the newest that is trained.

    A run without weights counts too if it is named: its settings and evaluations can still be read.

    Args:
        say: receives a line where the run is unfinished, or where a newer one is.

    Raises:
        CheckpointError: if there is none; lists those that there are.
    """
    if name is None:
        return find_trained(None, out, say).folder
    for folder in (Path(out) / name, Path(name)):
        run = Run(folder)
        if run.has_weights() or is_experiment(folder) or run.exists() or list_evaluations(folder):
            if run.has_weights() and (words := _describe(run)):
                say(f"Note: {folder} is {words}")
            return folder
    raise _no_run(name, out, (BEST, EXPERIMENT))


def _no_run(name: str | None, out: Path, files: Sequence[str]) -> CheckpointError:
    names = sorted({path.parent.name for file in files for path in Path(out).glob(f"*/{file}")})
    near = did_you_mean(Path(str(name)).name, names)
    return CheckpointError(
        f"no trained run {name}; {out} has: {', '.join(names) or 'none'}",
        hint=near or "bus-smp train --run NAME",
    )


def _is_file(name: str) -> bool:
    return name.endswith(".safetensors") and Path(name).is_file()


def find_run(name: str | None, out: Path, say: Say = note) -> Run:
    """The run called ``name`` (below ``out``, or a folder), or the newest, also of an experiment; it has weights.

    A ``.safetensors`` file, wherever it lies, is a run of which only the weights may be there.

    Raises:
        CheckpointError: if there is none, or it is an experiment or an ensemble; lists the runs that there are.
    """
    if name is None:
        return _choose_newest(_list_runs(out), out, say)
    if _is_file(name):
        return Run(Path(name).parent, Path(name).name)
    run = Run(find_folder(name, out, say))
    if run.has_weights():
        return run
    several: Experiment | Ensemble | None = None
    if is_experiment(run.folder):
        several, kind = read_experiment(run.folder), "an experiment of several runs"
    elif is_ensemble(run.folder):
        several, kind = read_ensemble(run.folder), "an ensemble, and has no weights of its own"
    if several is not None:
        members = several.runs() if isinstance(several, Experiment) else several.runs
        raise CheckpointError(
            f"{run.folder} is {kind}",
            hint=f"name one of them: {', '.join(member.name for member in members)}",
        )
    raise _no_run(name, out, (BEST,))


def find_ensemble(names: Sequence[str], out: Path, views: Sequence[str] = (), say: Say = note) -> Ensemble:
    """What predicts: one run, or the runs of several names, and views of them, as one.

    Args:
        names: as for ``find_run``, and of experiments and ensembles; none: the newest run.
        views: ways to look at each image next to the plain one.

    Raises:
        CheckpointError, ConfigError, TrainingError: as ``find_run`` and ``_combine``.
    """
    if not names:
        return _combine([find_run(None, out, say)], views)
    return _combine(
        [find_run(name, out, say) if _is_file(name) else find_trained(name, out, say) for name in names],
        views,
    )


def find_scored(
    names: Sequence[str], out: Path, views: Sequence[str] = (), ensemble: bool = False, say: Say = note
) -> Run | Experiment | Ensemble:
    """What is scored: as ``find_trained``, or several names or views as one.

    Args:
        ensemble: whether the runs of an experiment are scored as one, not one by one.

    Raises:
        CheckpointError, ConfigError, TrainingError: as ``find_trained`` and ``_combine``; or if views of an experiment are
            wanted, and not whether it is an ensemble.
    """
    trained = [find_trained(name, out, say) for name in names or (None,)]
    first = trained[0]
    if len(trained) == 1 and not (isinstance(first, Experiment) and (ensemble or views)) and not views:
        return first
    if len(trained) == 1 and isinstance(first, Experiment) and not ensemble:
        raise ConfigError(
            f"{first.name} is an experiment: its runs are scored one by one",
            hint="--ensemble scores them as one, with their views; or name one of them with --run",
        )
    return _combine(trained, views)


def _combine(trained: "Sequence[Run | Experiment | Ensemble]", views: Sequence[str]) -> Ensemble:
    """All as one, with the folder for its evaluations.

    Raises:
        ConfigError: if an ensemble that has views is to be combined with anything else.
        TrainingError: if a run of an experiment is not trained to its end.
    """
    runs: list[Run] = []
    for one in trained:
        if isinstance(one, Run):
            runs.append(one)
        elif isinstance(one, Experiment):
            runs += one.trained_runs()
        elif len(trained) == 1 and not views:
            return one
        elif one.views:
            raise ConfigError(
                f"{one.name} has views already ({', '.join(one.views)})",
                hint="name its runs, each with --run, and --views",
            )
        else:
            runs += one.runs
    only = trained[0] if len(trained) == 1 else None
    return make_ensemble(runs, views, only.name if isinstance(only, Experiment) else "")


def find_trained(name: str | None, out: Path, say: Say = note) -> Run | Experiment | Ensemble:
    """The experiment, run or ensemble called ``name`` (below ``out``, or a folder); None: the newest run or experiment.

    Raises:
        CheckpointError: as ``find_run``.
    """
    if name is None:
        return _choose_newest(_list_all(out)[0], out, say)
    if _is_file(name):
        if Path(name).name != BEST:
            raise CheckpointError(
                f"{name}: scoring needs the run folder, whose manifest.csv lists what the weights have seen",
                hint="--run FOLDER with the file as best.safetensors; bus-smp predict takes the file as it is",
            )
        name = str(Path(name).absolute().parent)
    folder = find_folder(name, out, say)
    if is_ensemble(folder):
        return read_ensemble(folder)
    return read_experiment(folder) if is_experiment(folder) else find_run(name, out, lambda text: None)


def list_trained(out: Path) -> tuple[list[Run | Experiment], list[str]]:
    """The finished experiments and runs in ``out`` by name, without the runs of experiments; and why others are left out."""
    found, reasons = _list_all(out)
    for one in found:
        if words := _describe(one):
            reasons.append(f"{one.folder} is {words}")
    finished = [one for one in found if not _describe(one)]
    return sorted(finished, key=lambda one: one.name), sorted(reasons)


def _list_runs(out: Path) -> list[Run]:
    return [Run(path.parent) for path in Path(out).glob(f"*/{BEST}")]


def _list_all(out: Path) -> tuple[list[Run | Experiment], list[str]]:
    """The experiments, and the runs that belong to none; and why experiments cannot be read."""
    experiments, reasons = [], []
    for path in Path(out).glob(f"*/{EXPERIMENT}"):
        try:
            experiments.append(read_experiment(path.parent))
        except TrainingError as error:
            reasons.append(error.what)
    members = {member.run for experiment in experiments for member in experiment.members}
    return [*experiments, *(run for run in _list_runs(out) if run.name not in members)], reasons


def _choose_newest(among: list, out: Path, say: Say):
    """The newest that is finished; only where none is, the newest.

    Raises:
        CheckpointError: if none has weights.
    """
    ages = [(max(times), one) for one in among if (times := _weights_times(one))]
    newest = [one for _, one in sorted(ages, key=lambda pair: pair[0], reverse=True)]
    if not newest:
        raise CheckpointError(f"{out} holds no trained run", hint="train one first: bus-smp train")
    words = _describe(newest[0])
    if not words:
        return newest[0]
    chosen = next((one for one in newest[1:] if not _describe(one)), newest[0])
    taken = "" if chosen is newest[0] else f"; {chosen.folder} is taken"
    say(f"Note: the newest, {newest[0].folder}, is {words}{taken}")
    return chosen


def _weights_times(one: Run | Experiment) -> list[float]:
    """When the weights of the run, or of the experiment's runs, were written; those that there are."""
    runs = [one] if isinstance(one, Run) else one.runs()
    return [run.best_path.stat().st_mtime for run in runs if run.has_weights()]


def _describe(one: Run | Experiment) -> str:
    """``unfinished, epoch 3 of 50``, or ``damaged``; "" if there is nothing to say."""
    if isinstance(one, Run):
        try:
            return one.describe_unfinished()
        except CheckpointError:
            return "damaged"
    lacking = [run for run in one.runs() if not run.has_weights() or _describe(run)]
    total = len(one.members)
    return f"unfinished, {total - len(lacking)} of {total} runs are trained to the end" if lacking else ""
