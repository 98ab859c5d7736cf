"""What a user sees of long work: in a notebook's terminal of 0 columns, in one of 80, in a pipe, and in a real notebook."""

import contextlib
import fcntl
import os
import re
import struct
import sys
import termios
import threading
from pathlib import Path

import pytest
from conftest import settings_options

from bus_smp.cli import main
from bus_smp.system import console

# Columns of the terminal that standard error leads to; None is a pipe.
PLACES = [pytest.param(0, id="0 columns"), pytest.param(80, id="80 columns"), pytest.param(None, id="pipe")]


@contextlib.contextmanager
def stderr_of(columns):
    """Lead standard error to a terminal with so many columns, or to a pipe; yield a list that then holds its text."""
    if columns is None:
        reading, writing = os.pipe()
    else:
        reading, writing = os.openpty()
        fcntl.ioctl(writing, termios.TIOCSWINSZ, struct.pack("HHHH", 24 if columns else 0, columns, 0, 0))
    parts, shown = [], []

    def read():
        # the other end of a terminal that is closed is an error, that of a pipe an empty read
        with contextlib.suppress(OSError):
            while part := os.read(reading, 4096):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with os.fdopen(writing, "w", encoding="utf-8") as stream, contextlib.redirect_stderr(stream):
            yield shown
    finally:
        reader.join()
        os.close(reading)
        shown.append(b"".join(parts).decode())


@pytest.mark.parametrize("columns", PLACES)
def test_a_training_shows_a_row_for_each_epoch_everywhere_and_a_bar_where_there_is_room(
    manifests, tmp_path, capsys, columns
):
    with stderr_of(columns) as shown:
        main(["train", "--out", str(tmp_path), "--run", "x", *settings_options(manifests)])
    (text,) = shown
    for epoch in (1, 2):
        (row,) = re.findall(rf"^(?:.*\r)?(epoch {epoch}/2 +\d.*?)\r?$", text, re.M)
        loss, dice, misses, alarms, seconds, left, unit = row.split()[2:]
        assert 0 < float(loss) < 10 and 0 <= float(dice) <= 1 and float(seconds) > 0
        assert {float(misses), float(alarms)} <= {k / 100 for k in range(101)}
        assert left.isdigit() and unit == "s"
    assert ("%|" in text) == (columns == 80)
    lines = re.split(r"[\r\n]+", text)
    # sentences, and lines with a path or a command to type, are not broken
    wide = [line for line in lines if len(line) > 80]
    assert all(line.startswith(("Settings", "Data", "Training", "Warning", "Next")) for line in wide), wide


@pytest.mark.parametrize("columns", PLACES)
def test_the_count_is_a_bar_or_a_line_now_and_then(columns, monkeypatch):
    monkeypatch.setattr(console, "_FIRST", 0)
    with stderr_of(columns) as shown:
        with console.show_progress(3, "busi", every=0) as progress:
            for _ in range(3):
                progress.update()
                console.note("done")
        assert list(console.with_progress("ab", 2, "search")) == ["a", "b"]
    (text,) = shown
    lines = re.findall(r"busi: (\d) of 3 images, about \d+ s left", text)
    assert lines == ([] if columns else ["1", "2"]), "the last is followed by what the command prints"
    assert ("search: 1 of 2, about" in text) == (not columns)
    assert ("3/3" in text) == (columns == 80)
    assert len(re.findall(r"^(?:.*\r)?done\r?$", text, re.M)) == 3


def test_without_an_open_standard_error_there_are_no_columns(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert not console.has_columns()


def test_a_duration_has_the_unit_that_fits():
    assert [console.duration(s) for s in (0, 99.4, 99.6, 3600, 5969, 6000, 90000)] == [
        "0 s", "99 s", "2 min", "60 min", "99 min", "1.7 h", "25.0 h",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_notebook_shows_the_rows_of_a_training(manifests, tmp_path):
    """With ``!``, as most people call a command, and from Python, where standard error belongs to the kernel."""
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monitored = ("train", "--out", str(tmp_path), *settings_options(manifests, "train.epochs=1"))
    words = " ".join(f"'{word}'" for word in monitored)
    cells = [
        f"!'{sys.executable}' -m bus_smp {words} --run shell",
        f"from bus_smp.cli import main\nmain({[*monitored, '--run', 'python']!r})",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    client = nbclient.NotebookClient(
        notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}, kernel_name="python3"
    )
    client.execute(env=environment)
    for cell in notebook.cells:
        text = "".join(output.get("text", "") for output in cell.outputs)
        assert re.search(r"^(.*\r)?epoch 1/1 +\d.*s\r?$", text, re.M), text
        assert re.search(r"1 of 1 epochs; best validation lesion Dice", text)
