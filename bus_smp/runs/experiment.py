"""Several runs that belong together: the folds of a cross-validation, repeats with other seeds, or both.

Each member is an ordinary run folder, for example ``<experiment>-seed43-fold0``. The experiment's own folder, next to
them, holds ``experiment.json``, which lists the members, and the evaluations over all of them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bus_smp import __version__
from bus_smp.errors import TrainingError
from bus_smp.runs.layout import EXPERIMENT
from bus_smp.runs.run import Run
from bus_smp.system import ranks
from bus_smp.system.files import write_text

if TYPE_CHECKING:
    from bus_smp.config import Settings
    from bus_smp.data.manifest import Manifest


@dataclass(frozen=True)
class Member:
    """One run of an experiment: its folder's name, and what sets it apart. ``fold`` is None without folds."""

    run: str
    seed: int
    fold: int | None


@dataclass(frozen=True)
class Experiment:
    """A folder with an ``experiment.json``; the folders of its members are next to it."""

    folder: Path
    members: tuple[Member, ...]

    @property
    def name(self) -> str:
        """Name of the experiment: its folder's name."""
        return self.folder.name

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

    def run(self, member: Member) -> Run:
        """The run of a member."""
        return Run(self.folder.parent / member.run)

    def runs(self) -> list[Run]:
        """The runs of all members, trained or not."""
        return [self.run(member) for member in self.members]

    def trained_runs(self) -> list[Run]:
        """The runs of all members.

        Raises:
            TrainingError: if one is not trained to its end.
        """
        runs = self.runs()
        waiting = [run.name for run in runs if not run.is_finished()]
        if waiting:
            raise TrainingError(
                f"{self.folder} is not finished: {', '.join(waiting)} not trained to the end",
                hint="its own `bus-smp train` command, typed again, continues it",
            )
        return runs

    def manifest(self, root: Path | Mapping[str, Path] | None = None, *, images: bool = False) -> "Manifest":
        """The manifest of the runs, with the splits of the first; arguments as for ``Run.manifest``."""
        return self.run(self.members[0]).manifest(root, images=images)

    def manifests(self, root: Path | Mapping[str, Path] | None = None) -> "list[Manifest]":
        """Everything that the runs have learnt from, as ``Run.manifests``; the manifest of the first run first."""
        return [manifest for run in self.runs() for manifest in run.manifests(root)]


def plan_experiment(
    name: str, settings: "Settings", folds: Sequence[int] = (), seeds: Sequence[int] = ()
) -> tuple[Member, ...]:
    """Every seed with every fold, seeds outermost; one member where neither is given.

    A member's name ends in what was asked for: ``-seed43`` with ``seeds``, ``-fold0`` with ``folds`` or where the
    settings name a fold. So a fold that was trained on its own is the run that ``--folds`` would train.
    """
    members = []
    numbers: Sequence[int | None] = folds or [settings.data.fold]
    for seed in seeds or [settings.train.seed]:
        for fold in numbers:
            ending = (f"-seed{seed}" if seeds else "") + ("" if fold is None else f"-fold{fold}")
            members.append(Member(name.removesuffix(ending) + ending, seed, fold))
    return tuple(members)


@ranks.by_first
def check_experiment(experiment: Experiment) -> None:
    """Check that the folder is free, or holds this experiment; more members may join it.

    Raises:
        TrainingError: if the folder holds something else: a run, files, or an experiment with other members.
    """
    folder = experiment.folder
    if folder.name in [member.run for member in experiment.members]:
        raise TrainingError(
            f"{folder.name} would be the experiment and one of its runs at once",
            hint="choose a name without -seedN or -foldN at its end: --run NAME",
        )
    if Run(folder).exists():
        raise TrainingError(
            f"{folder} is a run, no experiment", hint="choose another name for the experiment: --run NAME"
        )
    if not is_experiment(folder):
        Run(folder).check_unused()
    elif not set(before := read_experiment(folder).members) <= set(experiment.members):
        raise TrainingError(
            f"{folder} is another experiment ({', '.join(member.run for member in before)})",
            hint="start another with --run NAME, or continue this one with its own folds and seeds",
        )


@ranks.by_first
def begin_experiment(experiment: Experiment) -> None:
    """Write ``experiment.json``; errors as ``check_experiment``."""
    check_experiment(experiment)
    about = {
        "bus_smp": __version__,
        "kind": experiment.kind,
        "folds": experiment.folds,
        "seeds": experiment.seeds,
        "members": [asdict(member) for member in experiment.members],
    }
    write_text(experiment.folder / EXPERIMENT, json.dumps(about, indent=2) + "\n")


def is_experiment(folder: Path) -> bool:
    """Whether the folder is that of an experiment."""
    return (Path(folder) / EXPERIMENT).is_file()


def read_experiment(folder: Path) -> Experiment:
    """The experiment of a folder with an ``experiment.json``.

    Raises:
        TrainingError: if the file is missing or damaged.
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
