"""The cache of resized images: found by content, never half-written, never silently wrong."""

import errno
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from bus_smp.data import cache as cache_module
from bus_smp.data.cache import open_cache
from bus_smp.data.examples import read_example
from bus_smp.data.geometry import Geometry
from bus_smp.data.images import pixel_sha256, read_image, resize_image, resize_mask
from bus_smp.data.manifest import COLUMNS, Manifest
from bus_smp.errors import BusSmpError, ImageError, ManifestError
from bus_smp.system import locks

SIZE = 32
LABELS = ("normal", "benign", "malignant")


def write_images(root: Path, count: int = 7) -> Manifest:
    """A small data set with real files: different sizes, one image without a mask, colour masks."""
    rng = np.random.default_rng(3)
    rows = []
    for i in range(count):
        label = LABELS[i % 3]
        height, width = 40 + 3 * i, 50 + 5 * i
        image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(root / f"image{i}.png"), image)
        if label != "normal":
            mask = np.zeros((height, width, 3), np.uint8)
            mask[10:25, 12:30, 1 if label == "benign" else 2] = 255  # OpenCV writes BGR
            cv2.imwrite(str(root / f"mask{i}.png"), mask)
        rows.append(
            {
                "dataset": "own", "image_id": f"image{i}", "patient_id": f"p{i}", "patient_known": True,
                "group_id": f"p{i}", "label": label, "split": "train", "fold": pd.NA, "image": f"image{i}.png",
                "masks": "" if label == "normal" else f"mask{i}.png", "mask_format": "color",
                "width": width, "height": height, "sha256": pixel_sha256(read_image(root / f"image{i}.png")),
                "phash": "", "flags": "", "excluded": "",
            }
        )  # fmt: skip
    return Manifest(pd.DataFrame(rows, columns=list(COLUMNS)), {"own": root})


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    (tmp_path / "raw").mkdir()
    return write_images(tmp_path / "raw")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "outputs" / "cache"


def built(manifest: Manifest, store: Path, size: int = SIZE) -> tuple[cache_module.Cache, bool]:
    """The cache, and whether opening it had to build."""
    calls: list[tuple[int, int]] = []
    cache = open_cache(
        manifest, manifest.frame, Geometry(size), store, progress=lambda *state: calls.append(state)
    )
    assert calls in ([], [(i + 1, len(manifest.frame)) for i in range(len(manifest.frame))])
    return cache, bool(calls)


def matches(cache: cache_module.Cache, manifest: Manifest) -> bool:
    pairs = [read_example(manifest, row) for row in manifest.frame.itertuples(index=False)]
    images = np.stack([resize_image(image, SIZE) for image, _ in pairs])
    masks = np.stack([resize_mask(mask, SIZE) for _, mask in pairs])
    return np.array_equal(cache.images, images) and np.array_equal(cache.masks, masks)


def test_the_cache_holds_the_resized_images_and_masks_in_the_order_of_the_rows(manifest, store):
    cache, fresh = built(manifest, store)
    assert fresh and len(cache) == 7 and matches(cache, manifest)
    assert cache.images.dtype == cache.masks.dtype == np.uint8
    assert [int(mask.max()) for mask in cache.masks] == [0, 1, 2, 0, 1, 2, 0]


def test_a_second_opening_builds_nothing_and_leaves_one_folder(manifest, store):
    built(manifest, store)
    cache, fresh = built(manifest, store)
    assert not fresh and matches(cache, manifest)
    assert sorted(p.name for p in store.iterdir()) == [cache.folder.name]
    assert sorted(p.name for p in cache.folder.iterdir()) == ["images.npy", "index.json", "masks.npy"]


def test_cached_pixels_cannot_be_written_to(manifest, store):
    cache, _ = built(manifest, store)
    with pytest.raises(ValueError, match="read-only"):
        cache.images[0] = 0


def test_a_cache_travels_to_another_process_as_its_path(manifest, store):
    cache, _ = built(manifest, store)
    packed = pickle.dumps(cache)
    assert len(packed) < 1000
    assert np.array_equal(pickle.loads(packed).images, cache.images)


def test_another_size_order_selection_or_label_is_another_cache(manifest, store):
    names = {open_cache(manifest, manifest.frame, Geometry(SIZE), store).folder.name}
    names.add(open_cache(manifest, manifest.frame, Geometry(16), store).folder.name)
    names.add(open_cache(manifest, manifest.frame, Geometry(SIZE, letterbox=True), store).folder.name)
    names.add(open_cache(manifest, manifest.frame, Geometry(SIZE, grey=True), store).folder.name)
    names.add(open_cache(manifest, manifest.frame[::-1], Geometry(SIZE), store).folder.name)
    names.add(open_cache(manifest, manifest.frame.iloc[:3], Geometry(SIZE), store).folder.name)
    relabelled = manifest.frame.assign(label="normal", masks="")
    names.add(open_cache(manifest, relabelled, Geometry(SIZE), store).folder.name)
    assert len(names) == 7


def test_a_corrected_mask_is_seen(manifest, store):
    built(manifest, store)
    path = manifest.roots["own"] / "mask1.png"
    mask = np.zeros_like(cv2.imread(str(path)))
    mask[2:8, 2:8, 1] = 255
    cv2.imwrite(str(path), mask)
    os.utime(path, ns=(1, 1))
    cache, fresh = built(manifest, store)
    assert fresh and matches(cache, manifest)


def flip_a_pixel(folder: Path) -> None:
    data = bytearray((folder / "images.npy").read_bytes())
    data[-1] ^= 1
    (folder / "images.npy").write_bytes(data)


DAMAGES = {
    "one changed pixel": flip_a_pixel,
    "a truncated file": lambda folder: os.truncate(folder / "masks.npy", 1000),
    "an emptied file": lambda folder: os.truncate(folder / "images.npy", 0),
    "a missing file": lambda folder: (folder / "masks.npy").unlink(),
    "a broken header": lambda folder: (folder / "images.npy").write_bytes(b"no array"),
    "a header of fewer images": lambda folder: (folder / "images.npy").write_bytes(
        (folder / "images.npy").read_bytes().replace(b"(7, ", b"(6, ", 1)
    ),
    "a broken index": lambda folder: (folder / "index.json").write_text("{"),
    "an index of other content": lambda folder: (folder / "index.json").write_text("[]"),
    "a missing index": lambda folder: (folder / "index.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_cache_is_built_again_with_a_note(manifest, store, damage, caplog):
    cache, _ = built(manifest, store)
    damage(cache.folder)
    with caplog.at_level("WARNING"):
        again, fresh = built(manifest, store)
    assert fresh and matches(again, manifest) and "damaged" in caplog.text
    assert [p.name for p in store.iterdir()] == [again.folder.name]
    caplog.clear()
    assert not built(manifest, store)[1] and not caplog.text


def test_an_unreadable_image_is_named_and_nothing_is_left(manifest, store):
    path = manifest.roots["own"] / "image4.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ImageError, match="image4.png"):
        built(manifest, store)
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("name", ["image4.png", "mask4.png"])
def test_a_missing_file_is_named(manifest, store, name):
    (manifest.roots["own"] / name).unlink()
    with pytest.raises(ImageError, match=name):
        built(manifest, store)


@pytest.mark.parametrize("cached", [False, True])
def test_an_image_changed_since_the_manifest_is_refused(manifest, store, cached):
    if cached:
        built(manifest, store)
    path = manifest.roots["own"] / "image2.png"
    image = cv2.imread(str(path))
    image[5, 5] ^= 1
    cv2.imwrite(str(path), image)
    os.utime(path, ns=(1, 1))
    with pytest.raises(ManifestError, match="image2.png") as caught:
        built(manifest, store)
    assert "make-manifest" in caught.value.hint


def test_a_manifest_without_hashes_can_be_used(manifest, store):
    manifest = Manifest(manifest.frame.assign(sha256=""), manifest.roots)
    assert matches(built(manifest, store)[0], manifest)


def test_an_empty_selection_is_refused(manifest, store):
    with pytest.raises(ManifestError, match="empty"):
        open_cache(manifest, manifest.frame.iloc[:0], Geometry(SIZE), store)


def test_a_folder_that_is_a_file_is_one_clear_error(manifest, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(BusSmpError, match="taken: cannot be written"):
        open_cache(manifest, manifest.frame, Geometry(SIZE), tmp_path / "taken")


PROCESS = """
import sys, resource
from pathlib import Path
from bus_smp.data.cache import open_cache
from bus_smp.data.geometry import Geometry
from bus_smp.data.manifest import Manifest
import pandas as pd
frame = pd.read_pickle({frame!r})
manifest = Manifest(frame, {{"own": Path({root!r})}})
limit = {limit}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
sys.stdin.readline()
def progress(done, count):
    if {stepwise}:
        print(done, flush=True)
        sys.stdin.readline()
try:
    print(open_cache(manifest, frame, Geometry({size}), Path({store!r}), progress).folder.name)
except Exception as error:
    print(type(error).__name__, error)
"""


def start(manifest: Manifest, store: Path, limit: int = 0, stepwise: bool = False) -> subprocess.Popen:
    """Another Python that opens the cache as soon as it is sent a line; ``stepwise``, it wants one for each image."""
    pickled = manifest.roots["own"] / "frame.pickle"
    manifest.frame.to_pickle(pickled)
    code = PROCESS.format(
        size=SIZE, frame=str(pickled), root=str(manifest.roots["own"]),
        limit=limit, store=str(store), stepwise=stepwise,
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment
    )


def step(process: subprocess.Popen, lines: int = 1) -> None:
    process.stdin.write("go\n" * lines)
    process.stdin.flush()


@pytest.fixture
def builder(manifest, store):
    """A process that has built three of the seven images, and waits."""
    process = start(manifest, store, stepwise=True)
    step(process, 3)
    assert [process.stdout.readline().strip() for _ in range(3)] == ["1", "2", "3"]
    yield process
    process.kill()
    process.communicate()


def is_right(manifest: Manifest, store: Path) -> bool:
    """Whether opening the cache gives the right one, and nothing else lies in ``store`` afterwards."""
    cache = open_cache(manifest, manifest.frame, Geometry(SIZE), store)
    files = sorted(path.name for path in cache.folder.iterdir())
    return (
        matches(cache, manifest)
        and [path.name for path in store.iterdir()] == [cache.folder.name]
        and files == ["images.npy", "index.json", "masks.npy"]
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no file-size limit on Windows")
def test_a_full_disk_is_one_clear_error_and_leaves_nothing(manifest, store):
    out, _ = start(manifest, store, limit=8000).communicate("go\n", timeout=60)
    assert out.startswith("BusSmpError") and "disk is full" in out and "free some space" in out
    assert list(store.iterdir()) == []


def test_processes_that_build_at_once_end_with_one_whole_cache(manifest, store):
    processes = [start(manifest, store) for _ in range(2)]
    for process in processes:
        step(process)
    answers = {process.communicate(timeout=60)[0].strip() for process in processes}
    cache, fresh = built(manifest, store)
    assert answers == {cache.folder.name} and not fresh and matches(cache, manifest)
    assert [p.name for p in store.iterdir()] == [cache.folder.name]


def no_locks(*_: object, **__: object) -> None:
    """As on a file system that has none."""
    raise OSError(errno.ENOLCK, "no locks available")


@pytest.mark.parametrize("damaged", [False, True])
def test_without_locks_the_slower_of_two_builders_takes_the_other_ones_cache_if_it_is_whole(
    manifest, store, damaged, monkeypatch
):
    monkeypatch.setattr(locks.FileLock, "acquire", no_locks)

    def other_is_faster(done: int, count: int) -> None:
        if done == count:  # our own is all but finished
            cache = open_cache(manifest, manifest.frame, Geometry(SIZE), store)
            (cache.folder / "theirs").touch()
            if damaged:
                flip_a_pixel(cache.folder)

    cache = open_cache(manifest, manifest.frame, Geometry(SIZE), store, progress=other_is_faster)
    assert matches(cache, manifest)
    assert (cache.folder / "theirs").exists() != damaged
    assert [p.name for p in store.iterdir()] == [cache.folder.name]


def test_what_a_killed_build_left_is_removed_by_the_next(manifest, store, builder):
    builder.kill()
    builder.wait()
    assert [path.name.rpartition(".")[2] for path in store.iterdir() if path.is_dir()] == ["unfinished"]
    assert is_right(manifest, store)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_an_interrupted_or_failed_build_leaves_nothing(manifest, store, error):
    def progress(done: int, _: int) -> None:
        if done == 5:
            raise error

    with pytest.raises(type(error)):
        open_cache(manifest, manifest.frame, Geometry(SIZE), store, progress)
    assert list(store.iterdir()) == []


@pytest.mark.parametrize("killed", [False, True])
def test_the_second_process_waits_for_the_first_or_takes_over_from_a_killed_one(
    manifest, store, builder, killed
):
    second = start(manifest, store, stepwise=True)
    step(second, 8)
    assert "another process is building this cache" in second.stderr.readline()
    if killed:
        builder.kill()
    else:
        builder.communicate("go\n" * 5, timeout=60)
    out, err = second.communicate(timeout=60)
    *steps, name = out.split()
    assert steps == ([*"1234567"] if killed else []), err
    assert [path.name for path in store.iterdir()] == [name]
    assert is_right(manifest, store)


def test_the_index_names_the_images(manifest, store):
    cache, _ = built(manifest, store)
    index = json.loads((cache.folder / "index.json").read_text())
    assert index["images"] == [f"own/image{i}" for i in range(7)] and index["size"] == SIZE
