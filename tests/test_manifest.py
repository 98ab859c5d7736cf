"""The manifest: what it refuses, what it keeps, and that its bytes are its content's alone."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from manifest_rows import frame, row

from bus_smp.data import manifest as manifest_module
from bus_smp.data.manifest import (
    Manifest,
    check,
    combine,
    list_manifests,
    manifest_hash,
    manifest_path,
    read_manifest,
    write_manifest,
)
from bus_smp.data.manifest_checks import check_text
from bus_smp.errors import BusSmpError, ManifestError


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "data" / "Demo"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def written(tmp_path, root):
    return write_manifest(
        Manifest(frame(), {"demo": root}, {"options": {"seed": 42}}), tmp_path / "m" / "demo.csv"
    )


def test_a_sound_table_has_no_problems():
    assert check(frame()) == []


BROKEN = {
    "control": (0, {"flags": "a\nb"}, "flags", "control character"),
    "nul": (0, {"image": "images/a\0.png"}, "image", "control character"),
    "space_in_id": (0, {"patient_id": "007 "}, "patient_id", "space"),
    "dataset_name": (0, {"dataset": "../demo"}, "dataset", "not a name"),
    "no_image_id": (0, {"image_id": ""}, "image_id", "empty"),
    "same_image_id": (1, {"image_id": "a1"}, "image_id", "earlier row"),
    "no_patient": (0, {"patient_id": ""}, "patient_id", "empty"),
    "no_group": (0, {"group_id": ""}, "group_id", "empty"),
    "no_image": (0, {"image": ""}, "image", "empty"),
    "patient_known": (0, {"patient_known": "maybe"}, "patient_known", "neither true nor false"),
    "label": (0, {"label": "Benign"}, "label", "none of normal, benign, malignant"),
    "no_label": (0, {"label": ""}, "label", "none of"),
    "excluded_label": (4, {"label": "cyst"}, "label", "none of"),
    "split": (0, {"split": "valid"}, "split", "none of train, val, test"),
    "used_without_split": (0, {"split": ""}, "split", "none of"),
    "excluded_with_split": (4, {"split": "train"}, "split", "excluded row"),
    "fold": (3, {"fold": "-1"}, "fold", "whole number"),
    "excluded_with_fold": (4, {"fold": 0}, "fold", "excluded row"),
    "empty_mask_part": (3, {"masks": "masks/c1.png|"}, "masks", "empty part"),
    "lesion_without_mask": (3, {"masks": ""}, "masks", "has a lesion"),
    "mask_format": (0, {"mask_format": "rgb"}, "mask_format", "none of binary, color, index"),
    "mask_without_format": (0, {"mask_format": ""}, "mask_format", "none of"),
    "zero_width": (0, {"width": 0}, "width", "size in pixels"),
    "half_height": (0, {"height": 30.5}, "height", "size in pixels"),
    "no_width": (0, {"width": ""}, "width", "size in pixels"),
    "negative_excluded": (4, {"height": -3}, "height", "size in pixels"),
    "sha256": (0, {"sha256": "abc"}, "sha256", "64 hexadecimal"),
    "phash": (0, {"phash": "Z" * 64}, "phash", "64 hexadecimal"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_one_broken_cell_is_one_problem_that_names_row_and_column(name):
    index, cells, column, why = BROKEN[name]
    problems = [p for p in check(frame(index, **cells)) if " is in 2 " not in p]
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"row {index + 2} (")
    assert f"column {column}:" in problems[0]
    assert why in problems[0]


@pytest.mark.parametrize("column", ["image", "masks"])
@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x.png",
        "a/../../x.png",
        "a/..",
        "C:/x.png",
        "c:x.png",
        r"\\host\x.png",
        r"a\..\x.png",
    ],
)
def test_a_path_that_could_leave_the_root_is_refused(column, path):
    if column == "masks":
        path = f"masks/c1.png|{path}"
    (problem,) = check(frame(3, **{column: path}))
    assert f"column {column}:" in problem
    assert "climbs" in problem


def test_dots_inside_names_are_no_climbing():
    assert check(frame(0, image="a..b/..c/d...png")) == []


TORN = {
    "group_split": (1, {"split": "test"}, "group demo:007 is in 2 splits: test (demo/a2), train (demo/a1)"),
    "group_fold": (1, {"fold": 1}, "group demo:007 is in 2 folds: none (demo/a1), 1 (demo/a2)"),
    "patient_group": (1, {"group_id": "demo:x"}, "patient demo/007 is in 2 group_ids: demo:007"),
    "file_split": (3, {"image": "images/a1.png"}, "image file demo/images/a1.png is in 2 splits"),
}


@pytest.mark.parametrize("name", TORN)
def test_what_would_leak_is_found(name):
    index, cells, expected = TORN[name]
    (problem,) = check(frame(index, **cells))
    assert problem.startswith(expected)


def test_one_picture_in_two_splits_is_found_by_its_pixels():
    table = frame()
    table.loc[[0, 3], "sha256"] = "ab" * 32
    (problem,) = check(table)
    assert problem.startswith(
        f"one picture (sha256) {'ab' * 32} is in 2 splits: test (demo/c1), train (demo/a1)"
    )
    table.loc[3, ["split", "excluded"]] = ["", "duplicate of a1"]
    assert check(table) == []


def test_a_missing_column_is_named():
    assert check(frame().drop(columns=["fold", "masks"]))[0].startswith(
        "no column fold, masks; found dataset,"
    )


def test_all_problems_come_in_one_error_and_the_rest_is_counted(tmp_path, root):
    table = pd.DataFrame([row(f"i{n:02}", f"p{n}", "train", width=-1) for n in range(14)])
    table.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(ManifestError) as caught:
        read_manifest(tmp_path / "bad.csv")
    assert "14 problems" in caught.value.what
    assert "row 11 (demo/i09)" in caught.value.what
    assert "row 12" not in caught.value.what
    assert caught.value.what.endswith("and 4 more")
    assert "make-manifest" in caught.value.hint


def test_ids_that_look_like_numbers_or_nothing_stay_text(written):
    read = read_manifest(written)
    assert read.frame["patient_id"].tolist() == ["007", "007", "NA", "1e5", "null"]
    assert read.frame["patient_known"].dtype == bool
    assert read.frame["width"].dtype == "Int64"
    assert read.frame["width"].isna().tolist() == [False] * 4 + [True]
    assert read.frame["fold"].isna().all()
    assert read.about["options"] == {"seed": 42}


def test_reading_and_writing_again_gives_the_same_bytes(written, tmp_path):
    again = write_manifest(read_manifest(written), tmp_path / "m" / "again.csv")
    assert again.read_bytes() == written.read_bytes()
    assert again.with_suffix(".json").read_bytes() == written.with_suffix(".json").read_bytes()
    assert b"\r" not in written.read_bytes()


def test_bytes_and_hash_do_not_depend_on_row_or_column_order_or_types(written, tmp_path, root):
    shuffled = frame().iloc[[3, 1, 4, 0, 2], ::-1]
    shuffled["width"] = pd.to_numeric(shuffled["width"])  # floats, as a NaN makes them
    other = write_manifest(
        Manifest(shuffled, {"demo": root}, {"options": {"seed": 42}}), tmp_path / "m" / "o.csv"
    )
    assert other.read_bytes() == written.read_bytes()
    assert manifest_hash(shuffled) == manifest_hash(frame()) == manifest_hash(read_manifest(written).frame)
    assert re.fullmatch("[0-9a-f]{64}", manifest_hash(frame()))
    assert manifest_hash(frame(0, flags="marks")) != manifest_hash(frame())


def test_further_columns_are_kept(tmp_path, root):
    path = write_manifest(Manifest(frame().assign(birads="4a"), {"demo": root}), tmp_path / "x.csv")
    assert read_manifest(path).frame["birads"].tolist() == ["4a"] * 5


def test_a_table_is_checked_once_where_it_enters(written, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(manifest_module, "check_text", lambda *a: checked.append("read") or check_text(*a))
    monkeypatch.setattr(manifest_module, "check", lambda frame: checked.append("check") or check(frame))
    manifest = read_manifest(written)
    assert combine([manifest]) is manifest
    write_manifest(manifest, tmp_path / "m" / "again.csv")
    assert manifest.sha256 == manifest_hash(manifest.frame)
    assert checked == ["read"]
    write_manifest(Manifest(manifest.frame, manifest.roots), tmp_path / "m" / "again.csv")
    assert checked == ["read", "check"]


def test_a_table_that_would_leak_is_not_written(tmp_path, root):
    with pytest.raises(ManifestError, match="group demo:007 is in 2 splits"):
        write_manifest(Manifest(frame(1, split="test"), {"demo": root}), tmp_path / "x.csv")
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_what_a_spreadsheet_saves_is_read_the_same(written, separator):
    expected = read_manifest(written)
    table = pd.read_csv(written, dtype=str, keep_default_na=False).iloc[::-1]
    table["patient_known"] = table["patient_known"].str.upper()
    text = table.to_csv(sep=separator, index=False, lineterminator="\r\n")
    written.write_bytes(("\ufeff" + text + separator * 16 + "\r\n\r\n").encode())
    read = read_manifest(written)
    pd.testing.assert_frame_equal(read.frame, expected.frame)
    assert manifest_hash(read.frame) == manifest_hash(expected.frame)


def test_a_manifest_that_excel_saved_again_is_read_the_same(written, tmp_path):
    text = written.read_text(encoding="utf-8").replace("a1.png", "für a1.png")
    # the file's own words and numbers, and an empty column, as a spreadsheet of another language leaves them
    lines = [
        f"{line},{end}" for line, end in zip(text.splitlines(), ["pixel_mm", "0.07", *[""] * 9], strict=False)
    ]
    written.write_text("\n".join(lines) + "\n", encoding="utf-8")
    expected = read_manifest(written)
    table = pd.read_csv(written, dtype=str, keep_default_na=False)
    table["patient_known"] = table["patient_known"].replace({"true": "WAHR", "false": "FALSCH"})
    table["pixel_mm"] = table["pixel_mm"].str.replace(".", ",")
    table["width"] = [width and f"{width},0" for width in table["width"]]
    table["unnamed"] = ""
    saved = table.rename(columns={"unnamed": ""}).to_csv(sep=";", index=False, lineterminator="\r\n")
    for data in (saved.encode("cp1252"), saved.replace(";", "\t").encode("utf-16")):
        written.write_bytes(data)
        pd.testing.assert_frame_equal(read_manifest(written).frame, expected.frame)
    book = written.with_suffix(".xlsx")
    table.rename(columns={"unnamed": ""}).to_excel(book, index=False)
    assert manifest_path(book, tmp_path) == book
    pd.testing.assert_frame_equal(read_manifest(book).frame, expected.frame)


DAMAGED = {
    "empty": (lambda data: b"", "is empty"),
    "header_only": (lambda data: data.split(b"\n")[0] + b"\n", "no image is listed"),
    "nul": (lambda data: data.replace(b"a2.png", b"a2\0png", 1), "line 3 holds a NUL byte"),
    "lost_letters": (
        lambda data: data.replace(b"a2.png", b"?2.png") + b"\xfc",
        "row 3: a name has ? for letters",
    ),
    "truncated": (lambda data: data[:-30], "line 6 has"),
    "open_quote": (lambda data: data + b'demo,"x', "is not CSV"),
    "long_row": (lambda data: data.replace(b"a2.png", b"a2,.png", 1), "line 3 has 18 cells, the header 17"),
    "missing_column": (
        lambda data: data.replace(b"group_id", b"group", 1),
        "no column group_id; found dataset",
    ),
    "double_column": (lambda data: data.replace(b"flags", b"fold", 1), "two columns are named 'fold'"),
    "duplicate_rows": (lambda data: data + data.split(b"\n")[1] + b"\n", "row 7 (demo/a1), column image_id"),
    "hand_edit": (
        lambda data: data.replace(b"benign,train", b"benign,test", 1),
        "group demo:007 is in 2 splits",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_an_error_that_says_where(name, written):
    damage, expected = DAMAGED[name]
    written.write_bytes(damage(written.read_bytes()))
    with pytest.raises(ManifestError) as caught:
        read_manifest(written)
    assert expected in caught.value.what
    assert str(written) in caught.value.what
    assert caught.value.hint


def test_a_missing_file_and_a_folder_are_errors(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(ManifestError, match="make-manifest"):
            read_manifest(path)


@pytest.mark.parametrize("text", ["{", "[]", '{"roots": ["x"]}', '{"roots": {"demo": 3}}'])
def test_a_broken_sidecar_is_an_error(written, text):
    written.with_suffix(".json").write_text(text)
    with pytest.raises(ManifestError, match="sidecar"):
        read_manifest(written)


# Both files or none


def kept(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("suffix", [".csv", ".json"])
def test_a_folder_of_one_files_name_leaves_the_other_as_it_was(written, root, suffix):
    written.with_suffix(suffix).unlink()
    written.with_suffix(suffix).mkdir()
    before = kept(written.parent)
    with pytest.raises(ManifestError, match=f"demo{suffix}: cannot be written"):
        write_manifest(Manifest(frame(1, label="malignant"), {"demo": root}, {"seed": 7}), written)
    assert kept(written.parent) == before


@pytest.mark.parametrize("full", ["rows", "account"])
def test_a_disk_that_is_full_leaves_both_files_as_they_were(written, root, full):
    resource = pytest.importorskip("resource")
    before = kept(written.parent)
    table = frame(0, flags="x" * 20_000) if full == "rows" else frame()
    about = {"notes": "x" * (20_000 if full == "account" else 1)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, limits[1]))  # for the program the same as a full disk
    try:
        with pytest.raises(BusSmpError, match="the disk is full"):
            write_manifest(Manifest(table, {"demo": root}, about), written)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert kept(written.parent) == before


# Roots and paths


@pytest.mark.skipif(os.name == "nt", reason="names of files are UTF-8 there")
def test_a_root_whose_name_is_not_utf_8_is_one_clear_error_and_nothing_is_written(written, tmp_path):
    before = kept(written.parent)
    root = tmp_path / "donn\udce9es"
    with pytest.raises(ManifestError, match=r"donn\\udce9es: the folder's name is not UTF-8"):
        write_manifest(Manifest(frame(), {"demo": root}), written)
    assert kept(written.parent) == before


def test_the_root_is_recorded_relative_so_that_a_project_can_be_moved(written, tmp_path):
    assert json.loads(written.with_suffix(".json").read_text())["roots"] == {"demo": "../data/Demo"}
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("data", "m"):
        (tmp_path / name).rename(moved / name)
    manifest = read_manifest(moved / "m" / "demo.csv")
    assert manifest.roots == {"demo": (moved / "data" / "Demo").resolve()}
    used = manifest.used("test")
    expected = [moved.resolve() / "data/Demo/masks" / name for name in ("c1.png", "c1_1.png")]
    assert manifest.mask_paths(used.iloc[0]) == expected
    assert manifest.mask_paths(next(used.itertuples())) == expected
    assert manifest.image_path(used.to_dict("records")[0]) == moved.resolve() / "data/Demo/images/c1.png"
    assert manifest.mask_paths(manifest.used("val").iloc[0]) == []


def test_without_a_sidecar_the_root_is_the_folder_of_the_csv(written):
    written.with_suffix(".json").unlink()
    assert read_manifest(written).roots == {"demo": written.parent.resolve()}


def test_a_given_root_overrides_the_recorded_one(written, tmp_path):
    for given in (tmp_path, {"demo": tmp_path}):
        assert read_manifest(written, root=given).roots == {"demo": tmp_path}


def test_a_root_that_is_gone_is_named_unless_only_the_table_is_asked(written, root):
    root.rmdir()
    with pytest.raises(ManifestError) as caught:
        read_manifest(written)
    assert str(root.resolve()) in caught.value.what
    assert "--root" in caught.value.hint
    assert len(read_manifest(written, images=False).frame) == 5


def test_a_linked_root_keeps_its_name(tmp_path, root):
    link = tmp_path / "link"
    try:
        link.symlink_to(root)
    except OSError:
        pytest.skip("no links here")
    path = write_manifest(Manifest(frame(), {"demo": link}), tmp_path / "demo.csv")
    manifest = read_manifest(path)
    assert manifest.image_path(manifest.used().iloc[0]) == tmp_path.resolve() / "link/images/a1.png"


def test_a_manifest_in_a_linked_folder_finds_the_same_root(written, tmp_path, root):
    link = tmp_path / "deep" / "er" / "link"
    link.parent.mkdir(parents=True)
    try:
        link.symlink_to(written.parent)
    except OSError:
        pytest.skip("no links here")
    assert read_manifest(link / "demo.csv").roots == {"demo": root.resolve()}
    path = write_manifest(Manifest(frame(), {"demo": root}), link / "again.csv")
    assert read_manifest(path).roots == {"demo": root.resolve()}


@pytest.mark.parametrize("path", ["../x.png", "/x.png", "", r"a\b.png", "a\0.png"])
def test_no_path_leaves_the_root_even_in_an_unchecked_table(path, root):
    manifest = Manifest(frame(0, image=path), {"demo": root})
    with pytest.raises(ManifestError, match="does not stay inside"):
        manifest.image_path(manifest.frame.iloc[0])
    with pytest.raises(ManifestError, match="--root"):
        Manifest(frame(), {}).image_path(frame().iloc[0])


def test_used_rows_are_those_of_the_split_without_the_excluded(written):
    manifest = read_manifest(written)
    assert manifest.used("train")["image_id"].tolist() == ["a1", "a2"]
    assert manifest.used()["image_id"].tolist() == ["a1", "a2", "b1", "c1"]
    assert manifest.used("test").index.tolist() == [0]
    assert manifest.datasets == ["demo"]
    with pytest.raises(ValueError, match="valid"):
        manifest.used("valid")


# Several manifests


def manifests(**second):
    one = Manifest(frame(), {"demo": Path("one")})
    other = pd.DataFrame([row("a1", "007", "train", dataset="other", **second)])
    return one, Manifest(other, {"other": Path("two")})


def test_manifests_are_combined_with_their_patients_kept_apart():
    both = combine(manifests())
    assert both.datasets == ["demo", "other"]
    assert both.roots == {"demo": Path("one"), "other": Path("two")}
    assert both.used()["group_id"].nunique() == 4
    assert both.image_path(both.frame.iloc[-1]) == Path("two/images/a1.png")
    assert check(both.frame) == []


def test_a_group_shared_by_two_data_sets_must_lie_in_one_split():
    assert len(combine(manifests(group_id="demo:007")).used("train")) == 3
    with pytest.raises(ManifestError) as caught:
        combine(manifests(group_id="demo:1e5"))
    assert "group demo:1e5 is in 2 splits: test (demo/c1), train (other/a1)" in caught.value.what
    assert "--dataset demo --dataset other" in caught.value.hint


def test_group_ids_that_name_no_data_set_are_not_taken_for_one_patient():
    one, other = manifests(group_id="007")
    plain = one.frame.assign(group_id=one.frame["patient_id"])
    with pytest.raises(ManifestError, match="group 007 is in several data sets but names none"):
        combine([Manifest(plain, one.roots), other])


def test_manifests_that_were_read_are_combined_by_what_they_share(written, root):
    one, picture = read_manifest(written), "ab" * 32
    other = Manifest(pd.DataFrame([row("x", "y", "test", dataset="other", sha256=picture)]), {"other": root})
    write_manifest(other, written.with_name("other.csv"))
    write_manifest(Manifest(frame(0, sha256=picture), one.roots), written)
    with pytest.raises(ManifestError, match="one picture .* is in 2 splits: test .other/x., train .demo/a1."):
        combine([read_manifest(written), read_manifest(written.with_name("other.csv"))])


def test_combining_nothing_or_one_data_set_twice_is_an_error():
    one, _ = manifests()
    with pytest.raises(ManifestError, match="demo is listed twice"):
        combine([one, one])
    with pytest.raises(ManifestError, match="no manifest"):
        combine([])


# Finding manifests


def test_a_manifest_is_found_by_name_or_by_path(written):
    assert manifest_path("demo", written.parent) == written
    assert manifest_path(str(written), "nowhere") == written
    assert list_manifests(written.parent) == [written]
    assert list_manifests(written.parent / "none") == []


def test_a_name_that_is_not_there_gets_the_ones_that_are(written):
    with pytest.raises(ManifestError) as caught:
        manifest_path("deno", written.parent)
    assert "has demo" in caught.value.what
    assert caught.value.hint == "did you mean demo? make it with: bus-smp make-manifest --dataset deno"


def test_missing_values_of_any_kind_are_empty_cells():
    table = frame().astype(object)
    assert manifest_hash(table.replace("", None)) == manifest_hash(frame())
    assert manifest_hash(table.replace("", np.nan)) == manifest_hash(frame())
