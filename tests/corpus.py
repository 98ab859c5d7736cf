"""Bad and odd files as exports, downloads and enemies make them: each kind in one line, with what must come of it.

A kind of ``IMAGES`` is used with exactly the pixels it shows, or refused with the words of ``reason`` and its
own name. Nothing here is random: the same kind has the same bytes on every machine with the same Pillow.
"""

import contextlib
import io
import os
import pickle
import socket
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tifffile
from PIL import Image, ImageCms

SIZE = (40, 32)  # width, height


def picture(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth grey picture, uint8 (H, W), another one for each name: no two kinds are copies of each other."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    coarse = rng.integers(30, 226, (5, 6)).astype(np.float32)
    return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC).clip(1, 254).round().astype(np.uint8)


def rgb(grey: np.ndarray) -> np.ndarray:
    """The same picture, uint8 (H, W, 3)."""
    return np.repeat(grey[..., None], 3, axis=2)


@dataclass(frozen=True)
class Kind:
    """A file and what must come of it.

    Attributes:
        name: of the kind; its picture is ``picture(name)``.
        suffix: of the file's name.
        write: grey picture -> bytes of the file.
        reason: words of the error; "" where the file must be used.
        shows: grey picture -> uint8 (H, W, 3) that must be read.
        tolerance: greatest difference of a grey value, for lossy formats.
    """

    name: str
    suffix: str
    write: Callable[[np.ndarray], bytes]
    reason: str = ""
    shows: Callable[[np.ndarray], np.ndarray] = rgb
    tolerance: int = 0

    @property
    def content(self) -> bytes:
        """The file's bytes."""
        return self.write(picture(self.name))


def saved(image: Image.Image | np.ndarray, format: str, **options: object) -> bytes:
    """What Pillow writes."""
    data = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(data, format, **options)
    return data.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    """What tifffile writes, for the kinds that Pillow cannot."""
    data = io.BytesIO()
    tifffile.imwrite(data, array, **options)
    return data.getvalue()


def chunk(kind: bytes, data: bytes, crc: int | None = None) -> bytes:
    """A chunk of a PNG, with its right checksum unless another is given."""
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(
    grey: np.ndarray, *more: bytes, size: tuple[int, int] | None = None, interlaced: bool = False
) -> bytes:
    """A grey PNG made by hand: further chunks, another declared size, or interlaced (Adam7)."""
    width, height = size or grey.shape[::-1]
    if interlaced:
        steps = (
            (0, 0, 8, 8),
            (0, 4, 8, 8),
            (4, 0, 8, 4),
            (0, 2, 4, 4),
            (2, 0, 4, 2),
            (0, 1, 2, 2),
            (1, 0, 2, 1),
        )
        passes = [grey[top::down, left::right] for top, left, down, right in steps]
    else:
        passes = [grey]
    lines = b"".join(b"\0" + row.tobytes() for part in passes if part.size for row in part)
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, int(interlaced))
    parts = [chunk(b"IHDR", head), *more, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _changed(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + bytes([data[place] ^ value]) + data[place + 1 :]


def _cut(data: bytes, part: float = 0.6) -> bytes:
    return data[: int(len(data) * part)]


def _exif(orientation: int, padding: int = 0) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = "PATIENT^NAME" + "x" * padding
    return exif.tobytes()


def _bmp_bomb(grey: np.ndarray) -> bytes:
    data = bytearray(saved(grey, "BMP"))
    data[18:26] = struct.pack("<ii", 20_000, 20_000)
    return bytes(data)


def _tiff_bomb(grey: np.ndarray) -> bytes:
    return saved(grey, "TIFF").replace(struct.pack("<HHIHH", 256, 4, 1, 40, 0), struct.pack("<HHII", 256, 4, 1, 20_000)).replace(
        struct.pack("<HHIHH", 257, 4, 1, 32, 0), struct.pack("<HHII", 257, 4, 1, 20_000)
    )  # fmt: skip


def _gif_bomb(grey: np.ndarray) -> bytes:
    data = bytearray(saved(grey, "GIF"))
    data[6:10] = struct.pack("<HH", 20_000, 20_000)
    return bytes(data)


def _tiff_in_a_circle(grey: np.ndarray) -> bytes:
    """The first directory names itself as the next one."""
    data = bytearray(saved(grey, "TIFF"))
    (first,) = struct.unpack("<I", data[4:8])
    (count,) = struct.unpack("<H", data[first : first + 2])
    data[first + 2 + 12 * count : first + 6 + 12 * count] = struct.pack("<I", first)
    return bytes(data)


def _animated(grey: np.ndarray, format: str) -> bytes:
    other = Image.fromarray(255 - grey)
    return saved(grey, format, save_all=True, append_images=[other])


def _icc(padding: int) -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(padding)


def _big_endian(grey: np.ndarray) -> bytes:
    return tiff(grey.astype(">u2") * 257, byteorder=">")


def _dicom(grey: np.ndarray) -> bytes:
    return bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00\x00\x00\x00\x00PATIENT^NAME" + grey.tobytes()


def _jpeg2000(grey: np.ndarray) -> bytes:
    return b"\x00\x00\x00\x0cjP  \r\n\x87\n\x00\x00\x00\x14ftypjp2 " + grey.tobytes()


def _lab(grey: np.ndarray) -> bytes:
    return saved(Image.merge("LAB", [Image.fromarray(grey)] * 3), "TIFF")


def _with_alpha(grey: np.ndarray) -> np.ndarray:
    alpha = np.full_like(grey, 255)
    alpha[:4] = 0  # a transparent margin: the pixels below it count
    return np.dstack([grey, alpha])


def _pickled(grey: np.ndarray) -> bytes:
    return pickle.dumps({"image": grey.tolist()})


_BOMB = "pixels is more than an ultrasound image has|decompression bomb"
_NO_IMAGE = "it is no PNG, JPEG"
_MANY = "several pictures"

IMAGES = (
    # used as they are
    Kind("grey PNG", ".png", lambda g: saved(g, "PNG")),
    Kind("RGB PNG", ".png", lambda g: saved(rgb(g), "PNG")),
    Kind("palette PNG", ".png", lambda g: saved(Image.fromarray(g).convert("P"), "PNG")),
    Kind("1-bit PNG", ".png", lambda g: saved(Image.fromarray(g > 128), "PNG"),
         shows=lambda g: rgb((g > 128).astype(np.uint8) * 255)),
    Kind("grey and alpha PNG", ".png", lambda g: saved(_with_alpha(g), "PNG")),
    Kind("RGBA PNG", ".png", lambda g: saved(np.dstack([rgb(g), np.full_like(g, 255)]), "PNG")),
    Kind("PNG with a transparent colour", ".png", lambda g: png(g, chunk(b"tRNS", struct.pack(">H", int(g[0, 0]))))),
    Kind("16-bit PNG", ".png", lambda g: saved(g.astype(np.uint16) * 257, "PNG")),
    Kind("16-bit RGB PNG", ".png", lambda g: cv2.imencode(".png", rgb(g).astype(np.uint16) * 257)[1].tobytes()),
    Kind("interlaced PNG", ".png", lambda g: png(g, interlaced=True)),
    Kind("PNG with EXIF and ICC", ".png", lambda g: saved(g, "PNG", exif=_exif(1), icc_profile=_icc(100_000))),
    Kind("PNG turned by EXIF", ".png", lambda g: saved(g, "PNG", exif=_exif(6)), shows=lambda g: rgb(np.rot90(g, -1))),
    Kind("PNG with a zip behind it", ".png", lambda g: saved(g, "PNG") + b"PK\x03\x04" + bytes(500)),
    Kind("JPEG", ".jpg", lambda g: saved(g, "JPEG", quality=97), tolerance=6),
    Kind("RGB JPEG", ".jpeg", lambda g: saved(rgb(g), "JPEG", quality=97), tolerance=6),
    Kind("progressive JPEG", ".jpg", lambda g: saved(g, "JPEG", quality=97, progressive=True), tolerance=6),
    Kind("CMYK JPEG with Adobe marker", ".jpg",
         lambda g: saved(Image.fromarray(rgb(g)).convert("CMYK"), "JPEG", quality=97), tolerance=10),
    Kind("JPEG turned by EXIF", ".jpg", lambda g: saved(g, "JPEG", quality=97, exif=_exif(6)),
         shows=lambda g: rgb(np.rot90(g, -1)), tolerance=6),
    Kind("JPEG with 60 kB EXIF", ".jpg", lambda g: saved(g, "JPEG", quality=97, exif=_exif(1, 60_000)), tolerance=6),
    Kind("JPEG with 300 kB ICC", ".jpg", lambda g: saved(g, "JPEG", quality=97, icc_profile=_icc(300_000)), tolerance=6),
    Kind("JPEG with a preview (MPO)", ".jpg",
         lambda g: saved(Image.fromarray(g), "MPO", save_all=True, append_images=[Image.fromarray(g[::2, ::2])],
                         quality=97), tolerance=6),
    Kind("JPEG with bytes behind it", ".jpg", lambda g: saved(g, "JPEG", quality=97) + bytes(100), tolerance=6),
    Kind("BMP", ".bmp", lambda g: saved(rgb(g), "BMP")),
    Kind("8-bit BMP", ".bmp", lambda g: saved(g, "BMP")),
    Kind("TIFF", ".tif", lambda g: saved(g, "TIFF")),
    Kind("LZW TIFF", ".tiff", lambda g: saved(g, "TIFF", compression="tiff_lzw")),
    Kind("tiled TIFF", ".tif", lambda g: tiff(g, tile=(16, 16))),
    Kind("big-endian 16-bit TIFF", ".tif", _big_endian),
    Kind("12 bits in a 16-bit TIFF", ".tif", lambda g: tiff(g.astype(np.uint16) * 16), tolerance=1),
    Kind("CMYK TIFF", ".tif", lambda g: saved(Image.fromarray(rgb(g)).convert("CMYK"), "TIFF")),
    Kind("BigTIFF", ".tif", lambda g: tiff(g, bigtiff=True)),
    Kind("TIFF of no minimum (white is 0)", ".tif", lambda g: tiff(255 - g, photometric="miniswhite")),
    Kind("TIFF that names itself as next page", ".tif", _tiff_in_a_circle, shows=rgb),
    Kind("JPEG called .png", ".png", lambda g: saved(g, "JPEG", quality=97), tolerance=6),
    Kind("PNG called .jpg", ".jpg", lambda g: saved(g, "PNG")),
    Kind("GIF called .png", ".png", lambda g: saved(g, "GIF")),
    Kind("WebP called .png", ".png", lambda g: saved(rgb(g), "WEBP", lossless=True)),
    Kind("suffix in capitals", ".PNG", lambda g: saved(g, "PNG")),
    Kind("one row", ".png", lambda g: saved(g[:1], "PNG"), shows=lambda g: rgb(g[:1])),
    # refused
    Kind("no byte", ".png", lambda g: b"", _NO_IMAGE),
    Kind("text called .png", ".png", lambda g: b"this is no image\n" * 20, _NO_IMAGE),
    Kind("HTML error page called .jpg", ".jpg", lambda g: b"<!DOCTYPE html><html><h1>403 Forbidden</h1>", _NO_IMAGE),
    Kind("DICOM called .png", ".png", _dicom, "header of this DICOM file is damaged"),
    Kind("JPEG 2000 called .jpg", ".jpg", _jpeg2000, _NO_IMAGE),
    Kind("PDF called .png", ".png", lambda g: b"%PDF-1.4\n" + bytes(200), _NO_IMAGE),
    Kind("EPS called .png, which would start Ghostscript", ".png",
         lambda g: saved(Image.fromarray(rgb(g)), "EPS"), _NO_IMAGE),
    Kind("SVG called .png", ".png", lambda g: b'<svg xmlns="http://www.w3.org/2000/svg"/>', _NO_IMAGE),
    Kind("pickle called .png", ".png", _pickled, _NO_IMAGE),
    Kind("PPM called .png", ".png", lambda g: saved(g, "PPM"), _NO_IMAGE),
    Kind("PNG cut short", ".png", lambda g: _cut(saved(g, "PNG")), "end of the PNG"),
    Kind("PNG without its end", ".png", lambda g: saved(g, "PNG")[:-12], "end of the PNG is missing"),
    Kind("PNG with too few lines", ".png", lambda g: png(g[:20], size=SIZE), "lines are missing"),
    Kind("JPEG cut short", ".jpg", lambda g: _cut(saved(g, "JPEG")), "truncated|cannot be read"),
    Kind("JPEG that ends in its header", ".jpg", lambda g: saved(g, "JPEG")[:200], "cannot be read"),
    Kind("TIFF cut short", ".tif", lambda g: saved(g, "TIFF")[:600], "cannot be read"),
    Kind("LZW TIFF cut short", ".tif", lambda g: _cut(saved(g, "TIFF", compression="tiff_lzw")), "cannot be read"),
    Kind("BMP cut short", ".bmp", lambda g: _cut(saved(g, "BMP")), "truncated|cannot be read"),
    Kind("PNG with a flipped bit in its pixels", ".png", lambda g: _changed(png(g), 60, 4), "checksum|cannot be read"),
    Kind("PNG with a wrong checksum of its pixels", ".png",
         lambda g: png(g).replace(zlib.crc32(b"IEND").to_bytes(4, "big"), b"")[:-12] + b"\0\0\0\0"
         + chunk(b"IEND", b""), "checksum|cannot be read"),
    Kind("PNG with a wrong checksum of its header", ".png", lambda g: _changed(png(g), 30, 1), "cannot be read"),
    Kind("PNG of no size", ".png", lambda g: png(g, size=(0, 0)), "cannot be read"),
    Kind("PNG that declares 20000x20000", ".png", lambda g: png(g, size=(20_000, 20_000)), _BOMB),
    Kind("PNG that declares 10000x10000", ".png", lambda g: png(g, size=(10_000, 10_000)), _BOMB),
    Kind("PNG that declares a million columns", ".png", lambda g: png(g, size=(1_000_000, 1)), _BOMB),
    Kind("BMP that declares 20000x20000", ".bmp", _bmp_bomb, _BOMB),
    Kind("TIFF that declares 20000x20000", ".tif", _tiff_bomb, _BOMB),
    Kind("GIF that declares 20000x20000", ".png", _gif_bomb, _BOMB),
    Kind("PNG with a text that unpacks to 10 MB", ".png",
         lambda g: png(g, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(10_000_000), 9))), "cannot be read"),
    Kind("floating-point TIFF", ".tif", lambda g: saved(g.astype(np.float32), "TIFF"), "floating-point"),
    Kind("32-bit TIFF with negative values", ".tif", lambda g: saved(g.astype(np.int32) - 300, "TIFF"), "fit neither"),
    Kind("L*a*b* TIFF", ".tif", _lab, "stored as LAB"),
    Kind("animated GIF", ".png", lambda g: _animated(g, "GIF"), _MANY),
    Kind("animated PNG", ".png", lambda g: _animated(g, "PNG"), _MANY),
    Kind("animated WebP", ".png", lambda g: _animated(g, "WEBP"), _MANY),
    Kind("TIFF of two pages", ".tif", lambda g: _animated(g, "TIFF"), _MANY),
)  # fmt: skip

ONE_PIXEL = Kind("one pixel", ".png", lambda g: saved(g[:1, :1], "PNG"), shows=lambda g: rgb(g[:1, :1]))


# Files that are no files, or files of another kind. Each is made at a path, beside ``image`` (a good PNG).


def _socket(path: Path, image: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the address of a socket may not be longer than a hundred bytes
    try:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


SPECIAL: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "pipe": (lambda path, image: os.mkfifo(path), "pipe, device or socket"),
    "socket": (_socket, "pipe, device or socket"),
    "link to a device": (lambda path, image: path.symlink_to("/dev/zero"), "pipe, device or socket"),
    "link to nothing": (lambda path, image: path.symlink_to("nowhere.png"), "no such file"),
    "link to itself": (lambda path, image: path.symlink_to(path.name), "symbolic links|cannot be read"),
    "link to an image": (lambda path, image: path.symlink_to(image), ""),
    "hard link to an image": (lambda path, image: os.link(image, path), ""),
}

# Not images, and nobody takes them for one: neither used nor named.
LITTER = ("._x.png", ".DS_Store", "Thumbs.db", "desktop.ini", ".hidden.png", "notes.txt", "x.png.part")

# Names that files have, on Linux at least. The second says whether a manifest can hold such a name.
NAMES: dict[str, tuple[str, bool]] = {
    "not ASCII": ("Größe_图像_й", True),
    "emoji": ("scan \U0001f469\u200d\u2695\ufe0f", True),
    "long": ("名" * 80, True),
    "a space at its end": ("scan ", True),
    "a space at its beginning": (" picture", True),
    "dots at its end": ("scan..", True),
    "reserved on Windows": ("con", True),
    "two suffixes": ("scan.dcm", True),
    "a formula": ("=1+1", True),
    "a formula behind a semicolon": ("a;=1+1", True),
    "an at sign first": ("@SUM(A1)", True),
    "a dash first": ("-rf", True),
    "an apostrophe first": ("'=1", True),
    "a comma and quotes": ('a,"b"', True),
    "HTML": ("<img src=x onerror=alert(1)>", True),
    "percent signs": ("%2e%2e%2fx", True),
    "braces": ("{{7*7}}", True),
    "a line break": ("a\nb", False),
    "a terminal command": ("a\x1b]0;owned\x07", False),
    "reversed writing": ("a\u202egnp", False),
    "bytes that are not UTF-8": (os.fsdecode(b"a\xff\xfe"), False),
    "a bar": ("a|b", False),
    "a backslash": ("a\\b", False),
}


# Masks: how they are written from the lesion, bool (H, W), and what is read from them.


@dataclass(frozen=True)
class MaskKind:
    """``write``: lesion, bool (H, W) -> bytes. ``reason``: words of the error, "" where the lesion must be read."""

    name: str
    format: str
    write: Callable[[np.ndarray], bytes]
    reason: str = ""
    suffix: str = ".png"


def lesion(name: str, size: tuple[int, int] = SIZE) -> np.ndarray:
    """An ellipse, bool (H, W), of another place and size for each name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    mask = np.zeros(size[::-1], np.uint8)
    centre = (int(rng.integers(14, size[0] - 14)), int(rng.integers(12, size[1] - 12)))
    axes = (int(rng.integers(6, 10)), int(rng.integers(5, 8)))
    cv2.ellipse(mask, centre, axes, int(rng.integers(0, 90)), 0, 360, 1, -1)
    return mask.astype(bool)


def _levels(low: int, high: int, dtype: type = np.uint8) -> Callable[[np.ndarray], np.ndarray]:
    return lambda m: np.where(m, high, low).astype(dtype)


def _colour(m: np.ndarray, rgb: tuple[int, ...] = (0, 255, 0)) -> np.ndarray:
    return m[..., None] * np.array(rgb, np.uint8)


def _palette(m: np.ndarray, index: int) -> bytes:
    image = Image.fromarray(_levels(0, index)(m)).convert("P")
    image.putdata(_levels(0, index)(m).ravel().tolist())
    image.putpalette([0, 0, 0, 0, 255, 0, 255, 0, 0, 9, 9, 9])
    return saved(image, "PNG")


def _blurred(m: np.ndarray) -> np.ndarray:
    return cv2.blur(_levels(0, 255)(m), (3, 3))


MASKS = (
    MaskKind("0 and 255", "binary", lambda m: saved(_levels(0, 255)(m), "PNG")),
    MaskKind("0 and 1", "binary", lambda m: saved(_levels(0, 1)(m), "PNG")),
    MaskKind("1-bit", "binary", lambda m: saved(Image.fromarray(m), "PNG")),
    MaskKind("grey as RGB", "binary", lambda m: saved(_colour(m, (255, 255, 255)), "PNG")),
    MaskKind("16-bit", "binary", lambda m: saved(_levels(0, 65535, np.uint16)(m), "PNG")),
    MaskKind("palette of two greys", "binary", lambda m: saved(Image.fromarray(_levels(0, 255)(m)).convert("P"), "PNG")),
    MaskKind("RGBA as BrEaST has it", "binary", lambda m: saved(_colour(m, (255, 255, 255, 255)), "PNG")),
    MaskKind("grey and alpha", "binary", lambda m: saved(np.dstack([_levels(0, 255)(m), _levels(255, 255)(m)]), "PNG")),
    MaskKind("TIFF", "binary", lambda m: saved(_levels(0, 255)(m), "TIFF"), suffix=".tif"),
    MaskKind("BMP", "binary", lambda m: saved(_levels(0, 255)(m), "BMP"), suffix=".bmp"),
    MaskKind("colours", "color", lambda m: saved(_colour(m), "PNG")),
    MaskKind("colours with alpha", "color", lambda m: saved(_colour(m, (0, 255, 0, 255)), "PNG")),
    MaskKind("colours in a palette", "color", lambda m: _palette(m, 1)),
    MaskKind("class index", "index", lambda m: saved(_levels(0, 1)(m), "PNG")),
    MaskKind("class index of a palette", "index", lambda m: _palette(m, 1)),
    MaskKind("class index of 16 bits", "index", lambda m: saved(_levels(0, 1, np.uint16)(m), "PNG")),
    MaskKind("JPEG with in-between greys", "binary", lambda m: saved(_levels(0, 255)(m), "JPEG", quality=50),
             "masks need PNG", ".jpg"),
    MaskKind("JPEG with in-between colours", "color", lambda m: saved(_colour(m), "JPEG", quality=50),
             "masks need PNG", ".jpg"),
    MaskKind("soft edges", "binary", lambda m: saved(_blurred(m), "PNG"), "in a binary mask"),
    MaskKind("0 and 128", "binary", lambda m: saved(_levels(0, 128)(m), "PNG"), "in a binary mask"),
    MaskKind("another colour", "color", lambda m: saved(_colour(m, (0, 254, 0)), "PNG"), r"colour \(0, 254, 0\)"),
    MaskKind("index 3 in a palette", "index", lambda m: _palette(m, 3), "class index 3"),
    MaskKind("index 200", "index", lambda m: saved(_levels(0, 200)(m), "PNG"), "class index 200"),
    MaskKind("index -1", "index", lambda m: saved(_levels(0, -1, np.int32)(m), "TIFF"), "class index -1", ".tif"),
    MaskKind("index in colours", "index", lambda m: saved(_colour(m), "PNG"), "is coloured"),
    MaskKind("white, the lesion in its transparency", "binary",
             lambda m: saved(np.dstack([_levels(255, 255)(m)] * 3 + [_levels(0, 255)(m)]), "PNG"), "transparent"),
    MaskKind("green, the lesion in its transparency", "color",
             lambda m: saved(np.dstack([_colour(m | True), _levels(0, 255)(m)]), "PNG"), "transparent"),
    MaskKind("floating-point", "binary", lambda m: saved(m.astype(np.float32), "TIFF"), "floating-point", ".tif"),
    MaskKind("cut short", "binary", lambda m: saved(_levels(0, 255)(m), "PNG")[:-20], "end of the PNG"),
    MaskKind("text", "binary", lambda m: b"no mask", "it is no PNG"),
    MaskKind("of another size", "binary", lambda m: saved(_levels(0, 255)(m)[:-3], "PNG"), "mask is 40x29"),
    MaskKind("empty", "binary", lambda m: saved(_levels(0, 0)(m), "PNG"), "marks nothing|empty-mask"),
)  # fmt: skip


def xlsx(rows: list[list], **parts: str) -> bytes:
    """A workbook of one sheet; ``parts`` replaces files in it: ``sheet1`` or ``shared``."""
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    data = io.BytesIO()
    book.save(data)
    if not parts:
        return data.getvalue()
    places = {"sheet1": "xl/worksheets/sheet1.xml", "shared": "xl/sharedStrings.xml"}
    changed = io.BytesIO()
    with zipfile.ZipFile(data) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        replaced = {places[name]: text for name, text in parts.items()}
        for entry in old.infolist():
            new.writestr(entry.filename, replaced.pop(entry.filename, old.read(entry)))
        for name, text in replaced.items():
            new.writestr(name, text)
    return changed.getvalue()


_SHEET = '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
_FAR = _SHEET.format(
    '<row r="1"><c r="A1" t="inlineStr"><is><t>image</t></is></c></row><row r="1048576"><c r="XFD1048576"><v>1</v></c></row>'
)
_ENTITIES = (
    '<?xml version="1.0"?><!DOCTYPE w [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9))
    + ']>' + _SHEET.format('<row r="1"><c r="A1" t="inlineStr"><is><t>&j;</t></is></c></row>')
)  # fmt: skip
_OUTSIDE = '<?xml version="1.0"?><!DOCTYPE w [<!ENTITY x SYSTEM "file:///etc/hostname">]>' + _SHEET.format(
    '<row r="1"><c r="A1" t="inlineStr"><is><t>&x;</t></is></c></row>'
)

HEADER = ["image", "masks", "label", "patient_id"]
Rows = list[list[str]]


@dataclass(frozen=True)
class TableKind:
    """A table as a user hands it to ``make-manifest --csv``.

    ``write``: the cells of a good table, header first -> bytes. ``reason``: words of the error, "" where the
    manifest must be that of the good table.
    """

    name: str
    write: Callable[[Rows], bytes]
    reason: str = ""
    suffix: str = ".csv"


def lines(rows: Rows, separator: str = ",", end: str = "\n") -> str:
    """The table as text; cells with a comma, quote or line break in quotes."""

    def cell(text: str) -> str:
        text = str(text)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(separator + '"\n\r') else text

    return "".join(separator.join(map(cell, row)) + end for row in rows)


def _with(rows: Rows, row: int, column: str, text: str) -> Rows:
    changed = [list(cells) for cells in rows]
    changed[row][HEADER.index(column)] = text
    return changed


def _added(rows: Rows, column: str, texts: Callable[[int], str]) -> Rows:
    return [[*rows[0], column], *([*row, texts(number)] for number, row in enumerate(rows[1:]))]


TABLES = (
    # read like the plain one
    TableKind("plain", lambda t: lines(t).encode()),
    TableKind("byte-order mark", lambda t: lines(t).encode("utf-8-sig")),
    TableKind("semicolons", lambda t: lines(t, ";").encode()),
    TableKind("tabs", lambda t: lines(t, "\t").encode()),
    TableKind("CRLF", lambda t: lines(t, end="\r\n").encode()),
    TableKind("CR alone", lambda t: lines(t, end="\r").encode()),
    TableKind("BOM, semicolons and CRLF", lambda t: lines(t, ";", "\r\n").encode("utf-8-sig")),
    TableKind("UTF-16 as Excel saves it", lambda t: lines(t, "\t", "\r\n").encode("utf-16")),
    TableKind("Windows-1252", lambda t: lines(_added(t, "note", lambda n: "für")).encode("cp1252")),
    TableKind("sep= line of Excel", lambda t: ("sep=;\n" + lines(t, ";")).encode()),
    TableKind("a title above the header", lambda t: ("Export of 3 May\n\n" + lines(t)).encode()),
    TableKind("empty rows", lambda t: (lines(t) + ",,,\n\n,,,\n").encode()),
    TableKind("header spelled otherwise", lambda t: lines([[c.title().replace("_", " ") for c in t[0]], *t[1:]]).encode()),
    TableKind("header in capitals", lambda t: lines([[c.upper() for c in t[0]], *t[1:]]).encode()),
    TableKind("spaces around cells", lambda t: lines([[f" {c} " for c in row] for row in t]).encode()),
    TableKind("all cells quoted", lambda t: "".join(",".join(f'"{c}"' for c in row) + "\n" for row in t).encode()),
    TableKind("rows in another order", lambda t: lines([t[0], *t[:0:-1]]).encode()),
    TableKind("columns in another order", lambda t: lines([row[::-1] for row in t]).encode()),
    TableKind("backslashes in paths", lambda t: lines([t[0], *([r[0].replace("/", "\\"), *r[1:]] for r in t[1:])]).encode()),
    TableKind("a formula in a column nobody reads", lambda t: lines(_added(t, "note", lambda n: "=1+1")).encode()),
    TableKind("a line break in a column nobody reads", lambda t: lines(_added(t, "note", lambda n: "a\nb")).encode()),
    TableKind("no line end at the end", lambda t: lines(t).rstrip("\n").encode()),
    TableKind("Excel", lambda t: xlsx(t), suffix=".xlsx"),
    TableKind("Excel with a formula in a column nobody reads",
              lambda t: xlsx(_added(t, "note", lambda n: '=WEBSERVICE("http://x.invalid")')), suffix=".xlsx"),
    # refused
    TableKind("no byte", lambda t: b"", "empty table"),
    TableKind("header alone", lambda t: lines(t[:1]).encode(), "no rows"),
    TableKind("a column is missing", lambda t: lines([row[:3] for row in t]).encode(), "expected the columns"),
    TableKind("a row twice", lambda t: lines([*t, t[1]]).encode(), "stands in row"),
    TableKind("a path that climbs", lambda t: lines(_with(t, 1, "image", "../secret.png")).encode(), "outside"),
    TableKind("a mask path that climbs", lambda t: lines(_with(t, 1, "masks", "a/../../secret.png")).encode(), "outside"),
    TableKind("an absolute path", lambda t: lines(_with(t, 1, "image", "/etc/passwd")).encode(), "outside"),
    TableKind("a path of Windows", lambda t: lines(_with(t, 1, "image", "C:\\x.png")).encode(), "no file"),
    TableKind("a file that is not there", lambda t: lines(_with(t, 1, "image", "none.png")).encode(), "no file"),
    TableKind("a path of 5000 letters", lambda t: lines(_with(t, 1, "image", "x" * 5000)).encode(), "no file"),
    TableKind("a folder as image", lambda t: lines(_with(t, 1, "image", ".")).encode(), "no file"),
    TableKind("a formula as image", lambda t: lines(_with(t, 1, "image", "=cmd|' /C calc'!A0")).encode(), "no file"),
    TableKind("no image", lambda t: lines(_with(t, 1, "image", "")).encode(), "image is empty"),
    TableKind("an unknown label", lambda t: lines(_with(t, 1, "label", "cyst")).encode(), "unknown label"),
    TableKind("a line break in a patient", lambda t: lines(_with(t, 1, "patient_id", "a\nb")).encode(), "control character"),
    TableKind("NUL bytes", lambda t: lines(t).encode().replace(b"benign", b"ben\0gn", 1), "not a text table"),
    TableKind("random bytes", lambda t: np.random.default_rng(0).bytes(3000).replace(b"\0", b"x"), "expected the columns|CSV"),
    TableKind("a cell of 200 kB", lambda t: lines(_with(t, 1, "patient_id", "x" * 200_000)).encode(), "not a CSV table"),
    TableKind("NaN as pixel size", lambda t: lines(_added(t, "pixel_mm", lambda n: "nan")).encode(), "no side of a pixel"),
    TableKind("infinite pixel size", lambda t: lines(_added(t, "pixel_mm", lambda n: "inf")).encode(), "no side of a pixel"),
    TableKind("a split for some rows", lambda t: lines(_added(t, "split", lambda n: "train" if n else "")).encode(), "split is empty"),
    TableKind("an unknown split", lambda t: lines(_added(t, "split", lambda n: "tain")).encode(), "split 'tain'"),
    TableKind("a data set called ../x", lambda t: lines(_added(t, "dataset", lambda n: "../x")).encode(), "is no name"),
    TableKind("a mask format that does not exist", lambda t: lines(_added(t, "mask_format", lambda n: "rgb")).encode(), "mask_format"),
    TableKind("Excel cut short", lambda t: xlsx(t)[:2000], "Excel table", ".xlsx"),
    TableKind("CSV called .xlsx", lambda t: lines(t).encode(), "Excel table", ".xlsx"),
    TableKind("HTML called .xlsx", lambda t: b"<html><table><tr><td>image</td></tr></table></html>", "Excel table", ".xlsx"),
    TableKind("Excel that unpacks to 101 MB", lambda t: xlsx(t, sheet1=_SHEET.format("<!--" + " " * 101_000_000 + "-->")),
              "would unpack to", ".xlsx"),
    TableKind("Excel with a cell in the last row and column", lambda t: xlsx(t, sheet1=_FAR), "more than", ".xlsx"),
    TableKind("Excel with a billion laughs", lambda t: xlsx(t, sheet1=_ENTITIES), "Excel table|expected the columns", ".xlsx"),
    TableKind("Excel that names a file outside", lambda t: xlsx(t, sheet1=_OUTSIDE), "Excel table|expected the columns", ".xlsx"),
    TableKind("Excel whose image names are formulas never computed",
              lambda t: xlsx([t[0], *(['=A1', *row[1:]] for row in t[1:])]), "image is empty", ".xlsx"),
)  # fmt: skip
