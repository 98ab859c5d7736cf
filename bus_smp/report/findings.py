"""What a report says first: the question, the answers, and what must be known before believing them."""

from collections.abc import Sequence

from bus_smp.report.blocks import Bullets, Paragraph, Section, Table
from bus_smp.report.records import Evaluation, Run
from bus_smp.statistics.metrics import HEADLINES


def short_answer(runs: Sequence[Run]) -> Section:
    """The question, an answer for each evaluation, and of several the headline numbers side by side."""
    asked = (
        "Asked: does the network find and outline breast lesions in ultrasound images, stay silent on normal "
        "ones, and tell malignant from benign? Each answer stands beside what needs no learning: predicting "
        "nothing, and marking the largest dark blob."
    )
    several = len(runs) > 1
    answers = [
        (f"{run.name} on " if several else "") + _answer(evaluation)
        for run in runs
        for evaluation in run.evaluations
    ]
    blocks = [Paragraph(asked), Bullets(answers)]
    if len(answers) > 1:
        rows = [
            [
                f"{run.name} on {evaluation.dataset}",
                evaluation.split.replace("all", "external")
                if evaluation.summary["external"]
                else evaluation.split,
                f"{evaluation.model['counts']['images']:,}",
                *(said(evaluation.estimate(name)) for name in HEADLINES),
            ]
            for run in runs
            for evaluation in run.evaluations
        ]
        head = ["run on data set", "split", "images", *HEADLINES.values()]
        blocks.append(Table("The evaluations side by side", head, rows))
    return Section("The short answer", blocks)


def said(estimate: dict | None) -> str:
    """An estimate as it is printed everywhere; ``-`` where there is none."""
    return "-" if estimate is None else estimate["text"]


def _answer(evaluation: Evaluation) -> str:
    counts = evaluation.model["counts"]
    size = f"{counts['images']:,} images of {counts['groups']:,} groups"
    where = f"{evaluation.dataset} ({evaluation.kind}; {size}): "
    dice, miss, alarms, auc = (evaluation.estimate(name) for name in HEADLINES)
    if dice is None or dice["mean"] is None:
        sentences = ["no image shows a lesion, so Dice is not defined."]
    else:
        sentences = [f"lesion Dice {said(dice)}, {_verdict(evaluation, dice)}."]
        if miss is not None:
            sentences.append(f"The lesion is missed on {said(miss)} of the lesion images.")
    if alarms is not None and alarms["mean"] is not None:
        sentences.append(f"There is a false alarm on {said(alarms)} of the normal images.")
    if auc is not None and auc["mean"] is not None:
        sentences.append(f"The AUC for malignancy by image is {said(auc)}; 0.500 is chance.")
    return where + " ".join(sentences)


def _verdict(evaluation: Evaluation, dice: dict) -> str:
    """The Dice against the better baseline's; "clearly" only where the intervals do not overlap."""
    baselines = {
        name: evaluation.estimate("dice_lesion", column)
        for name, column in list(evaluation.columns.items())[1:]
    }
    baselines = {name: one for name, one in baselines.items() if one is not None and one["mean"] is not None}
    if not baselines:
        return "without a baseline to compare it with"
    best = max(baselines, key=lambda name: baselines[name]["mean"])
    other = baselines[best]
    beside = f"the better baseline, {best} ({said(other)})"
    if dice["mean"] <= other["mean"]:
        return f"no better than {beside}"
    if dice["low"] is None:
        return f"above {beside}, but without an interval to tell whether by chance"
    if dice["low"] > (other["mean"] if other["high"] is None else other["high"]):
        return f"clearly above {beside}: the intervals do not overlap"
    return f"above {beside}, but the intervals overlap"


def warnings_first(runs: Sequence[Run]) -> Section:
    """Every warning of every evaluation, and what could not be read."""
    several = len(runs) > 1
    warnings = [
        (f"{run.name} on " if several else "") + f"{evaluation.dataset}: {warning}"
        for run in runs
        for evaluation in run.evaluations
        for warning in evaluation.summary["warnings"]
    ]
    missing = [(f"{run.name}: " if several else "") + sentence for run in runs for sentence in run.missing]
    blocks: list = [
        Bullets(warnings, "warning") if warnings else Paragraph("The evaluations gave no warning.")
    ]
    if missing:
        blocks.append(Section("What is missing", [Bullets(missing, "warning")]))
    return Section("Warnings", blocks)


def limits(runs: Sequence[Run]) -> list[str]:
    """What these results do not show, as far as the files tell; a sentence each."""
    sentences = []
    for run in runs:
        if not run.members:
            seed = f" (seed {run.settings.train.seed})" if run.settings else ""
            sentences.append(f"{run.name} is one run{seed}: how far a repetition would move is not known.")
    evaluations = [evaluation for run in runs for evaluation in run.evaluations]
    if not any(evaluation.summary["external"] for evaluation in evaluations):
        sentences.append("No external test: how the model does in another hospital is not known.")
    for evaluation in evaluations:
        counts = evaluation.model["counts"]
        if not evaluation.summary.get("patient_known", True):
            sentences.append(
                f"{evaluation.dataset} publishes no patient ids: its groups are duplicates that were found, "
                "and the intervals are too narrow by what images of one patient have in common."
            )
        elif counts["groups"] < 30:
            sentences.append(f"The interval on {evaluation.dataset} rests on {counts['groups']} patients.")
        if evaluation.summary["split"] == "val":
            sentences.append(
                f"The validation split of {evaluation.dataset} chose the epoch: its numbers are optimistic."
            )
    sentences.append(
        "Nothing in the files says that these are consecutive patients: the share of malignant lesions need "
        "not be that of a clinic, and with it the meaning of every predictive value."
    )
    sentences.append(
        "Nothing here tests use by a reader, benefit for a patient, or fitness for clinical use."
    )
    return list(dict.fromkeys(sentences))
