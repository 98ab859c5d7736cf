"""Runs, or views of them, that predict as one. Their evaluations have a folder of their own, next to those of the runs.

The folder's name holds the names of all runs and views (``one+two+mirror``), and its ``ensemble.json`` lists them. So
what several networks or views have scored is never taken for what one network has.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bus_smp import __version__
from bus_smp.errors import ConfigError, EvaluationError
from bus_smp.runs.layout import ENSEMBLE
from bus_smp.runs.run import Run
from bus_smp.system.files import file_sha256, short_name, write_text
from bus_smp.text import counted

if TYPE_CHECKING:
    import pandas as pd

    from bus_smp.data.manifest import Manifest

# Ways to look at an image more than once, as ``inference.ensemble`` makes them.
VIEWS = ("mirror",)


@dataclass(frozen=True)
class Ensemble:
    """Runs and views that predict as one; a single run without views is one too.

    Attributes:
        folder: of the evaluations; of a single run without views the run's own.
        runs: at least one; ``views``: of ``VIEWS``.
        experiment: the name of the experiment whose runs these are; "": of none.
    """

    folder: Path
    runs: tuple[Run, ...]
    views: tuple[str, ...] = ()
    experiment: str = ""

    @property
    def name(self) -> str:
        """Name of the ensemble: its folder's name."""
        return self.folder.name

    @property
    def manifest_path(self) -> Path:
        """The manifest of the first run."""
        return self.runs[0].manifest_path

    def manifest(self, root: Path | Mapping[str, Path] | None = None, *, images: bool = False) -> "Manifest":
        """The manifest of the first run; arguments as for ``Run.manifest``."""
        return self.runs[0].manifest(root, images=images)

    def manifests(self, root: Path | Mapping[str, Path] | None = None) -> "list[Manifest]":
        """Everything that any of the runs has learnt from, as ``Run.manifests``; that of the first run first."""
        found = [manifest for run in self.runs for manifest in run.manifests(root)]
        return list({manifest.sha256: manifest for manifest in found}.values())

    def weights_sha256(self) -> str:
        """Hash of the files of weights, see ``join_sha256``."""
        return join_sha256([file_sha256(run.best_path) for run in self.runs])

    def check_unseen(self, rows: "pd.DataFrame", split: str) -> None:
        """Refuse images of the first run's split that another run, or a run it was started from, has learnt from.

        Args:
            rows: of the manifest; ``split``: ``test`` or ``val``.

        Raises:
            EvaluationError: naming the run and the first such image.
        """
        for run in self.runs[1:]:
            for manifest in run.manifests():
                seen = manifest.find_learnt(rows, split)
                if seen.any():
                    first = rows[seen].iloc[0]
                    count = int(seen.sum())
                    raise EvaluationError(
                        f"{counted(count, 'image')} of the {split} split of {self.runs[0].name} "
                        f"{'was' if count == 1 else 'were'} used to train {run.name} ({first['dataset']} {first['image_id']}): "
                        "the ensemble has seen them",
                        hint="score it on another data set: bus-smp crosseval --target NAME; or combine runs with the same splits",
                    )

    def write(self) -> None:
        """Write ``ensemble.json``, which makes the folder an ensemble; a single run has none.

        Raises:
            EvaluationError: if the folder is something else, or another ensemble.
        """
        if self.folder == self.runs[0].folder:
            return
        listed = [os.path.relpath(run.folder, self.folder.parent) for run in self.runs]
        about = {"runs": listed, "views": list(self.views), "experiment": self.experiment}
        if self.folder.exists() and not (is_ensemble(self.folder) and _read(self.folder) == about):
            raise EvaluationError(
                f"{self.folder}: is not the folder of this ensemble ({', '.join(listed)})",
                hint="rename that folder, and type the same command again",
            )
        write_text(self.folder / ENSEMBLE, json.dumps({"bus_smp": __version__, **about}, indent=2) + "\n")


def make_ensemble(runs: Sequence[Run], views: Sequence[str] = (), experiment: str = "") -> Ensemble:
    """Runs and views as one, with the folder next to the first run.

    Args:
        experiment: name of the experiment whose runs these are; "": of none.
    """
    if len(runs) == 1 and not views:
        return Ensemble(runs[0].folder, (runs[0],))
    words = [f"{experiment}+ensemble"] if experiment else [run.name for run in runs]
    folder = runs[0].folder.parent / short_name("+".join([*words, *views]), 150)
    return Ensemble(folder, tuple(runs), tuple(views), experiment)


def check_views(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names of views, each once.

    Raises:
        ConfigError: if one is unknown.
    """
    for name in names:
        if name not in VIEWS:
            raise ConfigError(f"there is no view {name}", hint=f"use one of: {', '.join(VIEWS)}")
    return tuple(dict.fromkeys(names))


def join_sha256(weights: Sequence[str]) -> str:
    """One hash for several files of weights, in their order; of a single file its own."""
    return weights[0] if len(weights) == 1 else hashlib.sha256("\n".join(weights).encode()).hexdigest()


def is_ensemble(folder: Path) -> bool:
    """Whether the folder is that of an ensemble."""
    return (Path(folder) / ENSEMBLE).is_file()


def read_ensemble(folder: Path) -> Ensemble:
    """The ensemble of a folder with an ``ensemble.json``.

    Raises:
        EvaluationError: if the file is missing or damaged, or a run is gone.
    """
    folder = Path(folder)
    about = _read(folder)
    runs = tuple(Run(folder.parent / name) for name in about["runs"])
    gone = [run.name for run in runs if not run.has_weights()]
    if gone:
        raise EvaluationError(
            f"{folder}: {', '.join(gone)} {'is' if len(gone) == 1 else 'are'} gone",
            hint="restore the run folder",
        )
    return Ensemble(folder, runs, tuple(about["views"]), about["experiment"])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / ENSEMBLE
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        found: dict[str, Any] = {key: [str(one) for one in about[key]] for key in ("runs", "views")}
        found["experiment"] = str(about["experiment"])
        if not found["runs"] or not set(found["views"]) <= set(VIEWS):
            raise ValueError("no runs, or unknown views")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{path}: cannot be read as an ensemble ({error})",
            hint=f"delete {folder}; the command that made it writes it again",
        ) from None
    return found
