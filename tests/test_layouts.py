"""Layouts in circulation: folders and names say what is an image, a mask, a label and a split, and no mask is lost."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ended, invoke
from PIL import Image

from bus_smp.data.images import color_mask
from bus_smp.data.manifest import read_manifest
from bus_smp.data.sources import find_root, load_source
from bus_smp.data.synthetic import draw


def moved(tree, to, place):
    """A copy of the files of ``tree`` at the paths that ``place`` gives them; None leaves a file out."""
    for path in sorted(tree.rglob("*")):
        if path.is_file() and (new := place(path.relative_to(tree))) is not None:
            (to / new).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to / new)
    return to


def part(path):
    """A part by the number in the name, the same for an image and its masks."""
    number = int("".join(filter(str.isdecimal, path.stem.partition("_mask")[0])) or 0)
    return ("train", "train", "Validation", "testing")[number % 4]


def kind(path):
    return "masks" if "_mask" in path.stem else "images"


BUSI = {
    "parts": lambda p: Path(part(p)) / p,
    "classes above images and masks": lambda p: p.parent / kind(p) / p.name,
    "images, and masks in a folder 0": lambda p: (
        Path("images") / p.name if kind(p) == "images" else Path("masks/0") / p.name
    ),
    "parts of images and masks": lambda p: Path(part(p), "img" if kind(p) == "images" else "mask") / p.name,
    "parts below images and masks": lambda p: Path(kind(p), part(p)) / p.name,
    "parts named in one word": lambda p: Path(f"{part(p)}_{kind(p)}") / p.name,
    "one flat folder": lambda p: Path(p.name),
}


def read(name, folder):
    """The records of a data set, found below ``folder``, by image id."""
    source = load_source(name)
    found = list(source.records(find_root(source, folder)))
    assert len({record.image_id for record in found}) == len(found)
    return {record.image_id: record for record in found}


@pytest.mark.parametrize("layout", BUSI)
def test_busi_is_read_in_every_layout(layout, busi_tree, tmp_path):
    moved(busi_tree, tmp_path / "download" / "set", BUSI[layout])
    found, plain = read("busi", tmp_path), read("busi", busi_tree)
    # That a file is in the wrong folder is known only where there are folders of classes.
    for name in plain.keys() - {
        n for n, r in plain.items() if any(p.code == "wrong-folder" for p in r.problems)
    }:
        one, other = found[name], plain[name]
        assert (one.label, one.problems, one.flags) == (other.label, other.problems, other.flags)
        assert sorted(Path(mask).name for mask in one.masks) == sorted(
            Path(mask).name for mask in other.masks
        )
        expected = {"train": "train", "Validation": "val", "testing": "test"}[part(Path(other.image))]
        assert one.split == ("part" in layout and expected or "")


def uclm_part(path, tests=("COPE", "ANFO", "ELCO", "CRCI", "FLKA")):
    return "test" if path.name[:4].upper() in tests else "train"


UCLM = {
    "parts above": lambda p: p if len(p.parts) == 1 else Path(uclm_part(p)) / p,
    "parts below": lambda p: p if len(p.parts) == 1 else p.parent / uclm_part(p) / p.name,
}


@pytest.mark.parametrize("layout", UCLM)
def test_the_parts_of_bus_uclm_are_joined(layout, bus_uclm_tree, tmp_path):
    moved(bus_uclm_tree, tmp_path / "set", UCLM[layout])
    found, plain = read("bus-uclm", tmp_path), read("bus-uclm", bus_uclm_tree)
    assert found.keys() == plain.keys()
    for name, record in found.items():
        assert (record.label, record.patient_id, record.flags) == (
            plain[name].label,
            plain[name].patient_id,
            plain[name].flags,
        )
        assert record.split == (uclm_part(Path(record.image)) if record.image else "")


def test_the_parts_of_bus_uclm_are_its_split(bus_uclm_tree, tmp_path):
    moved(bus_uclm_tree, tmp_path / "set", UCLM["parts above"])
    result = invoke("make-manifest", "--root", tmp_path / "set", "--out", tmp_path)
    ended(result, 0)
    used = read_manifest(tmp_path / "bus-uclm.csv").used()
    assert set(used.loc[used["split"] == "test", "patient_id"]) <= {"COPE", "ANFO", "ELCO", "CRCI", "FLKA"}
    assert set(used["split"]) == {"train", "val", "test"}
    assert "as the folders give it (test: the authors' own test patients)" in result.stdout
    assert "no val is given" in result.stdout


def test_parts_that_tear_a_patient_are_refused_and_what_to_type_divides_anew(bus_uclm_tree, tmp_path):
    def place(path):
        # CHCO and CHVI are one woman.
        return path if len(path.parts) == 1 else Path(uclm_part(path, ("CHCO", "COPE"))) / path

    root = moved(bus_uclm_tree, tmp_path / "set", place)
    text = ended(invoke("make-manifest", "--root", root, "--out", tmp_path), 1)
    assert "1 group lies in more than one of the given splits" in text and "CHCO, CHVI" in text
    assert "--split 70/15/15" in text and not (tmp_path / "bus-uclm.csv").exists()
    result = invoke("make-manifest", "--root", root, "--out", tmp_path, "--split", "70/15/15")
    ended(result, 0)
    assert "not used: the split that the folders give" in result.stdout


def test_copies_over_the_parts_of_busi_are_a_finding(busi_tree, tmp_path):
    def place(path):
        return None if "normal" in path.parts else Path("test" if "(2)" in path.name else "train") / path

    root = moved(busi_tree, tmp_path / "set", place)
    (root / "test" / "benign").mkdir(parents=True, exist_ok=True)
    for name in ("benign (1).png", "benign (1)_mask.png"):
        shutil.copyfile(root / "train" / "benign" / name, root / "test" / "benign" / name)
    result = invoke("make-manifest", "--root", root, "--out", tmp_path)
    ended(result, 0)
    assert "have copies in more than one of the given splits" in result.stdout
    assert "busi" in read_manifest(tmp_path / "busi.csv").datasets


# Folders that no source knows.


@pytest.fixture(scope="module")
def drawn():
    """Twelve small images and their masks."""
    pairs = [draw(np.random.default_rng(k), ("benign", "malignant")[k % 2], (64, 48)) for k in range(12)]
    return [(image, masks[0]) for image, masks in pairs]


def label(k):
    return ("benign", "malignant")[k % 2]


UNKNOWN = {
    "train/img and train/mask": lambda k: (
        f"{part(Path(str(k)))}/img/{k}.png",
        f"{part(Path(str(k)))}/mask/{k}.png",
    ),
    "made-up names": lambda k: (f"aufnahmen/f{k}.png", f"umrisse/f{k}.png"),
    "patients": lambda k: (f"P{k // 2}/visit1/scan{k}.png", f"P{k // 2}/visit1/scan{k}_segmentation.png"),
    "patients with the same names": lambda k: (f"P{k}/image.png", f"P{k}/mask.png"),
    "one flat folder": lambda k: (f"case_{k}.png", f"case_{k}_GT.png"),
    "another prefix": lambda k: (f"images/img{k:03d}.png", f"masks/mask{k:03d}.png"),
    "numbers with and without zeros": lambda k: (f"images/{k}.png", f"masks/{k:04d}.png"),
    "folds": lambda k: (f"fold_{k % 4}/img/{k}.png", f"fold_{k % 4}/mask/{k}.png"),
    "labels in other words": lambda k: (
        f"{'gb'[k % 2]}artig/img/{k}.png",
        f"{'gb'[k % 2]}artig/mask/{k}.png",
    ),
    "classes": lambda k: (f"{label(k)}/images/{k}.png", f"{label(k)}/masks/{k}_seg.png"),
    "class in the name": lambda k: (f"images/{label(k)}_{k}.png", f"masks/0/{label(k)}_{k}.png"),
    "Pascal VOC": lambda k: (f"JPEGImages/{k}.png", f"SegmentationClass/{k}.png"),
}


@pytest.mark.parametrize("layout", UNKNOWN)
def test_a_folder_of_any_layout_becomes_a_table_to_fill_in(layout, drawn, tmp_path, monkeypatch):
    folder = tmp_path / "my export"
    expected = {}
    for k, (image, mask) in enumerate(drawn):
        expected[UNKNOWN[layout](k)[0]] = UNKNOWN[layout](k)[1]
        for path, pixels in zip(UNKNOWN[layout](k), (image, mask), strict=True):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / path)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    result = invoke("make-manifest", "--folder", folder)
    ended(result, 0)
    table = Path("my-export.csv")
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"]: row["masks"] for row in rows} == expected
    if "class" in layout:
        assert all(row["label"] in row["image"] for row in rows) and "to fill in" not in result.stdout
    else:
        assert "12 to fill in" in result.stdout and "Next: fill in label" in result.stdout
    if "patients" in layout:
        assert all(row["patient_id"] == row["image"].partition("/")[0] for row in rows)
    if "labels" in layout:
        assert '--labels "bartig=...,gartig=..."' in result.stdout
    if "train" in layout:
        assert {row["split"] for row in rows} == {"train", "val", "test"}
    # filled in as one would, and typed as printed
    for row, k in zip(rows, range(12), strict=True):
        row["label"] = row["label"] or label(k)
    with table.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    ended(invoke("make-manifest", "--csv", "my-export.csv", "--root", folder), 0)
    used = read_manifest(Path("data_manifests/my-export.csv")).used()
    assert len(used) == 12 and used["patient_known"].all() == ("patients" in layout)
    assert "exists and would be overwritten" in ended(invoke("make-manifest", "--folder", folder), 1)


def nnunet(folder, drawn, names):
    for k, (image, mask) in enumerate(drawn):
        place = "Ts" if k > 8 else "Tr"
        for sub, name, pixels in (
            (f"images{place}", f"c_{k:03d}_0000.png", image),
            (f"labels{place}", f"c_{k:03d}.png", (mask > 0) * np.uint8(k % 2 + 1 if len(names) == 3 else 1)),
        ):
            (folder / sub).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / sub / name)
    (folder / "dataset.json").write_text(json.dumps({"labels": names, "file_ending": ".png"}))


def test_nnunet_folders_keep_their_parts_and_the_numbers_of_their_classes(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    nnunet(tmp_path / "Dataset001", drawn, {"background": 0, "benign": 1, "malignant": 2})
    result = invoke("make-manifest", "--folder", "Dataset001")
    ended(result, 0)
    assert "label: 6 benign, 6 malignant" in result.stdout and "split: 9 train, 3 test" in result.stdout
    ended(invoke("make-manifest", "--csv", "Dataset001.csv", "--root", "Dataset001"), 0)
    used = read_manifest(tmp_path / "data_manifests" / "Dataset001.csv").used()
    assert len(used) == 12 and set(used["mask_format"]) == {"index"}
    nnunet(tmp_path / "swapped", drawn, {"background": 0, "malignant": 1, "benign": 2})
    ended(invoke("make-manifest", "--folder", "swapped"), 0)
    ended(invoke("make-manifest", "--csv", "swapped.csv", "--root", "swapped", "--out", "other"), 0)
    swapped = read_manifest(tmp_path / "other" / "swapped.csv").used()
    assert set(swapped["mask_format"]) == {"swapped-index"}
    assert all(swapped["label"].to_numpy() != used["label"].to_numpy())
    nnunet(tmp_path / "lesions", drawn, {"background": 0, "lesion": 1})
    assert "12 to fill in" in invoke("make-manifest", "--folder", "lesions").stdout


def test_colours_and_the_users_words_give_labels_and_one_file_per_lesion_is_joined(
    drawn, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for k, (image, mask) in enumerate(drawn):
        (tmp_path / "colour").mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "colour" / f"a{k}.png")
        Image.fromarray(color_mask((mask > 0) * np.uint8(k % 3))).save(tmp_path / "colour" / f"a{k}_mask.png")
        folder = tmp_path / "words" / ("gutartig", "bösartig")[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"s{k}.png")
        for name in (f"s{k}_lesion1.png", f"s{k}-lesion-2.png", f"s{k}_3_mask.png"):
            Image.fromarray(mask).save(folder / name)
    assert "label: 4 normal, 4 benign, 4 malignant" in invoke("make-manifest", "--folder", "colour").stdout
    result = invoke("make-manifest", "--folder", "words", "--labels", "gutartig=benign,bösartig=malignant")
    assert "with a mask 12, 12 of them with several" in result.stdout
    assert "label: 6 benign, 6 malignant" in result.stdout


def test_what_is_not_read_is_said(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "set"
    (folder / "masks").mkdir(parents=True)
    Image.fromarray(drawn[0][0]).save(folder / "a.png")
    Image.fromarray(drawn[0][1]).save(folder / "masks" / "b.png")
    for name in ("labels.nii.gz", "coco.json", "more.tar.gz"):
        (folder / name).write_bytes(b"x")
    result = invoke("make-manifest", "--folder", folder)
    assert "masks that fit no image, or several, by name: 1 (b.png)" in result.stdout
    assert "not read: 1 .gz, 1 .json, 1 .nii.gz" in result.stdout and "unpack" in result.stdout
    for name in ("set.zip", "set.7z", "set.rar", "set.tar.gz"):
        (tmp_path / name).write_bytes(b"x")
        for option in ("--root", "--folder"):
            assert "is an archive, not a folder" in ended(invoke("make-manifest", option, tmp_path / name), 1)
    (tmp_path / "empty").mkdir()
    assert "no image" in ended(invoke("make-manifest", "--folder", tmp_path / "empty"), 1)
    text = ended(invoke("make-manifest", "--root", folder / "masks"), 1)
    assert text.count("http") == 5 and f'--folder "{folder / "masks"}"' in text
