"""Bad files, every kind of ``corpus.py``: used rightly, or named with a reason while the rest goes on.

Where going on would change a result (a training, an evaluation), the command stops instead. Exit code 0, 1 or 2,
no traceback, nothing waited for, nothing lost.
"""

import os
import re
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import corpus
import numpy as np
import pandas as pd
import pytest
from conftest import ended, invoke, settings_options
from PIL import Image

from bus_smp.data.examples import read_example
from bus_smp.data.images import color_mask, pixel_sha256, read_image, read_mask
from bus_smp.data.manifest import read_manifest
from bus_smp.data.own_table import read_own_table
from bus_smp.errors import ImageError
from bus_smp.inference.predict_files import find_images

LABELS = ("benign", "malignant", "normal")
KINDS = (*corpus.IMAGES, corpus.ONE_PIXEL)
REFUSED = [kind for kind in (*KINDS, *corpus.MASKS) if kind.reason]
READ = [kind for kind in corpus.TABLES if not kind.reason]
REFUSED_TABLES = [kind for kind in corpus.TABLES if kind.reason]


def names(kinds):
    return [kind.name for kind in kinds]


def named_so(kind):
    return kind.name


def long(kind):
    """The kind as a parameter of a long form; short tests hold the promise for it."""
    return pytest.param(kind, marks=pytest.mark.slow)


def write_tree(root, images):
    """A BUS-UCLM folder of (image id, suffix, content or maker, size, label)."""
    rows = ["Image;Resolution;Label;Doppler;Marks;Combined"]
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    for number, (name, suffix, write, shape, label) in enumerate(images):
        write(root / "images" / f"{name}{suffix}")
        size = (shape[1], shape[0])
        lesion = corpus.lesion(name) if size == corpus.SIZE and label != "normal" else np.zeros(shape, bool)
        mask = color_mask(lesion.astype(np.uint8) * np.uint8(1 + (label == "malignant")))
        (root / "masks" / f"{name}.png").write_bytes(corpus.saved(mask, "PNG"))
        rows.append(f"{name}{suffix};;{label};No;No;No")
        assert number < 26**2
    (root / "INFO.csv").write_text("\n".join(rows) + "\n", encoding="utf-8-sig")
    return root


def code(number):
    """A patient's code of four letters."""
    return "KK" + chr(65 + number // 26) + chr(65 + number % 26)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Every kind of image, every special file, and litter; image ids in the order of the corpus."""
    root = tmp_path_factory.mktemp("bad") / "BUS-UCLM"
    images = []
    for number, kind in enumerate(KINDS):
        shape = kind.shows(corpus.picture(kind.name)).shape[:2]
        whole = shape == corpus.SIZE[::-1] or kind.reason
        label = LABELS[number % 3] if whole else "normal"
        shape = corpus.SIZE[::-1] if kind.reason else shape
        write = lambda path, kind=kind: path.write_bytes(kind.content)  # noqa: E731 - one line for each file
        images.append((f"{code(number)}_000", kind.suffix, write, shape, label))
    for number, make in enumerate(corpus.SPECIAL.values(), start=len(KINDS)):

        def special(path, make=make[0]):
            make(path, path.parent / f"{code(0)}_000.png")

        # links to an image bear its label: a copy with another would be a conflict
        images.append((f"{code(number)}_000", ".png", special, corpus.SIZE[::-1], LABELS[0]))
    write_tree(root, images)
    (root / "masks" / f"{code(0)}_000.png").unlink()
    for number in range(len(KINDS), len(KINDS) + len(corpus.SPECIAL)):
        (root / "masks" / f"{code(number)}_000.png").unlink()
    lesion = corpus.saved(color_mask(corpus.lesion("linked").astype(np.uint8)), "PNG")
    for number in (0, *range(len(KINDS), len(KINDS) + len(corpus.SPECIAL))):
        (root / "masks" / f"{code(number)}_000.png").write_bytes(lesion)
    for name in corpus.LITTER:
        (root / "images" / name).write_bytes(b"litter")
    (root / "images" / "folder.png").mkdir()
    return root


def expected():
    """Image id -> (kind's name, words of the reason, the kind or None)."""
    found = {f"{code(number)}_000": (kind.name, kind.reason, kind) for number, kind in enumerate(KINDS)}
    for number, (name, (_, reason)) in enumerate(corpus.SPECIAL.items(), start=len(KINDS)):
        found[f"{code(number)}_000"] = (name, reason, None)
    return found


@pytest.fixture(scope="module")
def made(tree):
    """The folder with data_manifests/bus-uclm.csv of that tree."""
    folder = tree.parent
    ended(
        invoke("make-manifest", "--dataset", "bus-uclm", "--root", tree, "--out", folder / "data_manifests"),
        0,
    )
    return folder


# Reading


@pytest.mark.parametrize("kind", KINDS, ids=names(KINDS))
def test_an_image_is_read_as_it_is_shown_or_named_with_the_reason(kind, tmp_path):
    path = tmp_path / f"scan{kind.suffix}"
    path.write_bytes(kind.content)
    if kind.reason:
        with pytest.raises(ImageError, match=kind.reason) as caught:
            read_image(path)
        assert str(path) in caught.value.what and "\n" not in caught.value.what
        return
    found, shown = read_image(path), kind.shows(corpus.picture(kind.name))
    assert found.shape == shown.shape and found.dtype == np.uint8
    assert np.abs(found.astype(int) - shown).max() <= kind.tolerance


@pytest.mark.parametrize("kind", corpus.MASKS, ids=names(corpus.MASKS))
def test_a_mask_is_read_as_it_was_meant_or_named_with_the_reason(kind, tmp_path):
    lesion = corpus.lesion(kind.name)
    path = tmp_path / f"mask{kind.suffix}"
    path.write_bytes(kind.write(lesion))
    if kind.reason and kind.name != "empty":  # empty is right by itself, wrong beside its label: below
        with pytest.raises(ImageError, match=kind.reason) as caught:
            read_mask([path], kind.format, "benign", lesion.shape)
        assert "mask" in caught.value.what
    else:
        found = read_mask([path], kind.format, "benign", lesion.shape)
        assert np.array_equal(found, lesion & (kind.name != "empty"))


@pytest.mark.parametrize("kind", corpus.SPECIAL)
def test_what_is_no_file_is_named_and_does_not_block(kind, tmp_path):
    make, reason = corpus.SPECIAL[kind]
    image = tmp_path / "image.png"
    image.write_bytes(KINDS[0].content)
    make(tmp_path / "x.png", image)
    if reason:
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / "x.png")
    else:
        assert np.array_equal(read_image(tmp_path / "x.png"), read_image(image))


def test_a_file_without_permission_is_named(tmp_path):
    path = tmp_path / "scan.png"
    path.write_bytes(KINDS[0].content)
    path.chmod(0)
    if os.geteuid():
        with pytest.raises(ImageError, match="no permission"):
            read_image(path)
        return
    tmp_path.chmod(0o755)
    os.seteuid(65534)  # root reads everything, so be nobody for a moment; the folders above may be closed too
    try:
        with pytest.raises(ImageError, match="no permission"):
            read_image(path)
    finally:
        os.seteuid(0)


def test_a_file_that_changes_while_it_is_read_is_one_of_both_or_named(tmp_path):
    """In a process of its own: a file cut short under a memory map would end it with a signal."""
    old, new = (corpus.saved(np.full((700, 900), value, np.uint8), "TIFF") for value in (7, 250))
    (tmp_path / "old").write_bytes(old)
    (tmp_path / "new").write_bytes(new)
    program = f"""
import threading
from pathlib import Path
from bus_smp.data.images import read_image
from bus_smp.errors import ImageError
path, ending = Path({str(tmp_path / "x.tif")!r}), []
versions = [Path({str(tmp_path)!r}, name).read_bytes() for name in ("old", "new")]
path.write_bytes(versions[0])
def change():
    number = 0
    while not ending:
        number += 1
        path.write_bytes(versions[number % 2])  # cut to nothing, then written anew
thread = threading.Thread(target=change)
thread.start()
read = named = 0
for _ in range(150):
    try:
        assert set(read_image(path).ravel().tolist()) <= {{7, 250}}
        read += 1
    except ImageError:
        named += 1
ending.append(1)
thread.join()
print(read, named)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, (result.returncode, result.stderr)
    assert sum(map(int, result.stdout.split())) == 150


# make-manifest


def test_make_manifest_names_each_bad_image_and_uses_the_rest_rightly(made):
    frame = read_manifest(made / "data_manifests" / "bus-uclm.csv").frame.set_index("image_id")
    assert sorted(frame.index) == sorted(expected())  # nothing lost, no litter taken for an image
    for image, (name, reason, kind) in expected().items():
        row = frame.loc[image]
        if reason:
            assert re.search(reason, row["excluded"]), (name, row["excluded"])
            # The path is relative, so the words are the same on every machine.
            assert row["excluded"].startswith("unreadable: images/"), (name, row["excluded"])
        else:
            assert row["excluded"] == "", (name, row["excluded"])
            if kind is not None and not kind.tolerance:
                assert row["sha256"] == pixel_sha256(kind.shows(corpus.picture(kind.name))), name


def test_make_manifest_names_each_bad_mask(tmp_path):
    rows = [corpus.HEADER + ["mask_format"]]
    for number, kind in enumerate(corpus.MASKS):
        (tmp_path / f"i{number:02}.png").write_bytes(corpus.saved(corpus.picture(kind.name), "PNG"))
        (tmp_path / f"m{number:02}{kind.suffix}").write_bytes(kind.write(corpus.lesion(kind.name)))
        rows.append([f"i{number:02}.png", f"m{number:02}{kind.suffix}", "benign", f"p{number}", kind.format])
    (tmp_path / "full.png").write_bytes(corpus.saved(corpus.picture("full"), "PNG"))
    (tmp_path / "white.png").write_bytes(corpus.saved(np.full(corpus.SIZE[::-1], 255, np.uint8), "PNG"))
    rows.append(["full.png", "white.png", "benign", "full", ""])
    (tmp_path / "own.csv").write_text(corpus.lines(rows))
    ended(invoke("make-manifest", "--csv", tmp_path / "own.csv", "--out", tmp_path / "m"), 0)
    manifest = read_manifest(tmp_path / "m" / "own.csv")
    frame = manifest.frame.set_index("image_id")
    assert len(frame) == len(corpus.MASKS) + 1
    for number, kind in enumerate(corpus.MASKS):
        row = frame.loc[f"i{number:02}"]
        if kind.name == "of another size":
            assert row["excluded"].startswith("size-mismatch")
        elif kind.reason:
            assert re.search(kind.reason, row["excluded"]), (kind.name, row["excluded"])
        else:
            assert row["excluded"] == "", (kind.name, row["excluded"])
            _, mask = read_example(manifest, row.to_dict() | {"image_id": row.name})
            assert np.array_equal(mask, corpus.lesion(kind.name))
    assert (
        frame.loc["full", "excluded"]
        == "full-mask: every pixel is marked; the background must be black, or 0"
    )


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Folder of images and masks, and the rows of a good table of them."""
    folder = tmp_path_factory.mktemp("table")
    (folder / "in").mkdir()
    rows = [corpus.HEADER]
    for number in range(9):
        name, label = f"a{number}", LABELS[number % 3]
        (folder / "in" / f"{name}.png").write_bytes(corpus.saved(corpus.picture(name), "PNG"))
        (folder / "in" / f"{name}_m.png").write_bytes(
            corpus.saved(corpus.lesion(name).astype(np.uint8) * np.uint8(255 * (label != "normal")), "PNG")
        )
        rows.append([f"in/{name}.png", f"in/{name}_m.png", label, f"p{number}"])
    (folder.parent / "secret.png").write_bytes(b"no image")
    return folder, rows


@pytest.mark.parametrize("kind", [*REFUSED_TABLES, READ[0], *(long(kind) for kind in READ[1:])], ids=named_so)
def test_a_table_is_read_like_the_plain_one_or_refused_and_nothing_is_written(kind, table, tmp_path):
    folder, rows = table
    path = tmp_path / f"own{kind.suffix}"
    path.write_bytes(kind.write(rows))
    result = invoke("make-manifest", "--csv", path, "--root", folder, "--out", tmp_path / "m")
    if kind.reason:
        told = ended(result, 1)
        assert re.search(kind.reason, told), told
        assert len(told) < 2000  # a reason, not the file
        assert not (tmp_path / "m").exists()
    else:
        ended(result, 0)
        frame = read_manifest(tmp_path / "m" / "own.csv").frame
        assert frame[["image", "masks", "label", "patient_id"]].values.tolist() == rows[1:]
        assert (frame["excluded"] == "").all()


@pytest.mark.parametrize("kind", READ, ids=names(READ))
def test_the_records_of_a_table_are_those_of_the_plain_one(kind, table, tmp_path):
    folder, rows = table
    path = tmp_path / f"own{kind.suffix}"
    path.write_bytes(kind.write(rows))
    (records,) = read_own_table(path, folder).values()
    assert [[r.image, "|".join(r.masks), r.label, r.patient_id] for r in records] == rows[1:]


def test_a_table_that_is_no_file_is_named_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name in ("pipe.csv", "folder.csv", "none.csv", "x" * 300 + ".csv"):
        told = ended(invoke("make-manifest", "--csv", tmp_path / name, "--out", tmp_path / "m"), 1)
        assert name[:100] in told


@pytest.fixture
def named(tmp_path):
    """A BUS-UCLM folder without table, of images of every odd name."""
    root = tmp_path / "BUS-UCLM"
    for name, _ in [("ABCD_000", True), *corpus.NAMES.values()]:  # the first is what the data set is known by
        for part, content in (
            ("images", corpus.saved(corpus.picture(name.encode("utf-8", "surrogateescape").hex()), "PNG")),
            ("masks", corpus.saved(color_mask(corpus.lesion(repr(name)).astype(np.uint8)), "PNG")),
        ):
            (root / part).mkdir(parents=True, exist_ok=True)
            (root / part / f"{name}.png").write_bytes(content)
    return root


def test_images_of_odd_names_are_used_and_listed_under_their_own_or_named(named, tmp_path):
    ended(invoke("make-manifest", "--dataset", "bus-uclm", "--root", named, "--out", tmp_path / "m"), 0)
    manifest = read_manifest(tmp_path / "m" / "bus-uclm.csv")
    used = manifest.used()
    fitting = ["ABCD_000", *(name for name, fits in corpus.NAMES.values() if fits)]
    assert sorted(used["image"]) == sorted(f"images/{name}.png" for name in fitting)
    for row in used.to_dict("records"):
        read_example(manifest, row)
    refused = manifest.frame[manifest.frame["excluded"] != ""]
    assert len(refused) == sum(not fits for _, fits in corpus.NAMES.values())
    assert refused["excluded"].str.contains("cannot stand in a manifest; rename the file").all()


def test_names_that_differ_only_in_case_or_composition_get_two_results_or_are_named(tmp_path):
    root = tmp_path / "BUS-UCLM"
    twins = [
        "ABCD_000",
        "abcd_000",
        unicodedata.normalize("NFC", "GÖSE_000"),
        unicodedata.normalize("NFD", "GÖSE_000"),
    ]
    for name in twins:
        for part in ("images", "masks"):
            (root / part).mkdir(parents=True, exist_ok=True)
        (root / "images" / f"{name}.png").write_bytes(corpus.saved(corpus.picture(name), "PNG"))
        (root / "masks" / f"{name}.png").write_bytes(
            corpus.saved(color_mask(corpus.lesion(name).astype(np.uint8)), "PNG")
        )
    if len(list((root / "images").iterdir())) < 4:
        pytest.skip("this file system takes the names for the same")
    options = ("--dataset", "bus-uclm", "--root", root, "--out", tmp_path / "m", "--split", "40/30/30")
    ended(invoke("make-manifest", *options), 1)
    found = [name for _, name in find_images([root / "images"])]
    folded = {unicodedata.normalize("NFC", name).casefold() for name in found}
    assert len(folded) == 4  # on any file system the results of none replace those of another


# train


def test_training_goes_on_without_what_the_manifest_excludes(made):
    told = ended(
        invoke("train", "--out", made / "outputs", "--run", "bad", *settings_options(made, "train.epochs=1")),
        0,
    )
    assert "images" in told


@pytest.fixture(scope="module")
def small(tmp_path_factory, table):
    """Folder with data_manifests/own.csv of the good table and the images it is of."""
    folder = tmp_path_factory.mktemp("small")
    shutil.copytree(table[0] / "in", folder / "data" / "in")
    rows = [
        [*table[1][0], "split"],
        *([*row, ("train", "val", "test")[n // 3]] for n, row in enumerate(table[1][1:])),
    ]
    (folder / "data" / "own.csv").write_text(corpus.lines(rows))
    ended(
        invoke("make-manifest", "--csv", folder / "data" / "own.csv", "--out", folder / "data_manifests"), 0
    )
    return folder


# What happens to files between the manifest and the training; the other kinds are long forms.
BAD_LATER = (
    "no byte", "PNG cut short", "floating-point TIFF", "animated GIF", "soft edges", "another colour",
    "index 200", "of another size", "empty",
)  # fmt: skip


def start(folder):
    """Start a training on ``small``'s manifest."""
    return invoke(
        "train", "--out", folder / "outputs", "--run", "r", *settings_options(folder, "data.train=[own]")
    )


@pytest.mark.parametrize(
    "kind", [kind if kind.name in BAD_LATER else long(kind) for kind in REFUSED], ids=named_so
)
def test_a_file_that_went_bad_after_the_manifest_stops_the_training_before_it_starts(kind, small, tmp_path):
    shutil.copytree(small / "data", tmp_path / "data")
    shutil.copytree(small / "data_manifests", tmp_path / "data_manifests")
    is_mask = isinstance(kind, corpus.MaskKind)
    bad = tmp_path / "data" / "in" / ("a0_m.png" if is_mask else "a0.png")
    bad.write_bytes(kind.write(corpus.lesion("a0")) if is_mask else kind.content)
    if is_mask and kind.format != "binary":
        table = tmp_path / "data_manifests" / "own.csv"
        table.write_text(table.read_text().replace("a0_m.png,binary", f"a0_m.png,{kind.format}"))
    told = ended(start(tmp_path), 1)
    assert "a0" in told and re.search(kind.reason.replace("masks need PNG", "in-between|mask"), told), told
    assert len(told.splitlines()) <= 5
    assert not (tmp_path / "outputs" / "r" / "config.yaml").exists()  # the next start is free to differ
    assert not [path for path in tmp_path.glob("cache/*") if path.name[0] != "."]


HURT_MANIFESTS = {
    "a path that climbs": (lambda text: text.replace("in/a0.png", "../a0.png"), "climbs"),
    "an absolute path": (lambda text: text.replace("in/a0.png", "/etc/passwd"), "absolute"),
    "a mask path of Windows": (lambda text: text.replace("in/a0_m.png", "C:/x.png"), "absolute"),
    "NaN as width": (lambda text: text.replace(",40,32,", ",nan,32,", 1), "not a size in pixels"),
    "digits of another script": (lambda text: text.replace(",40,32,", ",4٠,32,", 1), "not a size in pixels"),
    "infinite height": (lambda text: text.replace(",40,32,", ",40,inf,", 1), "not a size in pixels"),
    "a line break in a cell": (lambda text: text.replace("own,a0,p0", 'own,"a\n0",p0'), "control character"),
    "half a file": (lambda text: text[: len(text) // 2], "cells|no image|no column|splits|problem"),
    "a patient in two splits": (lambda text: text.replace("own:p0", "own:p8"), "2 splits|group"),
    "no row": (lambda text: text.split("\n", 1)[0] + "\n", "no image is listed"),
}


@pytest.mark.parametrize("name", HURT_MANIFESTS)
def test_a_damaged_manifest_stops_the_training(name, small, tmp_path):
    hurt, reason = HURT_MANIFESTS[name]
    shutil.copytree(small / "data_manifests", tmp_path / "data_manifests")
    table = tmp_path / "data_manifests" / "own.csv"
    text = table.read_text()
    table.write_text(hurt(text))
    assert table.read_text() != text
    assert re.search(reason, ended(start(tmp_path), 1))


# evaluate, crosseval, predict


@pytest.mark.parametrize(("part", "content"), [("images", KINDS[-4].content), ("masks", b"")])
def test_a_bad_file_stops_an_evaluation_and_is_named(part, content, trained, bus_uclm_tree, tmp_path):
    tree = shutil.copytree(bus_uclm_tree, tmp_path / "tree")
    row = read_manifest(trained / "manifest.csv", images=False).used("test").iloc[-1]
    path = tree / (row["image"] if part == "images" else row["masks"].split("|")[0])
    path.write_bytes(content)
    run = shutil.copytree(trained, tmp_path / "outputs" / "first")
    told = ended(invoke("evaluate", "--run", "first", "--out", run.parent, "--root", tree), 1)
    assert path.name in told
    assert not list(run.glob("eval-*/summary.json"))  # no number of a part of the images


def test_a_bad_file_stops_a_cross_evaluation_and_is_named(trained, manifests, busi_tree, tmp_path):
    tree = shutil.copytree(busi_tree, tmp_path / "tree")
    row = read_manifest(manifests / "data_manifests" / "busi.csv").used().iloc[-1]
    (tree / row["image"]).unlink()
    os.mkfifo(tree / row["image"])
    run = shutil.copytree(trained, tmp_path / "outputs" / "first")
    options = ("--out", run.parent, "--manifests", manifests / "data_manifests", "--root", f"busi={tree}")
    told = ended(invoke("crosseval", "--run", "first", "--target", "busi", *options), 1)
    assert Path(row["image"]).name in told and "pipe" in told


def test_predict_names_each_bad_file_and_predicts_the_others(trained, tree, tmp_path):
    given = tmp_path / "in"
    shutil.copytree(
        tree / "images",
        given / "images",
        symlinks=True,
        ignore=lambda *_: ["folder.png"],
        copy_function=lambda a, b: os.link(a, b, follow_symlinks=False),
    )
    # a picture of two colours would be taken for a mask
    command = ("predict", given, "--include-masks", "--out", trained.parent, "--to", tmp_path / "p")
    told = ended(invoke(*command), 1)
    table = pd.read_csv(tmp_path / "p" / "predictions.csv", keep_default_na=False)
    table.index = [Path(file).stem for file in table["file"]]
    assert sorted(table.index) == sorted(expected())
    for image, (name, reason, kind) in expected().items():
        row = table.loc[image]
        if reason:
            assert re.search(reason, row["error"]), (name, row["error"])
            assert Path(row["file"]).name in told
            assert not list((tmp_path / "p").rglob(f"{image}*"))
        else:
            assert row["error"] == "", (name, row["error"])
            shape = read_image(Path(row["file"])).shape
            assert read_image(tmp_path / "p" / row["mask"]).shape == shape
            if kind is not None:
                assert shape == kind.shows(corpus.picture(kind.name)).shape


def test_predict_of_odd_names_stays_in_its_folder_and_answers_each(trained, named, tmp_path):
    result = invoke("predict", named / "images", "--out", trained.parent, "--to", tmp_path / "p")
    ended(result, 0)
    table = pd.read_csv(tmp_path / "p" / "predictions.csv", keep_default_na=False)
    assert len(table) == len(corpus.NAMES) + 1
    assert len(list((tmp_path / "p").glob("*_predicted.png"))) == len(corpus.NAMES) + 1
    assert {path.name for path in tmp_path.iterdir()} == {"BUS-UCLM", "p"}
    assert "\x1b" not in result.output and "\u202e" not in (tmp_path / "p" / "predictions.csv").read_text()


def test_predict_follows_linked_folders_once_and_names_those_it_may_not_list(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    for path in (tmp_path / "in" / "sub" / "a.png", tmp_path / "elsewhere" / "b.png"):
        path.write_bytes(KINDS[0].content)
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in" / "round").symlink_to(tmp_path / "in")
    assert [name for _, name in find_images([tmp_path / "in"])] == ["linked/b", "sub/a"]
    (tmp_path / "in" / "sub").chmod(0)
    try:
        if os.geteuid():
            assert [name for _, name in find_images([tmp_path / "in"])] == ["linked/b", "sub"]
    finally:
        (tmp_path / "in" / "sub").chmod(0o755)


def test_the_corpus_is_as_large_as_the_documentation_says():
    parts = (KINDS, corpus.MASKS, corpus.TABLES, corpus.SPECIAL, corpus.NAMES, corpus.LITTER, HURT_MANIFESTS)
    # 11 more are written in the tests.
    assert sum(map(len, parts)) + 11 >= 200
    kinds = [*names(KINDS), *names(corpus.MASKS), *names(corpus.TABLES)]
    assert len(set(kinds)) >= len(kinds) - 4  # TIFF, BMP, no byte: of images and masks
    assert Image.MAX_IMAGE_PIXELS  # Pillow's own limit stays on
