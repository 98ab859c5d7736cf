"""bus-smp make-manifest as a user meets it: files, words, exit codes."""

import csv
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import openpyxl
import pytest
from click.testing import CliRunner
from PIL import Image

from bus_smp.commands import demo
from bus_smp.commands.make_manifest import command
from bus_smp.commands.quoting import setting, typed
from bus_smp.config import load_settings
from bus_smp.data.images import color_mask
from bus_smp.data.manifest import read_manifest, write_manifest
from bus_smp.data.own_table import read_own_table
from bus_smp.data.synthetic import draw, write_bus_bra, write_bus_uclm, write_udiat
from bus_smp.errors import BusSmpError, ConfigError, DataError, ManifestError, TrainingError
from bus_smp.training.preflight import check_trainable

PATIENTS = {
    "AAAA": "BN",
    "BBBB": "MM",
    "CHVI": "NBBMNBM",
    "CHCO": "BMBM",
    "COPE": "B",
    "HESN": "NB",
    "WAQU": "NN",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A data folder with a small BUS-UCLM and a BUS-BRA in it."""
    folder = tmp_path_factory.mktemp("raw")
    write_bus_uclm(folder / "download" / "zip", PATIENTS, size=(96, 72))
    write_bus_bra(folder, 4, size=(96, 72))
    return folder


def run(*arguments, code=0):
    result = CliRunner().invoke(command, [str(a) for a in arguments])
    if isinstance(result.exception, BusSmpError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def written(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}


def copy_manifest(folder, name, out):
    """Copy one manifest and its sidecar to the new folder ``out``."""
    out.mkdir()
    for suffix in (".csv", ".json"):
        shutil.copyfile(folder / f"{name}{suffix}", out / f"{name}{suffix}")
    return out


@pytest.fixture(scope="module")
def made(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("work") / "out"
    return run("--root", tree, "--out", out), out


def test_known_data_sets_are_found_below_the_root_and_written_with_what_was_found_and_what_to_do_next(made):
    result, out = made
    assert sorted(written(out)) == ["bus-bra.csv", "bus-bra.json", "bus-uclm.csv", "bus-uclm.json"]
    for name in ("bus-bra", "bus-uclm"):
        assert len(read_manifest(out / f"{name}.csv").used())
    for text in (
        "BUS-UCLM", "patient-level", "same pictures under CHCO and CHVI", "HESN_000",
        "excluded     2  mask of another size than its image [size-mismatch]",
    ):  # fmt: skip
        assert text in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].startswith("Next: bus-smp train")
    # Ids of a known data set are taken as they are written.
    assert "spellings" not in json.loads((out / "bus-bra.json").read_text(encoding="utf-8"))["audit"]


def test_without_patient_ids_nothing_is_called_patient_level(tmp_path):
    result = run("--root", write_udiat(tmp_path, 4, size=(96, 72)), "--out", tmp_path)
    assert "patient-level" not in result.stdout
    assert "image groups (no patient ids published)" in result.stdout


def test_the_default_folders_are_data_and_data_manifests(tree, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(tree)
    monkeypatch.chdir(tmp_path)
    run("--dataset", "bus-bra")
    assert (tmp_path / "data_manifests" / "bus-bra.csv").is_file()


def test_json_is_one_document_with_every_image_of_every_finding_and_with_the_rows_that_changed(
    tree, made, tmp_path
):
    out = copy_manifest(made[1], "bus-uclm", tmp_path / "out")
    result = run("--dataset", "bus-uclm", "--root", tree, "--out", out, "--on-mismatch", "resize", "--json")
    (document,) = json.loads(result.stdout)["manifests"]
    assert document["dataset"] == "bus-uclm" and document["change"].startswith("replaced: ")
    assert document["audit"]["findings"]["size_mismatch"]["images"] == ["HESN_000", "HESN_001"]
    assert document["source"]["cite"]
    sidecar = json.loads((out / "bus-uclm.json").read_text(encoding="utf-8"))
    assert sidecar["audit"] == document["audit"]
    assert sidecar["options"]["duplicates"] == "group"
    assert read_manifest(out / "bus-uclm.csv").used()["image_id"].str.startswith("HESN").sum() == 2
    before = json.loads((made[1] / "bus-uclm.json").read_text(encoding="utf-8"))["audit"]["excluded"]
    assert before["size-mismatch"]["count"] == 2 and "size-mismatch" not in sidecar["audit"]["excluded"]


def test_the_bytes_do_not_depend_on_the_order_of_the_file_system(tree, made, tmp_path):
    _, out = made
    folder, other = tree / "BUSBRA", tmp_path / "raw" / "BUSBRA"
    files = [path for path in folder.rglob("*") if path.is_file()]
    random.Random(3).shuffle(files)
    for path in files:
        place = other / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    run("--root", other, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "bus-bra.csv").read_bytes() == (out / "bus-bra.csv").read_bytes()


def test_a_manifest_made_again_is_byte_identical_and_its_change_is_unchanged(tree, made, tmp_path):
    out = copy_manifest(made[1], "bus-bra", tmp_path / "out")
    table = (out / "bus-bra.csv").read_text(encoding="utf-8")
    before = written(out)
    # Excel's separator and byte-order mark: it still has a manifest's header, so it may be replaced.
    (out / "bus-bra.csv").write_text("\ufeff" + table.replace(",", ";"), encoding="utf-8")
    run("--dataset", "bus-bra", "--root", tree, "--out", out)
    assert (out / "bus-bra.csv").read_text(encoding="utf-8") == table
    again = written(out)
    assert "(unchanged)" in run("--dataset", "bus-bra", "--root", tree, "--out", out).stdout
    assert written(out) == again and again.keys() == before.keys()


NO_MANIFESTS = (
    b"mine\n1\n",
    b"image;label;group_id\na.png;benign;1\n",
    b"image,group_id\ra.png,1\r",
    b"\0\xff\r\0",
)
NO_SIDECARS = (b'{"precious": 1}', b"[1]", b"my notes", b"")


def test_a_file_or_folder_that_is_no_manifest_is_not_overwritten(tree, tmp_path):
    for name, contents in (("bus-bra.csv", NO_MANIFESTS), ("bus-bra.json", NO_SIDECARS)):
        for content in contents:
            (tmp_path / name).write_bytes(content)
            with pytest.raises(ManifestError, match=f"{name}: exists and is not a manifest"):
                run("--dataset", "bus-bra", "--root", tree, "--out", tmp_path)
            assert written(tmp_path) == {name: content}
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(ManifestError, match=f"{name}: exists and is not a manifest"):
            run("--dataset", "bus-bra", "--root", tree, "--out", tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [name]
        (tmp_path / name).rmdir()


NAMES = ["my #1", "2024", "null", "~", "a: b", "it's", 'say "x" for $1', "a\\b", "yes", "ordinary-1.0"]


@pytest.mark.skipif(shutil.which("sh") is None, reason="no shell to type into")
@pytest.mark.parametrize("name", NAMES)
def test_a_setting_that_a_command_prints_can_be_typed_in_a_shell(name):
    words = [setting("data.manifests", name), setting("data.train", ["busi", name])]
    line = f"printf '%s\\n' {' '.join(map(typed, words))}"
    read = subprocess.run(["sh", "-c", line], capture_output=True, encoding="utf-8", check=True).stdout
    settings = load_settings(None, read.splitlines())
    assert settings.data.manifests == name
    assert settings.data.train == ("busi", name)


def test_the_next_line_can_be_typed_whatever_the_folder_and_the_data_set_are_called(
    own, tmp_path, monkeypatch
):
    table, rows = own
    write_table(table, rows)
    monkeypatch.chdir(tmp_path)
    last = run("--csv", table, "--name", "2024", "--out", "my #1").stdout.splitlines()[-1]
    assert last.startswith("Next: bus-smp train --data 2024 --set ")
    settings = load_settings(None, [setting("data.train", ["2024"]), shlex.split(last)[-1]])
    assert settings.data.train == ("2024",) and settings.data.manifests == "my #1"


def test_the_demo_sets_its_own_folders_whatever_they_are_called(tmp_path, monkeypatch):
    commands = []
    monkeypatch.setattr(demo, "_run", lambda *words: commands.append(words))
    folder = tmp_path / "my #1"
    (folder / "data").mkdir(parents=True)
    result = CliRunner().invoke(demo.command, ["--to", str(folder)], catch_exceptions=False)
    assert result.exit_code == 0
    (train,) = (words for words in commands if words[0] == "train")
    settings = load_settings(
        None, [value for word, value in zip(train, train[1:], strict=False) if word == "--set"]
    )
    assert settings.data.manifests == str(folder / "data_manifests")
    assert settings.runtime.cache == str(folder / "cache")


def test_the_official_split_or_named_patients_are_the_test_split(tree, tmp_path):
    options = ("--dataset", "bus-uclm", "--root", tree, "--out", tmp_path)
    assert "split official test patients" in run(*options, "--split", "official").stdout
    assert set(read_manifest(tmp_path / "bus-uclm.csv").used("test")["patient_id"]) == {"COPE"}
    run(*options, "--test-patients", "CHCO, WAQU", "--folds", 3)
    manifest = read_manifest(tmp_path / "bus-uclm.csv")
    assert set(manifest.used("test")["patient_id"]) == {"CHCO", "CHVI", "WAQU"}
    assert set(manifest.used()["fold"]) == {0, 1, 2}


def test_a_manifest_made_later_joins_the_groups_of_one_that_is_there(made, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    roots = {"bus-bra": read_manifest(made[1] / "bus-bra.csv").roots["bus-bra"]}
    write_manifest(read_manifest(made[1] / "bus-bra.csv", root=roots), out / "bus-bra.csv")
    before = written(out)
    own = tmp_path / "own"
    (own / "m").mkdir(parents=True)
    theirs = read_manifest(out / "bus-bra.csv")
    rows = [("image", "masks", "label", "patient_id")]
    for row in theirs.used().itertuples():
        shutil.copyfile(theirs.image_path(row), own / f"copy{row.Index}.png")
        shutil.copyfile(theirs.mask_paths(row)[0], own / "m" / f"{row.Index}.png")
        rows.append((f"copy{row.Index}.png", f"m/{row.Index}.png", row.label, f"Z{row.Index}"))
    write_table(own / "hospital.csv", rows)
    result = run("--csv", own / "hospital.csv", "--out", out)
    assert "pictures also found in: bus-bra" in result.stdout
    assert {name: written(out)[name] for name in before} == before
    mine = read_manifest(out / "hospital.csv").frame.set_index("sha256")
    for row in theirs.frame.itertuples():
        assert mine.loc[row.sha256, "group_id"] == row.group_id
        assert mine.loc[row.sha256, "split"] == row.split
        assert f"duplicate:bus-bra/{row.image_id}" in mine.loc[row.sha256, "flags"]


def test_a_manifest_whose_images_are_gone_is_a_note_and_no_error(tree, made, tmp_path):
    out = copy_manifest(made[1], "bus-uclm", tmp_path / "out")
    (out / "bus-uclm.json").write_text('{"roots": {"bus-uclm": "../gone"}}')
    result = run("--dataset", "bus-bra", "--root", tree, "--out", out)
    assert "note: not compared with 20 of 20 images of bus-uclm.csv" in result.stdout


# A table of the user's own.


def write_table(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def own(tree, tmp_path):
    """A folder with images under two subfolders and a table that names them."""
    folder = tree / "BUSBRA"
    (tmp_path / "own").mkdir()
    for name in ("Images", "Masks"):
        shutil.copytree(folder / name, tmp_path / "own" / name)
    rows = [("image", "masks", "label", "patient_id")]
    for k, image in enumerate(sorted((tmp_path / "own" / "Images").iterdir())):
        mask = image.name.replace("bus_", "mask_")
        rows.append(
            (f"Images/{image.name}", f"Masks/{mask}", "M" if "-s" in image.name else "benign", f"00{k // 2}")
        )
    return tmp_path / "own" / "mine.csv", rows


def test_a_hand_written_table_in_any_order_becomes_a_manifest_with_the_same_guarantees(own, tmp_path):
    table, rows = own
    write_table(table, rows)
    result = run("--csv", table, "--out", tmp_path / "out")
    manifest = read_manifest(tmp_path / "out" / "mine.csv")
    assert manifest.datasets == ["mine"]
    assert set(manifest.frame["mask_format"]) == {"binary"}
    assert set(manifest.frame["patient_id"]) == {"000", "001", "002", "003"}  # text, not numbers
    assert manifest.frame["patient_known"].all()
    assert list(manifest.frame["image_id"])[0] == "bus_0001-l"
    assert "patient-level" in result.stdout
    random.Random(1).shuffle(body := rows[1:])
    write_table(table, [rows[0], *body])
    run("--csv", table, "--out", tmp_path / "out2")
    assert written(tmp_path / "out") == written(tmp_path / "out2")


def test_a_row_without_patient_is_its_own_group_and_not_known(own, tmp_path):
    table, rows = own
    rows[1:] = [(*row[:3], "") for row in rows[1:]]
    write_table(table, rows)
    run("--csv", table, "--out", tmp_path / "out", "--name", "clinic", "--duplicates", "group")
    frame = read_manifest(tmp_path / "out" / "clinic.csv").frame
    assert not frame["patient_known"].any()
    assert frame["group_id"].nunique() == len(frame)


def test_a_table_of_several_data_sets_and_mask_formats_makes_a_manifest_for_each(own, tmp_path):
    table, rows = own
    folder = table.parent
    for row in rows[1:]:
        mask = np.array(Image.open(folder / row[1])) > 0
        value = 2 if row[2] == "M" else 1
        pixels = color_mask(mask * np.uint8(value)) if "-l" in row[0] else mask.astype(np.uint8) * value
        Image.fromarray(pixels).save(folder / row[1])
    body = [
        (*row, "north" if int(row[3]) < 2 else "south", "marks" if k == 0 else "")
        for k, row in enumerate(rows[1:])
    ]
    # a third patient in each: one group cannot be divided into three splits
    body = [(*row[:3], f"{row[3]}{k}", *row[4:]) for k, row in enumerate(body)]
    write_table(table, [(*rows[0], "dataset", "flags"), *body])
    run("--csv", table, "--out", tmp_path / "out", "--exclude", "marks")
    north = read_manifest(tmp_path / "out" / "north.csv").frame
    south = read_manifest(tmp_path / "out" / "south.csv").frame
    assert list(north["mask_format"]) == ["color", "binary", "color", "binary"]
    assert set(south["mask_format"]) == {"color", "binary", "index"}
    assert list(north["excluded"]) == ["flagged: --exclude marks", "", "", ""]


def test_all_faults_of_a_table_are_told_at_once(own, tmp_path):
    table, rows = own
    bad = [
        ("Images/none.png", "", "normal", "1"),
        ("../outside.png", "", "normal", "1"),
        (rows[1][0], rows[1][1], "unsure", "1"),
        rows[1],
    ]
    write_table(table, [*rows, *bad])
    with pytest.raises(ManifestError) as caught:
        run("--csv", table, "--out", tmp_path / "out")
    text = str(caught.value)
    first = len(rows) + 1
    assert f"row {first}: no file" in text
    assert f"row {first + 1}: ../outside.png lies outside" in text
    assert f"row {first + 2}: unknown label 'unsure'" in text
    assert f"image, 2 rows, first row {first + 2}: image 'Images/bus_0001-l.png' stands in row 2 too" in text
    assert not (tmp_path / "out").exists()


def test_one_fault_of_many_rows_is_one_line(own, tmp_path):
    table, rows = own
    write_table(
        table, [(*rows[0], "pixel_mm", "split"), *((*row[:2], "gut", row[3], 7, "tain") for row in rows[1:])]
    )
    with pytest.raises(ManifestError) as caught:
        run("--csv", table, "--out", tmp_path / "out")
    lines = str(caught.value).splitlines()[1:-1]
    assert [line.partition(":")[0].strip() for line in lines] == [
        f"{column}, {len(rows) - 1} rows, first row 2" for column in ("label", "split", "pixel_mm")
    ]
    assert '--labels "gut=..."' in lines[0] and "0.02 to 0.5" in lines[2]


def test_a_given_split_is_kept_and_one_that_tears_a_patient_is_refused(own, tmp_path):
    table, rows = own
    splits = ["train", "train", "val", "val", "test", "test", "train"]
    whole = [(*row, split) for row, split in zip(rows[1:], splits, strict=True)]
    write_table(table, [(*rows[0], "split"), *whole])
    run("--csv", table, "--out", tmp_path / "out")
    assert list(read_manifest(tmp_path / "out" / "mine.csv").frame["split"]) == splits
    with pytest.raises(ConfigError, match="published no split"):
        run("--csv", table, "--out", tmp_path / "out", "--split", "official")
    splits[1] = "test"
    write_table(table, [(*rows[0], "split"), *((*row, s) for row, s in zip(rows[1:], splits, strict=True))])
    with pytest.raises(ManifestError, match="group mine:000 .* in train: bus_0001-l; test: bus_0001-r"):
        run("--csv", table, "--out", tmp_path / "out2")
    # what the error says to type
    result = run("--csv", table, "--out", tmp_path / "out2", "--split", "50/25/25")
    assert "not used: the split that the table gives" in result.stdout
    used = read_manifest(tmp_path / "out2" / "mine.csv").used()
    assert used.groupby("patient_id")["split"].nunique().max() == 1


def test_a_table_as_a_hospital_writes_it_makes_the_same_manifest(own, tmp_path):
    """Spelled header, words for splits, decimal comma, separators, encodings and empty columns of Excel."""
    table, rows = own
    splits = ["train", "train", "val", "val", "test", "test", "train"]
    plain = [(*rows[0], "split", "pixel_mm")]
    plain += [(*row, split, "0.07") for row, split in zip(rows[1:], splits, strict=True)]
    write_table(table, plain)
    run("--csv", table, "--out", tmp_path / "plain")
    words = {"train": "Training", "val": " Validation", "test": "TEST"}
    mine = [("Image", "Mask", "Diagnosis", "Patient ID", "Split", "Pixel (mm)", "", "")]
    mine += [(*row[:4], words[row[4]], "0,07", "", "") for row in plain[1:]] + [("",) * 8] * 2
    text = "".join(";".join(f'"{cell}"' for cell in row) + "\r\n" for row in mine)
    files = {"u.csv": text.encode("utf-8-sig"), "w.csv": text.replace("TEST", "Test").encode("cp1252")}
    for name, data in files.items():
        (table.parent / name).write_bytes(data)
    book = openpyxl.Workbook()
    for row in mine:
        # Excel holds a number where the text was one.
        book.active.append([float(c.replace(",", ".")) if c == "0,07" else c or None for c in row])
    book.save(table.parent / "x.xlsx")
    for name in (*files, "x.xlsx"):
        result = run("--csv", table.parent / name, "--name", "mine", "--out", tmp_path / name)
        assert "columns taken as masks=Mask, label=Diagnosis" in result.stderr
        assert (tmp_path / name / "mine.csv").read_bytes() == (tmp_path / "plain" / "mine.csv").read_bytes()


def test_a_table_keeps_its_own_words_where_it_is_said_what_they_mean(own, tmp_path):
    table, rows = own
    mine = [
        ("Bild", "Maske", "Klasse"),
        *((*row[:2], "gut" if row[2] == "M" else "böse") for row in rows[1:]),
    ]
    write_table(table, mine)
    with pytest.raises(
        DataError, match="found Bild, Maske, Klasse\n.*--columns image=NAME,masks=NAME,label=NAME"
    ):
        run("--csv", table, "--out", tmp_path)
    columns = ("--columns", "image=bild,masks=Maske,label=Klasse,patient_id=")
    run("--csv", table, "--out", tmp_path, *columns, "--labels", "gut=benign", "--labels", "Böse=malignant")
    frame = read_manifest(tmp_path / "mine.csv").frame
    assert set(frame["label"]) == {"benign", "malignant"} and not frame["patient_known"].any()
    for wrong in (("--columns", "maske=Maske"), ("--labels", "gut")):
        run("--csv", table, *wrong, code=2)


def test_what_a_faulty_table_may_mean_is_said(own):
    table, rows = own
    body = [(Path(row[0]).stem.upper(), *row[1:]) for row in rows[1:]]
    write_table(table, [rows[0], *body])
    with pytest.raises(DataError, match=rf"no file(?s:.*)there is {rows[1][0]}"):
        read_own_table(table)
    body = [(row[0], "n/a", "normal", "" if k % 2 else row[3]) for k, row in enumerate(rows[1:])]
    write_table(table, [rows[0], *body])
    said = []
    [records] = read_own_table(table, announce=said.append).values()
    assert not any(record.masks for record in records)
    assert "patient_id is empty for 3 images of 7, first row 3" in said[0] and "merged" in said[0]


def test_a_split_without_val_takes_it_from_train_by_patients(own, tmp_path):
    table, rows = own
    body = [(*row, "test" if row[3] == "000" else "train") for row in rows[1:]]
    write_table(table, [(*rows[0], "split"), *body])
    result = run("--csv", table, "--out", tmp_path)
    used = read_manifest(tmp_path / "mine.csv").used()
    assert set(used.loc[used["split"] == "test", "patient_id"]) == {"000"}
    assert used.groupby("patient_id")["split"].nunique().max() == 1 and "val" in set(used["split"])
    assert "no val is given: 18 % of train is taken for it, whole patients" in result.stdout
    write_table(table, [(*rows[0], "split"), *((*row, "train") for row in rows[1:])])
    assert "no test is given" in run("--csv", table, "--out", tmp_path).stdout


def test_a_set_may_be_for_testing_only(own, tmp_path):
    table, rows = own
    # one patient: too few for any split
    write_table(table, [rows[0], *((*row[:3], "P1") for row in rows[1:])])
    with pytest.raises(ManifestError, match="1 patient .*\n.*--split test"):
        run("--csv", table, "--out", tmp_path)
    result = run("--csv", table, "--out", tmp_path, "--split", "test")
    assert len(read_manifest(tmp_path / "mine.csv").used("test")) == len(rows) - 1
    assert "warning" not in result.stdout
    assert result.stdout.splitlines()[-1] == f"Next: bus-smp crosseval --target mine --manifests {tmp_path}"
    with pytest.raises(TrainingError, match="train split of mine is empty\n.*crosseval --target"):
        check_trainable(read_manifest(tmp_path / "mine.csv"))


def test_one_row_per_lesion_is_one_image_with_several_masks(own, tmp_path):
    table, rows = own
    lesion = (rows[1][0], rows[2][1], *rows[1][2:])
    write_table(table, [*rows, lesion])
    result = run("--csv", table, "--out", tmp_path)
    frame = read_manifest(tmp_path / "mine.csv").frame
    assert len(frame) == len(rows) - 1
    assert frame.set_index("image_id").loc["bus_0001-l", "masks"] == f"{rows[1][1]}|{rows[2][1]}"
    assert "1 image with one row per lesion" in result.stderr
    write_table(table, [*rows, (*lesion[:2], "malignant", lesion[3])])
    with pytest.raises(ManifestError, match="label 'benign' in row 2 and 'malignant' here; .* colour mask"):
        run("--csv", table, "--out", tmp_path)


def test_a_table_in_the_output_folder_is_not_overwritten(own):
    table, rows = own
    write_table(table, rows)
    with pytest.raises(ManifestError, match="your own table"):
        run("--csv", table, "--out", table.parent)


SPELLED = [["P01", "p01", "P 01", "p-1", "P_001"], ["007", "7", "7.0", "07"], ["1200", "1.200", "1,200"]]


def write_patients(folder, patients):
    """A table of one image each; no two images are alike."""
    rows = [("image", "masks", "label", "patient_id")]
    folder.mkdir()
    for k, patient in enumerate(patients):
        grey, masks = draw(np.random.default_rng(k), "benign", (96, 72))
        Image.fromarray(grey).save(folder / f"{k}.png")
        Image.fromarray(masks[0]).save(folder / f"{k}_mask.png")
        rows.append((f"{k}.png", f"{k}_mask.png", "benign", patient))
    write_table(folder / "mine.csv", rows)
    return folder / "mine.csv"


def test_a_patient_of_several_spellings_is_one_group_and_the_spellings_are_told(tmp_path):
    others = ["1-12", "11-2", "112", "A", "B", "P011", "70", "1.5", "15"]
    table = write_patients(tmp_path / "own", [*sum(SPELLED, []), *others])
    result = run("--csv", table, "--out", tmp_path / "out")
    frame = read_manifest(tmp_path / "out" / "mine.csv").frame
    group = dict(zip(frame["patient_id"], frame["group_id"], strict=True))
    assert {group[name] for name in SPELLED[0]} == {"mine:P01"}
    assert {group[name] for name in SPELLED[1]} == {"mine:007"}
    assert {group[name] for name in SPELLED[2]} == {"mine:1,200"}
    assert all(group[name] == f"mine:{name}" for name in others)
    assert frame["group_id"].nunique() == len(others) + 3
    note = next(line for line in result.stdout.splitlines() if "spelling" in line)
    assert all(name in note for names in SPELLED for name in names) and "11-2" not in note
    assert f"21 images of {len(others) + 3} patients," in result.stdout
    audit = json.loads((tmp_path / "out" / "mine.json").read_text(encoding="utf-8"))["audit"]
    assert sorted(map(sorted, audit["spellings"])) == sorted(map(sorted, SPELLED))
    assert audit["merged_groups"] == {}, "those share pictures"
    # any of the spellings names the patient
    run("--csv", table, "--out", tmp_path / "test", "--test-patients", "p01,07")
    test = read_manifest(tmp_path / "test" / "mine.csv").used("test")
    assert set(test["patient_id"]) == {*SPELLED[0], *SPELLED[1]}


def test_a_given_split_that_tears_a_patient_of_two_spellings_is_refused(own, tmp_path):
    table, rows = own
    patients = ["P01", "p01", "B", "B", "C", "C", "D"]
    splits = ["train", "test", "val", "val", "test", "test", "train"]
    body = [(*row[:3], p, s) for row, p, s in zip(rows[1:], patients, splits, strict=True)]
    write_table(table, [(*rows[0], "split"), *body])
    with pytest.raises(ManifestError, match="patients P01, p01(?s:.*)only the spelling"):
        run("--csv", table, "--out", tmp_path / "out")


# Bad input.


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="names of files are UTF-8 there")
def test_a_folder_whose_name_is_not_utf_8_is_one_clear_error_before_any_image_is_looked_at(
    tree, own, tmp_path
):
    table, rows = own
    write_table(table, rows)
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/donn\xe9es"))
    shutil.copytree(table.parent, folder)
    (folder / "BUSBRA").symlink_to(tree / "BUSBRA")
    out = tmp_path / "out"
    for source in (("--csv", folder / table.name), ("--root", folder)):
        with pytest.raises(
            ManifestError, match=r"donn\\udce9es.*not UTF-8 and cannot be recorded.*\n.*LC_ALL"
        ):
            run(*source, "--out", out)
    with pytest.raises(ManifestError, match="not UTF-8.*\n.*--out"):
        run("--csv", table, "--out", folder / "out")
    assert not out.exists()


def test_a_data_set_that_is_not_unpacked_yet_is_seen(tmp_path):
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "BUSI.zip").write_bytes(b"PK")
    for options in ((), ("--dataset", "busi")):
        with pytest.raises(DataError, match=r"\n.*BUSI\.zip.*run the same command again"):
            run("--root", tmp_path, *options, "--out", tmp_path / "out")


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="(?s)no known data set.*https://.*--root.*--folder"):
        run("--root", tmp_path, "--out", tmp_path / "out")
    with pytest.raises(DataError, match="looks like BUSI"):
        run("--root", tmp_path, "--dataset", "busi", "--out", tmp_path / "out")


def test_a_data_set_that_is_there_twice_is_an_error(tree, tmp_path):
    for name in "ab":
        shutil.copytree(tree / "BUSBRA", tmp_path / "data" / name / "BUSBRA")
    with pytest.raises(DataError, match="2 times"):
        run("--root", tmp_path / "data", "--out", tmp_path / "out")


def test_all_images_excluded_is_an_error_and_no_manifest(tree, tmp_path):
    folder = tmp_path / "BUSBRA"
    shutil.copytree(tree / "BUSBRA", folder)
    for mask in (folder / "Masks").iterdir():
        mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(DataError, match="all 7 images are excluded .7 unreadable"):
        run("--dataset", "bus-bra", "--root", folder, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unknown_flag_is_refused(tree, tmp_path):
    with pytest.raises(ConfigError, match="doppel"):
        run("--root", tree, "--out", tmp_path, "--exclude", "doppel")


@pytest.mark.parametrize(
    "options",
    [
        *(("--split", split) for split in ("70/30", "70/20/20", "a/b/c", "100/0/0")),
        ("--csv", "x.csv", "--dataset", "busi"),
        ("--name", "x"),
        ("--folder", "x", "--csv", "x.csv"),
        ("--split", "official", "--test-patients", "A"),
    ],
)
def test_a_wrong_split_and_options_that_contradict_each_other_are_usage_errors(options):
    run(*options, code=2)


def test_make_manifest_imports_no_torch(tree, tmp_path):
    program = (
        "import sys; from bus_smp.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    words = ("make-manifest", "--dataset", "bus-bra", "--root", tree, "--out", tmp_path)
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bus-bra.csv").is_file()


def test_pixel_sizes_of_a_table_go_into_the_manifest_and_impossible_ones_are_refused(own, tmp_path):
    table, rows = own
    sizes = ["0.07", "", *["0.1"] * (len(rows) - 3)]
    body = [(*row, size) for row, size in zip(rows[1:], sizes, strict=True)]
    write_table(table, [(*rows[0], "pixel_mm"), *body])
    run("--csv", table, "--out", tmp_path / "out")
    frame = read_manifest(tmp_path / "out" / "mine.csv").frame
    assert list(frame["pixel_mm"].head(3)) == ["0.07", "", "0.1"]

    for wrong in ("7", "0.007", "wide", "-1", "nan"):
        write_table(table, [(*rows[0], "pixel_mm"), (*rows[1], wrong), *body[1:]])
        with pytest.raises(ManifestError, match="row 2: pixel_mm"):
            run("--csv", table, "--out", tmp_path / "out2")
    path = tmp_path / "out" / "mine.csv"
    path.write_text(path.read_text().replace(",0.07\n", ",0.007\n"))
    with pytest.raises(ManifestError, match="pixel_mm: '0.007' is not the side of a pixel in mm"):
        read_manifest(path)
