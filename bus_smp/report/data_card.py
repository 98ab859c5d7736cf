"""The facts of the data card: what the images are, which were left out and why, and how they were divided.

After "Datasheets for Datasets" (Gebru et al., CACM 64, 2021), as far as a manifest can answer it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.exclusions import describe_code, exclusion_code
from bus_smp.data.manifest import SPLITS, manifest_hash
from bus_smp.report.records import EvaluationRecord, RunRecord
from bus_smp.text import shortened

# images named per reason; the manifest names all
_NAMED = 5


def data_cards(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """A card for each data set that was trained on or scored, with everything it was used for.

    Returns:
        dicts of ``name, sources, images, used, unit, groups, labels, splits, how, excluded, audits, uses, sha256``;
        ``labels`` or ``splits`` is empty where only the other is known.
    """
    cards: dict[str, dict[str, Any]] = {}
    uses: dict[str, list[str]] = {}
    for run in runs:
        tables = run.manifest.frame.groupby("dataset", sort=True) if run.manifest is not None else ()
        for name, rows in tables:
            digest = manifest_hash(rows)
            uses.setdefault(digest, []).append(f"training, validation and own test of {run.name}")
            if digest not in cards:
                cards[digest] = _trained_on(str(name), rows, dict(run.sidecars).get(str(name), {}))
    for run in runs:
        for evaluation in run.external:
            if evaluation.data is not None:
                digest = str(evaluation.data.get("sha256", "not recorded"))
                proven = "external test" if evaluation.is_proven else "test not known to be external"
                used = f"{proven} of {run.name}: all used images, whatever their split"
                uses.setdefault(digest, []).append(used)
                if digest not in cards:
                    cards[digest] = _scored(evaluation, evaluation.data)
    return [{**card, "sha256": digest, "uses": uses[digest]} for digest, card in cards.items()]


def _trained_on(name: str, rows: pd.DataFrame, about: Mapping[str, Any]) -> dict[str, Any]:
    used, excluded = rows[rows["excluded"] == ""], rows[rows["excluded"] != ""]
    splits = []
    for split in SPLITS:
        part = used[used["split"] == split]
        labels = [int((part["label"] == label).sum()) for label in LABELS]
        splits.append([split, len(part), *labels, part["group_id"].nunique()])
    reasons = [
        [describe_code(code), len(part), _examples(sorted(part["image_id"].astype(str)))]
        for code, part in excluded.groupby(excluded["excluded"].map(exclusion_code), sort=True)
    ]
    return {
        "name": name,
        "sources": [about.get("source") or {}],
        "images": len(rows),
        "used": len(used),
        "unit": "patients" if used["patient_known"].all() else "groups",
        "groups": used["group_id"].nunique(),
        "labels": {},
        "splits": splits,
        "how": str((about.get("splits") or {}).get("how", "as recorded in the manifest")),
        "excluded": reasons,
        "audits": list(_audits([(name, about)])),
    }


def _scored(evaluation: EvaluationRecord, data: Mapping[str, Any]) -> dict[str, Any]:
    """From the ``data.json`` of an evaluation."""
    examples = {
        reason: of.get("images") or []
        for _, about in evaluation.sidecars
        for reason, of in ((about.get("audit") or {}).get("excluded") or {}).items()
    }
    return {
        "name": evaluation.dataset,
        "sources": [about.get("source") or {} for _, about in evaluation.sidecars] or [{}],
        "images": data.get("images", 0),
        "used": data.get("used", 0),
        "unit": "patients" if data.get("patients_known") else "groups",
        "groups": data.get("groups", 0),
        "labels": data.get("labels") or {},
        "splits": [],
        "how": "",
        "excluded": [
            [describe_code(str(reason)), number, _examples(examples.get(reason, []))]
            for reason, number in (data.get("excluded") or {}).items()
        ],
        "audits": list(_audits(evaluation.sidecars)),
    }


def _examples(images: Sequence[str]) -> str:
    return shortened([str(image) for image in images], _NAMED) or "-"


def _audits(sidecars: Sequence[tuple[str, Mapping[str, Any]]]) -> Iterator[dict[str, Any]]:
    """What the audit of each data set found: ``name``, ``findings`` as (words, images), and ``notes``."""
    for name, about in sidecars:
        audit, splits = about.get("audit") or {}, about.get("splits") or {}
        findings = [
            [str(finding.get("what", flag)), finding["count"]]
            for flag, finding in (audit.get("findings") or {}).items()
        ]
        notes = []
        if kinds := [pair[2] for pair in audit.get("pairs") or []]:
            policy = (about.get("options") or {}).get("duplicates")
            notes.append(
                f"Pairs of equal pixels: {kinds.count('exact'):,}; verified near-duplicate pairs: "
                f"{kinds.count('near'):,}; policy for both: {policy}. No pair is divided by a split."
            )
        for group, patients in (audit.get("merged_groups") or {}).items():
            if len(patients) > 1 and splits.get("unit") == "patients":
                notes.append(f"{' and '.join(patients)} share the same images: they are one group, {group}.")
        for texts in (audit.get("notes"), splits.get("notes"), splits.get("warnings")):
            notes += [str(text) for text in texts or []]
        yield {"name": name, "findings": findings, "notes": notes}
