"""Which images are copies of one another, and which patients therefore belong to one group.

Two relations are kept apart. Images are *copies* of one another when their pixels are equal or a
near-duplicate was verified; a chain of copies is a cluster. Patients belong to one *group* when a
copy joins them. A group is never divided over splits, so no copy can leak.
"""

import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby, pairwise

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bus_smp.classes import LABELS
from bus_smp.data.audit import AuditedFolder, AuditedImage, Progress, no_progress
from bus_smp.data.near_duplicates.search import Fingerprint, find_near_duplicates
from bus_smp.data.sources._tree import natural_key

# Split and fold of an image; the fold is "" where there are none.
Place = tuple[str, str]


@dataclass(frozen=True)
class ComparedImage:
    """One image in the comparison.

    label: "" where it is in doubt and proves nothing about a copy's label.
    group: the patient group; for an image of a manifest that exists already, its group id there, which it keeps.
    index: (folder, image) of an audit; None for an image of a manifest that exists already.
    place: where that manifest puts the image; None for an excluded image, and for one of an audit.
    """

    dataset: str
    image_id: str
    label: str
    group: str
    sha256: str
    fingerprint: Fingerprint
    index: tuple[int, int] | None = None
    place: Place | None = None

    def seen_from(self, dataset: str) -> str:
        """The image's name in the manifest of ``dataset``: <dataset>/<id> for an image of another data set."""
        return self.image_id if dataset == self.dataset else f"{self.dataset}/{self.image_id}"


@dataclass(frozen=True)
class Copies:
    """What the comparison found.

    pairs: (first, second, "exact" | "near", correlation) with indices of ``images``, first < second.
    clusters: images that are copies of one another, two or more each.
    groups: patient group (``patient_group``) -> group id after merging.
    earlier_places: group id -> place that manifests made earlier give it.
    torn: ids of groups that manifests made earlier put in different places.
    """

    images: list[ComparedImage]
    pairs: list[tuple[int, int, str, float]]
    clusters: list[list[ComparedImage]]
    groups: dict[str, str]
    earlier_places: dict[str, Place]
    torn: set[str]


def find_copies(
    folders: Sequence[AuditedFolder], earlier: Sequence[ComparedImage], progress: Progress = no_progress
) -> Copies:
    """Compare all images with each other and with those of manifests made ``earlier``, and form the groups.

    Patients of a data set whose records have the same ``normalised_id`` are one group, too.
    """
    images = _list_images(folders, earlier)
    pairs = _find_pairs(images, progress)
    edges = [(a, b) for a, b, _, _ in pairs]
    clusters = [[images[i] for i in c] for c in find_components(range(len(images)), edges) if len(c) > 1]
    patients = [image.group for image in images]
    patients += [patient_group(folder, image) for folder in folders for image in folder.images]
    same = [(images[a].group, images[b].group) for a, b in edges] + _pair_spellings(folders)
    return Copies(images, pairs, clusters, *_name_groups(find_components(patients, same), earlier))


def patient_group(folder: AuditedFolder, image: AuditedImage) -> str:
    """``<dataset>:<patient>``, the group of a patient who shares no picture.

    An image without a patient id is a patient of its own.
    """
    return f"{folder.dataset}:{image.record.patient_id or image.record.image_id}"


def find_components(nodes: Iterable[Hashable], edges: Sequence[tuple]) -> list[list]:
    """Connected components, each in the order of ``nodes``."""
    numbers = {node: number for number, node in enumerate(dict.fromkeys(nodes))}
    ends = np.array([(numbers[a], numbers[b]) for a, b in edges], int).reshape(-1, 2).T
    graph = coo_array((np.ones(ends.shape[1]), (ends[0], ends[1])), shape=(len(numbers), len(numbers)))
    found: dict[int, list] = {}
    for node, component in zip(numbers, connected_components(graph, directed=False)[1], strict=True):
        found.setdefault(component, []).append(node)
    return list(found.values())


def _pair_spellings(folders: Sequence[AuditedFolder]) -> list[tuple[str, str]]:
    """Pairs of patient groups that are spellings of one patient id."""
    first: dict[tuple[str, str], str] = {}
    pairs = []
    for folder in folders:
        for image in folder.images:
            if image.record.normalised_id:
                group = patient_group(folder, image)
                pairs.append((first.setdefault((folder.dataset, image.record.normalised_id), group), group))
    return pairs


# What programs that augment images add to a name: Roboflow's ".rf.<hash>", "aug_", "_rot5", "-flipped", " (1)", "_copy".
_CHANGE = r"(?:aug(?:mented)?|rot(?:at(?:e|ed|ion))?|[hv]?flip(?:ped)?|mirror(?:ed)?|zoom(?:ed)?|copy|bright(?:er|ness)?|noisy?|blur(?:red)?)"
_ADDED = re.compile(
    rf"^{_CHANGE}[ _-]?\d*[ _-]|\.rf\.[0-9a-f]+$|[ _.-]+{_CHANGE}[ _-]?-?\d*$| \(\d+\)$", re.IGNORECASE
)


def find_named_copies(groups: Mapping[str, str]) -> list[tuple[str, str]]:
    """Images whose names call them a changed copy of another, although they are in another group: (copy, other).

    Args:
        groups: image id -> group id.
    """
    first: dict[str, str] = {}
    found = []
    for image in sorted(groups, key=lambda name: (len(name), natural_key(name))):
        stem = image
        while (shorter := _ADDED.sub("", stem)) not in (stem, ""):
            stem = shorter
        # "benign (1)" and "benign (2)" are no copies of each other
        other = (
            first.setdefault(stem, image)
            if stem == image or not image.endswith(")")
            else first.get(stem, image)
        )
        if groups[other] != groups[image]:
            found.append((image, other))
    return found


def proven_label(label: str, flags: Collection[str]) -> str:
    """The label, or "" where it is unknown or contradicts the mask: then it proves nothing about a copy's label."""
    return "" if "label_mismatch" in flags or label not in LABELS else label


def _list_images(folders: Sequence[AuditedFolder], earlier: Sequence[ComparedImage]) -> list[ComparedImage]:
    """All images that can be compared, in natural order."""
    images = [
        ComparedImage(
            folder.dataset, one.record.image_id, proven_label(one.record.label, one.flags),
            patient_group(folder, one), one.sha256, one.fingerprint, (i, j),
        )
        for i, folder in enumerate(folders)
        for j, one in enumerate(folder.images)
        if one.fingerprint is not None
    ]  # fmt: skip
    return sorted([*images, *earlier], key=lambda image: (image.dataset, natural_key(image.image_id)))


def _find_pairs(images: Sequence[ComparedImage], progress: Progress) -> list[tuple[int, int, str, float]]:
    """(first, second, kind, correlation), first < second: equal pixels, and verified near-duplicates.

    Of n equal images of a data set each is paired with the next, and the first with the first of another
    data set. That makes about n pairs; all pairs would be n * (n - 1) / 2.
    """
    same: dict[str, list[int]] = {}
    for i, image in enumerate(images):
        same.setdefault(image.sha256, []).append(i)
    pairs: dict[tuple[int, int], tuple[str, float]] = {}
    for equal in same.values():
        of_each = [list(members) for _, members in groupby(equal, key=lambda i: images[i].dataset)]
        chains = [pair for members in of_each for pair in pairwise(members)]
        pairs |= dict.fromkeys([*chains, *combinations([m[0] for m in of_each], 2)], ("exact", 1.0))
    # One of each set of equal images is compared with the rest.
    one_each = [equal[0] for equal in same.values()]
    for a, b, correlation in find_near_duplicates([images[i].fingerprint for i in one_each], progress):
        pairs[one_each[a], one_each[b]] = ("near", round(float(correlation), 3))
    return sorted((a, b, kind, correlation) for (a, b), (kind, correlation) in pairs.items())


def _name_groups(
    components: list[list[str]], earlier: Sequence[ComparedImage]
) -> tuple[dict[str, str], dict[str, Place], set[str]]:
    """``groups``, ``earlier_places`` and ``torn`` of ``Copies``.

    The id of a group is its smallest data set and patient. A group that a manifest made earlier holds
    keeps its id there, because that file is not written again.
    """
    places: dict[str, set[Place]] = {}
    for image in earlier:
        places.setdefault(image.group, set()).update([image.place] if image.place else [])
    groups, earlier_places, torn = {}, {}, set()
    for members in components:
        theirs = [group for group in members if group in places]
        name = min(theirs or members, key=lambda group: (group.partition(":")[0], natural_key(group)))
        groups.update(dict.fromkeys(members, name))
        found = set().union(*(places[group] for group in theirs))
        if len(found) > 1:
            torn.add(name)
        elif found:
            earlier_places[name] = found.pop()
    return groups, earlier_places, torn
