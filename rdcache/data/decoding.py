"""Image files as upright 8-bit RGB, whatever they were: one rule for each awkward mode.

| stored as                  | becomes                                                     |
| -------------------------- | ----------------------------------------------------------- |
| grey, bilevel, palette     | RGB with the same look                                      |
| 16- or 32-bit grey, float  | scaled from its own minimum and maximum to 0–255, then RGB  |
| alpha channel              | composited on black, the background of medical images       |
| CMYK, YCbCr, LAB, …        | converted to RGB                                            |
| rotated by EXIF            | upright                                                     |
| several frames             | the first                                                   |
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps

# Of Pillow's some forty formats those that images of medicine come in. Others are not even tried:
# EPS starts an interpreter, and rare decoders are the least tested ones. MPO is opened as JPEG.
FORMATS = ("PNG", "JPEG", "JPEG2000", "BMP", "TIFF", "WEBP", "GIF", "PPM")
KNOWN = ", ".join(FORMATS)
VERSION = 1  # of the rules above: images that are kept decoded are not used under other rules
JPEG_TOLERANCE = 32  # between the channels of a grey picture
MAX_PIXELS = 200_000_000
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
ALPHA_MODES = ("RGBA", "LA", "PA", "RGBa", "La")


class UnreadableImageError(ValueError):
    """Why the bytes are no image that can be used; `str()` is the reason."""


def decode_image(data: bytes) -> np.ndarray:
    """Decode an image file.

    Args:
        data: the file's bytes; the format is found from them, not from a file name.

    Returns:
        uint8 (H, W, 3), RGB, upright, C-contiguous.

    Raises:
        UnreadableImageError: no image, damaged, cut short, or too large to be meant.
    """
    return _decoded(data, _to_rgb)


def decode_numbers(data: bytes) -> np.ndarray:
    """Decode a mask file: the numbers as they are written, not the colours they are shown in.

    A file in colour must be grey in fact, which a JPEG may miss by a little; what is transparent is
    0.

    Returns:
        int64 (H, W), upright.

    Raises:
        UnreadableImageError: as `decode_image`; or in colour, or not of whole numbers.
    """
    return _decoded(data, _to_numbers)


def _decoded(data: bytes, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    if not data:
        raise UnreadableImageError("the file is empty")
    try:
        with _quiet(), Image.open(BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableImageError(
                    f"{width}×{height} pixels, more than the {MAX_PIXELS:,} we decode"
                )
            image.load()
            tolerance = JPEG_TOLERANCE if image.format == "JPEG" else 0
            upright = ImageOps.exif_transpose(image)
            upright.info["tolerance"] = tolerance
            return np.ascontiguousarray(convert(upright))
    except UnreadableImageError:
        raise
    except Image.DecompressionBombError:
        raise UnreadableImageError("it declares more pixels than we decode") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError(f"not an image of a known format ({KNOWN})") from None
    except Exception as error:  # damaged bytes make the decoders raise nearly anything
        raise UnreadableImageError(f"damaged or cut short ({error})") from None


_quiet_lock = threading.Lock()
_quiet_threads = 0
_quiet_filters = warnings.catch_warnings()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Pillow's warnings of damaged metadata and large images: we judge both by ourselves.

    Warning filters belong to the whole process. Threads that each save and restore them can leave
    everything silenced for good, so the first one in saves and the last one out restores.
    """
    global _quiet_threads, _quiet_filters
    with _quiet_lock:
        if _quiet_threads == 0:
            _quiet_filters = warnings.catch_warnings()
            _quiet_filters.__enter__()
            warnings.simplefilter("ignore")
        _quiet_threads += 1
    try:
        yield
    finally:
        with _quiet_lock:
            _quiet_threads -= 1
            if _quiet_threads == 0:
                _quiet_filters.__exit__(None, None, None)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in WIDE_MODES:
        grey = np.asarray(image, dtype=np.float64)
        return np.repeat(_stretched(grey)[..., None], 3, axis=2)
    if image.mode in ALPHA_MODES or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.asarray(image.convert("RGB"))


def _to_numbers(image: Image.Image) -> np.ndarray:
    if image.mode in (*WIDE_MODES, "L", "P", "1"):
        numbers = np.asarray(image)
        if not np.array_equal(numbers, np.rint(numbers)):
            raise UnreadableImageError("its numbers are not whole")
        return numbers.astype(np.int64)
    opaque = np.asarray(image.convert("RGBA"))[..., 3] > 0
    colours = np.asarray(image.convert("RGB"))
    if int(np.ptp(colours, axis=2).max(initial=0)) > image.info["tolerance"]:
        raise UnreadableImageError("it is in colour; a mask has one number a pixel")
    grey = colours[..., 0] if not image.info["tolerance"] else np.asarray(image.convert("L"))
    return np.where(opaque, grey, 0).astype(np.int64)


def _stretched(grey: np.ndarray) -> np.ndarray:
    """Scale to 0–255 from the image's own range: a 12-bit scan in 16 bits would be black else."""
    if not np.isfinite(grey).all():
        raise UnreadableImageError("it holds NaN or Inf")
    low, high = grey.min(), grey.max()
    scale = 255.0 / (high - low) if high > low else 0.0
    return np.rint((grey - low) * scale).astype(np.uint8)
