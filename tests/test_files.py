"""Files are whole under their final name, whatever happens while they are written."""

import os

import pytest

from bus_smp.errors import BusSmpError
from bus_smp.system.files import replacing, write_text


def test_an_error_while_writing_leaves_the_old_file_and_no_litter(tmp_path):
    target = tmp_path / "table.csv"
    write_text(target, "old\n")
    with pytest.raises(ZeroDivisionError), replacing(target) as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old\n"
    assert list(tmp_path.iterdir()) == [target]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    target = tmp_path / "table.csv"
    write_text(target, "old\n")
    with replacing(target) as temporary:
        temporary.write_text("new\n")
        assert target.read_text() == "old\n"
    assert target.read_text() == "new\n"


@pytest.mark.skipif(os.name == "nt", reason="Windows does not replace a file that is open")
def test_who_reads_the_old_file_meanwhile_reads_all_of_it(tmp_path):
    """The name moves to another file; writing over the old one could be seen, and cut off, half way."""
    target = tmp_path / "table.csv"
    write_text(target, "old\n")
    with target.open() as reader:
        write_text(target, "new\n")
        assert reader.read() == "old\n"


def test_missing_folders_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "ü\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "ü\n".encode()


def test_a_folder_that_cannot_be_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BusSmpError, match="cannot be written"):
        write_text(tmp_path / "file" / "below.txt", "x")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["a pipe", "a folder"])
def test_only_a_file_is_replaced_by_a_file(tmp_path, make):
    """Root could put a file in the place of /dev/null, for everybody."""
    target = tmp_path / "target"
    make(target)
    (tmp_path / "link").symlink_to(target)
    for path in (target, tmp_path / "link"):
        with pytest.raises(BusSmpError, match="cannot be written"):
            write_text(path, "x")
    assert not target.is_file() and (tmp_path / "link").is_symlink()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_full_disk_is_one_clear_error():
    with pytest.raises(BusSmpError, match="disk is full"), replacing_full() as temporary:
        temporary.write_text("x" * 100)


def replacing_full():
    """A write onto /dev/full, the kernel's own full disk."""
    import contextlib
    from pathlib import Path

    from bus_smp.system.files import explained

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")

    @contextlib.contextmanager
    def full():
        with explained(Path("metrics.csv")):
            yield Path("/dev/full")

    return full()
