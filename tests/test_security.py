"""A hostile file cannot run code, fill the memory, read outside its folder, write outside the output or act in a spreadsheet."""

import ast
import configparser
import csv
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path

import corpus
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ended, invoke, settings_options
from headers import change_about, header_only, rewrite_header
from hypothesis import given
from hypothesis import strategies as st
from manifest_rows import frame, row

from bus_smp.data.manifest import Manifest, read_manifest, write_manifest
from bus_smp.errors import BusSmpError, CheckpointError, ImageError, ManifestError
from bus_smp.model.encoders import load_encoder
from bus_smp.model.tensor_files import load_tensors
from bus_smp.runs.evaluations import mask_path
from bus_smp.text import harmless, harmless_table, printable, restored, restored_table

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "bus_smp"


# The code


@pytest.fixture(scope="module")
def nodes():
    """(file, node) of all nodes of the package's syntax trees."""
    return [
        (path.relative_to(PACKAGE).as_posix(), node)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    ]


@pytest.fixture(scope="module")
def calls(nodes):
    """(file, name of the function as written, its keyword arguments, node) of every call in the package."""
    return [
        (path, ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}, node)
        for path, node in nodes
        if isinstance(node, ast.Call)
    ]


def test_nothing_in_the_package_unpickles_evaluates_or_starts_a_shell(nodes, calls):
    forbidden = {
        "eval", "exec", "compile", "os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load", "__import__",
    }  # fmt: skip
    for path, name, keywords, node in calls:
        assert name not in forbidden, (path, name)
        assert "shell" not in keywords, (path, name)
        if name in ("np.load", "numpy.load"):
            assert keywords.get("allow_pickle") == "False", path
        if name == "torch.load":
            # There the sizes are checked.
            assert path == "model/tensor_files.py" and keywords["weights_only"] == "True", path
        if name == "yaml.load":
            assert path == "config.py" and ast.unparse(node.args[1]) == "_Loader", path
        if name == "Image.open":
            assert keywords["formats"] in ("FORMATS", "['PNG']"), path
    imported = {
        alias.name.split(".")[0]
        for _, node in nodes
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([node] if isinstance(node, ast.ImportFrom) and node.module else node.names)
        if isinstance(alias, ast.alias)
    }
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib", "cloudpickle"}


def test_every_table_is_written_harmless(calls):
    """A table of numbers only (metrics.csv, in runs/run.py) does not need it."""
    for path, name, _, node in calls:
        if name.endswith(".to_csv"):
            assert "harmless_table(" in name or path == "runs/run.py", (path, ast.unparse(node))


def test_the_oldest_torch_allowed_reads_weights_without_running_them():
    settings = configparser.ConfigParser()
    settings.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    (bound,) = [
        line for line in settings["options"]["install_requires"].split("\n") if line.startswith("torch>=")
    ]
    assert tuple(map(int, bound.removeprefix("torch>=").split("."))) >= (2, 10)  # CVE-2026-24747


# Spreadsheets and terminals

ODD = st.text(st.sampled_from("=+-@'\t\r\n;,\"a1 \uff1d\x1b\u202e"), max_size=8) | st.text(max_size=12)


@given(ODD)
def test_a_harmless_cell_is_no_formula_and_gives_its_text_back(text):
    cell = harmless(text)
    assert restored(cell) == text
    for part in cell.split(";"):
        assert part[:1] not in tuple("=@\t\r") and (part[:1] not in tuple("+-") or cell == text)
    if not any(sign in text for sign in "=+-@\t\r\uff1d\uff0b\uff0d\uff20"):
        assert cell == text


def test_a_formula_is_made_text_and_a_number_is_unchanged():
    for text in ("-1", "+2.5", "-.5e-3", "3", "-1,5"):
        assert harmless(text) == text
    for text in ("=1+1", "+49 30", "-rf", "@SUM(A1)", "\t=1", "\r=1", "a;=1", "\uff1d1", "'=1", "-1+1"):
        assert harmless(text) != text and restored(harmless(text)) == text


@given(st.lists(st.tuples(ODD, st.floats(allow_nan=False)), min_size=1, max_size=5), ODD)
def test_a_table_gives_its_texts_and_names_of_columns_back(rows, name):
    table = pd.DataFrame(rows, columns=["text" + name, name])
    again = restored_table(harmless_table(table))
    assert list(again.columns) == list(table.columns) and again.values.tolist() == table.values.tolist()


def test_a_manifest_with_formulas_is_text_in_the_file_and_itself_when_read(tmp_path):
    hostile = {"patient_id": "=cmd|' /C calc'!A0", "group_id": "+demo", "image": "-rf/@x.png", "flags": "'=1"}
    table = frame(0, **hostile).assign(**{"=note": "a;=1"})
    path = write_manifest(Manifest(table, {"demo": tmp_path}), tmp_path / "demo.csv")
    cells = [cell for row in csv.reader(path.open(encoding="utf-8", newline="")) for cell in row]
    assert not [cell for cell in cells for part in cell.split(";") if part[:1] in ("=", "+", "-", "@")]
    read = read_manifest(path)
    assert {column: read.frame.iloc[0][column] for column in hostile} == hostile
    assert set(read.frame["=note"]) == {"a;=1"}
    assert write_manifest(read, tmp_path / "again.csv").read_bytes() == path.read_bytes()


@given(st.text(max_size=20))
def test_what_is_printed_moves_no_cursor_and_can_be_encoded(text):
    shown = str(BusSmpError(text, hint=text))
    shown.encode("utf-8")
    assert not {c for c in shown if ord(c) < 32 and c != "\n"} and "\x9b" not in shown
    assert printable(printable(text)) == printable(text)


def test_an_evaluation_of_hostile_names_stays_in_its_folder_and_its_tables_hold_no_formula(trained, tmp_path):
    names = ["../../../x", "=1+1", "<script>alert(1)</script>", "/etc/passwd", "CON", "a\\b", "x" * 400, ".."]
    rows = [[*corpus.HEADER, "image_id"]]
    for number, name in enumerate(names):
        label = ("benign", "malignant")[number % 2]
        for file, image in (
            (f"{number}.png", corpus.picture(name)),
            (f"{number}_m.png", corpus.lesion(name) * np.uint8(255)),
        ):
            (tmp_path / file).write_bytes(corpus.saved(image, "PNG"))
        rows.append([f"{number}.png", f"{number}_m.png", label, f"@patient{number}", name])
    (tmp_path / "own.csv").write_text(corpus.lines(rows))
    ended(invoke("make-manifest", "--csv", tmp_path / "own.csv", "--out", tmp_path / "m"), 0)
    run = shutil.copytree(trained, tmp_path / "deep" / "outputs" / "first")
    before = {path for path in tmp_path.rglob("*") if "eval-own-all" not in path.parts}
    ended(
        invoke("crosseval", "--run", "first", "--target", tmp_path / "m" / "own.csv", "--out", run.parent), 0
    )
    assert {path for path in tmp_path.rglob("*") if "eval-own-all" not in path.parts} == before
    folder = run / "eval-own-all"
    assert len(list((folder / "masks").rglob("*.png"))) == len(names)
    for table in folder.glob("*.csv"):
        for cells in csv.reader(table.open(encoding="utf-8", newline="")):
            assert not [cell for cell in cells if cell[:1] in ("=", "@")], table
    from bus_smp.statistics.summary import read_per_image

    assert sorted(read_per_image(folder / "per_image.csv")["image_id"]) == sorted(names)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=300))
def test_the_mask_of_any_image_is_in_its_data_sets_folder(name):
    folder = Path("run/eval")
    path = mask_path(folder, {"dataset": "demo", "image_id": name})
    assert path.parent == folder / "masks" / "demo"
    assert path.name not in (".", "..") and len(path.name.encode()) < 256


# Checkpoints

HOSTILE_HEADERS = {
    "a thousand million classes": {"model": {"num_classes": 10**9, "encoder_name": "resnet18"}},
    "10^30 classes": {"model": {"num_classes": 10**30, "encoder_name": "resnet18"}},
    "-1 classes": {"model": {"num_classes": -1, "encoder_name": "resnet18"}},
    "classes in a text": {"model": {"num_classes": "3", "encoder_name": "resnet18"}},
    "an encoder of another kind": {"model": {"encoder_name": ["resnet18"]}},
    "an encoder elsewhere": {"model": {"encoder_name": "../../x"}},
    "another argument": {"model": {"encoder_name": "resnet18", "__class__": "os.system"}},
    "no model": {"model": None},
    "a model that is a list": {"model": [1]},
    "images of 10^9 px": {"size": 10**9},
    "images of no size": {"size": 0},
    "a size in a text": {"size": "64"},
    "a true size": {"size": True},
    "two means": {"mean": [0.4, 0.4]},
    "a mean that is no number": {"mean": ["a", 0, 0]},
    "a deviation of 0": {"std": [0, 0, 0]},
    "an epoch that is a text": {"epoch": "\x1b[2J"},
    "no epoch": {"epoch": None},
    "a precision that does not exist": {"precision": "fp999"},
    "a data set that is no text": {"datasets": [{"a": 1}]},
    "a temperature of 0": {"calibration": {"temperature": 0, "threshold": 0.5}},
    "a temperature that is no number": {"calibration": {"temperature": "1", "threshold": 0.5}},
    "a threshold that is a list": {"calibration": {"temperature": 1.0, "threshold": [1]}},
    "a score that is a text": {"score": {"val_dice_lesion": "\x1b[2J"}},
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "scan.png"
    path.write_bytes(corpus.saved(corpus.picture("scan"), "PNG"))
    return path


@pytest.mark.parametrize("name", HOSTILE_HEADERS)
def test_a_hostile_header_is_refused_in_one_line(name, trained, image, tmp_path):
    best = tmp_path / "outputs" / "r" / "best.safetensors"
    best.parent.mkdir(parents=True)
    rewrite_header(trained / "best.safetensors", best, change_about(**HOSTILE_HEADERS[name]))
    told = ended(invoke("predict", image, "--out", best.parents[1], "--to", tmp_path / "p"), 1)
    assert "best.safetensors" in told and len(told) < 1500 and "\x1b" not in told
    assert not (tmp_path / "p").exists()
    assert "\x1b" not in invoke("info", best).output


HOSTILE_FILES = {
    "offsets that are infinite": header_only(b'{"__metadata__":{"bus_smp":"{}"},"t":{"dtype":"F32","shape":[1],"data_offsets":[0,1e999]}}'),
    "offsets of 10^30": header_only(b'{"__metadata__":{"bus_smp":"{}"},"t":{"dtype":"F32","shape":[1],"data_offsets":[0,1' + b"0" * 30 + b"]}}"),
    "a number of 5000 digits": header_only(b'{"__metadata__":{"bus_smp":"{}"},"t":' + b"9" * 5000 + b"}"),
    "brackets inside brackets": header_only(b'{"__metadata__":' + b"[" * 100_000),
    "a header of 11 MB": header_only(b"{" + b" " * 11_000_000 + b"}"),
    "a pickle": pickle.dumps({"a": 1}),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_a_hostile_file_is_no_checkpoint(name, image, tmp_path):
    best = tmp_path / "outputs" / "r" / "best.safetensors"
    best.parent.mkdir(parents=True)
    best.write_bytes(HOSTILE_FILES[name])
    for arguments in (("predict", image, "--out", best.parents[1], "--to", tmp_path / "p"), ("info", best)):
        assert "best.safetensors" in ended(invoke(*arguments), 1)


def test_a_pipe_is_no_checkpoint_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "best.safetensors")
    assert "pipe" in ended(invoke("info", tmp_path / "best.safetensors"), 1)


# Files of tensors: last.ckpt and encoder weights


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def _repacked(path, compression=zipfile.ZIP_STORED, **replaced):
    """The zip that torch wrote, with other compression, or with entries replaced by name."""
    data = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(data, "w", compression) as new:
        for entry in old.infolist():
            content = replaced.get(entry.filename.rsplit("/", 1)[-1].replace(".", "_"), old.read(entry))
            new.writestr(entry.filename, content)
    path.write_bytes(data.getvalue())


def _flipped(path):
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<4f", 1, 1, 1, 1)) + 5] ^= 1
    path.write_bytes(data)


def _cyclic():
    content = {"conv1.weight": torch.zeros(1)}
    content["self"] = content
    return content


HOSTILE_TENSORS = {
    "a bomb: zeros that unpack to 40 MB": (
        lambda path: (torch.save({"a": torch.zeros(1)}, path), _repacked(path, zipfile.ZIP_DEFLATED, **{"0": bytes(40_000_000)})),
        "unpack",
    ),
    "a packed file": (lambda path: (torch.save({"a": torch.zeros(1000)}, path), _repacked(path, zipfile.ZIP_DEFLATED)), "unpack"),
    "a pickle of 9 MB": (lambda path: torch.save({"a": [0] * 5_000_000}, path), "more names and numbers"),
    "a flipped bit": (lambda path: (torch.save({"a": torch.ones(100)}, path), _flipped(path)), "checksum"),
    "less data than declared": (
        lambda path: (torch.save({"a": torch.ones(1000)}, path), _repacked(path, **{"0": bytes(8)})), "cannot be read",
    ),
    "a sparse tensor": (lambda path: torch.save({"a": torch.ones(3, 3).to_sparse()}, path), "something else"),
    "a tensor without values": (lambda path: torch.save({"a": torch.ones(3, device="meta")}, path), "something else"),
    "complex numbers": (lambda path: torch.save({"a": torch.ones(3, dtype=torch.complex64)}, path), "something else"),
    "random bytes": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), "cannot be read"),
    "the start of a zip": (lambda path: (torch.save({"a": torch.ones(9)}, path), path.write_bytes(path.read_bytes()[:300])), "cannot be read"),
    "no byte": (lambda path: path.write_bytes(b""), "cannot be read"),
    "a folder": (lambda path: path.mkdir(), "cannot be read"),
    "a pipe": (lambda path: os.mkfifo(path), "pipe"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_TENSORS)
def test_a_hostile_file_of_tensors_is_refused(name, tmp_path):
    make, reason = HOSTILE_TENSORS[name]
    path = tmp_path / "weights.pth"
    make(path)
    for read in (load_tensors, lambda path: load_encoder("resnet18", path)):
        with pytest.raises(CheckpointError, match="weights.pth") as caught:
            read(path)
        assert len(str(caught.value)) < 1000
        assert "weights_only" not in str(caught.value)  # PyTorch's own advice: let it run
    with pytest.raises(CheckpointError, match=reason):
        load_tensors(path)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "before PyTorch 1.6"])
def test_a_pickled_object_in_a_file_of_tensors_is_never_made(legacy, tmp_path):
    path, marker = tmp_path / "weights.pth", tmp_path / "ran"
    torch.save({"conv1.weight": Hostile(marker)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as caught:
        load_encoder("resnet18", path)
    assert "weights_only" not in str(caught.value)
    path.write_bytes(pickle.dumps(Hostile(marker)))
    with pytest.raises(CheckpointError) as caught:
        load_tensors(path)
    assert "weights_only" not in str(caught.value)
    assert not marker.exists()


def test_containers_that_hold_themselves_are_looked_at_once(tmp_path):
    torch.save(_cyclic(), tmp_path / "weights.pth")
    assert set(load_tensors(tmp_path / "weights.pth")) == {"conv1.weight", "self"}


# Exports, whose record may be forged too


def _exported(weights=None):
    """An ONNX file that returns its input as numbers; ``weights``: where it says that its weights are."""
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    tensor = make.make_tensor("w", onnx.TensorProto.FLOAT, [1], struct.pack("<f", 1), raw=True)
    if weights is not None:
        onnx.external_data_helper.set_external_data(tensor, weights, length=4)
        tensor.ClearField("raw_data")
    graph = make.make_graph(
        [
            make.make_node("Cast", ["images"], ["numbers"], to=onnx.TensorProto.FLOAT),
            make.make_node("Mul", ["numbers", "w"], ["logits"]),
        ],
        "g",
        [make.make_tensor_value_info("images", onnx.TensorProto.UINT8, ["n", "h", "w", 3])],
        [make.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", "h", "w", 3])],
        [tensor],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("place", ["../secret", "absolute", "link"])
def test_an_export_reads_no_file_outside_its_folder(place, suffix, tmp_path):
    """OpenVINO goes by content, so ONNX may stand in an .xml. The libraries of today refuse too; ONNX Runtime 1.19 does not."""
    from bus_smp.inference.formats.onnx import load_onnx
    from bus_smp.inference.formats.openvino import load_openvino

    (tmp_path / "secret").write_bytes(bytes(4))
    path = tmp_path / "export" / f"model{suffix}"
    path.parent.mkdir()
    (path.parent / "link").symlink_to(tmp_path / "secret")
    path.write_bytes(_exported(str(tmp_path / "secret") if place == "absolute" else place))
    told = "reads its weights from another file" if suffix == ".onnx" else "is no OpenVINO file"
    for load in (load_onnx, load_openvino) if suffix == ".onnx" else (load_openvino,):
        with pytest.raises(CheckpointError, match=told):
            load(path)


def test_an_export_that_returns_no_logits_is_refused_when_it_is_run(tmp_path):
    from bus_smp.inference.formats.onnx import load_onnx
    from bus_smp.inference.formats.openvino import load_openvino

    path = tmp_path / "model.onnx"
    path.write_bytes(_exported())
    for load in (load_onnx, load_openvino):
        with pytest.raises(CheckpointError, match=r"model\.onnx: returns float32 \(2, 8, 9, 3\)"):
            load(path)(np.zeros((2, 8, 9, 3), np.uint8))
    with pytest.raises(CheckpointError, match=r"model\.onnx: cannot be run"):
        load_onnx(path)(np.zeros((2, 8, 9, 4), np.uint8))


# Settings

LAUGHS = "a: &a [lol, lol]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(20)
)
HOSTILE_SETTINGS = {
    "an object": "train: !!python/object/apply:os.mkdir [{marker}]",
    "a module": "train: !!python/module:os",
    "a name": "train: {{lr: !!python/name:os.system}}",
    "a billion laughs": LAUGHS,
    "an alias": "train: {{epochs: &n 3, patience: *n}}",
    "brackets inside brackets": "train: " + "[" * 90_000,
    "too much": "# " + "x" * 200_000,
    "a key twice": "train: {{lr: 0.1, lr: 0.2}}",
    "a month 13": "train: {{lr: 2020-13-45}}",
    "a number of 5000 digits": "train: {{epochs: " + "9" * 5000 + "}}",
    "a tag without a value": "train: {{lr: !!float _}}",
    "not UTF-8": b"train: {lr: \xff}",
    "NUL": "train: \0",
    "infinity": "train: {{lr: .inf}}",
    "NaN": "loss: {{dice: .nan}}",
    "a list": "[1, 2]",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_SETTINGS)
def test_hostile_settings_are_refused_in_a_few_words(name, tmp_path):
    text = HOSTILE_SETTINGS[name]
    path = tmp_path / "own.yaml"
    path.write_bytes(
        text
        if isinstance(text, bytes)
        else text.replace("{{", "{").replace("}}", "}").replace("{marker}", str(tmp_path / "ran")).encode()
    )
    told = ended(invoke("train", "--config", path, "--out", tmp_path / "outputs"), 1)
    assert "own.yaml" in told and len(told) < 1200
    assert not (tmp_path / "ran").exists() and not (tmp_path / "outputs").exists()


def test_half_a_character_in_a_sidecar_is_named(manifests, tmp_path):
    """JSON can spell it, and no file or terminal can write it."""
    for source in (manifests / "data_manifests").glob("bus-uclm.*"):
        shutil.copyfile(source, tmp_path / source.name)
    about = json.loads((tmp_path / "bus-uclm.json").read_text())
    (tmp_path / "bus-uclm.json").write_text(json.dumps(about | {"note": "\ud800"}))
    with pytest.raises(ManifestError, match=r"bus-uclm\.json: cannot be read as the manifest's sidecar"):
        read_manifest(tmp_path / "bus-uclm.csv", images=False)


def test_settings_that_are_no_file_do_not_block(tmp_path):
    os.mkfifo(tmp_path / "own.yaml")
    assert "pipe" in ended(invoke("train", "--config", tmp_path / "own.yaml"), 1)


# Places


@pytest.mark.parametrize("name", ["../x", "a/b", "..", ".", "a\\b", "x" * 300])
def test_a_run_is_a_name_and_not_a_place(name, manifests, tmp_path):
    told = ended(
        invoke("train", "--out", tmp_path / "deep" / "outputs", "--run", name, *settings_options(manifests)),
        1,
    )
    assert "a name, not a path" in told or len(name) == 300
    assert [path.name for path in tmp_path.iterdir()] in ([], ["deep"])


@pytest.mark.parametrize("run", ["../elsewhere", "/etc", 3])
def test_an_experiment_may_name_only_runs_next_to_it(run, trained, tmp_path):
    folder = tmp_path / "outputs" / "exp"
    folder.mkdir(parents=True)
    (folder / "experiment.json").write_text(json.dumps({"members": [{"run": run, "seed": 1, "fold": None}]}))
    shutil.copytree(trained, tmp_path / "elsewhere")
    for arguments in (("info", folder), ("evaluate", "--run", "exp", "--out", folder.parent)):
        told = ended(invoke(*arguments), 1)
        assert "experiment" in told


def test_a_manifest_shows_nothing_of_a_file_that_is_no_image(tmp_path):
    """Its sidecar may name any folder; what lies there is an image or an error without a word of it."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "notes.png").write_text("TOP SECRET\n" * 50)
    table = pd.DataFrame(
        [
            row(f"i{n}", f"p{n}", split, image="notes.png", masks="notes.png")
            for n, split in enumerate(("train", "val"))
        ][:1]
    )
    table = pd.concat(
        [table, table.assign(image_id="j", patient_id="q", group_id="demo:q", image="other.png", split="val")]
    )
    write_manifest(Manifest(table, {"demo": tmp_path / "private"}), tmp_path / "data_manifests" / "demo.csv")
    told = ended(
        invoke("train", "--out", tmp_path / "outputs", *settings_options(tmp_path, "data.train=[demo]")), 1
    )
    assert "SECRET" not in told


def test_a_link_that_the_user_set_is_followed_and_a_manifest_cannot_set_one(tmp_path):
    """Large data lie elsewhere, behind links; a path in a manifest cannot climb to where no link leads."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.png").write_bytes(corpus.saved(corpus.picture("a"), "PNG"))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "disk")
    manifest = Manifest(frame(0, image="linked/a.png"), {"demo": tmp_path / "root"})
    assert manifest.image_path(manifest.frame.iloc[0]).is_file()
    for climbing in ("../disk/a.png", "linked/../../disk/a.png", str(tmp_path / "disk" / "a.png")):
        with pytest.raises(BusSmpError, match="does not stay inside"):
            Manifest(frame(0, image=climbing), manifest.roots).image_path(frame(0, image=climbing).iloc[0])


# Patients' data


def test_nothing_of_a_files_metadata_is_in_what_is_predicted(trained, tmp_path):
    picture = corpus.picture("meta")
    exif = corpus._exif(1)
    (tmp_path / "a.jpg").write_bytes(corpus.saved(picture, "JPEG", exif=exif, comment=b"PATIENT^NAME"))
    (tmp_path / "b.png").write_bytes(corpus.png(picture, corpus.chunk(b"tEXt", b"Patient\0PATIENT^NAME")))
    (tmp_path / "c.tif").write_bytes(corpus.saved(picture, "TIFF", description="PATIENT^NAME"))
    assert all(b"PATIENT^NAME" in path.read_bytes() for path in tmp_path.glob("?.*"))
    files = sorted(tmp_path.glob("?.*"))
    ended(invoke("predict", *files, "--out", trained.parent, "--to", tmp_path / "p"), 0)
    written = [path for path in (tmp_path / "p").rglob("*") if path.is_file()]
    assert len(written) == 7
    for path in written:
        assert b"PATIENT" not in path.read_bytes()
        if path.suffix == ".png":
            data = path.read_bytes()
            chunks, place = set(), 8
            while place < len(data):
                length, name = struct.unpack(">I4s", data[place : place + 8])
                chunks.add(name)
                place += length + 12
            assert chunks <= {b"IHDR", b"PLTE", b"IDAT", b"IEND"}


def test_an_error_names_the_file_and_shows_none_of_its_bytes(tmp_path):
    from bus_smp.data.images import read_image

    path = tmp_path / "scan.png"
    path.write_bytes(b"PATIENT^NAME 1970-01-01 " * 100)
    with pytest.raises(ImageError) as caught:
        read_image(path)
    assert "PATIENT" not in str(caught.value) and "scan.png" in str(caught.value)
