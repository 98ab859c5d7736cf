"""What was read from run folders, as reports take it. What is missing is None, and ``missing`` says so."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest


def descriptions(about: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Name and sidecar of each data set of a manifest, which may be several combined."""
    if "combined" in about:
        return [
            (str((one.get("source") or {}).get("name") or name), one)
            for name, one in about["combined"].items()
        ]
    name = (about.get("source") or {}).get("name")
    return [(str(name), about)] if name else []


@dataclass(frozen=True)
class Evaluation:
    """One evaluation folder.

    Attributes:
        folder: where its figures are.
        summary: what ``summary.json`` holds.
        columns: name -> summary, as they stand side by side in a table: the model (or the mean of several
            runs) first, then the baselines. Every estimate in it has a ``text``.
        rows: the table people read, as (heading, row name, a cell for each column).
        runs: run -> summary with texts, where this is the mean of several runs; else empty.
        failures: kind of failure -> rows of the per-image table, the gravest first; None without the table.
        data: what ``data.json`` holds about the manifest of the scored images.
    """

    folder: Path
    summary: Mapping[str, Any]
    columns: Mapping[str, Mapping[str, Any]]
    rows: list[tuple[str, str, list[str]]]
    runs: Mapping[str, Mapping[str, Any]]
    failures: Mapping[str, pd.DataFrame] | None
    data: Mapping[str, Any] | None

    @property
    def model(self) -> Mapping[str, Any]:
        """The first column."""
        return next(iter(self.columns.values()))

    @property
    def dataset(self) -> str:
        """Name of the scored data set."""
        return str(self.summary["dataset"])

    @property
    def computed_in(self) -> Mapping[str, str]:
        """``backend``, ``device`` and ``precision``; empty where that was not recorded."""
        return self.summary.get("computed_in") or {}

    @property
    def split(self) -> str:
        """The split, and whether another network than the trained one was tested on it."""
        return str(self.summary["split"]) + (", int8" if self.is_quantised else "")

    @property
    def is_quantised(self) -> bool:
        """Whether the network's weights had been made 8-bit integers."""
        return self.computed_in.get("precision") == "int8"

    @property
    def kind(self) -> str:
        """What the images are to the run."""
        split, network = str(self.summary["split"]), ", by the quantised network" if self.is_quantised else ""
        if self.summary["external"]:
            return f"external test, all used images{network}"
        if split.startswith("oof"):
            return f"out-of-fold, each image predicted by the run that has not seen its fold{network}"
        return f"{split} split of the run's own data{network}"

    @property
    def sidecars(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Name and description of each scored data set, from ``data.json``; none where it is missing."""
        return descriptions((self.data or {}).get("about") or {})

    def estimate(self, name: str, column: Mapping[str, Any] | None = None) -> Mapping[str, Any] | None:
        """An estimate of a column (the first), whichever part it is in; None where it was not made."""
        column = column or self.model
        return column["metrics"].get(name) or column["rates"].get(name)


@dataclass(frozen=True)
class Run:
    """One run folder, or an experiment's folder (then settings, weights and data are those of its first run).

    Attributes:
        members: the runs of an experiment, ``{run, seed, fold}`` each; empty for a run.
        header: of ``best.safetensors``.
        missing: sentences about what could not be read, each with the command that makes it.
    """

    name: str
    folder: Path
    members: list[Mapping[str, Any]]
    settings: Settings | None
    header: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    manifest: Manifest | None
    metrics: pd.DataFrame | None
    evaluations: list[Evaluation]
    missing: list[str]

    @property
    def sidecars(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Name and description of each data set of the run's manifest."""
        return descriptions(self.manifest.about) if self.manifest is not None else []

    @property
    def trained_on(self) -> str:
        """Names of the training data sets, joined by +."""
        if self.settings is not None:
            return "+".join(Path(name).stem for name in self.settings.data.train)
        return "+".join((self.header or {}).get("datasets", ["unknown data"]))
