"""Small pictures as data URIs, so that the page needs no other file.

H, W: height and width in pixels.
"""

import io
from base64 import b64encode

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

LARGEST = 128  # pixels; a page has dozens of pictures
EXACT = 64  # pixels: up to here PNG, which loses nothing; above it JPEG, which is a tenth

COLOUR = (232, 98, 30)  # red, green, blue; seen on white, on black and on grey


def photo(pixels: Tensor) -> str:
    """An image, uint8 (3, H, W).

    Example:
        >>> photo(torch.zeros(3, 2, 2, dtype=torch.uint8))[:22]
        'data:image/png;base64,'
    """
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
    is_small = max(image.size) <= EXACT
    image.thumbnail((LARGEST, LARGEST))
    return _encode(image, "PNG" if is_small else "JPEG")


def matrix(weights: Tensor) -> str:
    """Numbers from 0 on, (H, W), as shades of one colour on any background: the largest is full."""
    shades = (weights / weights.max().clamp_min(1e-12) * 255).round().to(torch.uint8)
    colour = Image.new("RGB", (weights.shape[1], weights.shape[0]), COLOUR)
    colour.putalpha(Image.fromarray(shades.cpu().numpy()))
    return _encode(colour, "PNG")


def overlay(pixels: Tensor, weights: Tensor, marked: tuple[int, int]) -> str:
    """An image in grey, coloured where the weights are large, with a frame around one cell.

    Args:
        pixels: uint8 (3, H, W), H = W.
        weights: (rows, columns) of a grid over the image; the largest has the full colour.
        marked: row and column of the framed cell.
    """
    size = max(1, LARGEST // pixels.shape[-1]) * pixels.shape[-1]
    grey = F.interpolate(pixels[None].float().mean(dim=1, keepdim=True).cpu(), size)[0] * 0.6
    share = F.interpolate((weights / weights.max().clamp_min(1e-12))[None, None], size)[0]
    coloured = grey.lerp(torch.tensor(COLOUR).float().view(3, 1, 1), 0.9 * share)
    (top, bottom), (left, right) = (
        (place * size // count, (place + 1) * size // count)
        for place, count in zip(marked, weights.shape, strict=True)
    )
    frame = torch.zeros(size, size, dtype=torch.bool)
    frame[top:bottom, left:right] = True
    frame[top + 2 : bottom - 2, left + 2 : right - 2] = False
    coloured[:, frame] = 255
    return photo(coloured.round().to(torch.uint8))


def _encode(image: Image.Image, form: str) -> str:
    file = io.BytesIO()
    image.save(file, form, optimize=True, quality=85)
    return f"data:image/{form.lower()};base64,{b64encode(file.getvalue()).decode()}"
