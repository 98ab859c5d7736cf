"""Every known data set is read as it is downloaded, and as people's copies of it really look."""

import csv
import itertools
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from PIL import Image

from bus_smp.data import synthetic
from bus_smp.data.images import pixel_sha256, read_image, read_mask
from bus_smp.data.sources import find_known, find_root, load_source, source_names
from bus_smp.data.sources._tree import natural_key
from bus_smp.errors import DataError

ALL = ("breast", "bus-bra", "bus-uclm", "busi", "udiat")


def read(name, root):
    """The records of a data set by image id; every id is there once."""
    found = list(load_source(name).records(root))
    assert len({r.image_id for r in found}) == len(found)
    return {r.image_id: r for r in found}


def problem(record):
    """The first problem of a record as a manifest shows it, "" for none."""
    return str(record.problems[0]) if record.problems else ""


@pytest.fixture
def uclm(bus_uclm_tree, tmp_path):
    return Path(shutil.copytree(bus_uclm_tree, tmp_path / "BUS-UCLM"))


@pytest.fixture
def busi(busi_tree, tmp_path):
    return Path(shutil.copytree(busi_tree, tmp_path / "Dataset_BUSI_with_GT"))


@pytest.fixture
def udiat(udiat_tree, tmp_path):
    return Path(shutil.copytree(udiat_tree, tmp_path / "DatasetB"))


@pytest.fixture
def udiat2(udiat_refoldered_tree, tmp_path):
    return Path(shutil.copytree(udiat_refoldered_tree, tmp_path / "DatasetB2"))


@pytest.fixture
def bra(bus_bra_tree, tmp_path):
    return Path(shutil.copytree(bus_bra_tree, tmp_path / "BUSBRA"))


@pytest.fixture
def breast(breast_tree, tmp_path):
    shutil.copytree(breast_tree.parent, tmp_path / "BrEaST")
    return tmp_path / "BrEaST" / breast_tree.name


@pytest.fixture
def tree(request, name):
    """The (never changed) tree of the data set ``name``."""
    return request.getfixturevalue(f"{name.replace('-', '_')}_tree")


# ---- all data sets


def test_the_folder_of_modules_is_the_registry():
    assert source_names() == list(ALL)
    for name in ALL:
        source = load_source(name)
        assert name == source.NAME
        assert source.TITLE and source.LAYOUT and source.CITE and source.LICENCE and source.URL
    assert load_source("BUS_UCLM").NAME == "bus-uclm"
    with pytest.raises(DataError, match="known data sets: breast, bus-bra"):
        load_source("buzi")


def test_reading_raw_trees_imports_no_torch():
    code = (
        "import sys; import bus_smp.data.synthetic; from bus_smp.data.sources import *; "
        "[load_source(n) for n in source_names()]; assert not {'torch', 'openpyxl'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", ALL)
def test_every_image_and_mask_exists_and_no_path_is_absolute(name, tree):
    for record in read(name, tree).values():
        for path in (record.image, *record.masks):
            assert not path.startswith("/") and "\\" not in path and ".." not in path
            assert (tree / path).is_file()
        if not problem(record) and "HESN" not in record.image_id:
            shape = read_image(tree / record.image).shape[:2]
            mask = read_mask([tree / m for m in record.masks], record.mask_format, record.label, shape)
            assert mask.max() == ("normal", "benign", "malignant").index(record.label)


@pytest.mark.parametrize("name", ALL)
def test_records_come_in_natural_order_on_any_file_system(name, tree, monkeypatch):
    source = load_source(name)
    before = list(source.records(tree))
    assert before == sorted(before, key=lambda r: natural_key(r.image_id))
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda p: iter(sorted(listed(p), key=lambda q: q.name[::-1])))
    assert list(source.records(tree)) == before


def test_natural_order_compares_numbers_and_ignores_case():
    names = ["a", "a1", "A2", "a10", "b (1)", "b (1)_mask", "B (2)", "b (10)"]
    shuffled = names[::-1]
    assert sorted(shuffled, key=natural_key) == names


@pytest.mark.parametrize("name", ALL)
def test_no_image_is_decoded(name, tree, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("an image was opened")

    monkeypatch.setattr(Image, "open", refuse)
    assert read(name, tree)


@pytest.mark.parametrize("name", ALL)
def test_a_data_set_is_found_below_the_folder_of_nested_zips(name, tree, tmp_path):
    outer = tmp_path / "My Döwnloads" / "archive" / "data set"
    shutil.copytree(tree.parent, outer)
    for litter in (tmp_path / "__MACOSX", tmp_path / ".hidden"):
        shutil.copytree(tree.parent, litter)
    source = load_source(name)
    root = find_root(source, tmp_path)
    assert root == outer / tree.name
    assert find_root(source, root) == root
    assert [(m.NAME, r) for m, r in find_known(tmp_path)] == [(name, root)]
    assert list(source.records(root)) == list(source.records(tree))


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_folder_says_what_was_expected_and_found_and_what_to_type(name, tmp_path):
    (tmp_path / "holiday.txt").write_text("sun")
    source = load_source(name)
    for attempt in (lambda: find_root(source, tmp_path), lambda: list(source.records(tmp_path))):
        with pytest.raises(DataError) as caught:
            attempt()
        text = str(caught.value)
        assert source.LAYOUT in text and "holiday.txt" in text and f"make-manifest --dataset {name}" in text
    with pytest.raises(DataError, match="no such folder"):
        find_root(source, tmp_path / "nowhere")
    with pytest.raises(DataError, match="unpack it"):
        find_root(source, tmp_path / "holiday.txt")


def test_no_data_set_is_taken_for_another(request):
    for name in (*ALL, "udiat-refoldered"):
        folder = request.getfixturevalue(f"{name.replace('-', '_')}_tree")
        assert [m.NAME for m, _ in find_known(folder)] == [name.removesuffix("-refoldered")]
    with pytest.raises(DataError, match="found BUSI instead: bus-smp make-manifest --dataset busi"):
        find_root(load_source("udiat"), request.getfixturevalue("busi_tree"))


def test_the_folder_inside_the_data_set_names_its_parent(busi_tree):
    with pytest.raises(DataError, match=r"its parent does: .*--root"):
        find_root(load_source("busi"), busi_tree / "benign")


def test_two_copies_of_a_data_set_are_not_chosen_between(busi_tree, tmp_path):
    for place in ("here", "there"):
        shutil.copytree(busi_tree, tmp_path / place)
    with pytest.raises(DataError, match="2 folders below it look like BUSI"):
        find_root(load_source("busi"), tmp_path)


@pytest.mark.parametrize("name", ALL)
def test_os_litter_changes_nothing(name, tree, tmp_path):
    copy = Path(shutil.copytree(tree.parent, tmp_path / "copy")) / tree.name
    for folder in [copy, *(p for p in copy.iterdir() if p.is_dir())]:
        for litter in (".DS_Store", "Thumbs.db", "desktop.ini", "._x.png", "readme.txt"):
            (folder / litter).write_bytes(b"\0")
        (folder / "__MACOSX").mkdir()
    assert list(load_source(name).records(copy)) == list(load_source(name).records(tree))


@pytest.mark.parametrize("name", ALL)
def test_the_case_of_names_does_not_matter(name, tree, tmp_path):
    copy = Path(shutil.copytree(tree.parent, tmp_path / "copy")) / tree.name
    for path in sorted(copy.rglob("*"), key=lambda p: -len(p.parts)):
        path.rename(path.with_name(path.name.swapcase()))
    before, after = (list(load_source(name).records(root)) for root in (tree, copy))
    assert [r.image_id.lower() for r in after] == [r.image_id.lower() for r in before]
    for one, other in zip(before, after, strict=True):
        assert (other.label, other.patient_id.lower()) == (one.label, one.patient_id.lower())
        assert (len(other.masks), other.flags, bool(problem(other))) == (
            len(one.masks),
            one.flags,
            bool(problem(one)),
        )


def test_a_link_to_a_folder_is_no_second_data_set(busi_tree, tmp_path):
    shutil.copytree(busi_tree, tmp_path / "data")
    (tmp_path / "again").symlink_to(tmp_path / "data")
    (tmp_path / "loop").symlink_to(tmp_path)
    assert len(find_known(tmp_path)) == 1
    assert find_root(load_source("busi"), tmp_path).resolve() == (tmp_path / "data").resolve()


# ---- BUS-UCLM


def test_bus_uclm_is_read_with_all_its_oddities(bus_uclm_tree):
    found = read("bus-uclm", bus_uclm_tree)
    assert len(found) == sum(map(len, synthetic.UCLM_PATIENTS.values())) + 1  # one copy beside its original
    assert {r.patient_id for r in found.values()} == set(synthetic.UCLM_PATIENTS)
    assert found["ALWI_000"].image == "images/ALWI_000.png"
    assert found["ALWI_000"].masks == ("masks/ALWI_000.png",)
    assert found["ALWI_000"].mask_format == "color" and found["ALWI_000"].patient_known
    for code, letters in synthetic.UCLM_PATIENTS.items():
        labels = [found[f"{code}_{k:03d}"].label[0].upper() for k in range(len(letters))]
        assert "".join(labels) == letters
    assert {i for i, r in found.items() if "doppler" in r.flags} == set(synthetic.UCLM_DOPPLER)
    assert {i for i, r in found.items() if "combined" in r.flags} == set(synthetic.UCLM_COMBINED)
    assert 10 < sum("marks" in r.flags for r in found.values()) < 40
    tests = {r.patient_id for r in found.values() if r.official_split == "test"}
    assert tests == {"COPE", "ANFO", "ELCO", "CRCI", "FLKA"} == load_source("bus-uclm").OFFICIAL_TEST


def test_a_copy_next_to_its_original_is_excluded_and_one_in_its_place_is_used(bus_uclm_tree):
    found = read("bus-uclm", bus_uclm_tree)
    copy = found["SIBA_001 (1)"]
    assert problem(copy) == "copy: copy of SIBA_001.png" and copy.image == "images/SIBA_001 (1).png"
    assert copy.patient_id == "SIBA" and copy.label == found["SIBA_001"].label and copy.flags[0] == "copy"
    assert problem(found["SIBA_001"]) == "" and "copy" not in found["SIBA_001"].flags
    instead = found["SIBA_003"]
    assert (instead.image, instead.masks) == ("images/SIBA_003 (1).png", ("masks/SIBA_003 (1).png",))
    assert problem(instead) == "" and "copy" in instead.flags and "SIBA_003 (1)" not in found


def test_a_file_in_small_letters_belongs_to_the_same_woman(uclm):
    (uclm / "images/COPE_001.png").rename(uclm / "images/cope_001.png")
    record = read("bus-uclm", uclm)["cope_001"]
    assert (record.patient_id, record.official_split, record.label) == ("COPE", "test", "benign")
    assert record.masks == ("masks/COPE_001.png",) and not problem(record)


def test_a_copy_of_one_half_finds_the_other_half(uclm):
    (uclm / "images/ALWI_000.png").rename(uclm / "images/ALWI_000 (1).png")
    (uclm / "masks/ALWI_001.png").rename(uclm / "masks/ALWI_001 (2).png")
    shutil.copy(uclm / "masks/ALWI_002.png", uclm / "masks/ALWI_002 (1).png")
    found = read("bus-uclm", uclm)
    assert found["ALWI_000"].masks == ("masks/ALWI_000.png",) and not problem(found["ALWI_000"])
    assert found["ALWI_001"].masks == ("masks/ALWI_001 (2).png",) and not problem(found["ALWI_001"])
    assert found["ALWI_002"].masks == ("masks/ALWI_002.png",) and not problem(found["ALWI_002"])
    assert (
        problem(found["ALWI_002 (1)"]) == "copy: copy of mask ALWI_002.png"
        and not found["ALWI_002 (1)"].image
    )


def test_halves_and_rows_without_image_are_kept_with_the_reason(uclm):
    (uclm / "images/ALWI_000.png").unlink()
    (uclm / "masks/ALWI_001.png").unlink()
    (uclm / "images/ALWI_002.png").unlink()
    (uclm / "masks/ALWI_002.png").unlink()
    found = read("bus-uclm", uclm)
    assert (found["ALWI_000"].image, problem(found["ALWI_000"])) == ("", "no-image: mask without image")
    assert (found["ALWI_001"].masks, problem(found["ALWI_001"])) == ((), "no-mask: image without mask")
    assert problem(found["ALWI_002"]) == "no-image: row in INFO.csv without image"
    assert found["ALWI_001"].label == "benign" and found["ALWI_002"].patient_id == "ALWI"


def table(root):
    with (root / "INFO.csv").open(encoding="utf-8-sig", newline="") as file:
        return list(csv.reader(file, delimiter=";"))


def test_info_csv_is_read_in_every_dialect(uclm, bus_uclm_tree):
    expected = read("bus-uclm", bus_uclm_tree)
    (header, *rows) = table(uclm)
    header = [f" {name.upper()} " for name in header] + ["Größe"]
    rows = [[image, size, label.upper(), *rest, "x"] for image, size, label, *rest in rows]
    dialects = itertools.product(("utf-8", "utf-8-sig", "utf-16", "cp1252"), ";,\t", ("\n", "\r\n"))
    for encoding, separator, end in dialects:
        lines = [separator.join(row) for row in (header, *rows, [""] * len(header))]
        (uclm / "INFO.csv").write_bytes((end.join(lines) + end).encode(encoding))
        assert read("bus-uclm", uclm) == expected, (encoding, separator, end)


def test_yes_is_understood_in_every_spelling(uclm):
    text = (uclm / "INFO.csv").read_text(encoding="utf-8-sig")
    for word, flagged in (("Y", 1), ("y ", 1), (" YES", 1), ("No", 0), (" no ", 0), ("", 0), ("N", 0)):
        changed = re.sub("(?m)^ALWI_000.*$", f"ALWI_000.png;1x1;benign;{word};No;No", text)
        (uclm / "INFO.csv").write_text(changed, encoding="utf-8")
        assert ("doppler" in read("bus-uclm", uclm)["ALWI_000"].flags) == bool(flagged), word


def test_without_info_csv_the_mask_gives_the_label(uclm, bus_uclm_tree):
    (uclm / "INFO.csv").unlink()
    found, expected = read("bus-uclm", uclm), read("bus-uclm", bus_uclm_tree)
    assert {i: r.label for i, r in found.items()} == {i: r.label for i, r in expected.items()}
    assert all("label_from_mask" in r.flags for r in found.values())


def test_an_image_without_row_is_labelled_by_its_mask_and_says_so(uclm):
    header, *rows = table(uclm)
    rows = [row for row in rows if not row[0].startswith("RODU")]
    with (uclm / "INFO.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows([header, *rows])
    (uclm / "masks/RODU_001.png").unlink()
    (uclm / "masks/RODU_002.png").write_bytes(b"\x89PNG broken")
    found = read("bus-uclm", uclm)
    assert (found["RODU_000"].label, found["RODU_000"].flags) == ("malignant", ("label_from_mask",))
    assert (found["RODU_001"].label, problem(found["RODU_001"])) == ("", "no-mask: image without mask")
    assert found["RODU_002"].label == "" and "masks/RODU_002.png" in problem(found["RODU_002"])
    assert not any(r.flags == ("label_from_mask",) for r in found.values() if r.patient_id != "RODU")


def test_an_unknown_label_excludes_only_its_row(uclm):
    text = (uclm / "INFO.csv").read_text(encoding="utf-8-sig")
    (uclm / "INFO.csv").write_text(text.replace("HUBL_000.png;96x72;Benign", "HUBL_000.png;96x72;Bening"))
    found = read("bus-uclm", uclm)
    assert problem(found["HUBL_000"]) == "unknown-label: unknown label 'Bening' in INFO.csv"
    assert sum(bool(problem(r)) for r in found.values()) == 2


def test_a_broken_table_is_one_clear_error(uclm):
    for content in (b"", b"\n\n", b"Name;Class\nALWI_000.png;Benign\n", b"\x89PNG\0\0\0", b"\xff\xfe\x00"):
        (uclm / "INFO.csv").write_bytes(content)
        with pytest.raises(DataError, match=r"INFO.csv: (.|\n)*restore") as caught:
            read("bus-uclm", uclm)
        assert caught.value.hint


def test_rows_that_contradict_each_other_exclude_their_image(uclm):
    with (uclm / "INFO.csv").open("a") as file:
        file.write("HUBL_000.png;96x72;Malignant;No;No;No\nHUBL_001.png;96x72;benign;No;No;No\n")
    found = read("bus-uclm", uclm)
    assert problem(found["HUBL_000"]) == "unknown-label: unknown label 'Benign / Malignant' in INFO.csv"
    assert found["HUBL_001"].label == "benign" and not problem(found["HUBL_001"])


def test_the_original_table_comes_before_its_copy(uclm, bus_uclm_tree):
    (uclm / "INFO (1).csv").write_text("not the table")
    assert read("bus-uclm", uclm) == read("bus-uclm", bus_uclm_tree)


def test_names_with_spaces_and_umlauts_work(uclm, tmp_path):
    root = uclm.rename(tmp_path / "Größe & übrig")
    for folder in ("images", "masks"):
        (root / folder / "ALWI_000.png").rename(root / folder / "MÜLL_000.png")
    # An archive made on a Mac spells the same letter with two code points.
    (root / "masks" / "MÜLL_000.png").rename(root / "masks" / "MU\u0308LL_000.png")
    found = read("bus-uclm", root)
    assert found["MÜLL_000"].label == "benign" and found["MÜLL_000"].patient_id == "MÜLL"
    assert problem(found["ALWI_000"]) == "no-image: row in INFO.csv without image"


# ---- BUSI


def test_busi_is_read_with_all_its_oddities(busi_tree):
    found = read("busi", busi_tree)
    assert Counter(r.label for r in found.values()) == {"benign": 12, "malignant": 8, "normal": 3}
    assert next(iter(found)) == "benign (1)" and list(found)[1] == "benign (2)"
    assert {i: len(r.masks) for i, r in found.items() if len(r.masks) > 1} == synthetic.BUSI_SEVERAL_MASKS
    assert found["malignant (4)"].masks == tuple(
        f"malignant/malignant (4)_mask{suffix}.png" for suffix in ("", "_1", "_2")
    )
    assert not any(r.patient_known or problem(r) or r.flags for r in found.values())
    assert all(r.patient_id == i for i, r in found.items())
    modes = {i: Image.open(busi_tree / r.masks[0]).mode for i, r in found.items()}
    assert {i for i, mode in modes.items() if mode == "RGBA"} == set(synthetic.BUSI_RGBA_MASKS)
    assert {m for i, m in modes.items() if i.startswith("normal")} == {"RGB"}
    assert Counter(modes.values())["1"] == 18


def test_a_copy_in_busi_is_distinguished_from_its_own_numbers(busi):
    inside = busi / "benign"
    shutil.copy(inside / "benign (1).png", inside / "benign (1) (1).png")
    shutil.copy(inside / "benign (1)_mask.png", inside / "benign (1)_mask (1).png")
    (inside / "benign (2).png").rename(inside / "benign (2) (1).png")
    found = read("busi", busi)
    assert len(found) == 24
    assert problem(found["benign (1) (1)"]) == "copy: copy of benign (1).png"
    assert found["benign (1) (1)"].masks == ("benign/benign (1)_mask (1).png",)
    assert found["benign (1)"].masks == ("benign/benign (1)_mask.png",) and not problem(found["benign (1)"])
    assert found["benign (2)"].image == "benign/benign (2) (1).png" and not problem(found["benign (2)"])


def test_halves_in_busi_are_kept_with_the_reason(busi):
    (busi / "benign/benign (3)_mask.png").unlink()
    (busi / "benign/benign (4)_mask.png").unlink()
    (busi / "normal/normal (1).png").unlink()
    (busi / "normal/normal (2)_mask.png").unlink()
    shutil.copy(busi / "benign/benign (1).png", busi / "malignant/benign (1).png")
    found = read("busi", busi)
    assert found["benign (3)"].masks == ("benign/benign (3)_mask_1.png",) and not problem(found["benign (3)"])
    assert problem(found["benign (4)"]) == "no-mask: image without mask"
    assert (found["normal (1)"].image, problem(found["normal (1)"])) == ("", "no-image: mask without image")
    assert not found["normal (2)"].masks and not problem(found["normal (2)"])
    assert "benign (1)" in found and not problem(found["benign (1)"])
    assert problem(found["malignant - benign (1)"])


def test_busi_with_jpeg_images_is_busi(busi):
    for path in busi.rglob("*.png"):
        if "_mask" not in path.name:
            Image.open(path).save(path.with_suffix(".JPG"), "JPEG")
            path.unlink()
    found = read("busi", busi)
    assert found["benign (1)"].image == "benign/benign (1).JPG"
    assert len(found) == 23 and not any(problem(r) for r in found.values())


# ---- UDIAT


def test_udiat_is_read_in_both_layouts(udiat_tree, udiat_refoldered_tree):
    original, refoldered = read("udiat", udiat_tree), read("udiat", udiat_refoldered_tree)
    assert list(original) == [f"{k:06d}" for k in range(1, 7)] == list(refoldered)
    assert {i: r.label for i, r in original.items()} == {i: r.label for i, r in refoldered.items()}
    assert Counter(r.label for r in original.values()) == {"benign": 4, "malignant": 2}
    assert original["000001"].masks == ("GT/000001.png",)
    assert refoldered["000001"].masks == ("all_masks/000001.png",)
    assert refoldered["000003"].masks == ("Malignant_mask/000003.png",)
    assert not any(r.patient_known or problem(r) for r in (*original.values(), *refoldered.values()))


@pytest.mark.parametrize("form", [int, float, str, "{:06d}".format, "{:06d}.PNG".format])
@pytest.mark.parametrize("suffix", ["xlsx", "csv"])
def test_the_table_may_name_udiat_images_in_any_way(udiat, udiat_tree, form, suffix):
    (udiat / "DatasetB.xlsx").unlink()
    rows = [("image ", "TYPE", "More")]
    rows += [(form(k), "Malignant" if k % 3 == 0 else "benign ", "") for k in range(1, 7)]
    if suffix == "csv":
        rows = [[str(cell).removesuffix(".0") for cell in row] for row in rows]
        with (udiat / "datasetb.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)
    else:
        book = openpyxl.Workbook()
        book.active.append(["Dataset B"])  # a title above the header
        for row in rows:
            book.active.append(row)
        book.save(udiat / "DATASETB.XLSX")
    assert read("udiat", udiat) == read("udiat", udiat_tree)


def test_udiat_without_its_table_says_what_to_do(udiat):
    (udiat / "DatasetB.xlsx").unlink()
    with pytest.raises(DataError, match=r"DatasetB.xlsx is missing(.|\n)*put DatasetB.xlsx"):
        read("udiat", udiat)
    (udiat / "DatasetB.xlsx").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="cannot be read as an Excel table"):
        read("udiat", udiat)


def test_rows_and_images_of_udiat_that_do_not_meet_are_kept_with_the_reason(udiat):
    (udiat / "original/000006.png").rename(udiat / "original/000007.png")
    (udiat / "GT/000006.png").rename(udiat / "GT/000007.png")
    found = read("udiat", udiat)
    assert problem(found["000006"]) == "no-image: row in DatasetB.xlsx without image"
    assert (found["000007"].label, problem(found["000007"])) == ("", "unknown-label: no row in DatasetB.xlsx")


def test_udiat_masks_of_both_classes_in_all_masks_are_not_mixed_up(udiat2):
    # all_masks/ holding all masks, once beside Malignant_mask/ and once in its place
    for path in (udiat2 / "Malignant_mask").iterdir():
        shutil.copy(path, udiat2 / "all_masks")
    (udiat2 / "Malignant_mask/000006.png").unlink()
    found = read("udiat", udiat2)
    assert len(found) == 6 and not any(problem(r) for r in found.values())
    assert found["000003"].masks == ("Malignant_mask/000003.png",)
    assert found["000006"].masks == ("all_masks/000006.png",)


def test_udiat_images_numbered_anew_in_each_class_keep_their_own_masks(udiat2):
    for folder in ("Malignant", "Malignant_mask"):
        (udiat2 / folder / "000003.png").rename(udiat2 / folder / "000001.png")
    found = read("udiat", udiat2)
    assert found["malignant 000001"].masks == ("Malignant_mask/000001.png",)
    assert found["benign 000001"].masks == ("all_masks/000001.png",)
    assert len(found) == 6 and not any(problem(r) for r in found.values())


# ---- BUS-BRA


def test_bus_bra_patients_are_cases(bus_bra_tree):
    found = read("bus-bra", bus_bra_tree)
    assert list(found)[:3] == ["bus_0001-l", "bus_0001-r", "bus_0002-l"] and len(found) == 7
    assert found["bus_0001-l"].patient_id == found["bus_0001-r"].patient_id == "1"
    assert found["bus_0001-l"].masks == ("Masks/mask_0001-l.png",)
    assert (found["bus_0004-s"].label, found["bus_0004-s"].patient_id) == ("malignant", "4")
    assert all(r.patient_known and not problem(r) for r in found.values())


def test_bus_bra_without_or_with_half_a_table(bra):
    text = (bra / "bus_data.csv").read_text()
    lines = text.splitlines()
    (bra / "bus_data.csv").write_text(
        "\r\n".join([*lines[:-1], lines[1].replace("bus_0001-l", "bus_0099-l")])
    )
    found = read("bus-bra", bra)
    assert problem(found["bus_0004-s"]) == "unknown-label: no row in bus_data.csv"
    assert problem(found["bus_0099-l"]) == "no-image: row in bus_data.csv without image"
    (bra / "bus_data.csv").write_text(text.replace("Case", "Woman"))
    with pytest.raises(DataError, match="expected the columns id, case, pathology; found ID, Woman"):
        read("bus-bra", bra)
    (bra / "bus_data.csv").unlink()
    with pytest.raises(DataError, match="bus_data.csv is missing"):
        read("bus-bra", bra)


# ---- BrEaST


def test_breast_other_findings_are_no_lesions_and_normals_need_no_mask(breast_tree):
    found = read("breast", breast_tree)
    assert list(found) == [f"case{k:03d}" for k in range(1, 6)]
    assert found["case002"].masks == ("case002_tumor.png",) and (breast_tree / "case002_other1.png").is_file()
    assert (found["case003"].label, found["case003"].masks) == ("normal", ())
    assert found["case004"].masks == ("case004_tumor1.png", "case004_tumor2.png")
    assert [r.patient_id for r in found.values()] == ["1", "2", "3", "4", "5"]
    assert all(r.patient_known and not problem(r) for r in found.values())


def test_breast_pixel_sizes_are_in_mm_whichever_unit_the_table_has(breast):
    table = next(breast.parent.glob("*.xlsx"))
    rows = list(openpyxl.load_workbook(table).active.iter_rows(values_only=True))
    table.unlink()
    column = rows[0].index("Pixel_size")
    sizes = ["0.007", "0.07", "", "unknown", "7"]
    rows[1:] = [[*row[:column], size, *row[column + 1 :]] for row, size in zip(rows[1:], sizes, strict=True)]
    with (breast / "breast-lesions-usg-clinical-data.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    assert [r.pixel_mm for r in read("breast", breast).values()] == ["0.07", "0.07", "", "", ""]


def test_breast_table_may_be_next_to_the_images_or_be_a_csv(breast, breast_tree):
    table = next(breast.parent.glob("*.xlsx"))
    rows = list(openpyxl.load_workbook(table).active.iter_rows(values_only=True))
    table.unlink()
    with pytest.raises(DataError, match=r"table of labels is missing(.|\n)*put BrEaST"):
        read("breast", breast)
    with (breast / "breast-lesions-usg-clinical-data.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=";").writerows(rows)
    assert read("breast", breast) == read("breast", breast_tree)


def test_breast_masks_that_are_missing_exclude_their_image(breast):
    (breast / "case001_tumor.png").unlink()
    (breast / "case004_tumor2.png").unlink()
    (breast / "case005.png").unlink()
    found = read("breast", breast)
    assert problem(found["case001"]) == "no-mask: image without mask"
    assert problem(found["case004"]) == "no-mask: mask case004_tumor2 is missing"
    assert (found["case005"].image, problem(found["case005"])) == ("", "no-image: mask without image")


# ---- the synthetic trees themselves


def test_synthetic_pixels_depend_only_on_the_seed_and_the_name(bus_uclm_tree, tmp_path):
    small = {"ANAT": synthetic.UCLM_PATIENTS["ANAT"], "ALWI": "BB"}
    same, other = (
        synthetic.write_bus_uclm(tmp_path / str(seed), small, size=(96, 72), seed=seed) for seed in (0, 1)
    )
    image = "images/ALWI_001.png"
    expected = read_image(bus_uclm_tree / image)
    assert np.array_equal(read_image(same / image), expected)
    assert not np.array_equal(read_image(other / image), expected)


def test_two_codes_share_their_pixels_and_no_other_images_do(bus_uclm_tree):
    found = read("bus-uclm", bus_uclm_tree)
    hashes = {i: pixel_sha256(read_image(bus_uclm_tree / r.image)) for i, r in found.items()}
    for name, source in synthetic.UCLM_SAME_PIXELS.items():
        assert hashes[name] == hashes[source] and found[name].label == found[source].label
    assert len(set(hashes.values())) == len(hashes) - len(synthetic.UCLM_SAME_PIXELS) - 1


def test_the_small_rgba_patient_has_masks_of_the_full_size(bus_uclm_tree):
    image = Image.open(bus_uclm_tree / "images/HESN_001.png")
    mask = Image.open(bus_uclm_tree / "masks/HESN_001.png")
    assert image.mode == "RGBA" and image.size < mask.size == (96, 72)


def test_info_csv_has_the_byte_order_mark_and_the_stray_y(bus_uclm_tree):
    data = (bus_uclm_tree / "INFO.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfImage;Resolution;Label;Doppler;Marks;Combined\n") and b";Y;" in data


def test_busi_holds_the_same_pixels_under_opposite_labels(busi_tree):
    one, other = (
        read_image(busi_tree / name.split()[0] / f"{name}.png") for name in synthetic.BUSI_IDENTICAL
    )
    assert np.array_equal(one, other)


# ---- the real data


@pytest.mark.real
def test_real_bus_uclm(real_data):
    found = read("bus-uclm", find_root(load_source("bus-uclm"), real_data))
    assert len(found) == 683 and len({r.patient_id for r in found.values()}) == 38
    assert Counter(r.label for r in found.values()) == {"normal": 419, "benign": 174, "malignant": 90}
    assert sum(bool({"doppler", "combined"} & set(r.flags)) for r in found.values()) == 43
    assert sum("marks" in r.flags for r in found.values()) == 154
    assert len({r.patient_id for r in found.values() if r.label == "malignant"}) == 17
    official = Counter(r.label for r in found.values() if r.official_split == "test")
    assert official == {"normal": 37, "benign": 7, "malignant": 19}
    assert all(r.image and len(r.masks) == 1 and not problem(r) for r in found.values())


@pytest.mark.real
def test_real_busi(real_data):
    found = read("busi", find_root(load_source("busi"), real_data))
    assert Counter(r.label for r in found.values()) == {"benign": 437, "malignant": 210, "normal": 133}
    assert sum(len(r.masks) > 1 for r in found.values()) == 17
    assert sum(len(r.masks) for r in found.values()) == 798
    assert all(r.image and r.masks and not problem(r) for r in found.values())
