"""Colours as a screen shows them: 8 bits per channel, in sRGB."""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

Transform = ImageCms.ImageCmsTransform

_COLOURS = {"RGBA": "RGB", "LA": "L"}  # the mode without its transparency
_SRGB_GAMMA = 1 / 2.2


def in_8_bits(image: Image.Image) -> Image.Image:
    """Scale greys of more than 8 bits to mode L, or LA if one of them is transparent.

    16 bits are scaled by their range, also when they are stored in 32 bits or as floats; other
    numbers from their smallest to their largest, and floats in [0, 1] by that range.
    """
    values: NDArray[Any] = np.asarray(image).astype(np.float32)
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if image.mode != "F" and 0 <= low <= high <= 65535:
        low, high = 0.0, 65535.0
    elif image.mode == "F" and 0 <= low <= high <= 1:
        low, high = 0.0, 1.0
    scaled = (values.clip(low, high) - low) / (high - low or 1.0) * 255
    grey = Image.fromarray(np.rint(np.nan_to_num(scaled)).astype(np.uint8))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert to mode RGB, or RGBA if some of it is transparent.

    An embedded colour profile is honoured, as is the gamma of a PNG. A profile that is damaged or
    meant for another mode is passed over, as browsers do.
    """
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no other way out of La
    if image.mode in ("P", "PA", "1", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    colours = image.convert(_COLOURS.get(image.mode, image.mode))
    profile = image.info.get("icc_profile", b"")
    transform = _transform(profile, colours.mode)
    if transform:
        rgb = ImageCms.applyTransform(colours, transform)
        assert rgb is not None
    else:
        rgb = colours.convert("RGB")
        if "gamma" in image.info and "srgb" not in image.info and not profile:
            rgb = rgb.point(_gamma_table(image.info["gamma"]) * 3)
    if image.mode in _COLOURS:
        rgb.putalpha(image.getchannel("A"))
    return rgb


@lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> Transform | None:
    """From the profile's colours to sRGB; None if that would change nothing that can be seen."""
    if not profile and mode != "LAB":
        return None
    srgb = ImageCms.createProfile("sRGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else _lab()
        transform = ImageCms.buildTransform(source, srgb, mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return _transform(b"", mode) if profile else None
    if mode == "RGB":
        levels = np.arange(0, 256, 15, dtype=np.uint8)
        lattice = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(1, -1, 3)
        shown = ImageCms.applyTransform(Image.fromarray(lattice), transform)
        assert shown is not None
        if np.abs(np.asarray(shown, int) - lattice).max() <= 2:  # one of the many sRGB profiles
            return None
    return transform


def _lab() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))


def _gamma_table(gamma: float) -> list[int]:
    """The sRGB level of each stored one."""
    if not gamma > 0 or abs(gamma - _SRGB_GAMMA) < 0.01:
        return list(range(256))
    light = (np.arange(256) / 255) ** (1 / gamma)
    srgb = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    table: list[int] = np.rint(srgb * 255).astype(int).tolist()
    return table
