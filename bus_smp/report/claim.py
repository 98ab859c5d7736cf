"""The CLAIM checklist, answered as far as the files can; what only the authors know is marked for them.

Numbers and wording of the items: Tejani et al., Checklist for Artificial Intelligence in Medical Imaging
(CLAIM): 2024 Update, Radiology: Artificial Intelligence 6(4):e240300, 2024, doi 10.1148/ryai.240300.
"""

from collections.abc import Callable

from bus_smp.report.blocks import Heading, Link, Paragraph, Section, Table, Text
from bus_smp.report.findings import limits
from bus_smp.report.model_card import architecture, weights_from, weights_sha256
from bus_smp.report.provenance import best_epoch, commit, evaluated, hardware
from bus_smp.report.records import Run

ANSWERED, PART, AUTHORS = "answered", "in part", "for the authors"

Answer = tuple[str, str]


def claim_section(run: Run) -> Section:
    """All 44 items for one run: the item, whether the files answer it, and the answer."""
    rows: list[list[Text] | Heading] = []
    for heading, items in _ITEMS.items():
        rows.append(Heading(heading))
        for number, words, answer in items:
            state, text = answer(run) if callable(answer) else answer
            rows.append([f"{number}. {words}", state, text])
    states = [row[1] for row in rows if not isinstance(row, Heading)]
    counted = "; ".join(f"{states.count(state)} {state}" for state in (ANSWERED, PART, AUTHORS))
    source = Link("CLAIM 2024 Update", "https://doi.org/10.1148/ryai.240300")
    return Section(
        f"CLAIM checklist: {run.name}",
        [
            Paragraph(
                [
                    "Items of the ",
                    source,
                    " (Tejani et al., Radiology: Artificial Intelligence 2024), answered from the run's "
                    f"files: {counted}. What is missing from an answer in part is for the authors too.",
                ]
            ),
            Table("CLAIM 2024", ["item", "answered?", "answer"], rows, prose=True),
        ],
    )


def _data_sources(run: Run) -> Answer:
    told = [
        f"{name}: {(about.get('source') or {}).get('cite', 'source not recorded')}"
        for name, about in run.sidecars
    ]
    told += [
        f"{name} (scored only): {(about.get('source') or {}).get('cite', 'source not recorded')}"
        for evaluation in evaluated(run, external=True)
        for name, about in evaluation.sidecars
    ]
    return (
        (PART, ". ".join(told) + ". When and where patients were imaged: see the publishers.")
        if told
        else (AUTHORS, "")
    )


def _preprocessing(run: Run) -> Answer:
    header = run.header
    if header is None:
        return AUTHORS, "The checkpoint could not be read."
    return ANSWERED, (
        f"Decoded to 8-bit RGB, stretched to {header.get('size')} x {header.get('size')} pixels, normalised "
        f"with mean {header.get('mean')} and standard deviation {header.get('std')}. Predictions are brought "
        "back to the image's own size before anything is measured."
    )


def _subsets(run: Run) -> Answer:
    fold = run.settings.data.fold if run.settings is not None and hasattr(run.settings.data, "fold") else None
    if run.members and fold is not None:
        return ANSWERED, "Cross-validation: each run leaves out one fold for testing. No other subset."
    return (
        ANSWERED,
        "All images that the manifest does not exclude; the exclusions and their reasons are in the data "
        "card.",
    )


def _partitions(run: Run) -> Answer:
    if run.manifest is None:
        return AUTHORS, "The manifest could not be read."
    used = run.manifest.used()
    counts = used["split"].value_counts()
    how = {str((about.get("splits") or {}).get("how", "as recorded")) for _, about in run.sidecars}
    sizes = ", ".join(f"{counts.get(split, 0):,} {split}" for split in ("train", "val", "test"))
    return (
        ANSWERED,
        f"{'; '.join(sorted(how)) or 'as recorded'}; whole groups, stratified by label: {sizes} images.",
    )


def _disjoint(run: Run) -> Answer:
    if run.manifest is None:
        return AUTHORS, "The manifest could not be read."
    known = bool(run.manifest.used()["patient_known"].all())
    unit = "patient" if known else "group of duplicates (patients are not known for all images)"
    return ANSWERED, (
        f"The {unit}, merged with whoever shares a picture or a verified near-duplicate. Proven when the "
        "manifest is read; an external target that shares a group or a picture is refused."
    )


def _sample_size(run: Run) -> Answer:
    sizes = "; ".join(
        f"{evaluation.dataset}: {evaluation.model['counts']['images']:,} images of "
        f"{evaluation.model['counts']['groups']:,} groups"
        for evaluation in run.evaluations
    )
    return (
        PART,
        f"Scored: {sizes}. What these sizes allow to conclude is in the intervals; how they were planned is "
        "for the authors.",
    )


def _software(run: Run) -> Answer:
    return (ANSWERED if run.environment else AUTHORS), hardware(run)


def _training(run: Run) -> Answer:
    if run.settings is None:
        return AUTHORS, "The settings could not be read."
    train, loss, augment = run.settings.train, run.settings.loss, run.settings.augment
    augmented = "augmentation that does not depend on the class" if augment.enabled else "no augmentation"
    stop = (
        f"early stopping after {train.patience} epochs without a better validation Dice"
        if train.patience
        else "no early stopping"
    )
    return ANSWERED, (
        f"AdamW, learning rate {train.lr:g} with cosine annealing, weight decay {train.weight_decay:g}, "
        f"batch {train.batch_size}, up to {train.epochs} epochs, {stop}; cross entropy x "
        f"{loss.cross_entropy:g} + Dice x {loss.dice:g} at every head; {augmented}; "
        f"{'classes balanced in sampling' if train.balanced_sampling else 'images drawn evenly'}; seed "
        f"{train.seed}. All settings are in the model card."
    )


def _selection(run: Run) -> Answer:
    kept = best_epoch(run)
    which = f" Here epoch {kept[0]}." if kept else ""
    return (
        ANSWERED,
        f"The epoch with the highest lesion Dice on the validation split.{which} No test image was looked "
        "at.",
    )


def _calibrated(run: Run) -> bool:
    return any(
        (evaluation.summary.get("calibration") or {}).get("temperature") is not None
        for evaluation in run.evaluations
    )


def _metrics(run: Run) -> Answer:
    more = ", calibration (Brier score, ECE)" if _calibrated(run) else ""
    return ANSWERED, (
        "Dice, IoU, sensitivity, specificity and precision of outlines, never filled in where undefined; "
        "missed lesions; false alarms on normal images; AUC, sensitivity and specificity for malignancy by "
        f"image{more}; two baselines on the same images."
    )


def _uncertainty(run: Run) -> Answer:
    bootstrap = run.evaluations[0].model.get("bootstrap") or {}
    return ANSWERED, (
        f"{100 * bootstrap.get('confidence', 0.95):g} % intervals from {bootstrap.get('draws', 0):,} "
        "bootstrap draws of whole groups; none is given where it would mislead, and the reason is."
    )


def _robustness(run: Run) -> Answer:
    parts = []
    if any(evaluation.model.get("strata") for evaluation in run.evaluations):
        parts.append("by lesion size, class, flags and data set")
    if run.members:
        parts.append("over repeated runs (mean and sd)")
    if evaluated(run, external=True):
        parts.append("on external data")
    return (PART, f"Measured {', '.join(parts)}.") if parts else (AUTHORS, "")


def _internal(run: Run) -> Answer:
    own = evaluated(run, external=False)
    if not own:
        return AUTHORS, f"Not evaluated; make it with: bus-smp evaluate --run {run.name}"
    return ANSWERED, "; ".join(f"{evaluation.dataset}, {evaluation.kind}" for evaluation in own) + "."


def _external(run: Run) -> Answer:
    others = evaluated(run, external=True)
    if not others:
        return AUTHORS, f"None; make one with: bus-smp crosseval --run {run.name} --target NAME"
    tested = "; ".join(f"{one.dataset}, {one.model['counts']['images']:,} images" for one in others)
    return ANSWERED, f"{tested}: no data set, group or picture in common with training."


def _numbers(run: Run) -> Answer:
    if run.manifest is None:
        return AUTHORS, "The manifest could not be read."
    frame, used = run.manifest.frame, run.manifest.used()
    unit = "patients" if bool(used["patient_known"].all()) else "groups"
    return ANSWERED, (
        f"{len(frame):,} images, {len(frame) - len(used):,} excluded, {len(used):,} of "
        f"{used['group_id'].nunique():,} {unit} used; reasons in the data card."
    )


def _limits(run: Run) -> Answer:
    return PART, " ".join(limits([run]))


def _availability(run: Run) -> Answer:
    weights = weights_sha256(run)
    made = commit((run.header or {}).get("git_commit"))
    hashed = f" Weights: sha256 {weights}." if weights else ""
    return (
        PART,
        f"Software: bus_smp, MIT licence, commit {made}.{hashed} Data: licences in the data card. Where the "
        "weights can be had: the authors.",
    )


_FOR_AUTHORS: Answer = (AUTHORS, "")
_ITEMS: dict[str, list[tuple[int, str, Answer | Callable[[Run], Answer]]]] = {
    "Title and abstract": [
        (1, "Identification as a study of AI methodology, specifying the category of technology used "
            "(e.g., deep learning)",
         (PART, "Deep learning: a convolutional network for segmentation. The title is the authors'.")),
        (2, "Summary of study design, methods, results, and conclusions",
         (PART, "The results: see the short answer at the top.")),
    ],
    "Introduction": [
        (3, "Scientific and/or clinical background, including the intended use and role of the AI approach",
         (PART, "Intended use: see the model card. Background and clinical role are the authors'.")),
        (4, "Study aims, objectives, and hypotheses", _FOR_AUTHORS),
    ],
    "Methods: study design": [
        (5, "Prospective or retrospective study",
         (PART, "Retrospective as far as the files tell: images collected before the model was made.")),
        (6, "Study goal", _FOR_AUTHORS),
    ],
    "Methods: data": [
        (7, "Data sources", _data_sources),
        (8, "Inclusion and exclusion criteria",
         (PART, "Of images: the reasons in the data card. Of patients: see the publishers.")),
        (9, "Data pre-processing", _preprocessing),
        (10, "Selection of data subsets", _subsets),
        (11, "De-identification methods", _FOR_AUTHORS),
        (12, "How missing data were handled",
         (ANSWERED, "Images without a usable mask or label are excluded with their reason; missing patient "
                    "ids are said; undefined numbers are counted and never filled in.")),
        (13, "Image acquisition protocol", _FOR_AUTHORS),
    ],
    "Methods: reference standard": [
        (14, "Definition of method(s) used to obtain reference standard",
         (PART, "The publishers' masks and labels as they are; several masks of one image are joined. How "
                "they were drawn: see the publishers.")),
        (15, "Rationale for choosing the reference standard", _FOR_AUTHORS),
        (16, "Source of reference standard annotations", (PART, "The publishers of the data sets (item 7).")),
        (17, "Annotation of test set", (PART, "As published; nothing was annotated again.")),
        (18, "Measures of inter- and intra-rater variability of features described by the annotators",
         _FOR_AUTHORS),
    ],
    "Methods: data partitions": [
        (19, "How data were assigned to partitions", _partitions),
        (20, "Level at which partitions are disjoint", _disjoint),
    ],
    "Methods: testing data": [(21, "Intended sample size", _sample_size)],
    "Methods: model": [
        (22, "Detailed description of model", lambda run: (ANSWERED, f"{architecture(run)}.")),
        (23, "Software libraries, frameworks, and packages", _software),
        (24, "Initialization of model parameters",
         lambda run: (ANSWERED, f"{weights_from(run)}.")),
    ],
    "Methods: training": [
        (25, "Details of training approach", _training),
        (26, "Method of selecting the final model", _selection),
        (27, "Ensembling techniques", (ANSWERED, "None: every prediction is that of one network.")),
    ],
    "Methods: evaluation": [
        (28, "Metrics of model performance", _metrics),
        (29, "Statistical measures of significance and uncertainty", _uncertainty),
        (30, "Robustness or sensitivity analysis", _robustness),
        (31, "Methods for explainability or interpretability",
         (PART, "None beyond the outlines, which show where a lesion is seen and of which kind.")),
        (32, "Evaluation on internal data", _internal),
        (33, "Testing on external data", _external),
        (34, "Clinical trial registration", _FOR_AUTHORS),
    ],
    "Results: data": [
        (35, "Numbers of patients or examinations included and excluded", _numbers),
        (36, "Demographic and clinical characteristics of cases in each partition",
         (PART, "Labels by split: see the data card. Age and clinical findings are not in the manifests.")),
    ],
    "Results: model performance": [
        (37, "Performance metrics and measures of statistical uncertainty",
         (ANSWERED, "The tables of each evaluation, every number with its interval and n.")),
        (38, "Estimates of diagnostic performance and their precision",
         (ANSWERED, "Sensitivity, specificity and AUC for malignancy with intervals, in the same tables.")),
        (39, "Failure analysis of incorrect results",
         (ANSWERED, "Confusion matrices, failures by file name, and numbers by stratum.")),
    ],
    "Discussion": [
        (40, "Study limitations", _limits),
        (41, "Implications for practice, including intended use and/or clinical role",
         (PART, "None for practice: research software, not for clinical use.")),
    ],
    "Other information": [
        (42, "Provide a reference to the full study protocol or to additional technical details",
         (PART, "Technical details: config.yaml, manifest.csv and environment.json of the run.")),
        (43, "Statement about the availability of software, trained model, and/or data", _availability),
        (44, "Sources of funding and other support; role of funders", _FOR_AUTHORS),
    ],
}  # fmt: skip
