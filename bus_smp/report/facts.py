"""What the templates state about runs: verdicts, limits and descriptions that follow from the records."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bus_smp.report.records import EvaluationRecord, RunRecord
from bus_smp.runs.describe import network_input, network_parts
from bus_smp.statistics.metrics import BY_KEY
from bus_smp.statistics.score_table import BEATEN, BETWEEN_RUNS, CLEARLY, NO_INTERVAL_ABOVE, OVERLAP, standing

# Metrics of probabilities that are given before and after the temperature.
CALIBRATED = {key: metric.words for key, metric in BY_KEY.items() if f"{key}_raw" in BY_KEY}
# Packages of the environment that a report names.
PACKAGES = ("torch", "segmentation-models-pytorch", "timm", "albumentations")


def read_words(name: str) -> Any:
    """The content of a YAML file of this folder."""
    return yaml.safe_load((Path(__file__).parent / name).read_text(encoding="utf-8"))


FIGURES: Mapping[str, Mapping[str, Mapping[str, Any]]] = read_words("figures.yaml")


# Answers


# What a baseline does, in words that need no glossary.
_BASELINES = {"all-background": "marking nothing", "largest-dark-blob": "marking the largest dark blob"}


_STANDINGS = {
    BEATEN: "outlines no better than {}",
    BETWEEN_RUNS: "outlines better than {} in the mean of the runs",
    NO_INTERVAL_ABOVE: "outlines better than {}, without an interval to exclude chance",
    CLEARLY: "outlines clearly better than {}",
    OVERLAP: "outlines better than {}, but the intervals overlap",
}


def verdict(evaluation: EvaluationRecord) -> str:
    """What the numbers of an evaluation mean, in one line for a reader who is not a statistician."""
    found = evaluation.estimates()
    parts = (
        _on_outlines(evaluation),
        _on_false_alarms(found["false_alarm_rate"]),
        _on_malignancy(found["auc_malignant"]),
    )
    line = "; ".join(part for part in parts if part)
    return f"{line[0].upper()}{line[1:]}."


def _on_outlines(evaluation: EvaluationRecord) -> str:
    found = standing(evaluation.columns)
    if found is None:
        no_lesion = evaluation.estimates()["dice_lesion"]["mean"] is None
        return "no image shows a lesion" if no_lesion else "outlines without a baseline to compare them with"
    words, name = found
    return _STANDINGS[words].format(_BASELINES.get(name, name))


def _on_false_alarms(rate: Mapping[str, Any]) -> str:
    if rate["mean"] is None:
        return "no normal image to test false alarms on"
    if rate["mean"] < 0.5:
        return ""
    if rate["mean"] == 1:
        return "marks every normal image"
    return "marks most normal images" if rate["mean"] > 0.5 else "marks half of the normal images"


def _on_malignancy(auc: Mapping[str, Any]) -> str:
    if auc["mean"] is None:
        return "malignancy not tested"
    if auc["mean"] < 0.5:
        return "malignancy below chance"
    # An sd between runs is no interval.
    if "sd" in auc:
        return "malignancy above chance in the mean of the runs"
    if auc["low"] is None:
        return "malignancy without an interval to exclude chance"
    if auc["low"] <= 0.5:
        return "malignancy: chance is not excluded"
    return "malignancy better than chance"


def share_of(estimate: Mapping[str, Any], images: str = "", opposite: bool = False) -> str:
    """A share of images, counts first: ``382 of 493 normal images (77 %, 74 to 81 %)``; the share and its interval in parentheses.

    Of a mean over runs there are no counts: ``77 % of normal images (mean of 3 runs)``.

    Args:
        images: what is counted.
        opposite: count the others.
    """
    mean, low, high = (estimate[key] for key in ("mean", "low", "high"))
    if mean is None:
        return "not defined"
    if opposite:
        mean, low, high = 1 - mean, *(None if end is None else 1 - end for end in (high, low))
    if "sd" in estimate:
        of = f" of {images}" if images else ""
        return f"{_percent(mean)}{of} (mean of {estimate['n']} runs)"
    interval = "" if low is None else f", {_percent(low).removesuffix(' %')} to {_percent(high)}"
    what = f" {images if estimate['n'] != 1 else images.replace('images', 'image')}" if images else ""
    return f"{round(mean * estimate['n']):,} of {estimate['n']:,}{what} ({_percent(mean)}{interval})"


def _percent(share: float) -> str:
    """A whole number, but never 0 % for something nor 100 % for not everything."""
    return "<1 %" if 0 < share < 0.005 else ">99 %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def called(evaluation: EvaluationRecord) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Sensitivity and specificity of the call by the validation threshold; by the larger predicted class where there is none."""
    found = evaluation.estimates()
    sensitivity, specificity = found.get("called_sensitivity"), found.get("called_specificity")
    if sensitivity and specificity and (sensitivity["mean"], specificity["mean"]) != (None, None):
        return sensitivity, specificity
    return found["image_sensitivity_malignant"], found["image_specificity_malignant"]


def printed(estimates: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> list[str]:
    """Estimates as they are printed everywhere; ``-`` where one was not made."""
    return [estimates[name]["text"] if estimates.get(name) else "-" for name in names]


def limits(runs: Sequence[RunRecord]) -> list[str]:
    """What these results do not show, as far as the files tell; a sentence each."""
    sentences = []
    for run in runs:
        if not run.members:
            seed = f" (seed {run.settings.train.seed})" if run.settings else ""
            sentences.append(
                f"{run.name} is one run{seed}: how much the numbers change in a repetition is not known."
            )
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    if not any(evaluation.is_proven for evaluation in evaluations):
        sentences.append("No external test: how the model performs in another hospital is not known.")
    for evaluation in evaluations:
        if evaluation.is_external and not evaluation.is_proven:
            sentences.append(
                f"Not all images of {evaluation.dataset} could be compared with the training data: it may hold copies of them."
            )
        groups = evaluation.model["counts"]["groups"]
        if not evaluation.summary.get("patient_known", True):
            sentences.append(
                f"{evaluation.dataset} publishes no patient ids: its groups are the duplicates that were found. "
                "Images of one patient resemble each other, so the intervals are too narrow."
            )
        elif groups < 30:
            sentences.append(f"The interval on {evaluation.dataset} rests on {groups} patients.")
        if evaluation.summary["split"] == "val":
            sentences.append(
                f"The validation split of {evaluation.dataset} chose the epoch: its numbers are optimistic."
            )
    sentences += [
        "The files do not say whether these are consecutive patients. The share of malignant lesions may differ "
        "from that of a clinic, and every predictive value depends on it.",
        "Use by a reader, benefit for a patient and fitness for clinical use were not tested.",
    ]
    return list(dict.fromkeys(sentences))


# Descriptions


def network(run: RunRecord) -> str:
    """The network in one sentence without its full stop."""
    header = run.header or {}
    model = header.get("model") or (run.settings.model.model_dump() if run.settings else None)
    if not model:
        return "not known: neither the checkpoint nor the settings could be read"
    data = header if "size" in header else run.settings.data.model_dump() if run.settings else {}
    pixels = f"; input {network_input(data)} pixels" if data else ""
    # settings say what the heads weigh in the loss, a header which there are
    image = model.get("image_head", bool(run.settings and run.settings.heads.image))
    more = ", and normal, benign or malignant for the whole image" if image else ""
    return (
        f"U-Net decoder on a {model.get('encoder_name')} encoder, {network_parts(model)}{pixels}; "
        f"output: background, benign, malignant for every pixel{more}"
    )


def initial_weights(run: RunRecord) -> str:
    """What the training started from."""
    if ancestors := (run.header or {}).get("ancestors"):
        return "the weights of " + ", which was started from ".join(
            f"the run {one['run']} ({'+'.join(one.get('datasets', []))})" for one in ancestors
        )
    saved = (run.header or {}).get("model") or {}
    start = run.settings.model.encoder_weights if run.settings else saved.get("encoder_weights", "unknown")
    if start is not None and (origin := (run.header or {}).get("encoder_origin")):
        return f"an encoder with the weights {origin}; random elsewhere"
    named = {
        None: "random weights",
        "imagenet": "an encoder trained on ImageNet, random elsewhere",
        "unknown": "not known",
    }
    return named.get(start, "an encoder from a weights file, random elsewhere")


def commit(value: object) -> str:
    """The first twelve digits of a git commit; says so if the code had uncommitted changes."""
    text = str(value or "not recorded")
    return text if not value else text[:12] + (" with changes" if text.endswith("+") else "")


def settings_table(run: RunRecord) -> list[list[str]]:
    """Key and value of every setting that can change a result."""
    known = run.settings.flat() if run.settings else {}
    return [[key, _setting(value)] for key, value in known.items() if not key.startswith("runtime.")]


def _setting(value: Any) -> str:
    """The value of a setting; of a path only its last part."""
    if isinstance(value, str):
        return re.split(r"[/\\]", value)[-1]
    if isinstance(value, Sequence):
        return ", ".join(_setting(one) for one in value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# Figures


@dataclass(frozen=True)
class Picture:
    """A figure of the report. ``name``: its file name next to a Markdown page; ``alt``: what it shows."""

    path: Path
    name: str
    alt: str
    caption: str
    of_patients: bool = False


def pictures(run: RunRecord, evaluation: EvaluationRecord | None = None) -> Iterator[Picture]:
    """The figures of an evaluation, or those of the training, as far as their files are there."""
    folder = evaluation.folder if evaluation else run.folder
    known = FIGURES["evaluation" if evaluation else "training"]
    for figure, words in known.items():
        path = folder / f"{figure}.png"
        if is_png(path):
            where = f"{run.name} on {evaluation.dataset}" if evaluation else run.name
            names = [run.name, *([folder.name.removeprefix("eval-")] if evaluation else []), figure]
            alt = f"{words['title']}; {where}." + (" The tables hold its numbers." if evaluation else "")
            caption = f"{words['title']}. {words['caption']}"
            yield Picture(path, _png_name(*names), alt, caption, words.get("patients", False))


def examples(runs: Sequence[RunRecord]) -> list[Picture]:
    """The typical images of the first external evaluation, or of the first one: what a clinic looks at. At most one figure."""
    evaluations = [(run, one) for run in runs for one in (*run.external, *run.own)]
    found = (picture for run, one in evaluations[:1] for picture in pictures(run, one))
    return [picture for picture in found if picture.path.stem == "qualitative"]


def matrix_picture(path: Path) -> Picture | None:
    """The heat map of every run on every target; None where its file is not there."""
    words = FIGURES["runs"]["matrix"]
    return Picture(path, "matrix.png", words["title"], words["caption"]) if is_png(path) else None


def _png_name(*words: str) -> str:
    """A file name that is plain in a path, a link and on a command line; words that had to change get a hash."""
    name = "-".join(words)
    plain = re.sub(r"[^A-Za-z0-9._+-]+", "_", name)[:100]
    if plain != name:
        plain += f"-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"
    return f"{plain}.png"


def is_png(path: Path) -> bool:
    """Whether ``path`` is a file that begins as a PNG does."""
    try:
        with path.open("rb") as file:
            return file.read(8) == b"\x89PNG\r\n\x1a\n"
    except OSError:
        return False
