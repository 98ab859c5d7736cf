"""What a report knows of a run: everything read from its folder, and what follows from it directly.

What could not be read is None, and ``missing`` holds a sentence about it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest
from bus_smp.runs.experiment import Member

Sidecars = list[tuple[str, Mapping[str, Any]]]


def _sidecars(about: Mapping[str, Any]) -> Sidecars:
    """Name and sidecar of each data set of a manifest; a combined manifest has several."""
    if "combined" in about:
        return [
            (str((one.get("source") or {}).get("name") or name), one)
            for name, one in about["combined"].items()
        ]
    name = (about.get("source") or {}).get("name")
    return [(str(name), about)] if name else []


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation folder.

    Attributes:
        folder: where its figures are.
        summary: the content of ``summary.json``.
        columns: name -> summary, in the order of the table's columns: the model (or the mean of several
            runs) first, then the baselines. Every estimate has a ``text``.
        rows: the rows of the table, as (heading, row name, a cell for each column).
        runs: run -> summary with texts, where this is the mean of several runs; else empty.
        failures: kind of failure -> rows of the per-image table, the worst first; None without the table.
        data: the content of ``data.json``, which describes the manifest of the scored images.
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
    def baselines(self) -> Mapping[str, Mapping[str, Any]]:
        """The columns after the first."""
        return dict(list(self.columns.items())[1:])

    @property
    def dataset(self) -> str:
        """Name of the scored data set."""
        return str(self.summary["dataset"])

    @property
    def is_external(self) -> bool:
        """Whether the scored images are not the run's own data, as far as is known (see ``is_proven``)."""
        return bool(self.summary["external"])

    @property
    def is_proven(self) -> bool:
        """Whether every scored image was compared with the training data, and none is a copy."""
        return self.summary["external"] is True

    @property
    def computed_in(self) -> Mapping[str, str]:
        """``backend``, ``device`` and ``precision``; empty where they were not recorded."""
        return self.summary.get("computed_in") or {}

    @property
    def is_quantised(self) -> bool:
        """Whether the weights of the network were 8-bit integers."""
        return self.computed_in.get("precision") == "int8"

    @property
    def split(self) -> str:
        """The split; with the precision where the network is not the one that was trained."""
        return str(self.summary["split"]) + (", int8" if self.is_quantised else "")

    @property
    def kind(self) -> str:
        """What the scored images are to the run."""
        split, network = str(self.summary["split"]), ", by the quantised network" if self.is_quantised else ""
        if self.is_external:
            proven = "external test" if self.is_proven else "not known to be external"
            return f"{proven}, all used images{network}"
        if split.startswith("oof"):
            return f"out-of-fold, each image predicted by the run that did not train on its fold{network}"
        return f"{split} split of the run's own data{network}"

    @property
    def short_kind(self) -> str:
        """``kind`` in two words, for the first lines of a page."""
        kind = self.kind.split(", ")[0].removesuffix(" of the run's own data")
        return kind + (", int8" if self.is_quantised else "")

    @property
    def calibration(self) -> Mapping[str, Any]:
        """Temperature and thresholds that were fitted on validation images; empty where there are none."""
        return self.summary.get("calibration") or {}

    @property
    def sidecars(self) -> Sidecars:
        """Name and description of each scored data set; empty without ``data.json``."""
        return _sidecars((self.data or {}).get("about") or {})

    def estimates(self, column: Mapping[str, Any] | None = None) -> Mapping[str, Mapping[str, Any]]:
        """The estimates of a column (default: the first) by name."""
        column = column or self.model
        return {**column["rates"], **column["metrics"]}


@dataclass(frozen=True)
class RunRecord:
    """One run folder; or an experiment, then settings, weights and data are those of its first run.

    Attributes:
        members: the runs of an experiment; empty for a run.
        combined: names of the runs and views of an ensemble, of which settings, weights and data are the first's;
            empty for a run.
        header: of ``best.safetensors``.
        missing: sentences about what could not be read, each with the command that writes it.
    """

    name: str
    folder: Path
    members: Sequence[Member]
    settings: Settings | None
    header: Mapping[str, Any] | None
    environment: Mapping[str, Any] | None
    manifest: Manifest | None
    metrics: pd.DataFrame | None
    evaluations: list[EvaluationRecord]
    missing: list[str]
    combined: Sequence[str] = ()

    @property
    def own(self) -> list[EvaluationRecord]:
        """The evaluations on the run's own data."""
        return [one for one in self.evaluations if not one.is_external]

    @property
    def external(self) -> list[EvaluationRecord]:
        """The evaluations on external data."""
        return [one for one in self.evaluations if one.is_external]

    @property
    def sidecars(self) -> Sidecars:
        """Name and description of each data set of the run's manifest."""
        return _sidecars(self.manifest.about) if self.manifest is not None else []

    @property
    def sources(self) -> list[tuple[str, str]]:
        """Name and citation of every data set that was trained on or scored."""
        scored = [(f"{name} (only scored)", about) for one in self.external for name, about in one.sidecars]
        return [
            (name, (about.get("source") or {}).get("cite", "source not recorded"))
            for name, about in self.sidecars + scored
        ]

    @cached_property
    def used(self) -> pd.DataFrame:
        """The rows of the manifest that are not excluded; none without a manifest."""
        return self.manifest.used() if self.manifest is not None else pd.DataFrame()

    @property
    def knows_patients(self) -> bool:
        """Whether every used image of the manifest has a patient id from its publishers."""
        return bool(self.used["patient_known"].all())

    @property
    def trained_on(self) -> str:
        """Names of the training data sets, joined by +."""
        if self.settings is not None:
            return "+".join(Path(name).stem for name in self.settings.data.train)
        return "+".join((self.header or {}).get("datasets", ["unknown data"]))

    @property
    def kept_epoch(self) -> int | None:
        """The epoch whose weights were kept."""
        epoch = (self.header or {}).get("epoch")
        return None if epoch is None else int(epoch)

    @property
    def kept_dice(self) -> float:
        """Lesion Dice of the kept epoch on the validation images, 0..1; NaN where it is not known."""
        dice = ((self.header or {}).get("score") or {}).get("val_dice_lesion")
        return math.nan if dice is None else float(dice)

    @property
    def weights_sha256(self) -> str | None:
        """Hash of the weights that were scored, as the evaluations recorded it."""
        found = [(one.summary.get("checkpoint") or {}).get("sha256") for one in self.evaluations]
        return next((str(one) for one in found if one), None)

    @property
    def subgroups(self) -> list[str]:
        """By what the images of an evaluation were divided, sorted."""
        return sorted({by for one in self.evaluations for by in one.model.get("strata") or {}})

    @property
    def is_calibrated(self) -> bool:
        """Whether an evaluation applied a fitted temperature."""
        return any(one.calibration.get("temperature") is not None for one in self.evaluations)

    @property
    def robustness(self) -> list[str]:
        """In which ways the variation of the results was measured."""
        ways = {
            "by lesion size, class, flags and data set": self.subgroups,
            "over repeated runs (mean and sd)": self.members,
            "on external data": self.external,
        }
        return [way for way, is_measured in ways.items() if is_measured]
