"""Near-duplicates: every disguise is seen through, and other images are left alone."""

import random

import cv2
import numpy as np
import pytest

from bus_smp.data.copies import find_named_copies
from bus_smp.data.images import read_image
from bus_smp.data.near_duplicates import search
from bus_smp.data.near_duplicates.registration import texture_of
from bus_smp.data.near_duplicates.search import find_near_duplicates, fingerprint


def make_scan(seed: int, height: int = 300, width: int = 380) -> np.ndarray:
    """Speckle on random tissue, a dark blob in the middle as in every lesion image: uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    tissue = cv2.resize(
        rng.normal(size=(9, 9)).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
    )
    wave = cv2.GaussianBlur(
        rng.normal(size=(height, width, 2)).astype(np.float32), (0, 0), sigmaX=3, sigmaY=1.5
    )
    speckle = np.hypot(wave[..., 0], wave[..., 1])
    y, x = np.mgrid[:height, :width]
    lesion = np.exp(-(((x - width / 2) / 60) ** 2) - ((y - height / 2) / 40) ** 2)
    level = 110 + 80 * np.log10(speckle / speckle.mean() + 0.05) + 22 * tissue - 60 * lesion
    return cv2.cvtColor(np.clip(level, 0, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)


def rescale(image, x, y):
    return cv2.resize(image, None, fx=x, fy=y, interpolation=cv2.INTER_AREA if x < 1 else cv2.INTER_CUBIC)


def draw_marks(image):
    image = image.copy()
    cv2.drawMarker(image, (120, 110), (255, 255, 0), cv2.MARKER_CROSS, 14, 1)
    cv2.line(image, (120, 110), (270, 190), (255, 255, 255), 1)
    cv2.putText(image, "RT UOQ 3 cm", (90, 260), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 0), 1)
    cv2.ellipse(image, (210, 150), (30, 18), 0, 0, 360, (255, 60, 0), -1)
    return image


def put_in_frame(image):
    framed = cv2.copyMakeBorder(image, 30, 60, 70, 20, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    for line in range(6):
        cv2.putText(framed, f"Gain {line}", (4, 60 + 30 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (210,) * 3, 1)
    return framed


def darken(image):
    return np.clip(200 * (image / 255.0) ** 1.6 + 15, 0, 255).astype(np.uint8)


def compress(image):
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR)


def turn(image, degrees):
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1), (width, height)
    )


DISGUISES = {
    "an off-centre crop to 60 % of the area": lambda image: image[60:292, 4:298],
    "a crop of one side": lambda image: image[:, 130:],
    "half the size": lambda image: rescale(image, 0.5, 0.5),
    "1.5 times the size": lambda image: rescale(image, 1.5, 1.5),
    "another aspect ratio": lambda image: rescale(image, 1, 0.85),
    "gamma, contrast and brightness": darken,
    "calipers, text and colour": draw_marks,
    "a black frame with a tool bar": put_in_frame,
    "JPEG compression": compress,
    "a mirror": lambda image: image[:, ::-1],
    "a mirror upside down": lambda image: image[::-1],
    "a turn by 5 degrees": lambda image: turn(image, 5),
    "a turn by 15 degrees": lambda image: turn(image, 15),
    "a turn by 90 degrees": np.rot90,
    "a turn by 180 degrees": lambda image: image[::-1, ::-1],
    "inverted greys": lambda image: 255 - image,
    "inverted greys and a mirror": lambda image: 255 - image[:, ::-1],
    "a zoom": lambda image: rescale(image, 1.4, 1.4)[60:360, 76:456],
    "a tint": lambda image: (image * (1.0, 0.8, 0.5)).astype(np.uint8),
    "a mirror, and cropped": lambda image: image[30:280, 330:20:-1],
    "a crop, rescaled, darker, with marks": lambda image: rescale(
        darken(draw_marks(image)[20:280, 40:]), 0.8, 0.8
    ),
}


@pytest.fixture(scope="module")
def others():
    return [fingerprint(make_scan(seed)) for seed in range(1, 9)]


@pytest.mark.parametrize("disguise", DISGUISES)
def test_a_copy_is_found_behind(disguise, others):
    scan = make_scan(0)
    copy = np.ascontiguousarray(DISGUISES[disguise](scan))
    pairs = find_near_duplicates([fingerprint(scan), *others, fingerprint(copy)])
    assert [pair[:2] for pair in pairs] == [(0, len(others) + 1)]
    assert 0.75 <= pairs[0].correlation <= 1


def test_different_images_do_not_match_although_all_share_a_lesion_and_the_text_of_a_scanner():
    scans = [put_in_frame(make_scan(seed)) for seed in range(12)]
    assert find_near_duplicates([fingerprint(scan) for scan in scans]) == []


def test_the_same_anatomy_with_other_speckle_does_not_match():
    scan = make_scan(0).astype(np.float32)
    anatomy = cv2.GaussianBlur(scan, (0, 0), 6)
    other = make_scan(1).astype(np.float32)
    other = anatomy + other - cv2.GaussianBlur(other, (0, 0), 6)
    images = [scan.astype(np.uint8), np.clip(other, 0, 255).astype(np.uint8)]
    assert find_near_duplicates([fingerprint(image) for image in images]) == []


def test_the_order_of_the_images_does_not_matter():
    scans = [make_scan(seed) for seed in range(5)]
    images = [
        *scans,
        scans[1][40:, 50:],
        draw_marks(scans[1]),
        scans[3][:, ::-1].copy(),
        rescale(scans[4], 0.6, 0.6),
    ]
    prints = [fingerprint(image) for image in images]
    expected = {(pair.first, pair.second): pair.correlation for pair in find_near_duplicates(prints)}
    assert set(expected) >= {(1, 5), (1, 6), (3, 7), (4, 8)}
    for seed in range(3):
        order = list(range(len(images)))
        random.Random(seed).shuffle(order)
        pairs = find_near_duplicates([prints[i] for i in order])
        assert pairs == sorted(pairs)
        assert {(*sorted((order[p.first], order[p.second])),): p.correlation for p in pairs} == expected


def test_degenerate_images_neither_crash_nor_match():
    flat = [np.full((200, 300, 3), value, np.uint8) for value in (0, 0, 128, 255)]
    tiny = [
        np.zeros((1, 1, 3), np.uint8),
        np.full((1, 1), 9, np.uint8),
        np.arange(64, dtype=np.uint8).reshape(8, 8),
    ]
    thin = [np.zeros((1, 500), np.uint8), np.tile(np.arange(200, dtype=np.uint8), (3, 1)).T.copy()]
    ramp = [np.tile(np.linspace(0, 255, 300).astype(np.uint8), (200, 1))] * 2
    prints = [fingerprint(image) for image in (*flat, *tiny, *thin, *ramp)]
    assert find_near_duplicates(prints) == []
    assert all(len(p.phash) == 64 for p in prints)
    assert find_near_duplicates([]) == [] and find_near_duplicates(prints[:1]) == []


def test_the_hash_is_256_bits_of_rising_neighbours():
    rising = np.tile(np.arange(170, dtype=np.uint8), (160, 1))
    assert fingerprint(rising).phash == "f" * 64
    assert fingerprint(rising[:, ::-1].copy()).phash == "0" * 64


def test_a_fingerprint_is_small_and_grey_and_colour_agree():
    scan = make_scan(0)
    colour, grey = fingerprint(scan), fingerprint(scan[..., 0].copy())
    assert colour.phash == grey.phash and colour.thumbnail == grey.thumbnail
    assert len(colour.thumbnail) + colour.points.nbytes + colour.descriptors.nbytes < 48_000


@pytest.fixture
def looked(monkeypatch):
    """The scores of the pairs of images that were registered on each other."""
    looked = []
    correlation = search.registered_correlation

    def counted(first, second, matrix):
        looked.append(correlation(first, second, matrix))
        return looked[-1]

    monkeypatch.setattr(search, "registered_correlation", counted)
    return looked


def retouched(scan, number):
    copy = scan.copy()
    copy[number % scan.shape[0], 7 * number % scan.shape[1]] ^= 255
    return copy


def test_a_crowd_of_copies_stays_connected_and_costs_each_image_a_bounded_number_of_registrations(looked):
    scan = make_scan(0, 150, 190)
    copies = [fingerprint(retouched(scan, number)) for number in range(60)]
    others = [fingerprint(make_scan(seed, 150, 190)) for seed in (1, 2)]
    prints = [others[0], *copies, others[1], fingerprint(make_scan(1, 150, 190)[10:, 15:])]
    pairs = find_near_duplicates(prints)
    assert sorted(map(sorted, clusters_of(pairs, len(prints)))) == [[0, 62], list(range(1, 61))]
    assert len(looked) <= 2 * search.CANDIDATES * len(prints), "of two maps for each of 1,770 pairs"


def test_every_pair_of_a_few_copies_is_returned():
    scan = make_scan(0, 150, 190)
    prints = [fingerprint(retouched(scan, number)) for number in range(4)]
    pairs = [pair[:2] for pair in find_near_duplicates(prints)]
    assert pairs == [(a, b) for a in range(4) for b in range(a + 1, 4)]


def test_progress_covers_the_search_and_the_verification():
    scan = make_scan(0, 150, 190)
    shown = []

    def progress(items, total, text):
        for item in items:
            shown.append((total, text))
            yield item

    pairs = find_near_duplicates([fingerprint(retouched(scan, number)) for number in range(3)], progress)
    assert (
        shown == [(1, "near-duplicates: search")] + [(3, "near-duplicates: verify")] * 3 and len(pairs) == 3
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(8))
def test_black_parts_of_an_image_are_flat_and_no_warning(seed):
    """Running sums of what was bright before end a little below zero there, which has no root."""
    rng = np.random.default_rng(seed)
    image = np.zeros((207, 178), np.uint8)
    cv2.line(image, (10, 30 + 15 * seed), (160, 190 - 10 * seed), 200, 1)
    cv2.putText(image, f"Depth {seed} cm", (5, 100), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 255, 1)
    image[150:190, 20:70] = rng.integers(0, 90, (40, 50))
    texture, deviation = texture_of(image)
    assert np.isfinite(texture).all() and np.isfinite(deviation).all()
    assert len(fingerprint(image).points)


def test_work_grows_with_the_images_not_with_their_pairs(looked, monkeypatch):
    """Counted are the neighbours asked for and the registrations; each image shares the text with each other."""
    asked = []

    class CountingIndex:
        def __init__(self, *arguments):
            self.index = index(*arguments)

        def knnSearch(self, query, number, params):  # noqa: N802, as OpenCV spells it
            asked.append(len(query) * number)
            return self.index.knnSearch(query, number, params=params)

    index = search.cv2.flann_Index
    monkeypatch.setattr(search.cv2, "flann_Index", CountingIndex)
    scans = [make_scan(seed, 75, 95) for seed in range(40)]
    prints = [fingerprint(put_in_frame(scan)) for scan in (*scans, scans[7][:, 10:])]
    for number in (14, 41):
        asked.clear(), looked.clear()
        found = find_near_duplicates(prints[:number])
        assert sum(asked) <= 2.6 * search.NEIGHBOURS * search.KEYPOINTS * number
        assert 0 < len(looked) <= 2 * search.CANDIDATES * number
    assert [pair[:2] for pair in found] == [(7, 40)]


def test_only_pairs_across_two_sets_are_looked_for():
    scans = [make_scan(seed, 150, 190) for seed in range(4)]
    crop = scans[0][10:, 15:]
    prints = [
        fingerprint(image)
        for image in (scans[0], crop, scans[1], scans[2], scans[1][:, ::-1].copy(), scans[3])
    ]
    assert [pair[:2] for pair in find_near_duplicates(prints)] == [(0, 1), (2, 4)]
    assert [pair[:2] for pair in find_near_duplicates(prints, across=3)] == [(2, 4)]
    assert find_near_duplicates(prints, across=2) == [] == find_near_duplicates(prints[:3], across=3)


def clusters_of(pairs, count):
    leader = list(range(count))

    def find(i):
        while leader[i] != i:
            i = leader[i]
        return i

    for first, second, _ in pairs:
        leader[find(first)] = find(second)
    members: dict[int, set[int]] = {}
    for i in range(count):
        members.setdefault(find(i), set()).add(i)
    return [group for group in members.values() if len(group) > 1]


@pytest.mark.real
@pytest.mark.slow
def test_the_known_duplicates_of_busi_and_bus_uclm_are_found_and_no_patients_else_are_joined(real_data):
    busi = sorted(p for p in (real_data / "BUSI").rglob("*.png") if "_mask" not in p.name)
    uclm = sorted((real_data / "BUS-UCLM" / "images").glob("*.png"))
    names = [p.stem[0].upper() + p.stem.split("(")[1].rstrip(")") for p in busi] + [p.stem for p in uclm]
    pairs = find_near_duplicates([fingerprint(read_image(path)) for path in (*busi, *uclm)])
    assert not [p for p in pairs if p.first < len(busi) <= p.second]

    groups = [
        {names[i] for i in g} for g in clusters_of([p for p in pairs if p.second < len(busi)], len(busi))
    ]
    assert 200 <= sum(map(len, groups)) <= 340
    mixed = sorted(sorted(group) for group in groups if len({name[0] for name in group}) > 1)
    assert mixed == sorted(
        [
            ["B131", "B42", "M51"],
            ["B164", "B85", "M52"],
            ["B333", "M77", "M78"],
            ["B399", "M93"],
            ["B406", "M94"],
        ]
        + [["B433", "M145"], ["B269", "N1"], ["B437", "N34"]]
    )
    across = {(names[i], names[j]) for i, j, _ in pairs if i >= len(busi) and names[i][:4] != names[j][:4]}
    assert across == {
        ("CHCO_000", "CHVI_005"), ("CHCO_001", "CHVI_008"), ("CHCO_002", "CHVI_009"), ("CHCO_003", "CHVI_013"),
    }  # fmt: skip


def test_names_that_call_an_image_a_copy_are_a_finding_unless_the_two_are_in_one_group():
    names = [
        "a",
        "a_rot5",
        "aug_b",
        "b",
        "c",
        "c (1)",
        "d_png.rf.0a1b2c",
        "d_png.rf.99ff00",
        "e_hflip_rot90",
        "e",
    ]
    found = dict(find_named_copies({name: name for name in names}))
    assert found == {
        "a_rot5": "a", "aug_b": "b", "c (1)": "c", "d_png.rf.99ff00": "d_png.rf.0a1b2c", "e_hflip_rot90": "e",
    }  # fmt: skip
    assert find_named_copies({"a": "one", "a_rot5": "one", "benign (1)": "x", "benign (2)": "y"}) == []
    others = [
        "case001",
        "case002",
        "bus_0001-l",
        "bus_0001-r",
        "ANAT_000",
        "ANAT_001",
        "x_copy",
        "rot",
        "flip",
    ]
    assert find_named_copies({name: name for name in others}) == []
