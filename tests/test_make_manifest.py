"""bus-smp make-manifest as a user meets it: files, words, exit codes."""

import csv
import json
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from bus_smp.commands.make_manifest import command
from bus_smp.data.images import color_mask
from bus_smp.data.manifest import read_manifest
from bus_smp.errors import BusSmpError, ConfigError, DataError, ManifestError
from bus_smp.synthetic import write_bus_bra

PATIENTS = {
    "AAAA": "BNB",
    "BBBB": "MM",
    "CHVI": "NBBMNBMN",
    "CHCO": "BMBM",
    "HESN": "NB",
    "SIBA": "BBNB",
    "WAQU": "NN",
}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A data folder with a small BUS-UCLM and a BUS-BRA in it."""
    from bus_smp.synthetic import write_bus_uclm

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
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def made(tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("work") / "out"
    return run("--root", tree, "--out", out), out


def test_known_data_sets_are_found_below_the_root_and_written(made):
    result, out = made
    assert sorted(written(out)) == ["bus-bra.csv", "bus-bra.json", "bus-uclm.csv", "bus-uclm.json"]
    for name in ("bus-bra", "bus-uclm"):
        assert len(read_manifest(out / f"{name}.csv").used())


def test_the_table_tells_what_was_found_and_what_to_do_next(made):
    result, out = made
    for text in (
        "BUS-UCLM",
        "patient-level",
        "same pictures under CHCO and CHVI",
        "excluded     2  size mismatch",
        "HESN_000",
    ):
        assert text in result.stdout
    assert result.stdout.rstrip().splitlines()[-1].startswith("Next: bus-smp train")


def test_without_patient_ids_nothing_is_called_patient_level(busi_tree, tmp_path):
    result = run("--dataset", "busi", "--root", busi_tree, "--out", tmp_path)
    assert "patient-level" not in result.stdout
    assert "image groups (no patient ids published)" in result.stdout


def test_the_default_root_is_the_data_folder(tree, tmp_path, monkeypatch):
    (tmp_path / "data").symlink_to(tree)
    monkeypatch.chdir(tmp_path)
    run("--dataset", "bus-bra")
    assert (tmp_path / "data_manifests" / "bus-bra.csv").is_file()


def test_json_is_one_document_with_every_image_of_every_finding(tree, tmp_path):
    result = run("--dataset", "bus-uclm", "--root", tree, "--out", tmp_path, "--json")
    (document,) = json.loads(result.stdout)["manifests"]
    assert document["dataset"] == "bus-uclm"
    assert document["audit"]["findings"]["size_mismatch"]["images"] == ["HESN_000", "HESN_001"]
    assert document["audit"]["excluded"]["size mismatch"]["count"] == 2
    assert document["source"]["cite"]
    sidecar = json.loads((tmp_path / "bus-uclm.json").read_text(encoding="utf-8"))
    assert sidecar["audit"] == document["audit"]
    assert sidecar["options"]["duplicates"] == "group"


def test_the_bytes_do_not_depend_on_the_order_of_the_file_system(tree, made, tmp_path):
    _, out = made
    folder = tree / "download" / "zip" / "BUS-UCLM"
    other = tmp_path / "raw" / "download" / "zip" / "BUS-UCLM"
    files = [path for path in folder.rglob("*") if path.is_file()]
    random.Random(3).shuffle(files)
    for path in files:
        place = other / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    run("--root", other, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "bus-uclm.csv").read_bytes() == (out / "bus-uclm.csv").read_bytes()


def test_a_manifest_made_again_is_byte_identical_and_said_to_be_unchanged(tree, tmp_path):
    run("--dataset", "bus-bra", "--root", tree, "--out", tmp_path)
    before = written(tmp_path)
    assert "(unchanged)" in run("--dataset", "bus-bra", "--root", tree, "--out", tmp_path).stdout
    assert written(tmp_path) == before


def test_a_manifest_that_changes_says_how_many_rows_differ(tree, tmp_path):
    run("--dataset", "bus-uclm", "--root", tree, "--out", tmp_path)
    result = run(
        "--dataset", "bus-uclm", "--root", tree, "--out", tmp_path, "--on-mismatch", "resize", "--seed", 42
    )
    assert "replaced: " in result.stdout
    assert read_manifest(tmp_path / "bus-uclm.csv").used()["image_id"].str.startswith("HESN").sum() == 2


def test_a_file_that_is_no_manifest_is_not_overwritten(tree, tmp_path):
    (tmp_path / "bus-bra.csv").write_text("mine\n1\n")
    with pytest.raises(ManifestError, match="is no manifest"):
        run("--dataset", "bus-bra", "--root", tree, "--out", tmp_path)
    assert (tmp_path / "bus-bra.csv").read_text() == "mine\n1\n"


def test_official_split_puts_the_authors_patients_in_test(bus_uclm_tree, tmp_path):
    run("--root", bus_uclm_tree, "--out", tmp_path, "--split", "official")
    manifest = read_manifest(tmp_path / "bus-uclm.csv")
    assert set(manifest.used("test")["patient_id"]) == {"COPE", "ANFO", "ELCO", "CRCI", "FLKA"}


def test_test_patients_and_folds(tree, tmp_path):
    run(
        "--dataset",
        "bus-uclm",
        "--root",
        tree,
        "--out",
        tmp_path,
        "--test-patients",
        "CHCO, WAQU",
        "--folds",
        3,
    )
    manifest = read_manifest(tmp_path / "bus-uclm.csv")
    assert set(manifest.used("test")["patient_id"]) == {"CHCO", "CHVI", "WAQU"}
    assert set(manifest.used()["fold"]) == {0, 1, 2}


def test_a_manifest_made_later_joins_the_groups_of_one_that_is_there(tree, tmp_path):
    out = tmp_path / "out"
    run("--dataset", "bus-bra", "--root", tree, "--out", out)
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


def test_an_unreachable_manifest_beside_is_said_and_does_not_stop(tree, tmp_path):
    run("--dataset", "bus-bra", "--root", tree, "--out", tmp_path / "out")
    sidecar = json.loads((tmp_path / "out" / "bus-bra.json").read_text())
    sidecar["roots"]["bus-bra"] = "../gone"
    (tmp_path / "out" / "bus-bra.json").write_text(json.dumps(sidecar))
    result = run("--dataset", "bus-uclm", "--root", tree, "--out", tmp_path / "out")
    assert "note: not compared with 7 of 7 images of bus-bra.csv" in result.stdout


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


def test_a_hand_written_table_becomes_a_manifest_with_the_same_guarantees(own, tmp_path):
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


def test_shuffled_rows_give_the_same_bytes(own, tmp_path):
    table, rows = own
    write_table(table, rows)
    run("--csv", table, "--out", tmp_path / "1")
    random.Random(1).shuffle(body := rows[1:])
    write_table(table, [rows[0], *body])
    run("--csv", table, "--out", tmp_path / "2")
    assert written(tmp_path / "1") == written(tmp_path / "2")


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
    assert list(north["excluded"]) == ["--exclude marks", "", "", ""]


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
    assert f"row {first + 3}: image 'Images/bus_0001-l.png' stands in row 2 too" in text
    assert not (tmp_path / "out").exists()


def test_a_given_split_is_kept_and_one_that_tears_a_patient_is_refused(own, tmp_path):
    table, rows = own
    splits = ["train", "train", "val", "val", "test", "test", "train"]
    whole = [(*row, split) for row, split in zip(rows[1:], splits, strict=True)]
    write_table(table, [(*rows[0], "split"), *whole])
    run("--csv", table, "--out", tmp_path / "out")
    assert list(read_manifest(tmp_path / "out" / "mine.csv").frame["split"]) == splits
    run("--csv", table, "--out", tmp_path / "out", "--split", "official", code=2)
    splits[1] = "test"
    write_table(table, [(*rows[0], "split"), *((*row, s) for row, s in zip(rows[1:], splits, strict=True))])
    with pytest.raises(ManifestError, match="group mine:000 .* in train: bus_0001-l; test: bus_0001-r"):
        run("--csv", table, "--out", tmp_path / "out2")


def test_a_table_in_the_output_folder_is_not_overwritten(own):
    table, rows = own
    write_table(table, rows)
    with pytest.raises(ManifestError, match="your own table"):
        run("--csv", table, "--out", table.parent)


# Bad input.


def test_an_empty_folder_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match="no known data set.*\n.*--root.*--csv"):
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


@pytest.mark.parametrize("split", ["70/30", "70/20/20", "a/b/c", "100/0/0"])
def test_a_wrong_split_is_a_usage_error(split):
    run("--split", split, code=2)


def test_options_that_contradict_each_other_are_usage_errors(tmp_path):
    run("--csv", "x.csv", "--dataset", "busi", code=2)
    run("--name", "x", code=2)
    run("--split", "official", "--test-patients", "A", code=2)


def test_make_manifest_imports_no_torch_and_its_help_not_even_numpy(tree, tmp_path):
    program = (
        "import sys; from bus_smp.commands.make_manifest import command as c;"
        "c(sys.argv[1:], standalone_mode=False); print([m for m in ('torch', 'numpy', 'pandas') if m in sys.modules])"
    )

    def loaded(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert loaded("--help") == "[]"
    assert loaded("--dataset", "bus-bra", "--root", tree, "--out", tmp_path) == "['numpy', 'pandas']"


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
