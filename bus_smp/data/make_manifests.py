"""From surveyed data sets to manifests: judge, split, and describe what was found and done."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.audit import FLAGS, Progress, Survey, fingerprints, in_turn
from bus_smp.data.exclusions import Judged, Known, Policy, judge
from bus_smp.data.manifest import SPLITS, Manifest, list_manifests, read_manifest
from bus_smp.data.sources._tree import natural_key
from bus_smp.data.splits import assign_folds, assign_splits, imbalance, split_warnings
from bus_smp.errors import ConfigError, DataError, ManifestError

_SPELLED = 10  # patients whose spellings a note tells


@dataclass(frozen=True)
class SplitPlan:
    """How used images are divided; whole groups always.

    fractions: of train, val and test. official: the test patients that a data set's authors
    published. test_patients: the test patients by name (``patient`` or ``dataset:patient``); the
    rest is divided into train and val. folds: 0, or the number of cross-validation folds.
    """

    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
    official: bool = False
    test_patients: tuple[str, ...] = ()
    folds: int = 0
    seed: int = 42


def make_manifests(
    surveys: Sequence[Survey],
    policy: Policy | None = None,
    plan: SplitPlan | None = None,
    known: Sequence[Known] = (),
    notes: Sequence[str] = (),
    progress: Progress = in_turn,
) -> list[Manifest]:
    """Judge, split and describe; one manifest per survey, sorted by data set.

    Groups found in several data sets get the split (and fold) that they have in ``known``, else in
    the first data set by name, so that the manifests can be trained on together.

    Args:
        known: images of manifests that exist already; they are compared, not changed.
        notes: sentences to be kept in every manifest's audit.

    Raises:
        DataError: if a policy refuses the data, or nothing would be left to use.
        ManifestError: if a split cannot be made, or a split given in a table tears a group.
        ConfigError: on flags or patients that do not exist.
    """
    policy, plan = policy or Policy(), plan or SplitPlan()
    surveys = sorted(surveys, key=lambda survey: survey.dataset)
    judged = judge(surveys, policy, known, progress)
    for one in judged:
        _refuse_empty(one)
    _refuse_unknown_patients(judged, plan)
    _refuse_torn(judged)
    standing = {group: place for one in judged for group, place in one.shared.items()}
    made = []
    for one in judged:
        frame, splits = _split(one, plan, standing)
        rows = frame[frame["excluded"] == ""]
        for group, split, fold in zip(rows["group_id"], rows["split"], rows["fold"], strict=True):
            standing.setdefault(group, (split, "" if pd.isna(fold) else str(fold)))
        about = {
            "created_by": "bus-smp make-manifest",
            "source": one.survey.about,
            "options": {
                "on_mismatch": policy.on_mismatch,
                "duplicates": one.duplicates,
                "exclude": list(policy.exclude),
                "fractions": list(plan.fractions),
                "official": plan.official,
                "test_patients": sorted(plan.test_patients),
                "folds": plan.folds,
                "seed": plan.seed,
            },
            "audit": _findings(one, frame, notes),
            "splits": splits,
        }
        frame = frame.sort_values("image_id", kind="stable", ignore_index=True)
        made.append(Manifest(frame, {one.survey.dataset: one.survey.root}, about))
    return made


def known_images(
    folder: Path, making: Sequence[str], progress: Progress = in_turn
) -> tuple[list[Known], list[str]]:
    """Fingerprints of the images of the manifests in ``folder``, without the data sets ``making``.

    Returns:
        the images, and a sentence for each manifest that could not be compared, wholly or in part.
    """
    images, notes = [], []
    for path in list_manifests(folder):
        try:
            manifest = read_manifest(path, images=False)
        except ManifestError as error:
            if path.stem not in making:
                notes.append(f"not compared with {path.name}: {error.what.splitlines()[0]}")
            continue
        rows = manifest.frame[~manifest.frame["dataset"].isin(making) & (manifest.frame["image"] != "")]
        rows = rows[rows["sha256"] != ""]
        if rows.empty:
            continue
        paths = [manifest.image_path(row) for row in rows.to_dict("records")]
        seen = fingerprints(paths, progress, f"{path.stem} (to compare)")
        for row, found in zip(rows.to_dict("records"), seen, strict=True):
            if found is not None:
                fold = "" if pd.isna(row["fold"]) else str(row["fold"])
                images.append(
                    Known(
                        row["dataset"], row["image_id"], _proven_label(row), row["group_id"],
                        (row["split"], fold) if row["split"] else None, *found,
                    )
                )  # fmt: skip
        if missing := seen.count(None):
            notes.append(
                f"not compared with {missing} of {len(seen)} images of {path.name}: they cannot be read"
            )
    return images, notes


def _proven_label(row: Mapping) -> str:
    """The label, or "" where it was found to contradict the mask and proves nothing about a copy's."""
    return "" if "label_mismatch" in row["flags"].split("|") else row["label"]


def reason_kind(reason: str) -> str:
    """The countable part of a reason: "near-duplicate of benign (3)" -> "near-duplicate"."""
    return re.split(r": | of ", reason, maxsplit=1)[0]


def unit(frame: pd.DataFrame) -> str:
    """What a group of these rows may be called; never "patients" where no patient is known."""
    known = frame["patient_known"].astype(bool)
    if known.all():
        return "patients"
    if not known.any():
        return "image groups (no patient ids published)"
    return f"groups (patients known for {known.sum()} of {len(known)} images)"


def _split(
    one: Judged, plan: SplitPlan, standing: Mapping[str, tuple[str, str]]
) -> tuple[pd.DataFrame, dict]:
    """The frame with splits and folds, and what the sidecar says about them."""
    frame = one.frame.copy()
    used = frame[frame["excluded"] == ""]
    notes: list[str] = []
    how, test_groups = _test_groups(one, used, plan, notes)
    if one.survey.split_given:
        how = "as given in the table"
        split = _given(one)[used.index]
    else:
        split = _named(one, lambda: assign_splits(used, plan.fractions, plan.seed, test_groups))
    folds = _named(one, lambda: assign_folds(used, plan.folds, plan.seed)) if plan.folds else None

    fixed = used["group_id"].map(lambda group: standing.get(group, ("", "")))
    fixed_split, fixed_fold = fixed.map(lambda place: place[0]), fixed.map(lambda place: place[1])
    moved = (fixed_split != "") & (fixed_split != split)
    groups = sorted(used.loc[moved, "group_id"].unique())
    if groups and (one.survey.split_given or test_groups is not None):
        notes.append(
            f"in another split than in another data set's manifest: {', '.join(groups)}; "
            "the two cannot be trained on together"
        )
    elif groups:
        split = split.mask(moved, fixed_split)
        notes.append(f"moved to the split they have in another data set's manifest: {', '.join(groups)}")
    frame.loc[used.index, "split"] = split.astype(object)
    about = {
        "how": how,
        "unit": unit(used),
        "imbalance": round(imbalance(used, split, plan.fractions), 6),
        "splits": {name: _counts(used[split == name]) for name in SPLITS},
        "warnings": _missing_labels(frame) + split_warnings(used, split),
        "notes": notes,
    }
    if folds is not None:
        for fold in range(plan.folds):
            folds = folds.mask(fixed_fold == str(fold), fold)
        frame.loc[used.index, "fold"] = folds
        about["folds"] = {str(fold): _counts(used[folds == fold]) for fold in range(plan.folds)}
        about["warnings"] += split_warnings(used, folds.to_numpy())
    return frame, about


def _missing_labels(frame: pd.DataFrame) -> list[str]:
    """Sentences about labels that no used image has: lesions always, normal if there were such images."""
    used = frame[frame["excluded"] == ""]
    warnings = []
    for label in LABELS:
        there = int((frame["label"] == label).sum())
        if not (used["label"] == label).any() and (there or label != LABELS[0]):
            why = f"all {there} are excluded" if there else "the data set has none"
            warnings.append(f"no {label} image is used: {why}")
    return warnings


def _test_groups(
    one: Judged, used: pd.DataFrame, plan: SplitPlan, notes: list[str]
) -> tuple[str, set[str] | None]:
    """How the split is made, in words, and the groups that are its test split (None: any)."""
    fractions = "/".join(f"{100 * fraction:g}" for fraction in plan.fractions)
    dataset = one.survey.dataset
    if plan.test_patients:
        chosen = used["patient_id"].isin(plan.test_patients) | (dataset + ":" + used["patient_id"]).isin(
            plan.test_patients
        )
        how = "test patients as named"
    elif plan.official and not one.survey.split_given:
        tests = {look.record.image_id for look in one.survey.looks if look.record.official_split == "test"}
        chosen = used["image_id"].isin(tests)
        how = "official test patients"
    else:
        return fractions, None
    if not chosen.any():
        reason = (
            "none of the test patients is in it" if plan.test_patients else "its authors published no split"
        )
        notes.append(f"split {fractions}: {reason}")
        return fractions, None
    groups = set(used.loc[chosen, "group_id"])
    carried = sorted(set(used.loc[used["group_id"].isin(groups) & ~chosen, "patient_id"]))
    if carried:
        notes.append(f"in test with a patient of the same group: {', '.join(carried)}")
    return how, groups


def _named(one: Judged, make: Callable[[], pd.Series]) -> pd.Series:
    try:
        return make()
    except ManifestError as error:
        kinds = one.frame.loc[one.frame["excluded"] != "", "excluded"].map(reason_kind).value_counts()
        why = "".join(f"; {count} images are excluded: {kind}" for kind, count in kinds.sort_index().items())
        raise ManifestError(f"{one.survey.dataset}: {error.what}{why}", hint=error.hint) from None


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    labels = {label: int((rows["label"] == label).sum()) for label in LABELS}
    return {"images": len(rows), "groups": int(rows["group_id"].nunique()), **labels}


def _findings(one: Judged, frame: pd.DataFrame, notes: Sequence[str]) -> dict:
    """The audit as plain JSON values, every finding with its images."""
    flags = frame["flags"].str.split("|")
    plain = flags.map(lambda names: {name.partition(":")[0] for name in names} - {""})
    order = [*FLAGS, *sorted(set().union(*plain) - set(FLAGS))]
    findings = {}
    for flag in order:
        images = frame.loc[plain.map(lambda names, flag=flag: flag in names), "image_id"].tolist()
        if images:
            findings[flag] = {"what": FLAGS.get(flag, flag), "count": len(images), "images": images}
    excluded: dict[str, dict] = {}
    for image, reason in zip(frame["image_id"], frame["excluded"], strict=True):
        if reason:
            kind = excluded.setdefault(reason_kind(reason), {"count": 0, "images": []})
            kind["count"] += 1
            kind["images"].append(image)
    spellings = _spellings(one)
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
        "other_datasets": one.others,
        "pairs": [list(pair) for pair in one.pairs],
        "notes": [*notes, *_spelling_note(spellings)],
        **({"spellings": spellings} if spellings else {}),
    }


def _spellings(one: Judged) -> list[list[str]]:
    """Patient ids that are spellings of one, sorted; none for a patient of one spelling."""
    found: dict[str, set[str]] = {}
    for look in one.survey.looks:
        if look.record.person:
            found.setdefault(look.record.person, set()).add(look.record.patient_id)
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


def _refuse_empty(one: Judged) -> None:
    frame = one.frame
    if frame.empty:
        raise DataError(f"{one.survey.dataset}: no image in {one.survey.root}")
    if (frame["excluded"] != "").all():
        kinds = frame["excluded"].map(reason_kind).value_counts().sort_index()
        reasons = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        raise DataError(
            f"{one.survey.dataset}: all {len(frame)} images are excluded ({reasons}); no manifest was written",
            hint=f"the first: {frame['image_id'].iloc[0]}: {frame['excluded'].iloc[0]}",
        )


def _refuse_unknown_patients(judged: Sequence[Judged], plan: SplitPlan) -> None:
    used = pd.concat([one.frame[one.frame["excluded"] == ""] for one in judged])
    names = set(used["patient_id"]) | set(used["dataset"] + ":" + used["patient_id"])
    unknown = [patient for patient in plan.test_patients if patient not in names]
    if unknown:
        raise ConfigError(
            f"--test-patients {', '.join(unknown)}: no such patient with a used image",
            hint=f"patients are, for example, {', '.join(sorted(set(used['patient_id']))[:5])}",
        )
    official = any(look.record.official_split for one in judged for look in one.survey.looks)
    if plan.official and not official:
        raise ConfigError(
            f"--split official: the authors of {', '.join(one.survey.dataset for one in judged)} published no split",
            hint="use --split 70/15/15, or name test patients with --test-patients",
        )


def _given(one: Judged) -> pd.Series:
    """The split that the table gives each row of the frame."""
    given = {look.record.image_id: look.record.official_split for look in one.survey.looks}
    return one.frame["image_id"].map(given)


def _refuse_torn(judged: Sequence[Judged]) -> None:
    """A split that a table gives is respected, but not if it tears a group."""
    given = [one.frame.assign(split=_given(one)) for one in judged if one.survey.split_given]
    if not given:
        return
    used = pd.concat(given)
    used = used[used["excluded"] == ""]
    faults = []
    for group, rows in used.groupby("group_id", sort=True):
        if rows["split"].nunique() > 1:
            places = "; ".join(
                f"{split}: {', '.join(own['image_id'].head(3))}{', ...' if len(own) > 3 else ''}"
                for split, own in rows.groupby("split", sort=False)
            )
            patients = ", ".join(dict.fromkeys(rows["patient_id"]))
            faults.append(f"group {group} (patients {patients}) in {places}")
    if faults:
        raise ManifestError(
            f"{len(faults)} groups lie in more than one of the given splits\n  " + "\n  ".join(faults),
            hint="give each group one split (different patients are in one group where images are copies, "
            "or where their ids differ in spelling alone), "
            "or leave the split column out",
        )
