"""What an ultrasound image can be; a file that says otherwise is damaged, hostile or of another kind."""

from bus_smp.errors import ImageError

# A declared size above these is a damaged or hostile header.
MAX_PIXELS = 64_000_000
MAX_SIDE = 32_767

# Three minutes of 50 frames a second.
MAX_FRAMES = 9_000

# The side of a pixel in mm that breast ultrasound can have.
LEAST_PIXEL_MM, MOST_PIXEL_MM = 0.02, 0.5


def check_size(name: object, width: int, height: int) -> None:
    """Refuse a picture that is too large to be decoded.

    Raises:
        ImageError: naming the file.
    """
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise ImageError(f"{name}: {width}x{height} pixels is more than an ultrasound image has")


def is_pixel_mm(text: str | float) -> bool:
    """Whether this can be the side of a pixel in mm.

    An image shows 2 to 10 cm on some hundred pixels, so another number has another unit.
    """
    try:
        return LEAST_PIXEL_MM <= float(text) <= MOST_PIXEL_MM
    except ValueError:
        return False
