"""The door: quick, documented, and clear about what went wrong."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from conftest import ended, invoke
from PIL import Image

from bus_smp.cli import COMMANDS, door

REPOSITORY = Path(__file__).resolve().parents[1]


def _loaded_by(*arguments: str) -> set[str]:
    """Top-level packages that a ``bus-smp`` command imports, in a new process."""
    code = (
        "import sys\nfrom bus_smp.cli import main\n"
        "try:\n    main(sys.argv[1:])\nfinally:\n    print('LOADED', *sorted({m.split('.')[0] for m in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.rsplit("LOADED", 1)[1].split())


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_imports_nothing_heavy(command):
    loaded = _loaded_by(*command.split(), "--help")
    assert not loaded & {
        "torch",
        "numpy",
        "pandas",
        "cv2",
        "matplotlib",
        "sklearn",
        "PIL",
        "pydantic",
        "yaml",
    }


def test_info_on_a_checkpoint_imports_nothing_heavy(trained):
    assert not _loaded_by("info", str(trained / "best.safetensors")) & {
        "torch",
        "numpy",
        "pandas",
        "safetensors",
    }


def test_the_list_of_commands_holds_the_first_line_of_each_command():
    context = click.Context(door)
    for name, line in COMMANDS.items():
        command = door.get_command(context, name)
        assert command.name == name
        assert command.help.split("\n\n")[0].replace("\n", " ").strip() == line


def test_every_command_and_every_option_is_in_the_readme_or_docs():
    text = "".join(
        path.read_text(encoding="utf-8") for path in (REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md"))
    )
    context = click.Context(door)
    missing = [f"bus-smp {name}" for name in COMMANDS if f"bus-smp {name}" not in text]
    for name in COMMANDS:
        for parameter in door.get_command(context, name).params:
            longest = max(parameter.opts, key=len)
            if isinstance(parameter, click.Option) and longest not in text:
                missing.append(f"{name} {longest}")
    assert not missing


def test_commands_in_the_readme_exist():
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"bus-smp ([a-z][a-z-]+)", text)) <= set(COMMANDS)


def test_a_mistyped_command_is_a_usage_error_with_the_right_one_named():
    assert "Did you mean 'train'?" in ended(invoke("trian"), 2)


def test_an_error_of_the_user_is_short_and_ends_with_one(tmp_path):
    shown = ended(invoke("train", "--set", "data.manifests=" + str(tmp_path / "nowhere")), 1)
    settings, what, remedy = shown.splitlines()
    assert settings.startswith("Settings: ") and what.startswith("Error: ")
    assert "bus-smp make-manifest --dataset bus-uclm" in remedy


def test_a_bug_keeps_its_traceback(monkeypatch):
    from bus_smp.runs import describe

    monkeypatch.setattr(describe, "describe", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        invoke("info", "x.csv", catch=False)


def test_info_takes_the_name_of_a_run(trained, tmp_path, monkeypatch):
    (tmp_path / "outputs").symlink_to(trained.parent)
    monkeypatch.chdir(tmp_path)
    assert f"outputs/{trained.name}: " in invoke("info", trained.name).stdout
    assert f"did you mean {trained.name}?" in invoke("info", trained.name + "s").stderr


def test_info_describes_run_checkpoint_and_manifest(trained, manifests):
    run = json.loads(invoke("info", trained, "--json").stdout)
    checkpoint = json.loads(invoke("info", trained / "best.safetensors", "--json").stdout)
    assert (run["kind"], checkpoint["kind"]) == ("run", "checkpoint")
    assert checkpoint["datasets"] == ["bus-uclm"]
    assert "not for clinical use" in invoke("info", trained).stdout
    path = manifests / "data_manifests" / "bus-uclm.csv"
    manifest = json.loads(invoke("info", path, "--json").stdout)
    assert manifest["images"] == sum(1 for _ in path.open()) - 1
    assert sum(sum(labels.values()) for labels in manifest["splits"].values()) == manifest["used"]
    shown = invoke("info", path).stdout
    assert str(manifest["used"]) in shown
    assert f"{manifest['groups']} patients" in shown


def test_info_sums_up_exclusions_by_reason_and_calls_groups_patients_only_where_they_are(manifests, tmp_path):
    from bus_smp.data.manifest import Manifest, read_manifest, write_manifest

    busi = read_manifest(manifests / "data_manifests" / "busi.csv")
    excluded = [f"near-duplicate: of image {number}" for number in range(5)] + ["blurred, says Anna"]
    frame = busi.frame.copy()
    rows = frame.index[frame["excluded"] == ""][: len(excluded)]
    frame.loc[rows, "excluded"] = excluded
    frame.loc[rows, "split"] = ""
    frame.loc[rows, "fold"] = pd.NA
    already = frame["excluded"].str.startswith("near-duplicate").sum() - 5
    write_manifest(Manifest(frame, busi.roots), tmp_path / "busi.csv")
    shown = invoke("info", tmp_path / "busi.csv").stdout
    assert "patients" not in shown
    assert f"{5 + already}  nearly the same picture as a kept image [near-duplicate]" in shown
    assert shown.count("near-duplicate]") == shown.count("[other]") == 1
    assert f" {frame['group_id'][frame['excluded'] == ''].nunique()} groups" in shown


@pytest.mark.parametrize("content", [b"", b"\x10\x00\x00\x00\x00\x00\x00\x00{}", b"not a checkpoint at all"])
def test_info_on_something_else_is_an_error(tmp_path, content):
    for name in ("x.safetensors", "x.csv"):
        (tmp_path / name).write_bytes(content)
        assert name in ended(invoke("info", tmp_path / name), 1)
    assert invoke("info", tmp_path).exit_code == 1
    assert invoke("info", tmp_path / "absent").exit_code == 1


def test_the_images_may_have_moved_since_the_manifest_was_made(manifests, trained, tmp_path):
    from bus_smp.data.manifest import read_manifest

    manifest = read_manifest(manifests / "data_manifests" / "busi.csv")
    for name in ("busi.csv", "busi.json"):
        text = (manifests / "data_manifests" / name).read_text(encoding="utf-8")
        (tmp_path / name).write_text(text, encoding="utf-8")
    target = ["crosseval", "--out", trained.parent, "--run", "first", "--target", tmp_path / "busi.csv"]
    assert "--root FOLDER" in ended(invoke(*target), 1)
    ended(invoke(*target, "--root", f"busi={manifest.roots['busi']}"), 0)


def test_one_root_for_several_data_sets_is_refused():
    from bus_smp.commands.options import check_root
    from bus_smp.errors import ConfigError

    assert check_root(Path("x"), ["busi"]) == Path("x")
    with pytest.raises(ConfigError, match="one folder for busi, udiat"):
        check_root(Path("x"), ["busi", "udiat"])
    assert invoke("evaluate", "--root", "a", "--root", "b=c").exit_code == 2


# Streams that cannot be written


def _in_a_shell(redirection: str, *arguments: object) -> subprocess.CompletedProcess:
    """``bus-smp ... <redirection>``, also as ``python -u`` where that is among the arguments' front."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {redirection}', "sh", *command], capture_output=True, text=True, timeout=120
    )


full_disk = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")


@full_disk
@pytest.mark.parametrize("python", [["-m"], ["-u", "-m"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("arguments", [["--help"], ["info"]])
def test_output_on_a_full_disk_is_one_line(trained, python, arguments):
    arguments = [*arguments, *([trained] if arguments == ["info"] else [])]
    result = _in_a_shell(">/dev/full", *python, "bus_smp", *arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.fullmatch(r"Error: the output cannot be written \(.+\)\n", result.stderr)


@pytest.mark.parametrize("python", [["-m"], ["-u", "-m"]], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("redirection", [pytest.param("2>/dev/full", marks=full_disk), "2>&-"])
def test_notes_that_cannot_be_written_stop_nothing(bus_uclm_tree, tmp_path, python, redirection):
    command = (*python, "bus_smp", "make-manifest", "--root", bus_uclm_tree, "--out", tmp_path)
    result = _in_a_shell(redirection, *command)
    assert result.returncode == 0
    assert "bus-uclm.csv (new)" in result.stdout
    assert (tmp_path / "bus-uclm.csv").is_file()
    assert _in_a_shell(redirection, *python, "bus_smp", "info", "absent").returncode == 1
    assert _in_a_shell(redirection, *python, "bus_smp", "no-command").returncode == 2


def test_a_file_never_takes_the_place_of_a_closed_stream(tmp_path):
    """What anybody prints would go into it."""
    code = (
        "import os\nfrom bus_smp.system import streams\nstreams.prepare()\n"
        f"file = open({str(tmp_path / 'data')!r}, 'w')\nassert file.fileno() > 2\nos.write(1, b'x')\nos.write(2, b'x')\n"
        "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'import os; os.write(2, b\"x\")'], check=True)\nprint('x')"
    )
    assert _in_a_shell("<&- >&- 2>&-", "-c", code).returncode == 0
    assert (tmp_path / "data").read_bytes() == b""


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_note_is_written_at_once_also_where_python_is_unbuffered(unbuffered, monkeypatch):
    """Containers set PYTHONUNBUFFERED: a training must not be silent there until it ends."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    # os._exit writes out no buffer
    code = (
        "import os, sys\nfrom bus_smp.system import streams\nstreams.prepare()\nprint('note', file=sys.stderr)\n"
        "os._exit(0)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr == "note\n"


_IN_ONE_PROCESS = """
import json, sys
from bus_smp.cli import main
from bus_smp.system import streams

streams.prepare()
for arguments in json.loads(sys.stdin.read()):
    try:
        main(arguments)
        code = 0
    except SystemExit as error:
        code = error.code
    for stream in (sys.stdout, sys.stderr):
        print(f"[end {code}]", file=stream, flush=True)
"""


def test_every_command_writes_every_name_to_a_pipe_that_is_not_unicode(trained, bus_uclm_tree, tmp_path):
    """As on Windows, where a pipe or ``> file`` takes cp1252."""
    home = tmp_path / "乳腺 é😀"
    shutil.copytree(trained, home / "first", ignore=shutil.ignore_patterns("eval-*", "export", "last.ckpt"))
    (home / "data").symlink_to(bus_uclm_tree)
    scan = home / "乳腺.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)).save(scan)
    (home / "乳腺_mask.png").write_bytes(b"")
    out = ("--run", "first", "--out", home)
    # what they print of their work is ASCII; names are in their errors
    commands = {
        "make-manifest": (0, ["--root", home / "data", "--out", home / "manifests"]),
        "train": (1, ["--run", "乳腺", "--out", home, "--config", home / "乳腺.yaml"]),
        "evaluate": (1, ["--run", "乳腺", "--out", home]),
        "crosseval": (1, [*out, "--target", home / "乳腺.csv"]),
        "compare": (1, ["first", "乳腺", "--target", "busi", "--out", home]),
        "report": (1, ["乳腺", "--out", home]),
        "predict": (1, [scan, home / "乳腺_mask.png", *out]),
        "export": (0, ["--format", "pth", *out]),
        "info": (0, [home / "first"]),
    }
    assert set(commands) <= set(COMMANDS)
    runs = []
    for name in COMMANDS:
        code, arguments = commands.get(name, (0, ["--help"]))
        takes_json = name in commands and any(
            "--json" in parameter.opts for parameter in door.get_command(click.Context(door), name).params
        )
        for json_option in ([], ["--json"])[: 1 + takes_json]:
            runs.append((code, bool(json_option), [name, *map(str, arguments), *json_option]))
    result = subprocess.run(
        [sys.executable, "-c", _IN_ONE_PROCESS],
        input=json.dumps([arguments for _, _, arguments in runs]).encode(),
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )
    outputs, notes = (
        re.split(r"\[end (\d)\]\n", stream.decode("cp1252")) for stream in (result.stdout, result.stderr)
    )
    assert len(outputs) == 2 * len(runs) + 1, result.stderr.decode("cp1252")
    for (code, is_json, arguments), text, status, said in zip(
        runs, outputs[::2], outputs[1::2], notes[::2], strict=False
    ):
        assert (int(status), "Traceback" in said) == (code, False), (arguments, said)
        if is_json and code == 0:
            json.loads(text)
    assert result.stdout.count("\\u4e73\\u817a é\\ud83d\\ude00".encode("cp1252")) >= 3
