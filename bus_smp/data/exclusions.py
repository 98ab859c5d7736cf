"""What follows from an audit: which rows are used, and which images must never be torn apart.

Two relations are kept apart. Images are *copies* of one another when their pixels are equal or a
near-duplicate was verified; a chain of copies is a cluster. Patients belong to one *group* when a
copy joins them. Groups are merged under every policy, so none of them can leak.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise

import pandas as pd

from bus_smp.classes import LABELS
from bus_smp.data.audit import FLAGS, Look, Progress, Survey, in_turn
from bus_smp.data.manifest import COLUMNS
from bus_smp.data.near_duplicates.search import Fingerprint, find_near_duplicates
from bus_smp.data.sources._tree import natural_key
from bus_smp.errors import ConfigError, DataError

ON_MISMATCH = ("exclude", "resize", "error")
DUPLICATES = ("keep", "group", "drop")
NAMED = 10  # images in a reason


@dataclass(frozen=True)
class Policy:
    """What to do with what the audit finds.

    on_mismatch: mask of another size than its image: ``exclude`` the row, ``resize`` the mask when
        it is read (nearest), or ``error``.
    duplicates: ``drop`` uses the first image of each cluster of copies; ``group`` uses all, unless
        their labels contradict each other; ``keep`` uses even those. None chooses ``group`` for a
        data set with patient ids and ``drop`` for one without. Copies share a group under all three.
    exclude: flags whose rows are not used.
    """

    on_mismatch: str = "exclude"
    duplicates: str | None = None
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """An image of a manifest that exists already and is not made again: its group and place stand.

    ``place`` is (split, fold or ""), None for an excluded image.
    """

    dataset: str
    image_id: str
    label: str
    group_id: str
    place: tuple[str, str] | None
    sha256: str
    print: Fingerprint


@dataclass(frozen=True)
class Judged:
    """A data set after judgement.

    frame: the manifest's columns, rows in natural order, ``split`` and ``fold`` still empty.
    pairs: (image, other image, "exact" | "near", correlation) of this data set's images; an image
        of another data set is written <dataset>/<id>.
    shared: group id -> (split, fold), of groups that manifests made earlier hold in that place.
    others: data sets, sorted, that hold copies of this one's images.
    """

    survey: Survey
    frame: pd.DataFrame
    duplicates: str
    pairs: list[tuple[str, str, str, float]]
    shared: dict[str, tuple[str, str]]
    others: list[str]


@dataclass(frozen=True)
class _Image:
    """One picture in the comparison, of a survey (``place`` = survey, look) or of a known manifest."""

    dataset: str
    image_id: str
    label: str
    group: str
    sha256: str
    print: Fingerprint
    place: tuple[int, int] | None = None

    def seen_from(self, dataset: str) -> str:
        return self.image_id if dataset == self.dataset else f"{self.dataset}/{self.image_id}"


def judge(
    surveys: Sequence[Survey], policy: Policy, known: Sequence[Known] = (), progress: Progress = in_turn
) -> list[Judged]:
    """Apply ``policy`` to data sets that were surveyed, compared with each other and with ``known``.

    Patients of a data set whose records have the same ``person`` are one group, as those are who share a copy.

    Raises:
        DataError: under ``on_mismatch="error"``, naming every image.
        ConfigError: if ``policy.exclude`` names a flag that does not exist.
    """
    _refuse_mismatches(surveys, policy)
    _refuse_unknown_flags(surveys, policy)
    images = _images(surveys, known)
    pairs = _find_pairs(images, progress)
    copies = [(a, b) for a, b, _, _ in pairs]
    clusters = [[images[i] for i in c] for c in _components(range(len(images)), copies) if len(c) > 1]
    ids, shared, torn = _name_groups(
        _components([image.group for image in images] + [patient_key(s, k) for s in surveys for k in s.looks],
                    [(images[a].group, images[b].group) for a, b in copies] + _same_persons(surveys)),
        known,
    )  # fmt: skip

    looks = {(i, j): look for i, survey in enumerate(surveys) for j, look in enumerate(survey.looks)}
    how = [policy.duplicates or default_duplicates(survey) for survey in surveys]
    flags = {place: list(look.flags) for place, look in looks.items()}
    mismatch_excludes = policy.on_mismatch == "exclude"
    excluded = {p: look.excluded or (look.mismatch if mismatch_excludes else "") for p, look in looks.items()}
    _flag_copies([(images[a], images[b]) for a, b in copies], flags)
    for cluster in clusters:
        _judge_labels(cluster, how, flags, excluded)
    for place, look in looks.items():
        names = [flag.partition(":")[0] for flag in flags[place]]
        unwanted = next((f"--exclude {flag}" for flag in policy.exclude if flag in names), "")
        if ids[patient_key(surveys[place[0]], look)] in torn:
            unwanted = "shared group: same patient as images in different splits of other manifests"
        excluded[place] = excluded[place] or unwanted
    for cluster in clusters:
        _drop_copies(cluster, how, excluded)

    judged = []
    for i, survey in enumerate(surveys):
        rows = [_row(survey, k, ids, flags[i, j], excluded[i, j]) for j, k in enumerate(survey.looks)]
        sized = any(look.record.pixel_mm for look in survey.looks)
        frame = pd.DataFrame(rows, columns=[*COLUMNS, *(["pixel_mm"] if sized else [])])
        frame = frame.astype(dict.fromkeys(("fold", "width", "height"), "Int64"))
        own = [pair for pair in pairs if survey.dataset in (images[pair[0]].dataset, images[pair[1]].dataset)]
        named = [
            (images[a].seen_from(survey.dataset), images[b].seen_from(survey.dataset), kind, correlation)
            for a, b, kind, correlation in own
        ]
        mine = {group: shared[group] for group in set(frame["group_id"]) & set(shared)}
        others = {images[k].dataset for pair in own for k in pair[:2]} - {survey.dataset}
        judged.append(Judged(survey, frame, how[i], named, mine, sorted(others)))
    return judged


def default_duplicates(survey: Survey) -> str:
    """``group`` where patients are known (their frames resemble each other by nature), else ``drop``."""
    return "group" if any(look.record.patient_known for look in survey.looks) else "drop"


def patient_key(survey: Survey, look: Look) -> str:
    """``<dataset>:<patient>``; an image without a patient id is a patient of its own."""
    return f"{survey.dataset}:{look.record.patient_id or look.record.image_id}"


def _same_persons(surveys: Sequence[Survey]) -> list[tuple[str, str]]:
    """Pairs of patient keys that are spellings of one id."""
    first: dict[tuple[str, str], str] = {}
    pairs = []
    for survey in surveys:
        for look in survey.looks:
            if look.record.person:
                patient = patient_key(survey, look)
                pairs.append((first.setdefault((survey.dataset, look.record.person), patient), patient))
    return pairs


def _label(look: Look) -> str:
    """The label, or "" where it is in doubt already and proves nothing about a copy's."""
    return "" if "label_mismatch" in look.flags or look.record.label not in LABELS else look.record.label


def _images(surveys: Sequence[Survey], known: Sequence[Known]) -> list[_Image]:
    """All pictures that can be compared, in natural order."""
    images = [
        _Image(s.dataset, k.record.image_id, _label(k), patient_key(s, k), k.sha256, k.print, (i, j))
        for i, s in enumerate(surveys)
        for j, k in enumerate(s.looks)
        if k.print is not None
    ]
    images += [_Image(k.dataset, k.image_id, k.label, k.group_id, k.sha256, k.print) for k in known]
    return sorted(images, key=lambda image: (image.dataset, natural_key(image.image_id)))


def _find_pairs(images: Sequence[_Image], progress: Progress = in_turn) -> list[tuple[int, int, str, float]]:
    """(first, second, kind, correlation), first < second: equal pixels, and verified near-duplicates.

    Of one picture found n times in a data set each is paired with the next, and the first with the first of another
    data set: about n pairs, where all would be n * (n - 1) / 2.
    """
    same: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        same.setdefault(image.sha256, []).append(i)
    pairs = {}
    for alike in same.values():
        of_each = [list(members) for _, members in groupby(alike, key=lambda i: images[i].dataset)]
        chains = [pair for members in of_each for pair in pairwise(members)]
        pairs |= dict.fromkeys([*chains, *combinations([m[0] for m in of_each], 2)], ("exact", 1.0))
    one_each = [alike[0] for alike in same.values()]  # equal pixels are compared with the rest once
    for a, b, correlation in find_near_duplicates([images[i].print for i in one_each], progress):
        pairs[one_each[a], one_each[b]] = ("near", round(float(correlation), 3))
    return sorted((a, b, kind, correlation) for (a, b), (kind, correlation) in pairs.items())


def _components(nodes: Iterable[Hashable], edges: Iterable[tuple]) -> list[list]:
    """Connected components, each in the order of ``nodes``."""
    parent = {node: node for node in nodes}

    def top(node: Hashable) -> Hashable:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in edges:
        parent[top(b)] = top(a)
    found: dict[Hashable, list] = {}
    for node in parent:
        found.setdefault(top(node), []).append(node)
    return list(found.values())


def _name_groups(
    groups: list[list[str]], known: Sequence[Known]
) -> tuple[dict[str, str], dict[str, tuple[str, str]], set[str]]:
    """Patient key -> group id; group id -> place it has elsewhere; ids of groups torn elsewhere.

    A group is called after its smallest data set and patient. Where a manifest made earlier holds
    it, it keeps the name it has there: that file is not rewritten.
    """
    standing: dict[str, set[tuple[str, str]]] = {}
    for image in known:
        standing.setdefault(image.group_id, set()).update({image.place} - {None})
    ids, shared, torn = {}, {}, set()
    for members in groups:
        theirs = [key for key in members if key in standing]
        name = min(theirs or members, key=lambda key: (key.partition(":")[0], natural_key(key)))
        ids.update(dict.fromkeys(members, name))
        places = set().union(*(standing[key] for key in theirs))
        if len(places) > 1:
            torn.add(name)
        elif places:
            shared[name] = places.pop()
    return ids, shared, torn


# What a copy means for the rows. Each changes ``flags`` and ``excluded``, which go by place.


def _flag_copies(copies: list[tuple[_Image, _Image]], flags: dict[tuple[int, int], list[str]]) -> None:
    for first, second in copies:
        for one, other in ((first, second), (second, first)):
            if one.place is not None:
                flags[one.place].append(f"duplicate:{other.seen_from(one.dataset)}")


def _judge_labels(
    cluster: list[_Image],
    how: list[str],
    flags: dict[tuple[int, int], list[str]],
    excluded: dict[tuple[int, int], str],
) -> None:
    """One picture under several labels: at least one is wrong, and nobody knows which."""
    if len({image.label for image in cluster} - {""}) < 2:
        return
    shown: list[_Image] = []  # some of them, and one of each label
    for image in cluster:
        if len(shown) <= NAMED or image.label not in {other.label for other in shown}:
            shown.append(image)
    for image in cluster:
        if image.place is None:
            continue
        flags[image.place].append("label_conflict")
        if how[image.place[0]] != "keep" and not excluded[image.place]:
            others = [
                f"{o.seen_from(image.dataset)} ({o.label or 'label in doubt'})"
                for o in shown
                if o is not image
            ]
            if more := len(cluster) - 1 - len(others):
                others.append(f"{more} more")
            label = image.label or "in doubt"
            excluded[image.place] = f"label conflict: labelled {label}, same picture as {', '.join(others)}"


def _drop_copies(cluster: list[_Image], how: list[str], excluded: dict[tuple[int, int], str]) -> None:
    """Keep the first image of each data set, in natural order, that nothing else excludes."""
    kept: dict[int, _Image] = {}
    for image in cluster:
        if image.place is None or how[image.place[0]] != "drop" or excluded[image.place]:
            continue
        first = kept.setdefault(image.place[0], image)
        if first is not image:
            word = "duplicate" if image.sha256 == first.sha256 else "near-duplicate"
            excluded[image.place] = f"{word} of {first.image_id}"


def _row(survey: Survey, look: Look, ids: dict[str, str], flags: list[str], excluded: str) -> dict:
    record = look.record
    return {
        "dataset": survey.dataset,
        "image_id": record.image_id,
        "patient_id": record.patient_id or record.image_id,
        "patient_known": record.patient_known,
        "group_id": ids[patient_key(survey, look)],
        "label": record.label,
        "split": "",
        "fold": None,
        "image": record.image,
        "masks": "|".join(record.masks),
        "mask_format": look.mask_format if record.masks else "",
        "width": look.width or None,
        "height": look.height or None,
        "sha256": look.sha256,
        "phash": look.print.phash if look.print else "",
        "flags": "|".join(dict.fromkeys(flags)),
        "excluded": excluded,
        "pixel_mm": record.pixel_mm,
    }


def _refuse_mismatches(surveys: Sequence[Survey], policy: Policy) -> None:
    found = [f"{s.dataset}/{k.record.image_id}" for s in surveys for k in s.looks if k.mismatch]
    if policy.on_mismatch == "error" and found:
        raise DataError(
            f"{len(found)} masks are of another size than their image: {', '.join(found)}",
            hint="correct the files, or use --on-mismatch exclude (leaves them out) or resize (stretches the mask)",
        )


def _refuse_unknown_flags(surveys: Sequence[Survey], policy: Policy) -> None:
    present = {flag.partition(":")[0] for s in surveys for k in s.looks for flag in k.flags}
    unknown = [flag for flag in policy.exclude if flag not in FLAGS and flag not in present]
    if unknown:
        raise ConfigError(
            f"--exclude {', '.join(unknown)}: no such flag",
            hint=f"flags are {', '.join(sorted({*FLAGS, *present}))}",
        )
