"""Image and mask files as arrays, and how they are resized; where they lie on the network's grid is in ``geometry``."""

import hashlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from bus_smp.classes import BENIGN, CLASSES, LABELS, MALIGNANT
from bus_smp.data.dicom import View, is_dicom, read_dicom, read_view
from bus_smp.data.limits import check_size
from bus_smp.data.png import lacks_lines
from bus_smp.errors import ConfigError, ImageError
from bus_smp.system.files import open_regular, replacing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
# The first three are how masks should be. The others are read only where the user says so, by an option of
# make-manifest: see ``read_mask``.
MASK_FORMATS = (
    "binary", "color", "index", "any", "half", "alpha", "filled",
    "swapped-color", "swapped-index", "inverted-any", "inverted-half", "inverted-alpha",
)  # fmt: skip

# What is decoded, whatever a file is called. Pillow knows more, of which some starts other programs (EPS).
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")

# Lines of an image that are converted at once.
_BAND = 1024

# What EXIF's orientations demand of an array (H, W, ...), so that it is shown upright.
_TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda a: a[::-1, ::-1],
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(a[::-1, ::-1], 0, 1),
    8: lambda a: np.rot90(a),
}
_ORIENTATION = "EXIF orientation that was undone"

# Larger blocks than the C library keeps for later: the memory of a large picture goes back to the system.
Image.core.set_block_size(64 << 20)  # type: ignore[attr-defined]

# cv2 would start a pool of threads per process, which would compete with the loader's workers.
cv2.setNumThreads(1)


def _open(path: Path, data: bytes | None = None) -> Image.Image:
    """Decode a file fully, so that a truncated one fails here; undo its EXIF rotation.

    ``data``: the file's bytes, where they are in memory; ``path`` is then only its name in errors.
    """
    try:
        # Not by its name: Pillow would map the file, and a file cut short meanwhile would end the process.
        with (
            open_regular(path) if data is None else io.BytesIO(data) as file,
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # the size is judged below, by our own limit
            return _decode(path, file)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(
            f"{path}: no such file", hint="is the data set in the folder that the manifest records?"
        ) from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read it") from None
    except Exception as error:  # Pillow's decoders raise many types on damaged bytes
        raise ImageError(f"{path}: cannot be read as an image ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """An error's text on one line, without the address of an object, which differs from run to run."""
    if isinstance(error, UnidentifiedImageError):
        return f"it is no {', '.join(FORMATS)} or DICOM file"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:200]


def _decode(path: Path, file: BinaryIO) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    check_size(path, width, height)
    # A JPEG with several pictures is a photograph with its previews (MPO); the first is the photograph.
    if image.format != "MPO" and getattr(image, "is_animated", False):
        raise ImageError(
            f"{path}: holds several pictures (an animation, a clip or pages)",
            hint="save the one that is meant as a file of its own",
        )
    is_png = image.format == "PNG"
    if is_png:
        _verify_png(path, image, file)
        # An image that was verified has to be opened again.
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
    image.load()
    last_line = image.crop((0, height - 1, width, height))
    if is_png and last_line.getbbox(alpha_only=False) is None and lacks_lines(file):
        raise ImageError(f"{path}: is cut short: lines are missing")
    if image.mode in ("LAB", "HSV"):  # some versions of Pillow convert them, and not alike
        raise ImageError(f"{path}: colours are stored as {image.mode}; save it as RGB or grey")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    ImageOps.exif_transpose(image, in_place=True)
    image.info[_ORIENTATION] = orientation if orientation in _TURNS else 1
    return image


def _verify_png(path: Path, image: Image.Image, file: BinaryIO) -> None:
    """Check all chunks; decoding skips the checksums of pixels and fills up with black what is missing."""
    if not getattr(image, "tile", True):
        raise ImageError(f"{path}: is a PNG without pixels")
    try:
        image.verify()
        # Pillow stops before the checksum of the last chunk.
        whole = len(file.read(4)) == 4
    except (OSError, SyntaxError, ValueError):
        whole = False
    if not whole:
        raise ImageError(
            f"{path}: is damaged or cut short: a checksum is wrong, or the end of the PNG is missing"
        )


def _eight_bit(image: Image.Image, path: Path) -> Image.Image:
    """Bring 16-bit and 1-bit images to 8 bits; refuse floats, whose range is not known."""
    if image.mode == "1":
        return image.convert("L")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        least, most = int(values.min()), int(values.max())
        if least < 0 or most > 65535:
            raise ImageError(f"{path}: values {least}..{most} fit neither 8 nor 16 bits")
        # 10-, 12- and 14-bit scans come in 16-bit files: taken for 16 bits they would be nearly black
        bits = next(bits for bits in (8, 10, 12, 14, 16) if most < 1 << bits)
        # in place: three copies of a large scan would be a gigabyte
        scaled = values.astype(np.uint32)
        scaled *= 255
        scaled //= (1 << bits) - 1
        return Image.fromarray(scaled.astype(np.uint8))
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point pixels have no fixed range; save it with 8 bits")
    return image


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    try:
        # Pillow warns where a palette holds several transparent colours, unless it may keep the transparency.
        image = image.convert("RGBA") if "transparency" in image.info and image.mode == "P" else image
        return image.convert("RGB")
    except ValueError:
        raise ImageError(f"{path}: colours are stored as {image.mode}; save it as RGB or grey") from None


def read_image(source: str | Path | bytes, name: str = "the image") -> np.ndarray:
    """Read an image file.

    Args:
        source: its path, or its bytes. A frame of a DICOM clip is ``clip.dcm#12``, a pane of a frame
            ``clip.dcm#12.2``, both counted from 1.
        name: what errors call the file where its bytes are given.

    Returns:
        uint8 array (H, W, 3), RGB, turned as its EXIF demands. Alpha is dropped, grey is repeated. More than 8 bits
        become 8, by the smallest of 10, 12, 14 and 16 bits that holds the brightest pixel. Of DICOM, the B-mode
        picture without what surrounds it (``bus_smp.data.dicom``).

    Raises:
        ImageError: if the file is missing, no file, truncated, damaged, too large, an animation, or of
            floating-point pixels; if it is a DICOM file of several pictures and none is named, or one that
            ``read_view`` refuses.
    """
    return read_picture(source, name).pixels


@dataclass(frozen=True, eq=False)
class Picture:
    """An image, and what was done to the file's pixels on the way, because masks may be drawn on these.

    Attributes:
        pixels: as ``read_image`` returns them.
        orientation: the EXIF orientation that was undone: 2 to 8, and 1 for none.
        view: of a DICOM file, the part that is shown.
    """

    pixels: np.ndarray
    orientation: int = 1
    view: View | None = None


def read_picture(source: str | Path | bytes, name: str = "the image") -> Picture:
    """Read an image file as ``read_image`` does."""
    path, data = (Path(name), source) if isinstance(source, bytes) else (Path(source), None)
    if is_dicom(path if data is None else data):
        shown, view = read_view(path if data is None else data, name=name)
        return Picture(shown, view=view)
    image = _open(path, data)
    orientation = image.info[_ORIENTATION]
    image = _eight_bit(image, path)
    if image.mode == "P":
        # alpha is dropped; Pillow would warn of it
        image.info.pop("transparency", None)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    # in bands: a whole copy in each mode on the way costs a gigabyte for the largest picture
    for top in range(0, image.height, _BAND):
        band = image.crop((0, top, image.width, min(top + _BAND, image.height)))
        pixels[top : top + _BAND] = np.asarray(_rgb(band, path))
    return Picture(pixels, orientation)


def turn(mask: np.ndarray, orientation: int) -> np.ndarray:
    """Turn a mask (H, W) that was drawn on the stored pixels as EXIF's orientation 1 to 8 turns its image."""
    return np.ascontiguousarray(_TURNS[orientation](mask)) if orientation in _TURNS else mask


def read_alpha(path: Path) -> np.ndarray | None:
    """Opacity of the pixels, uint8 (H, W), 255 for opaque; None for an image without transparency."""
    return _opacity(_open(path), path)


def check_image(image: object) -> np.ndarray:
    """Return an array that a user gives as an image: uint8 (H, W, 3), RGB.

    Grey (H, W) or (H, W, 1) is repeated, the alpha of (H, W, 4) is dropped, as ``read_image`` does with files.

    Raises:
        ConfigError: if it is anything else; the hint says how to convert it.
    """
    if not isinstance(image, np.ndarray):
        found, hint = type(image).__name__, "name a file, or convert it with numpy.asarray(image)"
    else:
        found = f"{image.dtype} {image.shape}"
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.dtype == bool:
            hint = "bool is a mask; an image has the grey values or colours of the scan"
        elif image.dtype.kind == "f":
            hint = "if its values are in 0..1: (image * 255).round().astype('uint8')"
        elif image.dtype != np.uint8:
            hint = "bring its values to 0..255: (image / image.max() * 255).round().astype('uint8')"
        elif image.ndim == 4:
            hint = "several images are a list: predict(list(images))"
        elif image.ndim == 3 and image.shape[0] in (1, 3, 4) and channels not in (1, 3, 4):
            hint = "the channels come last: image.transpose(1, 2, 0)"
        elif image.ndim not in (2, 3) or channels not in (1, 3, 4) or image.size == 0:
            hint = "read files with bus_smp.read_image(path), or give predict the path"
        elif image.ndim == 2 or channels == 1:
            return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        else:
            return image[..., :3]
    raise ConfigError(
        f"an image must be an array of uint8, RGB (H, W, 3) or grey (H, W), not {found}", hint=hint
    )


def declared_pixels(path: Path) -> int:
    """Number of pixels by the header of a file that ``read_image`` reads, whatever it is called; 0 for any other."""
    try:
        if is_dicom(path):
            found = read_dicom(path)
            return found.width * found.height
        with open_regular(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(file, formats=FORMATS).size
    except Exception:  # Pillow's decoders raise many types
        return 0
    return width * height


def looks_like_mask(image: np.ndarray, named: bool) -> bool:
    """Whether a picture, uint8 (H, W, 3), is a mask rather than a scan: it has hardly more than three colours.

    Of BUS-UCLM and BUSI, the three most frequent colours or the nearly black and white pixels together cover at most
    .58 of a scan and at least .98 of a mask, also of one saved as JPEG.

    Args:
        named: its name or folder is that of a mask; then soft edges are accepted too.
    """
    step = max(1, math.isqrt(image.shape[0] * image.shape[1] // 40_000))
    sample = image[::step, ::step].reshape(-1, 3).astype(np.uint32)
    extreme = float(((sample <= 24) | (sample >= 231)).all(axis=1).mean())
    codes = sample @ np.array([65536, 256, 1], np.uint32)
    counts = np.sort(np.unique(codes, return_counts=True)[1])
    return max(extreme, float(counts[-3:].sum() / len(codes))) >= (0.85 if named else 0.95)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, decoded as ``read_image`` would (so it fails where that fails)."""
    return _open(path).size


def read_mask(
    paths: Sequence[Path], mask_format: str, label: str, shape: tuple[int, int] | None = None
) -> np.ndarray:
    """Read the masks of one image and lay them over each other.

    Args:
        paths: zero or more mask files; several are OR-ed, malignant over benign.
        mask_format: ``binary`` (0 and one other value; the lesion has the image's label),
            ``color`` (black, green benign, red malignant) or ``index`` (0, 1, 2). Where the user says so:
            ``any`` (all that is not 0 is the lesion), ``half`` (each channel counts from 128 on, so soft edges
            and what JPEG adds disappear; white has the image's label), ``alpha`` (the lesion is what is at least
            half opaque), ``filled`` (as ``any``, with what it encloses), ``swapped-color`` and ``swapped-index`` (benign and malignant exchanged),
            ``inverted-any``, ``inverted-half`` and ``inverted-alpha`` (the lesion is what these do not mark).
        label: the image's label; gives the class of a mask that has no classes.
        shape: (H, W) of the image; needed where ``paths`` is empty, checked where it is not.

    Returns:
        uint8 array (H, W) of class indices 0 background, 1 benign, 2 malignant.

    Raises:
        ImageError: on an unreadable file, another size than ``shape``, or a value that the
            format does not list (the file and the value are named).
    """
    if not paths:
        if shape is None:
            raise ValueError("shape is needed where there is no mask file")
        return np.zeros(shape, np.uint8)
    combined: np.ndarray | None = None
    for path in paths:
        mask = _read_one_mask(path, mask_format, label)
        if shape is not None and mask.shape != tuple(shape):
            raise ImageError(
                f"{path}: mask is {mask.shape[1]}x{mask.shape[0]}, its image is {shape[1]}x{shape[0]}",
                hint="make the manifest again with --on-mismatch exclude (or resize)",
            )
        if combined is not None and mask.shape != combined.shape:
            raise ImageError(f"{path}: size differs from the other masks of the same image")
        combined = mask if combined is None else np.maximum(combined, mask)
    assert combined is not None
    return combined


def _read_one_mask(path: Path, mask_format: str, label: str) -> np.ndarray:
    if mask_format not in MASK_FORMATS:
        raise ValueError(f"mask_format {mask_format!r} is none of {MASK_FORMATS}")
    change, _, base = mask_format.rpartition("-")
    image = _open(path)
    opacity = _opacity(image, path)
    if base in _CLASSES_OF:
        mask = _CLASSES_OF[base](image, path)
        mask = np.array([0, MALIGNANT.index, BENIGN.index], np.uint8)[mask] if change == "swapped" else mask
        return _seen(mask, opacity, path)
    if base != "alpha":
        marked = _LESION_OF[base](image, path)
    elif opacity is None:
        raise ImageError(f"{path}: has no transparency that could hold the lesion")
    else:
        marked, opacity = (opacity >= 128).astype(np.uint8) * 3, None
    if change == "inverted":
        marked, opacity = np.where(marked, 0, 3), None
    # 3: a lesion of the class that the label names
    marks = int((marked == 3).sum())
    if label == "normal" and marks:
        raise ImageError(f"{path}: marks {marks} pixels, but its image is labelled normal")
    mask = np.array([0, BENIGN.index, MALIGNANT.index, LABELS.index(label)], np.uint8)[marked]
    return _seen(mask, opacity, path)


def _rgb_array(image: Image.Image, path: Path) -> np.ndarray:
    """uint8 (H, W, 3), or (H, W, 1) of a grey image, so that it is looked at once and not three times."""
    image = _eight_bit(image, path)
    return np.array(image)[..., None] if image.mode == "L" else np.array(_rgb(image, path))


def _read_index(image: Image.Image, path: Path) -> np.ndarray:
    values = _indices(image, path)
    wrong = values[(values < 0) | (values >= len(CLASSES))]
    if wrong.size:
        raise ImageError(f"{path}: class index {wrong.flat[0]} in mask; expected 0, 1 or 2")
    return values.astype(np.uint8)


def _read_colours(image: Image.Image, path: Path) -> np.ndarray:
    rgb = _rgb_array(image, path)
    rgb = np.broadcast_to(rgb, (*rgb.shape[:2], 3))
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    mask = np.zeros(rgb.shape[:2], np.uint8)
    mask[(green == 255) & (red == 0) & (blue == 0)] = BENIGN.index
    mask[(red == 255) & (green == 0) & (blue == 0)] = MALIGNANT.index
    stray = (mask == 0) & rgb.any(axis=2)
    if stray.any():
        colour = tuple(int(v) for v in rgb[stray][0])
        raise ImageError(
            f"{path}: colour {colour} in {int(stray.sum())} pixels of the mask; "
            f"expected black, (0, 255, 0) benign or (255, 0, 0) malignant{_lossy(path)}"
        )
    return mask


def _read_binary(image: Image.Image, path: Path) -> np.ndarray:
    rgb = _rgb_array(image, path)
    values = np.flatnonzero(np.bincount(rgb.reshape(-1), minlength=256))
    grey = bool((rgb == rgb[..., :1]).all())
    if not grey or not (set(values.tolist()) <= {0, 255} or set(values.tolist()) <= {0, 1}):
        found = ", ".join(str(v) for v in values[:6])
        raise ImageError(
            f"{path}: values {found} in a binary mask; expected 0 and 255 (or 0 and 1){_lossy(path)}"
        )
    return (rgb[..., 0] > 0).astype(np.uint8) * 3


def _read_any(image: Image.Image, path: Path) -> np.ndarray:
    values = np.array(image)[..., None] if image.mode.startswith("I") else _rgb_array(image, path)
    marked: np.ndarray = np.any(values, axis=2)
    return marked * np.uint8(3)


def _read_filled(image: Image.Image, path: Path) -> np.ndarray:
    return fill_holes(_read_any(image, path) > 0) * np.uint8(3)


def fill_holes(lesion: np.ndarray) -> np.ndarray:
    """bool (H, W): ``lesion``, bool (H, W), and what it encloses."""
    outlines, _ = cv2.findContours(lesion.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = np.zeros(lesion.shape, np.uint8)
    return cv2.drawContours(filled, outlines, -1, 1, cv2.FILLED).astype(bool)


def _read_half(image: Image.Image, path: Path) -> np.ndarray:
    rgb = _rgb_array(image, path)
    if int(rgb.max()) <= 1 and not is_lossy(path):
        return _read_binary(image, path)
    if 64 <= (brightest := int(rgb.max())) < 192:
        raise ImageError(f"{path}: the brightest value of the mask is {brightest}, neither black nor white")
    bright = np.broadcast_to(rgb >= 128, (*rgb.shape[:2], 3))
    # red, green and blue as the bits 4, 2 and 1
    which = bright @ np.array([4, 2, 1], np.uint8)
    marked = np.array([0, 9, BENIGN.index, 9, MALIGNANT.index, 9, 9, 3], np.uint8)[which]
    if (marked == 9).any():
        colour = tuple(int(v) for v in rgb[marked == 9][0])
        raise ImageError(
            f"{path}: colour {colour} in {int((marked == 9).sum())} pixels of the mask is neither white, red nor green"
        )
    return marked


# How the pixels of a format become class indices; or 0, the class indices and 3 for a lesion without a class.
_CLASSES_OF = {"index": _read_index, "color": _read_colours}
_LESION_OF = {"binary": _read_binary, "any": _read_any, "filled": _read_filled, "half": _read_half}


def _indices(image: Image.Image, path: Path) -> np.ndarray:
    """The numbers in an index mask, as they are stored: neither scaled to 8 bits nor looked up in a palette."""
    if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
        return np.array(image)
    rgb = np.array(_rgb(image, path))
    if image.mode in ("F", "CMYK", "YCbCr", "HSV") or (rgb != rgb[..., :1]).any():
        raise ImageError(f"{path}: is coloured; a mask of class indices has one grey channel of 0, 1 and 2")
    return rgb[..., 0]


def _opacity(image: Image.Image, path: Path) -> np.ndarray | None:
    if not image.has_transparency_data:
        return None
    try:
        return np.array(image.convert("RGBA").getchannel("A"))
    except ValueError:
        raise ImageError(f"{path}: transparency in {image.mode} pixels; save it as grey or RGB") from None


def _seen(mask: np.ndarray, opacity: np.ndarray | None, path: Path) -> np.ndarray:
    """Refuse a mask that marks what a viewer does not show: its lesion may be in the transparency instead."""
    if opacity is not None and (hidden := int((mask[opacity == 0] > 0).sum())):
        raise ImageError(
            f"{path}: marks {hidden} pixels that are transparent; "
            "save the mask without transparency, the lesion white or coloured on black"
        )
    return mask


def is_lossy(path: Path) -> bool:
    """Whether a file of this name holds colours that its mask did not have."""
    return path.suffix.lower() in (".jpg", ".jpeg", ".jfif", ".webp")


def _lossy(path: Path) -> str:
    return "; JPEG changes colours, masks need PNG" if is_lossy(path) else ""


def pixel_sha256(image: np.ndarray) -> str:
    """Hash of decoded pixels and size, so that the same picture in two files or formats agrees."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


# To which size, and where on the network's grid, ``geometry`` knows.


def resize_image(image: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Stretch uint8 (H, W, 3) to a square or (height, width); area averaging when shrinking, so speckle does not alias."""
    height, width = (size, size) if isinstance(size, int) else size
    shrink = max(image.shape[:2]) > max(height, width)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Stretch uint8 class indices (H, W) to a square or (height, width); nearest, so no class is invented."""
    height, width = (size, size) if isinstance(size, int) else size
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def restore_probabilities(probabilities: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Stretch float32 (C, h, w) back to (C, H, W) of ``shape``; bilinear keeps the sum over C at 1."""
    height, width = shape
    restored = np.empty((len(probabilities), height, width), np.float32)
    # class by class: ten times faster than interleaved, and to the same bits
    for plane, whole in zip(probabilities, restored, strict=True):
        cv2.resize(plane, (width, height), dst=whole, interpolation=cv2.INTER_LINEAR)
    return restored


def restore_in_bands(probabilities: np.ndarray, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    """``restore_probabilities`` some lines at a time, from the top: float32 (C, lines, W); the last bits may differ."""
    height, width = shape
    lines = probabilities.shape[1]
    wide = restore_probabilities(probabilities, (lines, width))
    # between which lines each line of the image is, as OpenCV has it: the centres of the pixels fit
    position = np.clip((np.arange(height) + 0.5) * (lines / height) - 0.5, 0, lines - 1)
    above = position.astype(np.intp)
    below = np.minimum(above + 1, lines - 1)
    share = (position - above).astype(np.float32)[:, None]
    for start in range(0, height, 256):
        part = np.s_[start : start + 256]
        yield wide[:, above[part]] * (1 - share[part]) + wide[:, below[part]] * share[part]


def color_mask(mask: np.ndarray) -> np.ndarray:
    """Class indices uint8 (H, W) as an RGB picture uint8 (H, W, 3) in the colours of ``CLASSES``."""
    return np.array([c.rgb for c in CLASSES], np.uint8)[mask]


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3) as PNG, all or nothing; carries no metadata of the source image."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert encoded, "OpenCV encodes every uint8 RGB array"
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(data.data)


def write_mask(path: Path, mask: np.ndarray, durable: bool = False) -> None:
    """Write class indices uint8 (H, W) as a PNG in the colours of ``CLASSES``, all or nothing.

    A palette PNG: every viewer shows the colours of ``color_mask``, in a twentieth of the time and size. ``durable`` as for
    ``replacing``.
    """
    image = Image.fromarray(mask).convert("P")
    image.putpalette([value for c in CLASSES for value in c.rgb])
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    with replacing(path, durable=durable) as temporary:
        temporary.write_bytes(data.getbuffer())
