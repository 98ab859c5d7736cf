"""Training the runs of an experiment, one after the other, each with its own settings and splits."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bus_smp.config import Settings
from bus_smp.data.manifest import Manifest
from bus_smp.errors import ConfigError, ManifestError, TrainingError
from bus_smp.runs.experiment import Member
from bus_smp.runs.run import Run
from bus_smp.training.preflight import check_trainable
from bus_smp.training.progress import Outcome
from bus_smp.training.start import train


def member_settings(settings: Settings, member: Member) -> Settings:
    """The settings of one member's run."""
    data = settings.data.model_copy(update={"fold": member.fold})
    plan = settings.train.model_copy(update={"seed": member.seed})
    return settings.model_copy(update={"data": data, "train": plan})


def count_folds(manifest: Manifest) -> int:
    """Number of folds of the used images; the same in every data set of ``manifest``.

    Raises:
        ManifestError: if there are none or fewer than 3 (test and validation would leave nothing to train on), if
            data sets have different numbers of folds, a fold has no image, or an image has no fold.
    """
    counts = {}
    for dataset, rows in manifest.used().groupby("dataset"):
        again = "number them: bus-smp make-manifest --folds 5"
        missing = int(rows["fold"].isna().sum())
        if missing:
            some = "no folds" if missing == len(rows) else f"no fold for {missing} of {len(rows)} used images"
            raise ManifestError(f"the manifest of {dataset} has {some}", hint=again)
        numbers = sorted(rows["fold"].unique())
        if numbers != list(range(len(numbers))):
            raise ManifestError(
                f"the folds of {dataset} are not numbered from 0 without gaps: {', '.join(map(str, numbers))}",
                hint=again,
            )
        if len(numbers) < 3:
            raise ManifestError(
                f"the manifest of {dataset} has {len(numbers)} folds: one to test, one to validate, none to train on",
                hint=again,
            )
        counts[dataset] = len(numbers)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{dataset} {count}" for dataset, count in counts.items())
        raise ManifestError(
            f"the manifests have different numbers of folds: {listed}",
            hint="make them again in one run: bus-smp make-manifest --folds 5",
        )
    return max(counts.values(), default=0)


def fold_manifest(manifest: Manifest, fold: int | None) -> Manifest:
    """The manifest with ``fold`` as test split and the next fold as validation split; after the last comes the first.

    No group and no picture is in two splits, because reading the manifest has checked that none is in two folds.

    Args:
        fold: from 0; None leaves the manifest unchanged.

    Raises:
        ManifestError: as ``count_folds``.
        ConfigError: if there is no such fold.
    """
    if fold is None:
        return manifest
    count = count_folds(manifest)
    if fold >= count:
        raise ConfigError(f"there is no fold {fold}", hint=f"the manifest has folds 0 to {count - 1}")
    used = manifest.frame["excluded"] == ""
    number = manifest.frame.loc[used, "fold"].to_numpy(int)
    split = np.select([number == fold, number == (fold + 1) % count], ["test", "val"], "train")
    frame = manifest.frame.copy()
    frame.loc[used, "split"] = split
    return Manifest(frame, manifest.roots, _of_fold(manifest.about, fold, count), checked=manifest.checked)


def _of_fold(about: Mapping[str, Any], fold: int, count: int) -> dict[str, Any]:
    """The sidecar with a description of the fold's split, for each data set."""
    if "combined" in about:
        parts = {name: _of_fold(part, fold, count) for name, part in about["combined"].items()}
        return {**about, "combined": parts}
    how = f"cross-validation, fold {fold} of {count} (0 to {count - 1}) is the test split"
    return {**about, "splits": {**about.get("splits", {}), "how": how}}


def train_experiment(
    settings: Settings,
    manifest: Manifest,
    out: Path,
    members: Sequence[Member],
    *,
    begin: Callable[[], None] = lambda: None,
    say: Callable[[str], None],
    bar: bool = False,
) -> Iterator[tuple[Member, Outcome]]:
    """Train one run after the other, or continue them; yield each when it is done.

    All members are checked before the first is trained.

    Args:
        begin: called each time a run has begun.

    Raises:
        TrainingError, ManifestError, ConfigError: as ``train`` and ``fold_manifest``.
    """
    runs = {
        member: (member_settings(settings, member), fold_manifest(manifest, member.fold))
        for member in members
    }
    for member, (own, part) in runs.items():
        run = Run(out / member.run)
        if run.exists():
            run.check_same(own, part)
        elif len(members) > 1:
            run.check_unused()
            try:
                check_trainable(part)
            except TrainingError as error:
                raise TrainingError(f"{member.run}: {error.what}", hint=error.hint) from None
    for number, (member, (own, part)) in enumerate(runs.items(), start=1):
        if len(members) > 1:
            say(f"Run {number} of {len(members)}: {out / member.run}")
        yield member, train(own, part, out / member.run, begin=begin, say=say, bar=bar)
