"""One evaluation as a section of a report: tables, figures, strata, failures by name, operating points."""

import math
from collections.abc import Iterator

import pandas as pd

from bus_smp.figures.lesions import stratum_name
from bus_smp.report.blocks import (
    Block,
    Code,
    Figure,
    Heading,
    Paragraph,
    Section,
    Table,
    Text,
    is_png,
    png_name,
)
from bus_smp.report.findings import said
from bus_smp.report.records import Evaluation, Run
from bus_smp.statistics.metrics import BY_KEY, HEADLINES

_LISTED = 12  # failures of a kind that are named; per_image.csv holds all

# File -> what it shows, and how to read it.
FIGURES = {
    "roc_curves": (
        "ROC curves of lesion, benign and malignant pixels and of malignant images",
        "Sensitivity against false positives for every threshold. The diagonal is chance. Of pixels, most "
        "are easy background, so those curves look better than the outlines are; the curve of images is the "
        "one that asks for malignancy.",
    ),
    "confusion_matrix": (
        "Confusion matrices of whole images and of pixels",
        "Rows are the truth, columns the prediction; a cell holds the count and its share of the row. An "
        "image is called what most of its predicted lesion pixels are.",
    ),
    "calibration": (
        "Reliability diagrams of lesion pixels and of malignant images, and error against coverage",
        "Left and middle: among predictions of a given probability, how often it came true; on the diagonal "
        "the probabilities can be taken at their word, below it the model is too sure. The strip counts the "
        "predictions. Right: the error if only the surest images are called; a curve that rises from left to "
        "right means the model knows where it is unsure.",
    ),
    "detection": (
        "FROC curves: lesions found against false lesions per image",
        "Lesion by lesion, matched where prediction and truth overlap with an IoU of at least 0.1 (found) or "
        "0.5 (outlined). The marker is the point where every predicted lesion counts.",
    ),
    "difficulty": (
        "Lesion Dice and missed lesions by lesion size, class, flag and data set",
        "The same numbers within parts of the data; n shows how much each rests on. Sizes are thirds of "
        "these images' lesions.",
    ),
    "agreement": (
        "Bland-Altman plot of lesion area, and truth against prediction for depth-to-width ratio, "
        "circularity and solidity",
        "Area: the difference against the mean of the two; between the dashed lines lie about 95 % of the "
        "differences if they are normally distributed. The others: on the diagonal prediction and truth "
        "measure the same. Images whose lesion was missed are not in it.",
    ),
    "qualitative": (
        "Best, median and worst images by lesion Dice, with truth and prediction",
        "Chosen by rank, not by hand. Malignant areas are hatched, benign ones even; the white outline is "
        "the truth.",
    ),
    "failures": (
        "Failure gallery: missed lesions, false alarms and wrong classes, with file names",
        "Each row is one image with its file name; the lists below name more of them.",
    ),
}  # fmt: skip


def evaluation_section(run: Run, evaluation: Evaluation, title: str) -> Section:
    """Everything about one evaluation.

    Args:
        title: names the run too where the report is about several.
    """
    parts = (_scored, _table, _figures, _strata, _agreement, _failures, _calibration, _members, _legacy)
    return Section(title, [block for part in parts for block in part(run, evaluation)])


def _scored(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    counts, summary = evaluation.model["counts"], evaluation.summary
    labels = ", ".join(f"{number:,} {label}" for label, number in counts["by_label"].items())
    images = f"{counts['images']:,} images of {counts['groups']:,} groups ({labels})"
    lesions = f"; {counts['lesions_true']:,} lesions" if counts.get("lesions_true") is not None else ""
    how = []
    if evaluation.runs:
        how.append(f"Mean over {len(evaluation.runs)} runs on the same images; sd is between runs.")
    if summary.get("pooled"):
        how.append(f"Pooled from {', '.join(summary['pooled'])}.")
    checkpoint = summary.get("checkpoint") or {}
    if checkpoint.get("epoch") is not None:
        how.append(f"Weights of epoch {checkpoint['epoch']}.")
    if computed := evaluation.computed_in:
        backend = computed.get("backend", "torch")
        quantised = ", a quantised network" if evaluation.is_quantised else ""
        how.append(
            f"Computed in {computed.get('precision')} on {computed.get('device')} by {backend}{quantised}."
        )
    yield Paragraph(
        f"{evaluation.kind[0].upper()}{evaluation.kind[1:]}: {images}{lesions}. {' '.join(how)}".strip()
    )


def _table(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    rows: list = []
    above = None
    for heading, words, cells in evaluation.rows:
        if heading != above:
            rows.append(Heading(heading))
        above = heading
        rows.append([words, *cells])
    yield Table(f"{evaluation.dataset}: the model beside the baselines", ["", *evaluation.columns], rows)
    bootstrap = evaluation.model.get("bootstrap") or {}
    draws = f", {bootstrap['draws']:,} draws" if "draws" in bootstrap else ""
    yield Paragraph(
        f"In brackets the {100 * bootstrap.get('confidence', 0.95):g} % interval, bootstrap over groups "
        f"(patients, where known){draws}; where there is none, the reason. n: images the number is taken "
        "over; -: undefined. Images without the target never enter its Dice. Distances leave out images "
        "where nothing is predicted. Threshold: fixed on validation images; ROC: read off these images. "
        "Larger class: the one with more predicted pixels. Raw: before temperature."
    )


def _figures(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    for figure, (shows, how) in FIGURES.items():
        path = evaluation.folder / f"{figure}.png"
        if is_png(path):
            alt = f"{shows}; {run.name} on {evaluation.dataset}. Its numbers stand in the tables."
            name = png_name(run.name, evaluation.folder.name.removeprefix("eval-"), figure)
            yield Figure(path, name, alt, f"{shows}. {how}")


_STRATA = {"size": "lesion size", "class": "class", "flags": "flag", "dataset": "data set"}


def _strata(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    strata = evaluation.model.get("strata")
    if not strata:
        return
    rows: list = []
    for by, levels in strata.items():
        rows.append(Heading(f"By {_STRATA.get(by, by)}"))
        rows += [
            [
                stratum_name(level, of),
                f"{of['images']:,} ({of['groups']:,})",
                *(said(of.get(name)) for name in HEADLINES),
            ]
            for level, of in levels.items()
        ]
    head = ["", "images (groups)", *HEADLINES.values()]
    yield Section("By difficulty", [Table(f"{evaluation.dataset} by stratum", head, rows)])


_QUANTITIES = {
    "area": "area (pixels)",
    "depth_to_width": "depth to width",
    "circularity": "circularity",
    "solidity": "solidity",
}


def _agreement(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    agreement = evaluation.model.get("agreement")
    if not agreement:
        return

    def number(of: dict, key: str, places: int = 3) -> str:
        value = of.get(key)
        return "-" if value is None or math.isnan(value) else f"{value:,.{places}f}"

    rows = [
        [
            _QUANTITIES.get(name, name), str(of.get("n", 0)),
            *(number(of, key, 0 if name == "area" else 3) for key in ("bias", "loa_low", "loa_high")),
            number(of, "r"),
        ]
        for name, of in agreement.items()
    ]  # fmt: skip
    head = ["", "n", "mean difference", "lower limit", "upper limit", "r"]
    caption = "Prediction minus truth: mean difference, limits of agreement (1.96 sd), correlation"
    yield Section("Size and shape of the outlines", [Table(caption, head, rows)])


# Failures


def _failures(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    if evaluation.failures is None:
        return
    blocks: list[Block] = [_failed(kind, rows) for kind, rows in evaluation.failures.items() if len(rows)]
    if blocks:
        told = "The worst of each kind, the gravest first; an image stands under the first kind that fits."
        blocks.insert(
            0, Paragraph([f"{told} All images are in ", Code(f"{evaluation.folder.name}/per_image.csv"), "."])
        )
    yield Section(
        "Failures by file name",
        blocks or [Paragraph("There is none: no lesion to miss, and no false alarm.")],
    )


def _failed(kind: str, rows: pd.DataFrame) -> Table:
    def number(row: dict, column: str) -> str:
        value = row.get(column, math.nan)
        return "-" if pd.isna(value) else f"{value:.3f}"

    several = rows["dataset"].nunique() > 1
    cells: list[list[Text]] = [
        [
            (f"{row['dataset']} / " if several else "") + str(row["image_id"]),
            str(row["label"]), str(row["predicted_label"]),
            number(row, "dice_lesion"), number(row, "false_alarm_area"), number(row, "malignant_score"),
            str(row.get("flags") or "").replace("|", ", ") or "-",
        ]
        for row in rows.head(_LISTED).to_dict("records")
    ]  # fmt: skip
    head = ["image", "label", "called", "Dice lesion", "false-alarm area", "malignant score", "flags"]
    shown = f", {_LISTED} of {len(rows):,}" if len(rows) > _LISTED else f", {len(rows):,}"
    return Table(f"{kind[0].upper()}{kind[1:]}{shown}", head, cells)


# Calibration and operating points

_BEFORE_AFTER = {key: metric.words for key, metric in BY_KEY.items() if f"{key}_raw" in BY_KEY}


def _calibration(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    if "calibration" not in evaluation.summary:
        return
    fitted = evaluation.summary["calibration"] or {}
    blocks: list[Block] = []
    if fitted.get("temperature") is None:
        blocks.append(Paragraph(f"No calibration: {fitted.get('reason') or 'the run holds no temperature'}."))
    else:
        blocks.append(Paragraph(_fit(fitted)))
    rows = [
        [words, said(evaluation.estimate(f"{name}_raw")), said(evaluation.estimate(name))]
        for name, words in _BEFORE_AFTER.items()
        if evaluation.estimate(name) is not None
    ]
    pixels = evaluation.summary.get("pixel_calibration") or {}
    errors = [pixels.get("ece_before"), pixels.get("ece_after")]
    if any(error is not None for error in errors):
        rows.append(["ECE, lesion pixels", *("-" if error is None else f"{error:.3f}" for error in errors)])
    if rows:
        blocks.append(
            Table("Probabilities on the scored images (0 is best)", ["", "before temperature", "after"], rows)
        )
    thresholds = fitted.get("thresholds") or {}
    points = [
        ("Youden's J (sensitivity + specificity - 1)", fitted.get("threshold"), ""),
        ("90 % specificity", thresholds.get("specificity_90"), "_90"),
        ("95 % specificity", thresholds.get("specificity_95"), "_95"),
    ]
    rows = [
        [
            words, f"{threshold:.3f}",
            *(said(evaluation.estimate(f"called_{name}{ending}")) for name in ("sensitivity", "specificity")),
        ]
        for words, threshold, ending in points
        if threshold is not None
    ]  # fmt: skip
    if rows:
        head = [
            "chosen on the validation split for",
            "malignant score from",
            "sensitivity here",
            "specificity here",
        ]
        blocks.append(Table("Operating points: fixed on validation images, applied to these", head, rows))
    elif fitted.get("temperature") is not None:
        blocks.append(
            Paragraph(f"No operating point: {fitted.get('reason') or 'the run has no malignant threshold'}.")
        )
    read_off = [evaluation.estimate(f"sensitivity_at_{level}_specificity") for level in (90, 95)]
    if all(read_off):
        blocks.append(
            Paragraph(
                "Read off the ROC of these very images, and so descriptive only: sensitivity "
                f"{said(read_off[0])} at 90 % specificity, {said(read_off[1])} at 95 %."
            )
        )
    yield Section("Calibration and operating points", blocks)


def _fit(fitted: dict) -> str:
    images = f" {fitted['images']:,} images" if fitted.get("images") is not None else " images"
    groups = f" of {fitted['groups']:,} groups" if fitted.get("groups") is not None else ""
    loss = ""
    if fitted.get("nll_before") is not None and fitted.get("nll_after") is not None:
        before, after = fitted["nll_before"], fitted["nll_after"]
        loss = f"; there the negative log-likelihood went from {before:.4f} to {after:.4f}"
    return (
        f"Temperature {fitted['temperature']:.3f}, fitted on{images}{groups} of the validation split{loss}. "
        "Nothing was fitted on the images scored here."
    )


# Several runs, and the misleading numbers


def _members(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    if not evaluation.runs:
        return
    rows = [
        [name, f"{one['counts']['images']:,}", *(said(evaluation.estimate(key, one)) for key in HEADLINES)]
        for name, one in evaluation.runs.items()
    ]
    table = Table("Run by run", ["run", "images", *HEADLINES.values()], rows)
    note = (
        "The interval of a run is over other patients; the sd above is between runs. Neither holds the other."
    )
    yield Section("The runs behind the mean", [table, Paragraph(note)])


def _legacy(run: Run, evaluation: Evaluation) -> Iterator[Block]:
    legacy = evaluation.summary.get("legacy")
    if not legacy:
        return
    rows = [
        [name, *(f"{of[key]:.3f}" for key in ("dice_benign", "dice_malignant", "dice_mean"))]
        for name, of in legacy.items()
    ]
    yield Section(
        "The misleading numbers, for comparison",
        [
            Paragraph(
                "As the notebook counts that this project replaces: Dice is 1 for a class that is absent "
                "from truth and prediction, so predicting nothing scores high. Not a result.",
                "warning",
            ),
            Table("Misleading: Dice with absent classes = 1", ["", "benign", "malignant", "mean"], rows),
        ],
    )
