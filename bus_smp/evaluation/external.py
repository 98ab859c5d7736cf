"""The check behind the word "external": training has seen no image of the target, in any form.

Four comparisons of the used rows of both manifests: names of data sets, groups, pixels (sha256), and near-duplicates by
the one search of ``data/near_duplicates``, over the images of both. Its fingerprints are kept next to the manifests.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from bus_smp.data.audit import THREADS, Progress, no_progress
from bus_smp.data.images import pixel_sha256, read_image
from bus_smp.data.manifest import Manifest, list_manifests, read_manifest
from bus_smp.data.near_duplicates.search import Fingerprint, find_near_duplicates, fingerprint
from bus_smp.data.near_duplicates.store import read_fingerprints, write_fingerprints
from bus_smp.errors import BusSmpError, EvaluationError, ImageError
from bus_smp.system.threads import read_ahead
from bus_smp.text import counted, shortened

# What ``summary.json`` holds for "external" where images could not be compared.
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Externality:
    """What is known about a target that was not refused.

    external: True where every image was compared, else ``UNKNOWN``; False for the run's own data.
    warnings: sentences for people.
    """

    external: bool | str
    warnings: list[str] = field(default_factory=list)


# The run's own data.
OWN = Externality(False)


def check_external(
    training: Sequence[Manifest],
    target: Manifest,
    store: Path | None = None,
    progress: Progress = no_progress,
) -> Externality:
    """Refuse a target that shares anything with the training data.

    All splits of the training manifests count: a data set whose test split was held back is still the
    same hospital, scanner and annotator.

    Args:
        training: everything that the weights have seen: of a run, or of all members of an experiment.
        store: folder of manifests next to which fingerprints are kept; None: they are made again.

    Raises:
        EvaluationError: naming the shared data sets, groups, pictures or near-duplicates; or if images have no hash.
    """
    datasets = sorted({name for manifest in training for name in manifest.datasets})
    names = ", ".join(target.datasets)
    shared = sorted(set(datasets) & set(target.datasets))
    if shared:
        raise EvaluationError(
            f"{', '.join(shared)} was used in training this run, so it is no external test",
            hint="score it on its own test split instead: bus-smp evaluate, with the same --run",
        )
    used = [(manifest, manifest.used()) for manifest in training]
    seen = pd.concat([rows for _, rows in used], ignore_index=True)
    new = target.used()
    unproven = [name for name, rows in (("training", seen), ("target", new)) if (rows["sha256"] == "").any()]
    if unproven:
        raise EvaluationError(
            f"the {' and the '.join(unproven)} manifest has images without sha256: they cannot be compared",
            hint="make it with bus-smp make-manifest (from your own table: --csv)",
        )
    for column, things in (("group_id", "groups"), ("sha256", "pictures")):
        common = set(seen[column]) & set(new[column])
        if common:
            images = list(new.loc[new[column].isin(common), "image_id"])
            noun = "image" if len(images) == 1 else "images"
            raise EvaluationError(
                f"{len(common)} {things} of {names} were used in training this run ({noun} {shortened(images)})",
                hint="a target that overlaps with the training data is no external test; choose another",
            )
    warnings = _warn_of_patients(seen, new, names)

    # the members of an experiment, and an ancestor, share most images
    first: dict[str, tuple[str, Fingerprint]] = {}
    faults: list[ImageError] = []
    tried: set[str] = set()
    for manifest, rows in used:
        rest = rows[~rows["sha256"].isin(tried)].drop_duplicates("sha256")
        tried |= set(rest["sha256"])
        found, wrong = _fingerprints(manifest, rest, store, progress)
        first |= found
        faults += wrong
    own, wrong = _fingerprints(target, new, store, progress)
    _refuse_near_duplicates(first, own, names, progress)
    faults += wrong
    if not faults:
        return Externality(True, warnings)
    fault = faults[0]
    warnings.append(
        f"whether {names} is external to this run is not known: {counted(len(faults), 'image')} could not be compared with the others "
        f"({fault.what}); {fault.hint}"
    )
    return Externality(UNKNOWN, warnings)


def read_external(
    training: Sequence[Manifest],
    folder: Path,
    root: Path | Mapping[str, Path] | None = None,
    say: Callable[[str], None] = lambda text: None,
    progress: Progress = no_progress,
) -> dict[Path, tuple[Manifest, Externality]]:
    """Every manifest of ``folder`` that passes ``check_external``; the reason for each other one goes to ``say``.

    Their folders of images need not exist, as in ``read_manifest(..., images=False)``.

    Raises:
        EvaluationError: if there is none.
    """
    found = {}
    for path in list_manifests(folder):
        try:
            manifest = read_manifest(path, root, images=False)
            found[path] = manifest, check_external(training, manifest, folder, progress)
        except BusSmpError as error:
            say(f"Not scored: {path}: {error.what.splitlines()[0]}")
    if not found:
        raise EvaluationError(
            f"{folder} holds no manifest that this run can be tested on",
            hint="make one: bus-smp make-manifest --dataset NAME --root FOLDER",
        )
    return found


def _warn_of_patients(seen: pd.DataFrame, new: pd.DataFrame, names: str) -> list[str]:
    """Patients of both by their ids. Numbers are given out by everybody and prove nothing."""
    known = [set(rows.loc[rows["patient_known"], "patient_id"]) for rows in (seen, new)]
    both = sorted(name for name in known[0] & known[1] if re.search(r"[^\W\d_]", name))
    if not both:
        return []
    ids = f"{counted(len(both), 'patient id')} {'is' if len(both) == 1 else 'are'}"
    return [
        f"{ids} in the training data and in {names} ({shortened(both)}): if these are the same patients, this is no "
        "external test"
    ]


def _fingerprints(
    manifest: Manifest, rows: pd.DataFrame, store: Path | None, progress: Progress
) -> tuple[dict[str, tuple[str, Fingerprint]], list[ImageError]]:
    """Name and fingerprint of each row's image by its sha256, and the errors of those that cannot be had."""
    found: dict[str, tuple[str, Fingerprint]] = {}
    faults: list[ImageError] = []
    for dataset, part in rows.groupby("dataset"):
        kept = read_fingerprints(store, str(dataset)) if store is not None else {}
        missing = part[~part["sha256"].isin(kept.keys())].to_dict("records")
        made = read_ahead(lambda row: _fingerprint(manifest, row), missing, threads=THREADS)
        new = {}
        for row, one in zip(missing, progress(made, len(missing), f"{dataset} (to compare)"), strict=True):
            if isinstance(one, ImageError):
                faults.append(one)
            else:
                new[row["sha256"]] = one
        if store is not None:
            write_fingerprints(store, str(dataset), new)
        kept |= new
        for row in part[part["sha256"].isin(kept.keys())].to_dict("records"):
            found[row["sha256"]] = f"{row['dataset']} {row['image_id']}", kept[row["sha256"]]
    return found, faults


def _fingerprint(manifest: Manifest, row: Mapping) -> Fingerprint | ImageError:
    """The fingerprint of a row's image; the error if it cannot be read, or has other pixels than when the manifest was made."""
    where = f"say where the images are: --root {row['dataset']}=FOLDER"
    # without the folders of this machine, as the report is passed on
    name = f"{row['dataset']}/{row['image']}"
    try:
        path = manifest.image_path(row)
        image = read_image(path)
    except BusSmpError as error:
        return ImageError(error.what.replace(str(path), name), hint=where)
    if pixel_sha256(image) != row["sha256"]:
        return ImageError(f"{name}: the image has changed since the manifest was made", hint=where)
    return fingerprint(image)


def _refuse_near_duplicates(
    seen: Mapping[str, tuple[str, Fingerprint]],
    new: Mapping[str, tuple[str, Fingerprint]],
    names: str,
    progress: Progress,
) -> None:
    images = [*seen.values(), *new.values()]
    pairs = find_near_duplicates([one for _, one in images], progress, across=len(seen))
    copied = {pair.second: pair.first for pair in reversed(pairs)}
    if copied:
        of = [f"{images[b][0].partition(' ')[2]} is {images[a][0]}" for b, a in sorted(copied.items())]
        raise EvaluationError(
            f"{names}: {counted(len(of), 'near-duplicate')} of images that were used in training this run "
            f"({shortened(of)})",
            hint="exclude these rows in the target's manifest (write why into `excluded`, empty `split` and `fold`), or "
            "choose another target; make-manifest of both data sets into one folder flags all of them",
        )
