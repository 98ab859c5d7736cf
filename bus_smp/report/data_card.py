"""The data card: what the images are, which were left out and why, how they were divided, and whose they are.

After "Datasheets for Datasets" (Gebru et al., CACM 64, 2021), as far as a manifest can answer it.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.exclusions import describe_code, exclusion_code
from bus_smp.data.manifest import SPLITS, manifest_hash
from bus_smp.report.blocks import Block, Bullets, Paragraph, Section, Table, Text, link
from bus_smp.report.records import Evaluation, Run

_EXCLUDED = ("reason", "images", "for example")
_NAMED = 5  # images named per reason; the manifest names all


def data_card(runs: Sequence[Run]) -> Section:
    """A section for each manifest that was trained on or scored, with all that it was used for."""
    uses: dict[str, list[str]] = {}
    told: dict[str, Callable[[], Section]] = {}
    for run in runs:
        if run.manifest is None:
            continue
        for name, rows in run.manifest.frame.groupby("dataset", sort=True):
            digest = manifest_hash(rows)
            uses.setdefault(digest, []).append(f"training, validation and own test of {run.name}")
            about = dict(run.sidecars).get(str(name), {})
            told.setdefault(digest, partial(_trained_on, str(name), rows, about, digest, uses))
    for run in runs:
        for evaluation in run.evaluations:
            if evaluation.summary["external"] and evaluation.data is not None:
                digest = str(evaluation.data.get("sha256", "not recorded"))
                uses.setdefault(digest, []).append(
                    f"external test of {run.name}: all used images, whatever their split"
                )
                told.setdefault(digest, partial(_scored, evaluation, digest, uses))
    return Section(
        "Data card", [tell() for tell in told.values()] or [Paragraph("No manifest could be read.")]
    )


def _trained_on(
    name: str, rows: pd.DataFrame, about: Mapping[str, Any], digest: str, uses: Mapping[str, list[str]]
) -> Section:
    used = rows[rows["excluded"] == ""]
    known = bool(used["patient_known"].all())
    facts = [
        *_source(about),
        ["images", f"{len(rows):,}, of which {len(used):,} are used"],
        [
            "patients" if known else "groups",
            f"{used['group_id'].nunique():,}"
            + ("" if known else " (no patient ids for all: duplicates that were found)"),
        ],
        ["used as", "; ".join(uses[digest])],
        ["manifest", f"sha256 {digest}"],
    ]
    blocks: list[Block] = [Table(f"{name}: what it is", ["", ""], facts, prose=True)]
    splits = [
        [
            split, f"{len(part):,}", *(f"{int((part['label'] == label).sum()):,}" for label in LABELS),
            f"{part['group_id'].nunique():,}",
        ]
        for split in SPLITS
        for part in [used[used["split"] == split]]
    ]  # fmt: skip
    how = str((about.get("splits") or {}).get("how", "as recorded in the manifest"))
    blocks.append(
        Table(
            f"{name}: splits ({how}); whole {'patients' if known else 'groups'}, none in two",
            ["split", "images", *LABELS, "patients" if known else "groups"],
            splits,
        )
    )
    blocks += _exclusions(name, rows)
    blocks += _audit(name, about)
    return Section(name, blocks)


def _source(about: Mapping[str, Any]) -> list[list[Text]]:
    source = about.get("source") or {}
    facts: list[list[Text]] = []
    if source.get("title"):
        facts.append(["title", str(source["title"])])
    facts.append(["cite", str(source.get("cite") or "not recorded: for the authors to add")])
    facts.append(["licence", str(source.get("licence") or "not recorded: for the authors to add")])
    if source.get("url"):
        facts.append(["source", [link(str(source["url"]), str(source["url"]))]])
    return facts


def _exclusions(name: str, rows: pd.DataFrame) -> list[Block]:
    excluded = rows[rows["excluded"] != ""]
    if excluded.empty:
        return [Paragraph(f"No image of {name} is excluded.")]
    cells: list[list[Text]] = []
    for code, part in excluded.groupby(excluded["excluded"].map(exclusion_code), sort=True):
        shown = part["image_id"] if code != "other" else part["excluded"].drop_duplicates()
        cells.append([describe_code(str(code)), f"{len(part):,}", _some(sorted(shown.astype(str)))])
    return [Table(f"{name}: excluded images, by reason", _EXCLUDED, cells, prose=True)]


def _audit(name: str, about: Mapping[str, Any]) -> list[Block]:
    audit = about.get("audit") or {}
    blocks: list[Block] = []
    found = [
        [str(finding.get("what", flag)), f"{finding['count']:,}"]
        for flag, finding in (audit.get("findings") or {}).items()
    ]
    if found:
        blocks.append(Table(f"{name}: what the audit found", ["finding", "images"], found))
    kinds = [pair[2] for pair in audit.get("pairs") or []]
    sentences = []
    if kinds:
        policy = (about.get("options") or {}).get("duplicates")
        sentences.append(
            f"Pairs of equal pixels: {kinds.count('exact'):,}; verified near-duplicate pairs: "
            f"{kinds.count('near'):,}; policy for both: {policy}. None is torn apart by a split."
        )
    for group, patients in (audit.get("merged_groups") or {}).items():
        if len(patients) > 1 and (about.get("splits") or {}).get("unit") == "patients":
            sentences.append(f"The same pictures stand under {' and '.join(patients)}: one group, {group}.")
    sentences += [str(text) for text in audit.get("notes") or []]
    for key in ("notes", "warnings"):
        sentences += [str(text) for text in (about.get("splits") or {}).get(key) or []]
    if sentences:
        blocks.append(Bullets(sentences))
    return blocks


def _scored(evaluation: Evaluation, digest: str, uses: Mapping[str, list[str]]) -> Section:
    """Data that was only scored, from the evaluation's own ``data.json``."""
    name, data = evaluation.dataset, evaluation.data or {}
    unit = (
        "patients"
        if data.get("patients_known")
        else "groups (no patient ids for all: duplicates that were found)"
    )
    facts = [fact for _, about in evaluation.sidecars for fact in _source(about)] or _source({})
    facts += [
        ["images", f"{data.get('images', 0):,}, of which {data.get('used', 0):,} are used"],
        [
            "labels of these",
            ", ".join(f"{number:,} {label}" for label, number in (data.get("labels") or {}).items()),
        ],
        [
            unit.split(" ")[0],
            f"{data.get('groups', 0):,}{unit.removeprefix('groups').removeprefix('patients')}",
        ],
        ["used as", "; ".join(uses[digest])],
        ["manifest", f"sha256 {digest}"],
    ]
    blocks: list[Block] = [Table(f"{name}: what it is", ["", ""], facts, prose=True)]
    examples = {
        kind: of.get("images") or []
        for _, about in evaluation.sidecars
        for kind, of in ((about.get("audit") or {}).get("excluded") or {}).items()
    }
    excluded: list[list[Text]] = [
        [describe_code(str(kind)), f"{number:,}", _some(examples.get(kind, [])) or "-"]
        for kind, number in (data.get("excluded") or {}).items()
    ]
    if excluded:
        blocks.append(Table(f"{name}: excluded images, by reason", _EXCLUDED, excluded, prose=True))
    for told, about in evaluation.sidecars:
        blocks += _audit(told, about)
    return Section(name, blocks)


def _some(images: Sequence[str]) -> str:
    return ", ".join(str(image) for image in images[:_NAMED]) + (", ..." if len(images) > _NAMED else "")
