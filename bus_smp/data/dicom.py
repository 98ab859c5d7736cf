"""DICOM ultrasound: the B-mode pictures of a file, frame by frame, and the size of their pixels.

A view is one picture: a pane of a frame. Its address is the file's path, where the file holds several with the number
of the frame, and of the pane: ``clip.dcm#12``, ``two-panes.dcm#1.2``. Both count from 1.

The names of tags are those of the standard (PS3.6); ultrasound regions are in PS3.3 C.8.5.5. Nothing about the patient
is read but the id, and that is never shown. The extra ``dicom`` is imported with the first such file.
"""

import contextlib
import importlib.util
import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from bus_smp.data.limits import MAX_FRAMES, check_size, is_pixel_mm
from bus_smp.errors import ImageError
from bus_smp.system.files import open_regular
from bus_smp.text import counted

EXTRA = "pip install 'bus_smp[dicom]'"

# Left, top, right and bottom in pixels; right and bottom are the first that lie outside.
Box = tuple[int, int, int, int]

_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "Modality", "PatientID", "Rows", "Columns", "NumberOfFrames",
    "PhotometricInterpretation", "PixelRepresentation", "BitsStored", "BurnedInAnnotation", "PixelSpacing",
    "ImagerPixelSpacing", "SequenceOfUltrasoundRegions",
)  # fmt: skip

# A capture of a screen: ultrasound, if the user says so by giving it.
_CAPTURES = ("SC", "OT")
_ULTRASOUND = "1.2.840.10008.5.1.4.1.1.6."
_CLIP = "1.2.840.10008.5.1.4.1.1.3."
_DIRECTORY = "1.2.840.10008.1.3.10"
_PHOTOMETRIC = (
    "MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT",
)  # fmt: skip
_VIDEO = range(100, 109)

# RegionSpatialFormat 1 and RegionDataType 1 or 2 are a picture of tissue, the latter with colours of the flow.
_FORMATS = {2: "M-mode", 3: "spectral Doppler", 4: "a waveform", 5: "graphics"}
_TYPES = {1: "tissue", 2: "colour Doppler", 10: "ECG", 13: "a bar of greys", 14: "a bar of colours"}
_TISSUE, _FLOW, _CENTIMETRES = 1, 2, 3

_ADDRESS = re.compile(r"(.+)#([1-9]\d{0,5})(?:\.([1-9]\d?))?", re.DOTALL)


class NotUltrasoundError(ImageError):
    """A DICOM file that holds no ultrasound images."""


@dataclass(frozen=True)
class Pane:
    """A B-mode picture within a frame.

    Attributes:
        box: where it lies in the frame.
        pixel_mm: width and height of a pixel in mm; None where the file does not say it beyond doubt.
        source: where ``pixel_mm`` comes from, or why there is none.
        doppler: it shows colour Doppler.
    """

    box: Box
    pixel_mm: tuple[float, float] | None
    source: str
    doppler: bool = False


@dataclass(frozen=True)
class DicomFile:
    """What a DICOM file holds, by its header.

    Attributes:
        decoder: the library that unpacks the pixels; "" for none.
        width, height: of a frame in pixels.
        frames: 1 for a still image.
        panes: at least one; the whole frame where no region shows tissue.
        regions: a line on each ultrasound region: what it is, and whether it is used.
        notes: what a reader must know.
        uid: SOPInstanceUID.
        patient_id: never to be shown or written.
    """

    modality: str
    syntax: str
    decoder: str
    photometric: str
    width: int
    height: int
    frames: int
    panes: tuple[Pane, ...]
    regions: tuple[str, ...]
    notes: tuple[str, ...]
    uid: str
    patient_id: str = field(repr=False)


@dataclass(frozen=True)
class View:
    """One picture of a file: a pane of a frame, both counted from 1."""

    file: DicomFile
    frame: int
    number: int

    @property
    def pane(self) -> Pane:
        """The pane of this number."""
        return self.file.panes[self.number - 1]

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        left, top, right, bottom = self.pane.box
        return bottom - top, right - left

    def count_outside(self, mask: np.ndarray) -> int:
        """The number of pixels that a mask (H, W) of the whole frame marks outside of all panes; 0 for one of another size."""
        if not self._fits(mask):
            return 0
        outside = mask.copy()
        for pane in self.file.panes:
            left, top, right, bottom = pane.box
            outside[top:bottom, left:right] = 0
        return int(np.count_nonzero(outside))

    def crop(self, mask: np.ndarray) -> np.ndarray:
        """Cut a mask (H, W) that was drawn on the whole frame to the view; one of another size stays as it is."""
        left, top, right, bottom = self.pane.box
        return np.ascontiguousarray(mask[top:bottom, left:right]) if self._fits(mask) else mask

    def _fits(self, mask: np.ndarray) -> bool:
        return mask.shape == (self.file.height, self.file.width)


def is_dicom(source: Path | bytes) -> bool:
    """Whether a file is DICOM by its first bytes: with the preamble of part 10, or a bare data set of group 2 or 8."""
    if isinstance(source, bytes):
        head = source[:132]
    else:
        try:
            with open_regular(split_address(source)[0]) as file:
                head = file.read(132)
        except OSError:
            return False
    group, element = head[:2], head[2:4]
    explicit = head[4:6] in (b"UL", b"CS", b"UI", b"SH", b"DA", b"OB")
    implicit = element in (b"\x00\x00", b"\x05\x00", b"\x08\x00", b"\x16\x00") and head[6:8] == b"\x00\x00"
    return head[128:] == b"DICM" or (group in (b"\x02\x00", b"\x08\x00") and (explicit or implicit))


def split_address(path: Path) -> tuple[Path, int | None, int | None]:
    """Path, frame and pane of an address; a file that has just this name comes first."""
    found = _ADDRESS.fullmatch(path.name) if "#" in path.name and not path.exists() else None
    if found is None:
        return path, None, None
    name, frame, pane = found.groups()
    return path.with_name(name), int(frame), None if pane is None else int(pane)


def read_dicom(source: Path | bytes, name: str = "the image") -> DicomFile:
    """Read the header of a DICOM file.

    Args:
        source: its path, or its bytes.
        name: what errors call it where its bytes are given.

    Raises:
        NotUltrasoundError: if it holds no ultrasound images.
        ImageError: if it is missing, damaged, too large, of a kind that is not read, or the extra is not installed.
    """
    with _opened(source, name) as (file, called, _, _):
        return _read_header(file, called)


def describe_dicom(path: Path) -> dict[str, Any]:
    """What ``read_dicom`` returns as JSON; without anything that points to the patient or the file's origin."""
    found = asdict(read_dicom(path))
    return {name: value for name, value in found.items() if name not in ("uid", "patient_id")}


def list_views(found: DicomFile) -> Iterator[tuple[str, View]]:
    """Each view of a file with what its address adds to the path; nothing where the file holds one."""
    for frame in range(1, found.frames + 1):
        for number in range(1, len(found.panes) + 1):
            pane = f".{number}" if len(found.panes) > 1 else ""
            yield f"#{frame}{pane}" if found.frames > 1 or pane else "", View(found, frame, number)


def read_view(
    source: Path | bytes, frame: int | None = None, pane: int | None = None, name: str = "the image"
) -> tuple[np.ndarray, View]:
    """Read one picture; no other frame is decoded.

    Args:
        source: path or bytes.
        frame, pane: from 1; None: the only one.
        name: what errors call it where its bytes are given.

    Returns:
        uint8 (H, W, 3), RGB, cut to the pane, as a viewer shows it; and which view it is.

    Raises:
        ImageError: as ``read_dicom``; if there is no such view, or several and none is named; if the pixels cannot be
            decoded.
    """
    with _opened(source, name) as (file, called, its_frame, its_pane):
        found = _read_header(file, called)
        frame = _choose(frame or its_frame, found.frames, "frame", f"{called}#1", called)
        pane = _choose(pane or its_pane, len(found.panes), "pane", f"{called}#{frame}.1", called)
        view = View(found, frame, pane)
        try:
            pixels = _decode(file, view)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise many types on damaged bytes
            reason = " ".join(str(error).split()).rpartition("available plugins:")[2] or type(error).__name__
            for words, plain in _PLAIN.items():
                reason = plain if words in reason else reason
            where = f"frame {frame}" if found.frames > 1 else "its pixels"
            raise ImageError(f"{called}: {where} cannot be decoded ({reason.strip()[:150]})") from None
    left, top, right, bottom = view.pane.box
    return np.ascontiguousarray(pixels[top:bottom, left:right]), view


# Words of the decoders -> ours.
_PLAIN = {
    "cannot reshape": "the file is cut short",
    "no pixel data": "the file holds none",
    # of gdcm, where a stream ends early
    "has no attribute 'encode'": "they are damaged or cut short",
}


def _choose(number: int | None, most: int, what: str, example: str, name: str) -> int:
    if number is None and most > 1:
        raise ImageError(f"{name}: holds {most} {what}s; name one, such as {example}")
    if number is not None and number > most:
        raise ImageError(f"{name}: has no {what} {number}, only {most}")
    return number or 1


@contextlib.contextmanager
def _opened(source: Path | bytes, name: str) -> Iterator[tuple[BinaryIO, str, int | None, int | None]]:
    """The open file, what errors call it, and the frame and pane of its address."""
    file: BinaryIO
    frame = pane = None
    if isinstance(source, bytes):
        file = io.BytesIO(source)
    else:
        path, frame, pane = split_address(source)
        name = str(source)
        try:
            file = open_regular(path)
        except OSError as error:
            raise ImageError(f"{name}: cannot be read ({error.strerror or type(error).__name__})") from None
    with file, warnings.catch_warnings():
        # they would show values of tags, such as names
        warnings.simplefilter("ignore")
        yield file, name, frame, pane


def has_extra() -> bool:
    """Whether the extra ``dicom`` is installed."""
    return importlib.util.find_spec("pydicom") is not None


@cache
def _import_pydicom() -> Any:
    try:
        import pydicom
        import pydicom.pixels
    except ImportError:
        raise ImageError(f"reading DICOM needs {EXTRA}") from None
    # its messages would show values of tags, such as names
    pydicom.config.logger.disabled = True
    with contextlib.suppress(ImportError):
        import gdcm

        for silence in (gdcm.Trace.WarningOff, gdcm.Trace.ErrorOff, gdcm.Trace.DebugOff):
            silence()
    return pydicom


def _read_header(file: BinaryIO, name: str) -> DicomFile:
    pydicom = _import_pydicom()
    try:
        found = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=list(_TAGS))
        file.seek(0)
        return _describe(found, name)
    except ImageError:
        raise
    except pydicom.errors.InvalidDicomError:
        raise ImageError(
            f"{name}: is DICOM without the header of a file",
            hint="export it again, as a DICOM file (Part 10)",
        ) from None
    except Exception:  # the reason could show a value, such as a name
        raise ImageError(f"{name}: the header of this DICOM file is damaged or cut short") from None


def _describe(found: Any, name: str) -> DicomFile:
    kind, modality = str(found.get("SOPClassUID", "")), str(found.get("Modality", ""))
    syntax = getattr(found, "file_meta", {}).get("TransferSyntaxUID")
    is_ultrasound = modality == "US" or (not modality and kind.startswith(_ULTRASOUND))
    if not (is_ultrasound or modality in _CAPTURES) or "Rows" not in found:
        if not modality and not str(found.file_meta.get("MediaStorageSOPClassUID", "")) == _DIRECTORY:
            raise ValueError("cut short")
        what = f"modality {modality}" if re.fullmatch("[A-Z]{2,12}", modality) else "no modality"
        what = f"{what}, no image" if "Rows" not in found else what
        raise NotUltrasoundError(f"{name}: is DICOM, but no ultrasound image ({what})")
    if not syntax:
        raise ImageError(
            f"{name}: does not say how its pixels are stored (no transfer syntax)", hint="export it again"
        )
    width, height, frames = int(found.Columns), int(found.Rows), int(found.get("NumberOfFrames") or 1)
    photometric = str(found.get("PhotometricInterpretation", ""))
    check_size(name, width, height)
    if width < 1 or height < 1 or not 1 <= frames <= MAX_FRAMES:
        raise ImageError(f"{name}: declares {counted(frames, 'frame')} of {width}x{height} pixels")
    bits = int(found.get("BitsStored", 8))
    decoder = _choose_decoder(syntax, bits, name)
    if photometric not in _PHOTOMETRIC:
        raise ImageError(
            f"{name}: its colours are stored in a way that is not known (PhotometricInterpretation)",
            hint="export it as RGB or MONOCHROME2",
        )
    if found.get("PixelRepresentation") or not 1 <= bits <= 16:
        raise ImageError(f"{name}: has pixels that ultrasound does not have", hint="export it with 8 bits")
    regions = found.get("SequenceOfUltrasoundRegions") or ()
    panes, lines = find_panes(regions, width, height, _spacing(found))
    notes = [] if is_ultrasound else [f"modality {modality}: a capture, taken for ultrasound"]
    if regions and not any(line.endswith(": used") for line in lines):
        notes.append("no region can be believed: the whole picture is taken")
    if kind.startswith(_CLIP) and "NumberOfFrames" not in found:
        notes.append("does not say how many frames it has: only the first is read")
    if any(pane.doppler for pane in panes):
        notes.append("shows colour Doppler, which the network was not trained on")
    if len(panes) > 1:
        notes.append(f"holds {len(panes)} panes, each a picture of its own")
    if str(found.get("BurnedInAnnotation", "")) != "NO":
        notes.append("names or dates may be burnt into the pixels; look at them before you pass anything on")
    return DicomFile(
        modality, syntax.name, decoder, photometric, width, height, frames, panes, lines, tuple(notes),
        str(found.get("SOPInstanceUID", "")), str(found.get("PatientID", "")),
    )  # fmt: skip


def _choose_decoder(syntax: Any, bits: int, name: str) -> str:
    """The library that unpacks the pixels: Pillow where it can, because it refuses what is cut short."""
    number = re.match(r"1\.2\.840\.10008\.1\.2\.4\.(\d+)", syntax)
    if number and int(number[1]) in _VIDEO:
        raise ImageError(
            f"{name}: holds video ({syntax.name}), which is not read", hint="export its frames as images"
        )
    try:
        decoder = _import_pydicom().pixels.get_decoder(syntax)
    except NotImplementedError:
        decoder = None
    if decoder is None or not decoder.is_available:
        raise ImageError(f"{name}: no decoder for {syntax.name}", hint=f"{EXTRA}, or export it uncompressed")
    plugins = decoder.available_plugins
    return "pillow" if "pillow" in plugins and bits <= 8 else next(iter(plugins), "")


def _spacing(found: Any) -> tuple[float, float, str] | None:
    """Width and height of a pixel in mm and the tag that says so; None where none does, NaN where it is no number."""
    for tag in ("PixelSpacing", "ImagerPixelSpacing"):
        values = found.get(tag)
        if values is None or len(values) != 2:
            continue
        try:
            return float(values[1]), float(values[0]), tag
        except ValueError:
            # some write a decimal comma
            return math.nan, math.nan, tag
    return None


def find_panes(
    regions: Sequence[Any], width: int, height: int, spacing: tuple[float, float, str] | None = None
) -> tuple[tuple[Pane, ...], tuple[str, ...]]:
    """Return the B-mode panes of a frame, and a line on each region.

    A region gives the size of a pixel only if both of its axes are in cm, it lies inside of the frame, the regions of a
    pane agree, and the size is one that breast ultrasound can have. Where one region reaches outside,
    the picture was shrunk or cut after the regions were written, and none of them is believed.

    Args:
        regions: items of SequenceOfUltrasoundRegions.
        spacing: width and height of a pixel in mm and the tag, taken where there are no regions.
    """
    whole = (0, 0, width, height)
    if not regions:
        return (_whole(whole, spacing),), ()
    boxes = [_box(region) for region in regions]
    lines, shown = [], []
    wrong = ""
    for number, (region, box) in enumerate(zip(regions, boxes, strict=True), 1):
        what = _FORMATS.get(region.get("RegionSpatialFormat", 0)) or _TYPES.get(
            region.get("RegionDataType", 0), "unknown"
        )
        place = "no place" if box is None else f"x {box[0]}-{box[2] - 1}, y {box[1]}-{box[3] - 1}"
        line = f"region {number}: {what}, {place}"
        is_picture = region.get("RegionSpatialFormat") == 1 and region.get("RegionDataType") in (
            _TISSUE,
            _FLOW,
        )
        # some write the first pixel that lies outside
        if box is not None and (min(box[:2]) < 0 or box[2] > width + 1 or box[3] > height + 1):
            wrong = (
                wrong
                or f"region {number} reaches to x {box[2] - 1}, y {box[3] - 1} of {width}x{height} pixels"
            )
            lines.append(f"{line}: outside of the picture")
        elif not is_picture or box is None or box[2] - box[0] < 2 or box[3] - box[1] < 2:
            lines.append(f"{line}: not used")
        else:
            shown.append((number, (box[0], box[1], min(box[2], width), min(box[3], height)), region))
            lines.append(f"{line}: used")
    if wrong or not shown:
        lines = [line.replace(": used", ": not used") for line in lines]
        return (Pane(whole, None, wrong or "no region shows tissue"),), tuple(lines)
    return tuple(_pane(group, len(regions)) for group in _overlapping(shown)), tuple(lines)


def _whole(box: Box, spacing: tuple[float, float, str] | None) -> Pane:
    if spacing is None:
        return Pane(box, None, "the file has neither regions nor PixelSpacing")
    across, down, tag = spacing
    if not (is_pixel_mm(across) and is_pixel_mm(down)):
        return Pane(box, None, f"{tag} is no size of a pixel of breast ultrasound")
    return Pane(box, (across, down), tag)


def _box(region: Mapping) -> Box | None:
    """The region's place with both ends included, as the standard has it, made exclusive."""
    names = ("MinX0", "MinY0", "MaxX1", "MaxY1")
    values = [region.get(f"RegionLocation{name}") for name in names]
    places = [int(value) for value in values if value is not None]
    return None if len(places) < 4 else (places[0], places[1], places[2] + 1, places[3] + 1)


_Shown = tuple[int, Box, Any]


def _overlapping(shown: list[_Shown]) -> list[list[_Shown]]:
    """Group regions that show the same place, as a window of colour Doppler in its B-mode picture; the largest first."""
    groups: list[list[_Shown]] = []
    for one in sorted(shown, key=lambda one: -_area(one[1])):
        for group in groups:
            first, box = group[0][1], one[1]
            shared = (
                max(first[0], box[0]),
                max(first[1], box[1]),
                min(first[2], box[2]),
                min(first[3], box[3]),
            )
            if _area(shared) > 0.1 * _area(box):
                group.append(one)
                break
        else:
            groups.append([one])
    return sorted(groups, key=lambda group: group[0][0])


def _area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def _pane(group: list[_Shown], regions: int) -> Pane:
    number, box, _ = group[0]
    doppler = any(region.get("RegionDataType") == _FLOW for _, _, region in group)
    name = f"region {number} of {regions}"
    sizes: list[list[float]] = []
    for k, _, region in group:
        units = [region.get(f"PhysicalUnits{axis}Direction") for axis in "XY"]
        deltas = [abs(float(region.get(f"PhysicalDelta{axis}") or 0)) * 10 for axis in "XY"]
        if units != [_CENTIMETRES, _CENTIMETRES]:
            if sizes:
                # a window of Doppler need not say it again
                continue
            return Pane(box, None, f"region {k} of {regions} has no lengths on both axes", doppler)
        if not all(map(is_pixel_mm, deltas)):
            return Pane(
                box, None, f"the pixels of region {k} of {regions} have no size of breast ultrasound", doppler
            )
        sizes.append(deltas)
    if not all(are_alike(one, other) for size in sizes for one, other in zip(sizes[0], size, strict=True)):
        return Pane(box, None, f"{name} overlaps another one with pixels of another size", doppler)
    return Pane(box, (sizes[0][0], sizes[0][1]), name, doppler)


def are_alike(one: float, other: float) -> bool:
    """Whether two sizes of pixels differ by at most 1 %, so that one stands for both."""
    return abs(one - other) <= 0.01 * max(one, other)


def _decode(file: BinaryIO, view: View) -> np.ndarray:
    """The whole frame as a viewer shows it, uint8 RGB (H, W, 3)."""
    pydicom = _import_pydicom()
    pixels, header, index = pydicom.pixels, pydicom.Dataset(), view.frame - 1
    if view.file.syntax.startswith("Deflated"):
        # pydicom unpacks it only with the whole file
        header = pydicom.dcmread(file)
        values = pixels.pixel_array(header, index=index)
    else:
        values = pixels.pixel_array(file, ds_out=header, index=index, decoding_plugin=view.file.decoder)
    bits, kind = int(header.BitsStored), view.file.photometric
    if kind == "PALETTE COLOR":
        first, entries = int(header.RedPaletteColorLookupTableDescriptor[1]), 1 << bits
        brightest = pixels.apply_color_lut(np.arange(first, entries).astype(values.dtype), header).max()
        values = pixels.apply_color_lut(values, header)[..., :3]
        # some write 8 bits into a table of 16
        bits = 16 if brightest > 255 else 8
    elif kind.startswith("MONOCHROME"):
        if header.get("WindowWidth") and header.get("WindowCenter") is not None:
            values = pixels.apply_windowing(values, header).round().clip(0, (1 << bits) - 1).astype(np.uint32)
        values = np.repeat(values[..., None], 3, axis=2)
    if values.shape != (view.file.height, view.file.width, 3):
        raise ValueError(f"their shape is {values.shape}")
    if bits > 8:
        values = values >> (bits - 8)
    elif bits < 8:
        values = values.astype(np.uint16) * 255 // ((1 << bits) - 1)
    values = values.astype(np.uint8)
    return 255 - values if kind == "MONOCHROME1" else values
