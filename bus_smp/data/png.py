"""Is a PNG whole? Pillow leaves the checksums of pixels out, and fills up with black what is missing."""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PASSES = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)  # Adam7


def damage_of_png(file: BinaryIO) -> str:
    """What is wrong with the chunks that hold the pixels, "" if nothing is. The place in ``file`` is as before."""
    place = file.tell()
    try:
        for crc, _ in _chunks(file):
            if crc:
                return crc
        return ""
    finally:
        file.seek(place)


def lacks_lines(file: BinaryIO) -> bool:
    """Do the chunks unpack to fewer bytes than the header declares? Slow: for an image whose last line is black."""
    place = file.tell()
    try:
        file.seek(16)
        width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
        parts = _PASSES if interlaced else ((0, 0, 1, 1),)
        wanted = 0
        for top, left, down, right in parts:
            columns, rows = -(-(width - left) // right), -(-(height - top) // down)
            if columns > 0 and rows > 0:
                wanted += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
        unpacker = zlib.decompressobj()
        for _, data in _chunks(file):
            while data and wanted > 0:
                wanted -= len(unpacker.decompress(data, 1 << 20))
                data = unpacker.unconsumed_tail
        return wanted > 0
    finally:
        file.seek(place)


def _chunks(file: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """What is wrong with each chunk of pixels, and its bytes; a last one that says if the end is missing."""
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IEND":
            if len(file.read(4)) == 4:
                return
            break
        if kind != b"IDAT":
            file.seek(length + 4, os.SEEK_CUR)
            continue
        data, crc = file.read(length), file.read(4)
        if len(crc) < 4:
            break
        wrong = zlib.crc32(data, zlib.crc32(kind)).to_bytes(4, "big") != crc
        yield ("is damaged: a checksum of its pixels is wrong" if wrong else ""), data
    yield "is cut short: the end of the PNG is missing", b""
