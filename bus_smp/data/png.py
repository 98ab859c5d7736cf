"""Whether a PNG holds all its lines. Pillow's ``verify`` checks the chunks, but not how much they unpack to."""

import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

# Number of channels by colour type.
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}

# First line, first column, and steps of each pass of an interlaced PNG (Adam7).
_PASSES = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def lacks_lines(file: BinaryIO) -> bool:
    """Whether the pixels of a PNG with sound chunks unpack to fewer bytes than its header declares.

    Slow: only asked for an image whose last line is black, as Pillow leaves missing lines.
    """
    file.seek(16)
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", file.read(13))
    wanted = 0
    for top, left, down, right in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + (columns * depth * _CHANNELS[colour] + 7) // 8)
    unpacker = zlib.decompressobj()
    for data in _pixel_chunks(file):
        while data and wanted > 0:
            wanted -= len(unpacker.decompress(data, 1 << 20))
            data = unpacker.unconsumed_tail
    return wanted > 0


def _pixel_chunks(file: BinaryIO) -> Iterator[bytes]:
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            yield file.read(length)
            file.seek(4, os.SEEK_CUR)
        elif kind == b"IEND":
            return
        else:
            file.seek(length + 4, os.SEEK_CUR)
