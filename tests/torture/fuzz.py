"""Feeds damaged files to every reader. An error that is not bus_smp's own, a hang, or 1 GB of memory is a finding.

    python tests/torture/fuzz.py --seconds 600 --seed 0

Seeds come from the corpus and from files made here; each is damaged in one to four ways that a disk, a network,
another program or an enemy would: flipped bits, lost or repeated blocks, other numbers in headers, pieces of
another file, and, so that the damage comes past the first check, with lengths and checksums made right again.
The same seed gives the same inputs. A file that leads to a finding is kept in ``--keep``.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import random
import re
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

import corpus
import numpy as np

from bus_smp.errors import BusSmpError

HANG = 20.0  # seconds for one file
MEMORY = 1_000_000_000  # bytes that one reader may take beyond what the process had
LONGEST_MESSAGE = 20_000

Random = random.Random
Mend = Callable[[bytes, Random], bytes]


@dataclass(frozen=True)
class Reader:
    """What is fuzzed: ``read`` of files with ``suffix``, starting from ``seeds``.

    ``mend`` puts damage inside a container and makes lengths and checksums right; ``words`` are put into texts.
    """

    suffix: str
    seeds: Callable[[], Sequence[bytes]]
    read: Callable[[Path], object]
    mend: Mend | None = None
    words: tuple[bytes, ...] = ()


# Damage

_NUMBERS = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 10**6, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)  # fmt: skip


def _flip(data: bytearray, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 2, 8))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _set_number(data: bytearray, rng: Random) -> None:
    """Another number of 1 to 8 bytes, mostly in the first 200, where headers are."""
    size = rng.choice((1, 2, 4, 8))
    if len(data) > size:
        place = rng.randrange(min(len(data) - size, rng.choice((32, 200, len(data)))))
        number = rng.choice(_NUMBERS) % 256**size
        data[place : place + size] = number.to_bytes(size, rng.choice(("little", "big")))


def _block(data: bytearray, rng: Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + rng.choice((1, 2, 4, 16, 200, 3000)))


def _cut(data: bytearray, rng: Random) -> None:
    del data[rng.randrange(len(data)) :]


def _lose(data: bytearray, rng: Random) -> None:
    start, stop = _block(data, rng)
    del data[start:stop]


def _repeat(data: bytearray, rng: Random) -> None:
    start, stop = _block(data, rng)
    data[start:start] = data[start:stop] * rng.choice((1, 1, 2, 50))


def _fill(data: bytearray, rng: Random) -> None:
    start, stop = _block(data, rng)
    data[start:stop] = rng.choice((bytes(1), b"\xff", rng.randbytes(1))) * (stop - start)


_DAMAGE = (_flip, _flip, _set_number, _set_number, _cut, _lose, _repeat, _fill)


def _line(data: bytearray, rng: Random) -> None:
    """A line lost, repeated or moved; only in texts."""
    parts = bytes(data).split(b"\n")
    one = parts.pop(rng.randrange(len(parts)))
    for _ in range(rng.choice((0, 1, 2))):
        parts.insert(rng.randrange(len(parts) + 1), one)
    data[:] = b"\n".join(parts)


def _word(words: Sequence[bytes]) -> Callable[[bytearray, Random], None]:
    def put(data: bytearray, rng: Random) -> None:
        start = rng.randrange(len(data) + 1)
        stop = start
        if rng.random() < 0.6 and (values := list(re.finditer(rb"[^,;\t\n:\"\[\]{}<>= ]+", bytes(data)))):
            start, stop = rng.choice(values).span()
        data[start:stop] = rng.choice(words)

    return put


def damaged(data: bytes, others: Sequence[bytes], words: Sequence[bytes], rng: Random) -> bytes:
    """``data`` with one to four kinds of damage; ``others`` lend pieces."""
    ways = [*_DAMAGE, *([_word(words)] * 6 + [_line] * 2 if words else [])]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        if not changed:
            break
        if rng.random() < 0.1:
            other = rng.choice(others)
            changed[rng.randrange(len(changed)) :] = other[rng.randrange(len(other) + 1) :]
        else:
            rng.choice(ways)(changed, rng)
    return bytes(changed[:2_000_000])


# Containers, damaged inside


def _mend_image(data: bytes, rng: Random) -> bytes:
    """A PNG whose chunks are damaged and have right checksums; pixels are packed again."""
    if data[:4] != b"\x89PNG":
        return damaged(data, [data], (), rng)
    chunks, place = [], 8
    while place + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        chunks.append((kind, data[place + 8 : place + 8 + length]))
        place += length + 12
    number = rng.randrange(len(chunks))
    kind, body = chunks[number]
    if kind == b"IDAT" and rng.random() < 0.5:
        try:
            body = zlib.compress(damaged(zlib.decompress(body), [data], (), rng))
        except zlib.error:
            body = damaged(body, [data], (), rng)
    elif body:
        body = damaged(body, [data], (), rng)
    chunks[number] = (
        rng.choice((kind, kind, kind, b"IDAT", b"tRNS", b"PLTE", b"zTXt", b"eXIf", b"acTL", b"fcTL")),
        body,
    )
    if rng.random() < 0.2:
        rng.shuffle(chunks)
    return data[:8] + b"".join(corpus.chunk(kind, body) for kind, body in chunks)


def _mend_zip(words: tuple[bytes, ...]) -> Mend:
    def mend(data: bytes, rng: Random) -> bytes:
        changed = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(changed, "w") as new:
            entries = old.infolist()
            chosen = rng.choice(entries)
            if rng.random() < 0.5:  # the part that says most: a sheet, a pickle
                telling = [
                    e
                    for e in entries
                    if e.filename.endswith(("sheet1.xml", "Strings.xml", "data.pkl", "styles.xml"))
                ]
                chosen = rng.choice(telling or entries)
            for entry in entries:
                content = old.read(entry)
                if entry is chosen:
                    content = damaged(content, [content], words, rng) if content else rng.randbytes(9)
                if entry is not chosen or rng.random() < 0.95:
                    new.writestr(entry.filename, content, entry.compress_type)
        return changed.getvalue()

    return mend


def _mend_safetensors(data: bytes, rng: Random) -> bytes:
    """The header's JSON damaged, its length right."""
    (length,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + length]
    if rng.random() < 0.6:  # inside the JSON inside the JSON
        try:
            header = json.loads(text)
            header["__metadata__"]["bus_smp"] = damaged(
                header["__metadata__"]["bus_smp"].encode(), [text], _JSON_WORDS, rng
            ).decode("utf-8", "replace")
            text = json.dumps(header).encode()
        except (ValueError, KeyError, TypeError):
            pass
    else:
        text = damaged(text, [text], _JSON_WORDS, rng)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


# Readers and where they start

_JSON_WORDS = (b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"1000000000", b"9" * 40, b"[]", b"{}", b'""', b"[" * 50,
               b'"a"', b"-0.0", b"1e-400", b'"\\u0000"', b'"\\ud800"', b'"\\u001b[2J"', b"2.5")  # fmt: skip
_CSV_WORDS = (b"", b'"', b'""', b"\r", b"\n", b"\0", b"..", b"../x", b"/etc/passwd", b"C:\\x", b"nan", b"inf", b"-1", b"1e5", b"=1+1", b"'=1", b";", b"\t",
              b"|", b"||", b"\xff", b"\xc3\xa4", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"true", b"TRUE", b"normal", b"benign", b"val", b"excluded",
              "٣".encode(), "²".encode(), b"00012", b"9" * 30, b"x" * 5000)  # fmt: skip
_YAML_WORDS = (b"!!python/object:os.x {}", b"!!float _", b"!!int", b"!!bool x", b"!!binary x", b"!!timestamp x", b"!!set {a}", b"&a", b"*a", b"<<: ",
               b"2020-13-45", b".inf", b".nan", b"~", b"[", b"{", b"? ", b"- ", b": ", b"|", b">", b"%", b"@", b"`", b"---\n", b"\t", b"0x", b"0b2", b"1:99",
               b"1_000", b"9" * 5000, b"\xff", b"\xc2\x85")  # fmt: skip
_XML_WORDS = (b"<", b">", b"&", b"&lt;", b'"', b"A1", b"XFD1048576", b"A0", b"1e999", b't="s"', b't="d"', b't="e"', b't="b"', b"<v>-1</v>", b"<v>99999999</v>",
              b"<f>1/0</f>", b'r="1048576"', b'r="-1"', b"<row/>", b"NaN", b"<!--", b'<dimension ref="A1:XFD1048576"/>', b'<mergeCell ref="A1:B2"/>')  # fmt: skip


def _image_seeds() -> list[bytes]:
    seeds = [kind.content for kind in corpus.IMAGES]
    seeds += [kind.write(corpus.lesion(kind.name)) for kind in corpus.MASKS]
    return [seed for seed in seeds if 0 < len(seed) < 150_000]


def _read_image(path: Path) -> None:
    from bus_smp.data.images import read_image, read_mask
    from bus_smp.data.limits import MAX_PIXELS

    for read in (
        lambda: read_image(path),
        lambda: read_mask([path], "binary", "benign"),
        lambda: read_mask([path], "color", "benign"),
        lambda: read_mask([path], "index", "benign"),
    ):
        try:
            array = read()
        except BusSmpError:
            continue
        assert array.dtype == np.uint8 and 0 < array.shape[0] * array.shape[1] <= MAX_PIXELS
        assert array.ndim == 3 or array.max() <= 2


def _manifest_seeds() -> list[bytes]:
    from bus_smp.data.manifest_checks import COLUMNS

    rows = []
    for number in range(12):
        split, label = ("train", "val", "test")[number // 4], ("benign", "malignant", "normal")[number % 3]
        name, masks = f"p{number:02}", "" if label == "normal" else f"m/{number}.png|m/{number}_1.png"
        rows.append([
            "demo", name, name, "true", f"demo:{name}", label, split, str(number % 3), f"i/{name}.png", masks,
            "binary" if masks else "", "40", "32", f"{number:064x}", f"{number + 99:064x}", "doppler|marks", "",
        ])  # fmt: skip
    rows.append(
        [
            "demo",
            "x",
            "x",
            "false",
            "demo:x",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "",
            "unreadable",
            "no image",
        ]
    )
    table = [list(COLUMNS), *rows]
    text = corpus.lines(table)
    sized = corpus.lines([[*table[0], "pixel_mm"], *([*row, "0.1"] for row in rows)])
    return [
        text.encode(),
        sized.encode("utf-8-sig"),
        corpus.lines(table, ";", "\r\n").encode(),
        corpus.lines(table, "\t").encode(),
    ]


def _read_manifest(path: Path) -> None:
    from bus_smp.data.manifest import manifest_hash, read_manifest, write_manifest

    manifest = read_manifest(path, images=False)
    rows = manifest.frame[manifest.frame["image"] != ""]
    for row in rows.to_dict("records"):
        for file in (manifest.image_path(row), *manifest.mask_paths(row)):
            assert ".." not in file.relative_to(manifest.roots[row["dataset"]]).parts
    again = write_manifest(manifest, path.with_name("again.csv"))
    assert manifest_hash(read_manifest(again, images=False).frame) == manifest_hash(manifest.frame)


def _sidecar_seeds() -> list[bytes]:
    about = {
        "roots": {"demo": "../data/demo"},
        "version": "1.0",
        "options": {"seed": 42},
        "audit": {"rows": 13, "pairs": [["a", "b", "near", 0.99]]},
    }
    return [json.dumps(about, indent=2).encode(), json.dumps(about).encode("utf-8-sig")]


def _read_sidecar(path: Path) -> None:
    path.with_suffix(".csv").write_bytes(_manifest_seeds()[0])
    _read_manifest(path.with_suffix(".csv"))


def _table_seeds() -> list[bytes]:
    return [
        kind.write(_good_table())
        for kind in corpus.TABLES
        if kind.suffix == ".csv" and len(kind.write(_good_table())) < 10_000
    ]


def _good_table() -> list[list[str]]:
    return [
        corpus.HEADER,
        *(
            [f"in/a{n}.png", f"in/a{n}_m.png", ("benign", "malignant", "normal")[n % 3], f"p{n}"]
            for n in range(5)
        ),
    ]


def _read_table(path: Path) -> None:
    from bus_smp.data.own_table import read_own_table

    folder = path.parent / "in"
    if not folder.is_dir():
        folder.mkdir()
        for number in range(5):
            (folder / f"a{number}.png").touch()
            (folder / f"a{number}_m.png").touch()
    for records in read_own_table(path).values():
        for record in records:
            assert (path.parent / record.image).is_file() and ".." not in Path(record.image).parts


def _xlsx_seeds() -> list[bytes]:
    return [corpus.xlsx(_good_table()), corpus.xlsx([*_good_table(), ["x", 1.5, True, "=A1"]])]


def _yaml_seeds() -> list[bytes]:
    from bus_smp.config import Settings

    return [
        Settings().to_yaml().encode(),
        b"data:\n  train: [busi, bus-uclm]\n  size: 128\ntrain: {epochs: 3, lr: 3.0e-4}\n",
    ]


def _read_yaml(path: Path) -> None:
    from bus_smp.config import load_settings

    settings = load_settings(path)
    path.with_name("again.yaml").write_text(settings.to_yaml(), encoding="utf-8")
    assert load_settings(path.with_name("again.yaml")) == settings


def _checkpoint_seeds() -> list[bytes]:
    import torch

    from bus_smp.model.checkpoint import write_checkpoint

    about = {
        "model": {"num_classes": 3, "encoder_name": "resnet18", "attention": None, "bottleneck": None, "deep_supervision": True},
        "classes": [{"index": 0, "name": "background", "rgb": [0, 0, 0]}], "size": 64, "mean": [0.4, 0.4, 0.4],
        "std": [0.2, 0.2, 0.2], "epoch": 3, "precision": "fp32", "datasets": ["demo"], "manifest_sha256": "ab" * 32,
        "score": {"val_dice_lesion": 0.5}, "calibration": {"temperature": 1.2, "threshold": 0.4, "reason": ""},
        "settings": {"train": {"epochs": 3, "seed": 42}}, "versions": {"torch": "2"}, "git_commit": None,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best.safetensors"
        write_checkpoint(path, torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)), about)
        return [path.read_bytes()]


def _read_checkpoint(path: Path) -> None:
    from bus_smp.commands.info import _checkpoint_lines
    from bus_smp.model.checkpoint import load_model, read_header, weights_sha256

    about = read_header(path)
    weights_sha256(path)
    import contextlib

    with contextlib.suppress(
        KeyError, TypeError, ValueError, AttributeError, IndexError
    ):  # as the command does
        list(_checkpoint_lines(path, about))
    if zlib.crc32(path.read_bytes()) % 16 == 0:  # builds a network: slow
        load_model(path)


def _state_seeds() -> list[bytes]:
    import torch

    from bus_smp.training.resume import STATE_FORMAT

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    state = {
        "format": STATE_FORMAT, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": {}, "best_epoch": 1, "best_score": 0.5,
        "history": [{"epoch": 1, "lr": 1e-4, "val_dice_lesion": 0.5}], "place": {"device": "cpu", "precision": "fp32", "threads": "1", "torch": "2"},
    }  # fmt: skip
    seeds = []
    for content, zipped in ((state, True), (model.state_dict(), True), (model.state_dict(), False)):
        data = io.BytesIO()
        torch.save(content, data, _use_new_zipfile_serialization=zipped)
        seeds.append(data.getvalue())
    return seeds


def _read_state(path: Path) -> None:
    from bus_smp.system.engine import make_engine
    from bus_smp.training.resume import read_state

    read_state(path, make_engine("cpu", "fp32"))


def _read_encoder(path: Path) -> None:
    from bus_smp.model.encoders import _read_encoder_weights

    for name, value in _read_encoder_weights(path).items():
        assert name is not None and value.numel() < 10_000_000


def _mend_state(data: bytes, rng: Random) -> bytes:
    return _mend_zip(())(data, rng) if data[:2] == b"PK" else damaged(data, [data], (), rng)


def _encoder_safetensors_seeds() -> list[bytes]:
    import torch
    from safetensors.torch import save

    return [save({"conv1.weight": torch.ones(4, 3, 3, 3), "bn1.weight": torch.ones(4)})]


READERS = {
    "image": Reader(".png", _image_seeds, _read_image, _mend_image),
    "manifest": Reader(".csv", _manifest_seeds, _read_manifest, words=_CSV_WORDS),
    "sidecar": Reader(".json", _sidecar_seeds, _read_sidecar, words=_JSON_WORDS),
    "table": Reader(".csv", _table_seeds, _read_table, words=_CSV_WORDS),
    "xlsx": Reader(".xlsx", _xlsx_seeds, _read_table, _mend_zip(_XML_WORDS)),
    "yaml": Reader(".yaml", _yaml_seeds, _read_yaml, words=_YAML_WORDS),
    "checkpoint": Reader(".safetensors", _checkpoint_seeds, _read_checkpoint, _mend_safetensors),
    "state": Reader(".ckpt", _state_seeds, _read_state, _mend_state),
    "encoder": Reader(".pth", _state_seeds, _read_encoder, _mend_state),
    "encoder.safetensors": Reader(".safetensors", _encoder_safetensors_seeds, _read_encoder),
}


# Running


@dataclass(frozen=True)
class Finding:
    """A file that a reader could not bear: what happened, and where the file is kept."""

    reader: str
    what: str
    file: Path


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(
    name: str,
    seed: int,
    keep: Path,
    *,
    seconds: float = 1e9,
    executions: int = 10**9,
    found: Callable[[Finding], None] | None = None,
) -> tuple[int, int, list[Finding]]:
    """Feed damaged files to one reader in this process, until time or number is up.

    Returns:
        files read, how many of them were taken (no error), and the findings, one for each place in the code.
    """
    reader = READERS[name]
    seeds, rng = reader.seeds(), Random(f"{name} {seed}")
    findings: dict[str, Finding] = {}
    taken, number, end = 0, 0, time.monotonic() + seconds
    keep.parent.mkdir(parents=True, exist_ok=True)

    def note(what: str, data: bytes) -> None:
        if what not in findings:
            keep.mkdir(parents=True, exist_ok=True)
            file = keep / f"{name}-{zlib.crc32(what.encode()):08x}{reader.suffix}"
            file.write_bytes(data)
            findings[what] = Finding(name, what, file)
            if found is not None:
                found(findings[what])

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / f"input{reader.suffix}"
        while number < executions and time.monotonic() < end:
            data = rng.choice(seeds)
            if number >= len(seeds):  # undamaged first
                if reader.mend is not None and rng.random() < 0.6:
                    data = reader.mend(data, rng)
                else:
                    data = damaged(data, seeds, reader.words, rng)
            else:
                data = seeds[number]
            path.write_bytes(data)
            (keep.parent / f"current-{name}").write_bytes(data)
            peak, start = _peak(), time.monotonic()
            number += 1
            try:
                reader.read(path)
                taken += 1
            except BusSmpError as error:
                if len(str(error)) > LONGEST_MESSAGE:
                    note(f"a message of {len(str(error))} characters: {str(error)[:80]}", data)
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]
                note(f"{type(error).__name__} at {' > '.join(places)}: {str(error)[:200]}", data)
            if time.monotonic() - start > HANG:
                note(f"took {time.monotonic() - start:.0f} s", data)
            if number > len(seeds) and _peak() - peak > MEMORY:
                note(f"took {(_peak() - peak) / 1e9:.1f} GB", data)
    return number, taken, list(findings.values())


def _in_a_process(name: str, seed: int, seconds: float, keep: Path) -> tuple[int, int, list[Finding]]:
    """``fuzz`` in a process of its own, so that a crash or a hang in compiled code is a finding too."""
    total, taken, findings, end = 0, 0, [], time.monotonic() + seconds
    current = keep.parent / f"current-{name}"
    while (left := end - time.monotonic()) > 1:
        command = [
            sys.executable,
            __file__,
            "--child",
            name,
            "--seconds",
            f"{left:.0f}",
            "--seed",
            str(seed),
            "--keep",
            str(keep),
        ]
        current.unlink(missing_ok=True)
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        hung = False
        while process.poll() is None:
            time.sleep(0.5)
            if current.exists() and time.time() - current.stat().st_mtime > HANG + 10:
                hung = True
                process.kill()
        for line in process.stdout.read().splitlines():
            message = json.loads(line)
            if "what" in message:
                findings.append(Finding(name, message["what"], Path(message["file"])))
            total, taken = total + message.get("read", 0), taken + message.get("taken", 0)
        if process.returncode == 0:
            break
        keep.mkdir(parents=True, exist_ok=True)
        file = keep / f"{name}-died-{seed}{READERS[name].suffix}"
        if current.exists():
            file.write_bytes(current.read_bytes())
        findings.append(
            Finding(name, "hung" if hung else f"the process ended with {process.returncode}", file)
        )
        seed += 1000
    return total, taken, findings


def main() -> int:
    """Fuzz all readers in turn, or one; print a line for each; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60, help="in all, shared by the readers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS, action="append", help="repeatable; default: all")
    parser.add_argument(
        "--keep",
        type=Path,
        default=Path("outputs/fuzz/findings"),
        help="folder for files that lead to a finding",
    )
    parser.add_argument("--child", choices=READERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

        def tell(finding: Finding) -> None:
            print(json.dumps({"what": finding.what, "file": str(finding.file)}), flush=True)

        read, taken, _ = fuzz(options.child, options.seed, options.keep, seconds=options.seconds, found=tell)
        print(json.dumps({"read": read, "taken": taken}), flush=True)
        return 0
    names = options.reader or list(READERS)
    totals: collections.Counter = collections.Counter()
    for name in names:
        read, taken, findings = _in_a_process(name, options.seed, options.seconds / len(names), options.keep)
        totals.update(read=read, taken=taken, findings=len(findings))
        print(
            f"{name:20} {read:8} files, {taken:7} taken, {read - taken:8} refused, {len(findings):3} findings",
            flush=True,
        )
        for finding in findings:
            print(f"  {finding.what}\n    {finding.file}", flush=True)
    print(f"{'all':20} {totals['read']:8} files, {totals['taken']:7} taken, {totals['findings']:3} findings")
    return 1 if totals["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
