"""Image and mask files as arrays, and the one geometry between native and network size."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from bus_smp.classes import BENIGN, CLASSES, LABELS, MALIGNANT
from bus_smp.data.png import lacks_lines
from bus_smp.errors import ImageError
from bus_smp.system.files import open_regular, replacing

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MASK_FORMATS = ("binary", "color", "index")

# What is decoded, whatever a file is called. Pillow knows more, of which some starts other programs (EPS).
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP")

# A declared size above these is a damaged or hostile header, not an ultrasound image.
MAX_PIXELS = 64_000_000
MAX_SIDE = 32_767

# cv2 would start a pool of threads per process, which would compete with the loader's workers.
cv2.setNumThreads(1)


def _open(path: Path) -> Image.Image:
    """Decode a file fully, so that a truncated one fails here; undo its EXIF rotation."""
    try:
        # Not by its name: Pillow would map the file, and a file cut short meanwhile would end the process.
        with open_regular(path) as file, warnings.catch_warnings():
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
        return f"it is no {', '.join(FORMATS)} file"
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join((text or type(error).__name__).split())[:200]


def _decode(path: Path, file: BinaryIO) -> Image.Image:
    image = Image.open(file, formats=FORMATS)
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(f"{path}: {width}x{height} pixels is more than an ultrasound image has")
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
    return ImageOps.exif_transpose(image)


def _verify_png(path: Path, image: Image.Image, file: BinaryIO) -> None:
    """Check all chunks; decoding skips the checksums of pixels and fills up with black what is missing."""
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
        return Image.fromarray((values.astype(np.uint32) * 255 // ((1 << bits) - 1)).astype(np.uint8))
    if image.mode == "F":
        raise ImageError(f"{path}: floating-point pixels have no fixed range; save it with 8 bits")
    return image


def _rgb(image: Image.Image, path: Path) -> Image.Image:
    try:
        return image.convert("RGB")
    except ValueError:
        raise ImageError(f"{path}: colours are stored as {image.mode}; save it as RGB or grey") from None


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file.

    Returns:
        uint8 array (H, W, 3), RGB, turned as its EXIF demands. Alpha is dropped, grey is repeated. More than 8 bits
        become 8, by the smallest of 10, 12, 14 and 16 bits that holds the brightest pixel.

    Raises:
        ImageError: if the file is missing, no file, truncated, damaged, too large, an animation, or of
            floating-point pixels.
    """
    path = Path(path)
    image = _eight_bit(_open(path), path)
    return np.array(_rgb(image, path))


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
            ``color`` (black, green benign, red malignant) or ``index`` (0, 1, 2).
        label: the image's label; gives the class of a binary mask.
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
    image = _open(path)
    clear = _clear(image, path)
    if mask_format == "index":
        values = _indices(image, path)
        wrong = values[(values < 0) | (values >= len(CLASSES))]
        if wrong.size:
            raise ImageError(f"{path}: class index {wrong.flat[0]} in mask; expected 0, 1 or 2")
        return _seen(values.astype(np.uint8), clear, path)

    image = _eight_bit(image, path)
    # a grey mask is looked at once, not three times
    rgb = np.array(image)[..., None] if image.mode == "L" else np.array(_rgb(image, path))
    if mask_format == "color":
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
        return _seen(mask, clear, path)

    if mask_format == "binary":
        values = np.flatnonzero(np.bincount(rgb.reshape(-1), minlength=256))
        grey = bool((rgb == rgb[..., :1]).all())
        if not grey or not (set(values.tolist()) <= {0, 255} or set(values.tolist()) <= {0, 1}):
            found = ", ".join(str(v) for v in values[:6])
            raise ImageError(
                f"{path}: values {found} in a binary mask; expected 0 and 255 (or 0 and 1){_lossy(path)}"
            )
        lesion = (rgb[..., 0] > 0).astype(np.uint8)
        if label == "normal" and lesion.any():
            raise ImageError(f"{path}: marks {int(lesion.sum())} pixels, but its image is labelled normal")
        return _seen(lesion * LABELS.index(label), clear, path)
    raise ValueError(f"mask_format {mask_format!r} is none of {MASK_FORMATS}")


def _indices(image: Image.Image, path: Path) -> np.ndarray:
    """The numbers in an index mask, as they are stored: neither scaled to 8 bits nor looked up in a palette."""
    if image.mode in ("P", "L", "1") or image.mode.startswith("I"):
        return np.array(image)
    rgb = np.array(_rgb(image, path))
    if image.mode in ("F", "CMYK", "YCbCr", "HSV") or (rgb != rgb[..., :1]).any():
        raise ImageError(f"{path}: is coloured; a mask of class indices has one grey channel of 0, 1 and 2")
    return rgb[..., 0]


def _clear(image: Image.Image, path: Path) -> np.ndarray | None:
    """Where the image is wholly transparent, bool (H, W); None for an image without transparency."""
    if not image.has_transparency_data:
        return None
    try:
        return np.array(image.convert("RGBA").getchannel("A")) == 0
    except ValueError:
        raise ImageError(f"{path}: transparency in {image.mode} pixels; save it as grey or RGB") from None


def _seen(mask: np.ndarray, clear: np.ndarray | None, path: Path) -> np.ndarray:
    """Refuse a mask that marks what a viewer does not show: its lesion may be in the transparency instead."""
    if clear is not None and (mask[clear] > 0).any():
        raise ImageError(
            f"{path}: marks {int((mask[clear] > 0).sum())} pixels that are transparent; "
            "save the mask without transparency, the lesion white or coloured on black"
        )
    return mask


def _lossy(path: Path) -> str:
    return "; JPEG changes colours, masks need PNG" if path.suffix.lower() in (".jpg", ".jpeg") else ""


def pixel_sha256(image: np.ndarray) -> str:
    """Hash of decoded pixels and size, so that the same picture in two files or formats agrees."""
    digest = hashlib.sha256(f"{image.shape[0]}x{image.shape[1]}:".encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


# Geometry: the whole image is stretched to a square, and stretched back at prediction. Nothing is
# cropped, so every native pixel is predicted and every metric is taken at native size.


def resize_image(image: np.ndarray, size: int) -> np.ndarray:
    """Stretch uint8 (H, W, 3) to (size, size, 3); area averaging when shrinking, so speckle does not alias."""
    shrink = max(image.shape[:2]) > size
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR)


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Stretch uint8 class indices (H, W) to (size, size); nearest, so no class is invented."""
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST_EXACT)


def restore_probabilities(probabilities: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Stretch float32 (C, h, w) back to (C, H, W) of ``shape``; bilinear keeps the sum over C at 1."""
    height, width = shape
    restored = np.empty((len(probabilities), height, width), np.float32)
    # class by class: ten times faster than interleaved, and to the same bits
    for plane, whole in zip(probabilities, restored, strict=True):
        cv2.resize(plane, (width, height), dst=whole, interpolation=cv2.INTER_LINEAR)
    return restored


def color_mask(mask: np.ndarray) -> np.ndarray:
    """Class indices uint8 (H, W) as an RGB picture uint8 (H, W, 3) in the colours of ``CLASSES``."""
    return np.array([c.rgb for c in CLASSES], np.uint8)[mask]


def write_png(path: Path, rgb: np.ndarray) -> None:
    """Write RGB uint8 (H, W, 3) as PNG, all or nothing; carries no metadata of the source image."""
    encoded, data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    assert encoded, "OpenCV encodes every uint8 RGB array"
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(data.data)


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write class indices uint8 (H, W) as a PNG in the colours of ``CLASSES``, all or nothing.

    A palette PNG: every viewer shows the colours of ``color_mask``, in a twentieth of the time and size.
    """
    image = Image.fromarray(mask).convert("P")
    image.putpalette([value for c in CLASSES for value in c.rgb])
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(data.getbuffer())
