"""The audit of a manifest as a table to read, from the manifest's sidecar alone."""

from collections.abc import Mapping

from bus_smp.classes import LABELS

_NAMED = 4  # images named per finding; the sidecar names all


def audit_text(about: Mapping) -> str:
    """What ``make-manifest`` found and did, as lines of at most about 110 characters.

    Args:
        about: ``Manifest.about`` of a manifest that ``make-manifest`` wrote.
    """
    audit, splits = about["audit"], about["splits"]
    whose = f"{audit['groups']} {splits['unit']}"
    if splits["unit"] == "patients" and audit["patients"] != audit["groups"]:
        whose += f" ({audit['patients']} patient ids)"
    lines = [f"  {audit['rows']} images of {whose}, {_labels(audit['labels'])}; {audit['used']} used"]
    for name, kind in audit["excluded"].items():
        lines.append(f"  excluded {kind['count']:5}  {name:<56} {_names(kind['images'])}")
    for name, finding in audit["findings"].items():
        what = finding["what"] if finding["what"] == name else f"{finding['what']} [{name}]"
        lines.append(f"  found    {finding['count']:5}  {what:<56} {_names(finding['images'])}")
    lines += _duplicates(about)
    lines += [f"  note: {note}" for note in audit["notes"]]
    lines += _splits(splits, about["options"])
    return "\n".join(lines)


def _labels(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[label]} {label}" for label in LABELS)


def _names(images: list[str]) -> str:
    return ", ".join(images[:_NAMED]) + (", ..." if len(images) > _NAMED else "")


def _duplicates(about: Mapping) -> list[str]:
    audit, policy = about["audit"], about["options"]["duplicates"]
    kinds = [pair[2] for pair in audit["pairs"]]
    if not kinds:
        return ["  no duplicates"]
    did = {
        "drop": "the first of each kept",
        "group": "all used, none torn apart",
        "keep": "all used, contradicting labels too, none torn apart",
    }[policy]
    lines = [
        f"  duplicates: pairs of equal pixels {kinds.count('exact')}, verified near-duplicate pairs "
        f"{kinds.count('near')}; {did} (--duplicates {policy})"
    ]
    if about["splits"]["unit"] == "patients":
        for group, patients in audit["merged_groups"].items():
            lines.append(f"  same pictures under {' and '.join(patients)}: one group, {group}")
    if audit["other_datasets"]:
        lines.append(f"  pictures also found in: {', '.join(audit['other_datasets'])}; groups merged with it")
    return lines


def _splits(splits: Mapping, options: Mapping) -> list[str]:
    patients = splits["unit"] == "patients"
    kind = "patient-level" if patients else f"over {splits['unit']}"
    lines = [
        f"  split {splits['how']}, {kind}, seed {options['seed']}; imbalance {splits['imbalance']:.4f} "
        "(0: every split mirrors the whole)"
    ]
    column = "patients" if patients else "groups"
    lines.append("    " + "".join(f"{word:>11}" for word in ("", "images", "share", *LABELS, column)))
    tables = {**splits["splits"], **{f"fold {fold}": row for fold, row in splits.get("folds", {}).items()}}
    total = max(sum(row["images"] for row in splits["splits"].values()), 1)
    for name, row in tables.items():
        cells = (name, row["images"], f"{100 * row['images'] / total:.1f} %")
        labels = (f"{row[label]} ({100 * row[label] / max(row['images'], 1):.0f} %)" for label in LABELS)
        lines.append("    " + "".join(f"{cell:>11}" for cell in (*cells, *labels, row["groups"])))
    lines += [f"  warning: {warning}" for warning in splits["warnings"]]
    return lines + [f"  note: {note}" for note in splits["notes"]]
