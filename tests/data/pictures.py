"""Pictures whose every pixel is known, and files of them that Pillow cannot write."""

import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]

SIZE = 32


def blocks(seed: int, *, grey: bool = False, alpha: str = "opaque") -> Pixels:
    """RGBA, uint8 (32, 32, 4): 16 random colours in blocks of 8x8, which JPEG hardly changes.

    ``alpha`` is ``opaque``, ``holes`` (0 or 255) or ``any``.
    """
    generator = np.random.default_rng(seed)
    colours = generator.integers(0, 256, (4, 4, 4), dtype=np.uint8)
    if grey:
        colours[..., 1:3] = colours[..., :1]
    if alpha == "opaque":
        colours[..., 3] = 255
    elif alpha == "holes":
        colours[..., 3] = generator.permutation([0] * 5 + [255] * 11).reshape(4, 4)
        colours[colours[..., 3] == 0, :3] = (1, 1, 1)  # one colour for all that is not shown
    return colours.repeat(8, 0).repeat(8, 1)


def white_page(rgba: Pixels) -> NDArray[np.float64]:
    """What is seen of RGBA pixels on white, (H, W, 3)."""
    share = rgba[..., 3:] / 255
    shown: NDArray[np.float64] = rgba[..., :3] * share + 255 * (1 - share)
    return shown


def write_png(
    path: Path, samples: NDArray[np.int64], depth: int, *, rgb: bool = False, **chunks: bytes
) -> None:
    """A grey or RGB PNG of any depth: ``samples`` is (H, W) or (H, W, 3); chunks by name."""
    height, width = samples.shape[:2]
    flat = samples.reshape(height, -1, 1)
    bits = ((flat >> np.arange(depth)[::-1]) & 1).astype(np.uint8).reshape(height, -1)
    rows = b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)
    header = struct.pack(">IIBBBBB", width, height, depth, 2 if rgb else 0, 0, 0, 0)
    parts = {"IHDR": header, **chunks, "IDAT": zlib.compress(rows), "IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in parts.items():
        tagged = name.encode() + body
        content += struct.pack(">I", len(body)) + tagged + struct.pack(">I", zlib.crc32(tagged))
    path.write_bytes(content)


def palette_image(rgba: Pixels) -> tuple[Image.Image, list[int]]:
    """Mode P with exactly the colours of the picture, and the alpha of each."""
    flat = rgba.reshape(-1, 4)
    colours, indices = np.unique(flat, axis=0, return_inverse=True)
    image = Image.fromarray(indices.reshape(rgba.shape[:2]).astype(np.uint8), "L")
    image.putpalette(colours[:, :3].flatten().tolist())
    return image, colours[:, 3].tolist()
