"""What ``make-manifest`` found and did: as JSON values for the sidecar, and as text for people."""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.audit import FLAGS
from bus_smp.data.copies import find_named_copies
from bus_smp.data.exclusions import ANSWERS, describe_code, exclusion_code
from bus_smp.data.near_duplicates.search import DISGUISES
from bus_smp.data.rows import DatasetRows
from bus_smp.data.sources._tree import natural_key
from bus_smp.text import WIDTH, counted, folded, shortened

# Images named per finding in the text; the sidecar names all.
_NAMED = 4

# Patients whose spellings a note lists.
_SPELLED = 10


def describe_audit(rows: DatasetRows, frame: pd.DataFrame, notes: Sequence[str]) -> dict:
    """The audit as plain JSON values, every finding with its images.

    Args:
        frame: the rows with their splits.
        notes: sentences to keep with it.
    """
    flags = frame["flags"].str.split("|")
    plain = flags.map(lambda names: {name.partition(":")[0] for name in names} - {""})
    order = [*FLAGS, *sorted(set().union(*plain) - set(FLAGS))]
    findings = {}
    for flag in order:
        images = frame.loc[plain.map(lambda names, flag=flag: flag in names), "image_id"].tolist()
        if images:
            findings[flag] = {"what": FLAGS.get(flag, flag), "count": len(images), "images": images}
    excluded: dict[str, dict] = {}
    for image, cell in zip(frame["image_id"], frame["excluded"], strict=True):
        if cell:
            same = excluded.setdefault(exclusion_code(cell), {"count": 0, "images": []})
            same["count"] += 1
            same["images"].append(image)
    spellings = _find_spellings(rows)
    spelled = {other: names[0] for names in spellings for other in names}
    patient = frame["patient_id"].map(lambda name: spelled.get(name, name))
    merged = frame[["group_id"]].assign(patient_id=patient).drop_duplicates()
    merged = merged[merged.duplicated("group_id", keep=False)].groupby("group_id")["patient_id"].agg(list)
    return {
        "rows": len(frame),
        "used": int((frame["excluded"] == "").sum()),
        "groups": int(frame["group_id"].nunique()),
        "patients": int(patient[frame["patient_known"].astype(bool)].nunique()),
        "labels": {label: int((frame["label"] == label).sum()) for label in LABELS},
        "findings": findings,
        "excluded": dict(sorted(excluded.items())),
        "merged_groups": merged.to_dict(),
        "other_datasets": rows.others,
        "pairs": [list(pair) for pair in rows.pairs],
        "notes": [
            *notes,
            *_spelling_note(spellings),
            *_named_copies_note(frame),
            *rows.folder.answers.unused(set().union(*plain)),
        ],
        **({"spellings": spellings} if spellings else {}),
    }


def _find_spellings(rows: DatasetRows) -> list[list[str]]:
    """Patient ids that are spellings of one another, sorted; only of patients with several spellings."""
    found: dict[str, set[str]] = {}
    for image in rows.folder.images:
        if image.record.normalised_id:
            found.setdefault(image.record.normalised_id, set()).add(image.record.patient_id)
    return sorted(sorted(ids, key=natural_key) for ids in found.values() if len(ids) > 1)


def _spelling_note(spellings: Sequence[Sequence[str]]) -> list[str]:
    if not spellings:
        return []
    shown = "; ".join(" = ".join(f"'{i}'" if " " in i else i for i in ids) for ids in spellings[:_SPELLED])
    more = (
        f"; and {len(spellings) - _SPELLED} more (the sidecar's spellings)"
        if len(spellings) > _SPELLED
        else ""
    )
    return [
        f"taken for one patient each, in one group, as only the spelling differs: {shown}{more}. Write one spelling; "
        "if they are different patients, give them ids that differ in letters or numbers"
    ]


def _named_copies_note(frame: pd.DataFrame) -> list[str]:
    found = find_named_copies(dict(zip(frame["image_id"], frame["group_id"], strict=True)))
    if not found:
        return []
    shown = shortened([f"{image} of {other}" for image, other in found], _NAMED)
    images = f"{counted(len(found), 'image')} {'is' if len(found) == 1 else 'are'} named"
    return [
        f"{images} like a changed copy of another, which the search did not confirm: {shown}. "
        "If they are copies, give both one patient_id in a table of your own (--csv), so that no split divides them"
    ]


def audit_text(about: Mapping) -> str:
    """What ``make-manifest`` found and did, as lines of at most 80 characters, except notes and warnings.

    Args:
        about: ``Manifest.about`` of a manifest that ``make-manifest`` wrote.
    """
    audit, splits = about["audit"], about["splits"]
    whose = f"{audit['groups']} {splits['unit']}"
    if splits["unit"] == "patients" and audit["patients"] != audit["groups"]:
        whose += f" ({audit['patients']} patient ids)"
    lines = [f"  {audit['rows']} images of {whose}, {_labels(audit['labels'])}; {audit['used']} used"]
    for code, same in audit["excluded"].items():
        lines += _finding("excluded", same["count"], describe_code(code), same["images"])
        if code in ANSWERS:
            lines.append(f"                  answer: {ANSWERS[code]}")
    for name, finding in audit["findings"].items():
        what = finding["what"] if finding["what"] == name else f"{finding['what']} [{name}]"
        lines += _finding("found", finding["count"], what, finding["images"])
    lines += _duplicates(about)
    lines += [f"  note: {note}" for note in audit["notes"]]
    lines += _splits(splits, about["options"])
    # notes and warnings hold names and commands, which stay whole
    whole = ("note:", "warning:", "answer:")
    return "\n".join(
        part for line in lines for part in ([line] if line.lstrip().startswith(whole) else folded(line))
    )


def _finding(kind: str, count: int, what: str, images: list[str]) -> list[str]:
    """One finding: what it is, and the first images in a line of their own where one line is too short."""
    line, names = f"  {kind:<8} {count:5}  {what}", shortened(images, _NAMED)
    if len(line) + 2 + len(names) <= WIDTH:
        return [f"{line}: {names}"]
    return [line, f"{'':18}{names}"]


def _labels(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[label]} {label}" for label in LABELS)


def _duplicates(about: Mapping) -> list[str]:
    audit, policy = about["audit"], about["options"]["duplicates"]
    kinds = [pair[2] for pair in audit["pairs"]]
    if not kinds:
        return [f"  no near-duplicates among: {DISGUISES}"]
    did = {
        "drop": "the first of each kept",
        "group": "all used, copies stay in one split",
        "keep": "all used, contradicting labels too, copies stay in one split",
    }[policy]
    lines = [
        f"  duplicates: pairs of equal pixels {kinds.count('exact')}, verified near-duplicate pairs "
        f"{kinds.count('near')}; {did} (--duplicates {policy})"
    ]
    if about["splits"]["unit"] == "patients":
        for group, patients in audit["merged_groups"].items():
            lines.append(f"  same pictures under {' and '.join(patients)}: one group, {group}")
    lines.append(f"  searched for {DISGUISES}")
    if audit["other_datasets"]:
        lines.append(f"  pictures also found in: {', '.join(audit['other_datasets'])}; groups merged with it")
    return lines


def _splits(splits: Mapping, options: Mapping) -> list[str]:
    patients = splits["unit"] == "patients"
    kind = "patient-level" if patients else f"over {splits['unit']}"
    lines = [f"  split {splits['how']}, {kind}, seed {options['seed']}"]
    # A split that was given has no target.
    if splits["imbalance"] is not None:
        lines[0] += f"; imbalance {splits['imbalance']:.4f} (0: the same shares in every split)"
    column = "patients" if patients else "groups"
    widths = (10, 8, 9, *[13] * len(LABELS), 10)
    lines.append(_row(("", "images", "share", *LABELS, column), widths))
    tables = {**splits["splits"], **{f"fold {fold}": row for fold, row in splits.get("folds", {}).items()}}
    total = max(sum(row["images"] for row in splits["splits"].values()), 1)
    for name, row in tables.items():
        cells = (name, row["images"], f"{100 * row['images'] / total:.1f} %")
        labels = (f"{row[label]} ({100 * row[label] / max(row['images'], 1):.0f} %)" for label in LABELS)
        lines.append(_row((*cells, *labels, row["groups"]), widths))
    lines += [f"  warning: {warning}" for warning in splits["warnings"]]
    return lines + [f"  note: {note}" for note in splits["notes"]]


def _row(cells: Iterable, widths: Iterable[int]) -> str:
    return "  " + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
