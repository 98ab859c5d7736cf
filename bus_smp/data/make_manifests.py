"""From audited data sets to manifests: make the rows, split them, and describe what was found and done."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.audit import AuditedFolder, Progress, no_progress
from bus_smp.data.audit_report import describe_audit
from bus_smp.data.copies import ComparedImage, Place
from bus_smp.data.exclusions import ANSWERS, count_exclusions
from bus_smp.data.manifest import SPLITS, Manifest
from bus_smp.data.rows import DatasetRows, Policy, make_rows
from bus_smp.data.splits import (
    assign_folds,
    assign_splits,
    assign_validation,
    imbalance,
    split_warnings,
)
from bus_smp.errors import ConfigError, DataError, ManifestError


@dataclass(frozen=True)
class SplitPlan:
    """How used images are divided; whole groups always.

    fractions: of train, val and test. official: the test patients that a data set's authors
    published. test_patients: the test patients by name (``patient`` or ``dataset:patient``); the
    rest is divided into train and val. folds: 0, or the number of cross-validation folds. only_test: every image is
    test. replace_given: a split that the table or the folders give is not used.
    """

    fractions: tuple[float, float, float] = (0.70, 0.15, 0.15)
    official: bool = False
    test_patients: tuple[str, ...] = ()
    folds: int = 0
    seed: int = 42
    only_test: bool = False
    replace_given: bool = False


def make_manifests(
    folders: Sequence[AuditedFolder],
    policy: Policy | None = None,
    plan: SplitPlan | None = None,
    earlier: Sequence[ComparedImage] = (),
    notes: Sequence[str] = (),
    progress: Progress = no_progress,
) -> list[Manifest]:
    """Make the rows, split and describe them: one manifest per data set, sorted by its name.

    Groups found in several data sets get the split (and fold) that they have in ``earlier``, else in
    the first data set by name, so that the manifests can be trained on together.

    Args:
        earlier: images of manifests that exist already; they are compared, not changed.
        notes: sentences to keep in every manifest's audit.

    Raises:
        DataError: if the policy refuses the data, or no image would be left to use.
        ManifestError: if a split cannot be made, or a split given in a table divides a group.
        ConfigError: on flags or patients that do not exist.
    """
    policy, plan = policy or Policy(), plan or SplitPlan()
    folders = sorted(folders, key=lambda folder: folder.dataset)
    datasets = make_rows(folders, policy, earlier, progress)
    for rows in datasets:
        _refuse_empty(rows)
    _refuse_unknown_patients(datasets, plan)
    given = [None if plan.replace_given else _given_split(rows) for rows in datasets]
    _refuse_divided_groups(datasets, given)
    places = {group: place for rows in datasets for group, place in rows.earlier_places.items()}
    made = []
    for rows, own_split in zip(datasets, given, strict=True):
        frame, splits = _split(rows, plan, own_split, places)
        used = frame[frame["excluded"] == ""]
        for group, split, fold in zip(used["group_id"], used["split"], used["fold"], strict=True):
            places.setdefault(group, (split, "" if pd.isna(fold) else str(fold)))
        about = {
            "created_by": "bus-smp make-manifest",
            "source": rows.folder.about,
            "options": {
                "on_mismatch": policy.on_mismatch,
                "duplicates": rows.duplicates,
                "exclude": list(policy.exclude),
                "fractions": [0, 0, 1] if plan.only_test else list(plan.fractions),
                "official": plan.official,
                "test_patients": sorted(plan.test_patients),
                "folds": plan.folds,
                "seed": plan.seed,
                **rows.folder.answers.options(),
            },
            "audit": describe_audit(rows, frame, notes),
            "splits": splits,
        }
        frame = frame.sort_values("image_id", kind="stable", ignore_index=True)
        made.append(Manifest(frame, {rows.folder.dataset: rows.folder.root}, about))
    return made


def group_unit(frame: pd.DataFrame) -> str:
    """What a group of these rows may be called; never "patients" where no patient is known."""
    known = frame["patient_known"].astype(bool)
    if known.all():
        return "patients"
    if not known.any():
        return "image groups (no patient ids published)"
    return f"groups (patients known for {known.sum()} of {len(known)} images)"


def _split(
    rows: DatasetRows, plan: SplitPlan, given: pd.Series | None, places: Mapping[str, Place]
) -> tuple[pd.DataFrame, dict]:
    """The frame with splits and folds, and the sidecar's account of them; ``given``: the split of each row, if any."""
    frame = rows.frame.copy()
    used = frame[frame["excluded"] == ""]
    notes: list[str] = []
    test_groups = None
    if plan.only_test:
        how, split = "all test", pd.Series("test", index=used.index, dtype="str")
    elif given is not None:
        how, split = _complete_split(rows, used, given, plan, notes)
    else:
        how, test_groups = _find_test_groups(rows, used, plan, notes)
        split = _name_dataset(rows, lambda: assign_splits(used, plan.fractions, plan.seed, test_groups))
    if rows.folder.split_given and given is None:
        notes.append(f"not used: the split that {rows.folder.split_given}")
    chosen = test_groups is not None or given is not None or plan.only_test
    folds = _name_dataset(rows, lambda: assign_folds(used, plan.folds, plan.seed)) if plan.folds else None

    fixed = used["group_id"].map(lambda group: places.get(group, ("", "")))
    fixed_split, fixed_fold = fixed.map(lambda place: place[0]), fixed.map(lambda place: place[1])
    moved = (fixed_split != "") & (fixed_split != split)
    groups = sorted(used.loc[moved, "group_id"].unique())
    if groups and chosen:
        notes.append(
            f"in another split than in another data set's manifest: {', '.join(groups)}; "
            "the two cannot be trained on together"
        )
    elif groups:
        split = split.mask(moved, fixed_split)
        notes.append(f"moved to the split they have in another data set's manifest: {', '.join(groups)}")
    frame.loc[used.index, "split"] = split.astype(object)
    about: dict[str, Any] = {
        "how": how,
        "unit": group_unit(used),
        "imbalance": None
        if given is not None or plan.only_test
        else round(imbalance(used, split, plan.fractions), 6),
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


def _find_test_groups(
    rows: DatasetRows, used: pd.DataFrame, plan: SplitPlan, notes: list[str]
) -> tuple[str, set[str] | None]:
    """How the split is made, in words, and the groups that are its test split (None: any)."""
    fractions = "/".join(f"{100 * fraction:g}" for fraction in plan.fractions)
    dataset = rows.folder.dataset
    if plan.test_patients:
        chosen = used["patient_id"].isin(plan.test_patients) | (dataset + ":" + used["patient_id"]).isin(
            plan.test_patients
        )
        how = "test patients as named"
    elif plan.official:
        tests = {
            image.record.image_id for image in rows.folder.images if image.record.official_split == "test"
        }
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


def _name_dataset(rows: DatasetRows, make: Callable[[], pd.Series]) -> pd.Series:
    """What ``make`` returns; its error names the data set and how many images are excluded."""
    try:
        return make()
    except ManifestError as error:
        counts = count_exclusions(rows.frame["excluded"])
        why = "".join(f"; {count} images are excluded: {code}" for code, count in counts.items())
        raise ManifestError(f"{rows.folder.dataset}: {error.what}{why}", hint=error.hint) from None


def _counts(rows: pd.DataFrame) -> dict[str, int]:
    labels = {label: int((rows["label"] == label).sum()) for label in LABELS}
    return {"images": len(rows), "groups": int(rows["group_id"].nunique()), **labels}


def _refuse_empty(rows: DatasetRows) -> None:
    frame, dataset = rows.frame, rows.folder.dataset
    if frame.empty:
        raise DataError(f"{dataset}: no image in {rows.folder.root}")
    if (frame["excluded"] != "").all():
        reasons = ", ".join(f"{n} {code}" for code, n in count_exclusions(frame["excluded"]).items())
        fresh = "; for a fresh start choose an empty folder with --out" if "shared-group" in reasons else ""
        answers = [ANSWERS[code] for code in count_exclusions(frame["excluded"]) if code in ANSWERS]
        answer = "".join(f"\nanswer: {text}" for text in answers)
        raise DataError(
            f"{dataset}: all {len(frame)} images are excluded ({reasons}); no manifest was written",
            hint=f"the first: {frame['image_id'].iloc[0]}: {frame['excluded'].iloc[0]}{fresh}{answer}",
        )


def _refuse_unknown_patients(datasets: Sequence[DatasetRows], plan: SplitPlan) -> None:
    used = pd.concat([rows.frame[rows.frame["excluded"] == ""] for rows in datasets])
    names = set(used["patient_id"]) | set(used["dataset"] + ":" + used["patient_id"])
    unknown = [patient for patient in plan.test_patients if patient not in names]
    if unknown:
        raise ConfigError(
            f"--test-patients {', '.join(unknown)}: no such patient with a used image",
            hint=f"patients are, for example, {', '.join(sorted(set(used['patient_id']))[:5])}",
        )
    official = any(image.record.official_split for rows in datasets for image in rows.folder.images)
    if plan.official and not official:
        raise ConfigError(
            f"--split official: the authors of {', '.join(rows.folder.dataset for rows in datasets)} published no split",
            hint="use --split 70/15/15, or name test patients with --test-patients",
        )


def _given_split(rows: DatasetRows) -> pd.Series | None:
    """The split that the table or the folders give each row of the frame; None where they give none."""
    if not rows.folder.split_given:
        return None
    given = {image.record.image_id: image.record.split for image in rows.folder.images}
    return rows.frame["image_id"].map(given)


def _complete_split(
    rows: DatasetRows, used: pd.DataFrame, given: pd.Series, plan: SplitPlan, notes: list[str]
) -> tuple[str, pd.Series]:
    """The given split in words, and the split of each used row: val is taken from train where none is given."""
    how, split = f"as {rows.folder.split_given} it", given[used.index]
    official = {i.record.image_id for i in rows.folder.images if i.record.official_split == "test"}
    if official and set(used.loc[split == "test", "image_id"]) == official & set(used["image_id"]):
        how += " (test: the authors' own test patients)"
    train = used[split == "train"]
    if len(train) and not (split == "val").any():
        learn = _name_dataset(rows, lambda: assign_validation(train, plan.fractions, plan.seed))
        split = split.mask(split == "train", learn)
        share = plan.fractions[1] / sum(plan.fractions[:2])
        unit = "patients" if used["patient_known"].astype(bool).all() else "groups"
        notes.append(f"no val is given: {100 * share:.0f} % of train is taken for it, whole {unit}")
    if not (split == "test").any():
        notes.append("no test is given: what is trained on it can be tested on other data sets only")
    copies = rows.frame["excluded"].str.contains("^(?:near-)?duplicate:") | (rows.frame["excluded"] == "")
    divided = given[copies].groupby(rows.frame["group_id"][copies]).nunique() > 1
    if count := int(divided.sum()):
        notes.append(
            f"{count} pictures have copies in more than one of the given splits; only the first of each is used, so "
            "that none leaks. To divide all anew: --split 70/15/15"
        )
    return how, split


def _refuse_divided_groups(datasets: Sequence[DatasetRows], given: Sequence[pd.Series | None]) -> None:
    """A split that a table or folders give is used as it is, but not if it divides a group."""
    frames = [rows.frame.assign(split=s) for rows, s in zip(datasets, given, strict=True) if s is not None]
    if not frames:
        return
    used = pd.concat(frames)
    used = used[used["excluded"] == ""]
    faults = []
    for group, rows in used.groupby("group_id", sort=True):
        if rows["split"].nunique() > 1:
            places = "; ".join(
                f"{split}: {', '.join(own['image_id'].head(3))}{', ...' if len(own) > 3 else ''}"
                for split, own in rows.groupby("split", sort=False)
            )
            patients = ", ".join(dict.fromkeys(rows["patient_id"]))
            whose = f"patients {patients}" if rows["patient_known"].any() else "copies of one picture"
            faults.append(f"group {group} ({whose}) in {places}")
    if faults:
        more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        count = "1 group lies" if len(faults) == 1 else f"{len(faults)} groups lie"
        raise ManifestError(
            f"{count} in more than one of the given splits\n  " + "\n  ".join(faults[:10] + more),
            hint="give each group one split (different patients are in one group where images are copies, or where only "
            "the spelling of their ids differs), or divide all anew: --split 70/15/15",
        )
