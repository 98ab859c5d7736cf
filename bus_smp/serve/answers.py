"""The sources of the answers that a reader sees: runs, or the masks of a manifest; and how good a run is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bus_smp.data.examples import read_example
from bus_smp.data.images import pixel_sha256
from bus_smp.data.manifest import Manifest
from bus_smp.errors import BusSmpError
from bus_smp.measures.decision import DecisionRules
from bus_smp.runs.ensemble import Ensemble
from bus_smp.runs.evaluations import read_summary
from bus_smp.runs.layout import list_evaluations
from bus_smp.serve.worklist import Case, Picture

if TYPE_CHECKING:
    from bus_smp.inference.predictor import Predictor


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one picture.

    Attributes:
        mask: uint8 (H, W) of class indices.
        label: normal, benign or malignant.
        score: of malignancy, 0..1; None where the source gives none.
        disagreement: of several networks or views, 1 - mean Dice of each two of their masks, 0..1; empty for one.
    """

    mask: np.ndarray
    label: str
    score: float | None = None
    disagreement: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Something that answers.

    Attributes:
        name: of the run, or of the manifest.
        give: the answer to a picture; called in one thread only.
        rule: how the label is decided.
        worth: lines about how good the answers are, shown with each of them.
        record: what the log keeps: ``weights``, ``computed_in``, ``threshold``.
    """

    name: str
    give: Callable[[Case, Picture], Answer]
    rule: str = ""
    worth: tuple[str, ...] = ()
    record: Mapping[str, Any] | None = None


def answer_by_run(ensemble: Ensemble, predictor: "Predictor", header: Mapping[str, Any]) -> Source:
    """A run, or several as one, as a source: its answers are what ``bus-smp predict`` writes, pixel for pixel.

    Args:
        predictor, header: of ``ensemble``, from ``open_ensemble``.
    """
    from bus_smp.inference.predictor import describe_computing, label_rule

    def give(case: Case, picture: Picture) -> Answer:
        prediction = predictor.predict(picture.pixels)
        return Answer(prediction.mask, prediction.label, prediction.score, prediction.disagreement)

    rules = DecisionRules.of(header.get("calibration"))
    record = {
        "weights": header["sha256"],
        "computed_in": describe_computing(predictor.computed_in),
        "threshold": rules.threshold,
    }
    worth = describe_worth(header, list_evaluations(ensemble.folder))
    return Source(ensemble.name, give, label_rule(rules), worth, record)


def review_manifest(name: str, manifest: Manifest) -> tuple[list[Case], Source]:
    """The images of a manifest as cases, and its own masks and labels as the answers."""
    rows = {f"m{number}": row for number, row in enumerate(manifest.used().to_dict("records"), 1)}

    def load(row: dict[str, Any], frame: int) -> Picture:
        image, _ = read_example(manifest, row)
        known = str(row.get("pixel_mm", "") or "")
        size = (float(known), float(known)) if known else None
        source = "the manifest" if known else "the manifest does not say how large a pixel is"
        patient = row["patient_id"] if row["patient_known"] else ""
        return Picture(image, pixel_sha256(image), size, source, patient)

    def give(case: Case, picture: Picture) -> Answer:
        row = rows[case.id]
        return Answer(read_example(manifest, row, checked=True)[1], row["label"])

    cases = [
        Case(case_id, row["image_id"], partial(load, row), manifest.image_path(row))
        for case_id, row in rows.items()
    ]
    worth = ("These are the masks of the manifest, not a model's.",)
    return cases, Source(name, give, "the manifest's label", worth, {"manifest": manifest.sha256})


def describe_worth(header: Mapping[str, Any], evaluations: Sequence[Path]) -> tuple[str, ...]:
    """What a run was trained on, and how good it is on data that it never saw: a line each.

    Sensitivity and specificity are of malignancy by image, with 95 % intervals over patients, by the run's threshold if
    it has one, else by the class with more pixels.

    Args:
        header: of its weights.
        evaluations: its evaluation folders.
    """
    lines = [f"Trained on {', '.join(header['datasets'])}."]
    external = 0
    for folder in evaluations:
        try:
            summary = read_summary(folder)
            if summary["external"] is not True:
                continue
            lines.append(_describe_evaluation(summary))
            external += 1
        except (BusSmpError, KeyError, TypeError, AttributeError):
            lines.append(f"Its evaluation {folder.name} cannot be read.")
    if not external:
        lines.append(
            "Never evaluated on data from outside: how it performs on other patients and devices is not known."
        )
    if not header.get("calibration"):
        lines.append("Not calibrated: the score is no probability.")
    return tuple(lines)


def _describe_evaluation(summary: Mapping[str, Any]) -> str:
    # the model is the first, before the baselines
    model = next(iter(summary["summaries"].values()))
    rates, counts = model["rates"], model["counts"]
    called = rates.get("called_sensitivity", {}).get("mean") is not None
    keys = [
        f"{'called_' if called else 'image_'}{name}{'' if called else '_malignant'}"
        for name in ("sensitivity", "specificity")
    ]
    numbers = "; ".join(
        f"{words} {_percent(rates[key])}"
        for words, key in zip(("sensitivity", "specificity"), keys, strict=True)
    )
    unit = "patients" if summary["patient_known"] else "groups"
    return f"On {summary['dataset']}, never seen in training ({counts['images']:,} images, {counts['groups']:,} {unit}): {numbers}."


def _percent(rate: Mapping[str, Any]) -> str:
    if rate["mean"] is None:
        return "unknown"
    interval = (
        "no interval"
        if rate["low"] is None
        else f"95 % CI {rate['low'] * 100:.0f} to {rate['high'] * 100:.0f}"
    )
    return f"{rate['mean'] * 100:.0f} % ({interval})"
