"""Where the answers come from that a reader is shown: a run, or the masks of a manifest; and what a run is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.errors import BusSmpError
from bus_smp.runs.evaluations import read_summary
from bus_smp.serve.worklist import Case, Picture


@dataclass(frozen=True, eq=False)
class Answer:
    """What is said about one picture.

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


def describe_worth(header: Mapping[str, Any], evaluations: Sequence[Path]) -> tuple[str, ...]:
    """What a run was trained on, and how it did on data that it never saw: a line each.

    Args:
        header: of its weights.
        evaluations: its evaluation folders.

    Sensitivity and specificity are of malignancy by image, with 95 % intervals over patients, by the run's threshold if
    it has one, else by the class with more pixels.
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
            "Never evaluated on data from outside: nobody knows how it does on other patients and devices."
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
