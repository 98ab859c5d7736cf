"""Several runs that belong together: the folds of a cross-validation, repeats with other seeds, or both.

Each member is an ordinary run folder, ``<experiment>-seed43-fold0``. The experiment's own folder beside them
holds ``experiment.json``, which says who they are, and what is found over all of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bus_smp import __version__
from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest
from bus_smp.errors import CheckpointError, TrainingError
from bus_smp.runs.find import BEST, EXPERIMENT
from bus_smp.runs.run import Run, find_run
from bus_smp.system import ranks
from bus_smp.system.files import write_text


@dataclass(frozen=True)
class Member:
    """One run of an experiment: its folder's name, and what sets it apart. ``fold`` is None without folds."""

    run: str
    seed: int
    fold: int | None


@dataclass(frozen=True)
class Experiment:
    """A folder with an ``experiment.json``; its members' folders lie beside it."""

    folder: Path
    members: tuple[Member, ...]

    @property
    def folds(self) -> int | None:
        """Number of folds, None without folds."""
        return None if self.members[0].fold is None else len({member.fold for member in self.members})

    @property
    def seeds(self) -> list[int]:
        """Seeds, in the order given."""
        return list(dict.fromkeys(member.seed for member in self.members))

    @property
    def kind(self) -> str:
        """``folds``, ``seeds``, or ``folds and seeds``."""
        several = len(self.seeds) > 1 or self.folds is None
        return " and ".join(["folds"] * (self.folds is not None) + ["seeds"] * several)

    def manifest(self, root: Path | Mapping[str, Path] | None = None, *, images: bool = False) -> Manifest:
        """The manifest of the runs, with the splits of the first; arguments as of ``read_manifest``."""
        return self.journal(self.members[0]).manifest(root, images=images)

    def journal(self, member: Member) -> Run:
        """The run folder of a member."""
        return Run(self.folder.parent / member.run)

    def trained(self) -> list[Run]:
        """The run folders of all members.

        Raises:
            TrainingError: if one is not trained to its end.
        """
        journals = [self.journal(member) for member in self.members]
        waiting = [journal.folder.name for journal in journals if not journal.is_finished()]
        if waiting:
            raise TrainingError(
                f"{self.folder} is not finished: {', '.join(waiting)} not trained to the end",
                hint="its own `bus-smp train` command, typed again, continues it",
            )
        return journals


def plan_members(
    name: str, settings: Settings, folds: Sequence[int] = (), seeds: Sequence[int] = ()
) -> tuple[Member, ...]:
    """Every seed with every fold, seeds outermost; one member alone where neither is given.

    A name ends in what was asked for, so that a fold trained on its own is the run that ``--folds`` would
    train: ``-seed43`` with ``seeds``, ``-fold0`` with ``folds`` or where the settings name a fold.
    """
    members = []
    for seed in seeds or [settings.train.seed]:
        for fold in folds or [settings.data.fold]:
            ending = (f"-seed{seed}" if seeds else "") + ("" if fold is None else f"-fold{fold}")
            members.append(Member(name.removesuffix(ending) + ending, seed, fold))
    return tuple(members)


@ranks.by_first
def begin_experiment(experiment: Experiment) -> None:
    """Write ``experiment.json``, or check that it is this one; more members may join an experiment.

    Raises:
        TrainingError: if the folder holds something else: a run, files, or an experiment with other members.
    """
    folder = experiment.folder
    known = folder / EXPERIMENT
    if folder.name in [member.run for member in experiment.members]:
        raise TrainingError(
            f"{folder.name} would be the experiment and one of its runs at once",
            hint="choose a name without -seedN or -foldN at its end: --run NAME",
        )
    if Run(folder).exists():
        raise TrainingError(
            f"{folder} is a run, no experiment", hint="choose another name for the experiment: --run NAME"
        )
    if not known.is_file():
        Run(folder).check_unused()
    elif not set(before := read_experiment(folder).members) <= set(experiment.members):
        raise TrainingError(
            f"{folder} is another experiment ({', '.join(member.run for member in before)})",
            hint="start another with --run NAME, or continue this one with its own folds and seeds",
        )
    about = {
        "bus_smp": __version__,
        "kind": experiment.kind,
        "folds": experiment.folds,
        "seeds": experiment.seeds,
        "members": [asdict(member) for member in experiment.members],
    }
    write_text(known, json.dumps(about, indent=2) + "\n")


def read_experiment(folder: Path) -> Experiment:
    """The experiment of a folder with an ``experiment.json``.

    Raises:
        TrainingError: if the file is damaged.
    """
    path = Path(folder) / EXPERIMENT
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["members"]
        members = tuple(Member(**entry) for entry in entries)
        if not members or any(Path(member.run).name != member.run for member in members):
            raise ValueError("members must be names of run folders")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(
            f"{path}: cannot be read as an experiment ({error})",
            hint=f"delete {folder}; the command that trained its runs writes it again, and trains nothing twice",
        ) from None
    return Experiment(Path(folder), members)


def find_scored(name: str | None, out: Path) -> Run | Experiment:
    """The experiment or run called ``name`` (below ``out``, or a folder); None: the newest run.

    Raises:
        CheckpointError: as ``find_run``.
    """
    for folder in () if name is None else (Path(out) / name, Path(name)):
        if (folder / EXPERIMENT).is_file():
            return read_experiment(folder)
    return find_run(name, out)


def list_scored(out: Path) -> tuple[list[Run | Experiment], list[str]]:
    """The experiments and runs in ``out`` by name, without the runs of experiments; why some are left out."""
    found, reasons, members = {}, [], set()
    for path in Path(out).glob(f"*/{EXPERIMENT}"):
        experiment = read_experiment(path.parent)
        members |= {member.run for member in experiment.members}
        try:
            experiment.trained()
            found[experiment.folder.name] = experiment
        except TrainingError as error:
            reasons.append(error.what)
    for path in Path(out).glob(f"*/{BEST}"):
        journal = Run(path.parent)
        try:
            if path.parent.name in members:
                continue
            if journal.is_finished():
                found[path.parent.name] = journal
            else:
                reasons.append(f"{path.parent} is not trained to the end")
        except CheckpointError as error:
            reasons.append(error.what)
    return [found[name] for name in sorted(found)], sorted(reasons)
