"""The pixels that a viewer shows of an image file on a white page; those are trained on.

S: side of the wanted square.
"""

import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError, features

from ultimus_ignite.data.colours import in_8_bits, to_srgb

FORMATS = (
    "AVIF", "BLP", "BMP", "CUR", "DCX", "DDS", "DIB", "FITS", "FLI", "FTEX", "GBR", "GIF", "ICNS",
    "ICO", "IM", "IMT", "JPEG", "JPEG2000", "MCIDAS", "MPO", "MSP", "PCD", "PCX", "PIXAR", "PNG",
    "PPM", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM", "XVTHUMB",
)  # fmt: skip
"""What Pillow decodes by itself. EPS is left out: Pillow would run Ghostscript on the file."""

_HEIC = re.compile(rb"....ftyp(hei[cmsx]|hev[cx]|mif1|msf1)", re.DOTALL)
_AVIF = re.compile(rb"....ftypavi[fs]", re.DOTALL)


class UnreadableError(ValueError):
    """Why a file is not a readable image; the message does not name the file."""


def read_pixels(path: str | Path, size: int) -> NDArray[np.uint8]:
    """Read an image as a square, whatever its aspect ratio, by an antialiased bilinear filter.

    A JPEG of more than twice the size is decoded at 1/2, 1/4 or 1/8 of its size, at least twice
    the size wanted; that is many times faster. Pillow's warnings are not silenced here.

    Args:
        path: a file of one of `FORMATS`, or HEIC where pillow-heif is installed.
        size: S, in pixels.

    Returns:
        uint8 (3, S, S), RGB. An opaque RGB image of that size keeps its pixels.

    Raises:
        UnreadableError: it is not an image, is damaged, or too large.

    Example:
        >>> from tempfile import NamedTemporaryFile
        >>> with NamedTemporaryFile(suffix=".png") as file:
        ...     Image.new("LA", (2, 2), (0, 51)).save(file.name)  # black, 20 % opaque
        ...     read_pixels(file.name, 1).tolist()
        [[[204]], [[204]], [[204]]]
    """
    try:
        with Image.open(path, formats=_formats()) as image:
            if min(image.size) >= 4 * size:  # below, no scale would keep enough
                image.draft(None, (2 * size, 2 * size))
            return to_square(image, size)
    except Exception as error:  # Pillow raises many types, also SyntaxError
        raise UnreadableError(_reason(path, error)) from error


def to_square(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """The pixels of an image on white, resized by an antialiased bilinear filter.

    Args:
        image: of any mode; its pixels are loaded.
        size: S, in pixels.

    Returns:
        uint8 (3, S, S), RGB. An opaque RGB image of that size keeps its pixels.
    """
    small = on_white(image).resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(small).transpose(2, 0, 1)


def on_white(image: Image.Image) -> Image.Image:
    """The first frame in mode RGB: upright, in sRGB, and on white where it is transparent.

    Args:
        image: of any mode; its pixels are loaded.

    Returns:
        An image of the same size, or of the transposed size if it was stored on its side.

    Example:
        >>> on_white(Image.new("RGBA", (1, 1), (255, 0, 0, 51))).getpixel((0, 0))
        (255, 204, 204)
    """
    if getattr(image, "default_image", False):  # of an animated PNG, for who cannot animate
        image.seek(1)
    image_format = image.format  # what is derived from it has none
    tile = next(iter(getattr(image, "tile", ())), None)  # what is decoded, and how
    if tile and image.format == "PNG":
        _scale_transparent_colour(image.info, rawmode=tile[3])
    image.load()  # a TIFF turns itself upright here, and forgets its orientation
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith(("I", "F")):
        image = in_8_bits(image)
    if image.mode != "RGB" or image.info.keys() & {"icc_profile", "gamma", "transparency"}:
        image = to_srgb(image)
    if image.mode == "RGBA":
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image).convert("RGB")
    if tile and image_format == "GIF":  # what the first frame does not cover is transparent
        page = Image.new("RGB", image.size, "white")
        page.paste(image.crop(tile[1]), tile[1])
        return page
    return image


def _scale_transparent_colour(info: dict[Any, Any], rawmode: str) -> None:
    """Give a PNG's transparent colour in 8 bits, as its pixels are; Pillow leaves it unscaled."""
    transparent = info.get("transparency")
    if rawmode in ("L;2", "L;4") and isinstance(transparent, int):
        info["transparency"] = transparent * 255 // (2 ** int(rawmode[2]) - 1)
    elif rawmode == "RGB;16B" and isinstance(transparent, tuple):
        info["transparency"] = tuple(level >> 8 for level in transparent)


@cache
def _formats() -> list[str]:
    """Those of `FORMATS` that this Pillow has, in its order, and HEIF with pillow-heif."""
    Image.init()
    try:
        import pillow_heif
    except ImportError:
        return [name for name in Image.ID if name in FORMATS]
    pillow_heif.register_heif_opener()
    return [name for name in Image.ID if name in (*FORMATS, "HEIF")]


def _reason(path: str | Path, error: Exception) -> str:
    """One sentence on why a file could not be read, and what to do."""
    if isinstance(error, Image.DecompressionBombError):
        pixels, limit = (int(number) / 1e6 for number in re.findall(r"\d+", str(error)))
        return f"{pixels:.0f} megapixels, at most {limit:.0f} are read; make it smaller"
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or str(error) or type(error).__name__
    with Path(path).open("rb") as file:
        start = file.read(12)
    if not start:
        return "an empty file"
    if _HEIC.match(start):
        remedy = "" if "HEIF" in _formats() else "pip install pillow-heif, or "
        return f"a HEIC image; {remedy}convert it to JPEG or PNG"
    if _AVIF.match(start):
        remedy = "" if features.check("avif") else "pip install --upgrade pillow, or "
        return f"an AVIF image; {remedy}convert it to JPEG or PNG"
    return "none of the known image formats"
