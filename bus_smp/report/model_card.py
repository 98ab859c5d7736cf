"""The model card: what the model is for, what it is not for, what it was made from, and where it fails.

Its sections are those of "Model Cards for Model Reporting" (Mitchell et al., FAT* 2019).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bus_smp import __version__
from bus_smp.report.blocks import Block, Bullets, Paragraph, Section, Table, Text
from bus_smp.report.findings import limits, said
from bus_smp.report.provenance import best_epoch, commit
from bus_smp.report.records import Run
from bus_smp.statistics.metrics import HEADLINES

INTENDED = (
    "Research on segmentation of breast ultrasound: comparing methods, studying how models carry over "
    "between hospitals, drafting outlines that a person then corrects."
)
OUT_OF_SCOPE = (
    "Diagnosis, triage or screening, and every other use on patients: not a medical device, not cleared by "
    "any authority.",
    "Images that are not B-mode breast ultrasound; Doppler, elastography and two pictures in one image are "
    "judged as they come.",
    "Decisions about a single lesion: read first how many are missed, and how many called the wrong class.",
)


def model_card(run: Run) -> Section:
    """Everything about the model of a run that its files tell."""
    parts = (_details, _use, _factors, _training, _results, _ethics, _caveats)
    return Section(f"Model card: {run.name}", [block for part in parts for block in part(run)])


def architecture(run: Run) -> str:
    """The network in a sentence; says so where it is not known."""
    model = (run.header or {}).get("model")
    if not model and run.settings is not None:
        model = run.settings.model.model_dump()
    if not model:
        return "not known: neither the checkpoint nor the settings could be read"
    extras = [str(model[key]) for key in ("attention", "bottleneck") if model.get(key)]
    heads = "heads at full, 1/2, 1/4 and 1/8 size" if model.get("deep_supervision") else "one head"
    size = (run.header or {}).get("size") or (run.settings.data.size if run.settings else None)
    pixels = f"; input RGB stretched to {size} x {size} pixels" if size else ""
    network = f"U-Net decoder on a {model.get('encoder_name')} encoder, {', '.join([heads, *extras])}"
    return f"{network}{pixels}; output: background, benign, malignant for every pixel"


def weights_from(run: Run) -> str:
    """What the weights started from."""
    model: Mapping[str, Any] = (run.header or {}).get("model") or {}
    start = run.settings.model.encoder_weights if run.settings else model.get("encoder_weights", "unknown")
    if start is None:
        return "random weights"
    if start == "imagenet":
        return "an encoder trained on ImageNet, random elsewhere"
    return "an encoder from a weights file, random elsewhere" if start != "unknown" else "not known"


def weights_sha256(run: Run) -> str | None:
    """Hash of the checkpoint that was scored, as the evaluations recorded it."""
    checkpoints = [evaluation.summary.get("checkpoint") or {} for evaluation in run.evaluations]
    return next((str(one["sha256"]) for one in checkpoints if one.get("sha256")), None)


def _details(run: Run) -> list[Block]:
    header, weights = run.header or {}, weights_sha256(run)
    versions = header.get("versions") or {}
    kept = best_epoch(run)
    rows: list[list[Text]] = [
        ["architecture", architecture(run)],
        ["started from", weights_from(run)],
        [
            "weights",
            f"best.safetensors, sha256 {weights}"
            if weights
            else "best.safetensors; its sha256 is not recorded",
        ],
        ["epoch", str(kept[0]) if kept else "not known"],
        ["trained on", run.trained_on],
        ["manifest", f"sha256 {header['manifest_sha256']}" if header.get("manifest_sha256") else "not known"],
        [
            "versions",
            ", ".join(f"{name} {version}" for name, version in sorted(versions.items())) or "not recorded",
        ],
        ["commit", commit(header.get("git_commit"))],
        [
            "code licence",
            "MIT; the weights inherit the terms of the training data: check them in the data card",
        ],
        ["report by", f"bus_smp {__version__}"],
        ["contact", "for the authors to add"],
    ]
    if run.members:
        names = ", ".join(str(member.get("run")) for member in run.members)
        rows.insert(0, ["runs", f"{names}; what follows is of the first"])
    return [Table("Model details", ["", ""], rows, prose=True)]


def _use(run: Run) -> list[Block]:
    return [
        Section("Intended use", [Paragraph(INTENDED)]),
        Section("Out of scope", [Bullets(OUT_OF_SCOPE)]),
    ]


def _factors(run: Run) -> list[Block]:
    found = sorted({by for evaluation in run.evaluations for by in evaluation.model.get("strata") or {}})
    names = {
        "size": "lesion size",
        "class": "class",
        "flags": "flags such as Doppler and marks",
        "dataset": "data set",
    }
    measured = ", ".join(names.get(by, by) for by in found) or "none: the evaluation has no strata"
    return [
        Section(
            "Factors",
            [
                Paragraph(
                    f"Measured apart: {measured}. Not in the data, so not measured: age, breast density, "
                    "scanner settings, operator, origin of the patients."
                )
            ],
        )
    ]


def _training(run: Run) -> list[Block]:
    if run.settings is None:
        return [Section("Training", [Paragraph("The settings could not be read.")])]
    rows: list[list[Text]] = [
        [key, _value(value)] for key, value in run.settings.flat().items() if not key.startswith("runtime.")
    ]
    return [Section("Training", [Table("Settings", ["setting", "value"], rows)])]


def _value(value: Any) -> str:
    """A setting's value; of a path the name alone."""
    if isinstance(value, str) and ("/" in value or "\\" in value):
        return value.replace("\\", "/").rsplit("/", 1)[-1]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_value(one) for one in value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _results(run: Run) -> list[Block]:
    rows = [
        [
            f"{evaluation.dataset} ({evaluation.split})",
            *(said(evaluation.estimate(name)) for name in HEADLINES),
        ]
        for evaluation in run.evaluations
    ]
    return [
        Section("Quantitative analyses", [Table("Headline numbers", ["data set", *HEADLINES.values()], rows)])
    ]


def _ethics(run: Run) -> list[Block]:
    return [
        Section(
            "Ethical considerations",
            [
                Paragraph(
                    "A missed malignant lesion harms more than a false alarm; the numbers weigh both alike. "
                    "Consent, ethics approval and de-identification were the publishers' of the images; for "
                    "the authors to cite."
                )
            ],
        )
    ]


def _caveats(run: Run) -> list[Block]:
    return [Section("Caveats and recommendations", [Bullets(limits([run]))])]
