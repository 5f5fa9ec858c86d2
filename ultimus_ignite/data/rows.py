"""Images that need not fit into memory: some of a tensor, some after the other, in any order.

Letters: M images of the tensor, N of them are meant; C, H, W are an image's shape.
"""

import ctypes
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

_PIECE = 16 * 2**20  # values of the pixels, each a byte
_LARGE = 2**30  # bytes; what is smaller is soon in memory by the kernel's own reading ahead


@dataclass(frozen=True, eq=False)
class Rows:
    """Images of a tensor in any order, read when they are used.

    Args:
        images: ``(M, C, H, W)``.
        rows: int64 ``(N,)``, which of them, on the same device.

    Example:
        >>> images = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1)
        >>> some = Rows(images, torch.tensor([5, 0, 2]))
        >>> some.shape, some[1:].flatten().tolist()
        (torch.Size([3, 1, 1, 1]), [0, 2])
        >>> select(some, torch.tensor([2, 0])).flatten().tolist()
        [2, 5]
    """

    images: Tensor
    rows: Tensor

    @property
    def shape(self) -> torch.Size:
        """``(N, C, H, W)``."""
        return torch.Size((len(self), *self.images.shape[1:]))

    @property
    def dtype(self) -> torch.dtype:
        return self.images.dtype

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, part: slice) -> Tensor:
        return select(self.images, self.rows[part])

    def to(self, device: torch.device) -> "Images":
        """These images alone, as a tensor on another device; on the same device, these rows."""
        if device == self.device:
            return self
        moved = torch.empty(self.shape, dtype=self.dtype, device=device)
        start = 0
        for piece in pieces(self):
            moved[start : start + len(piece)] = piece
            start += len(piece)
        return moved


Images: TypeAlias = Tensor | Rows
"""``(N, C, H, W)``; what a tensor and rows of one have in common is enough to train on."""


def select(images: Images, index: Tensor) -> Tensor:
    """A copy of images in any order: ``(B, C, H, W)`` by int64 ``(B,)``, on the same device."""
    if isinstance(images, Rows):
        return select(images.images, images.rows[index])
    if images.device.type == "cpu" and images.nbytes > _LARGE:
        _read_ahead(images, index)
    return images.index_select(0, index)  # 5 times as fast as images[index]


def _read_ahead(images: Tensor, index: Tensor) -> None:
    """Have the kernel read images of a mapped file from the disk, all at a time.

    Otherwise the first touch of each would wait for the disk, and read megabytes around it.
    """
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    size = images[0].nbytes
    for row in index.tolist():
        start = images.data_ptr() + row * size
        page = start // mmap.PAGESIZE * mmap.PAGESIZE
        madvise(page, start + size - page, mmap.MADV_WILLNEED)  # fails for what is in memory


def pieces(images: Images) -> Iterator[Tensor]:
    """All images, or labels, in order: in tensors of at most 16 million values, or of one image.

    Example:
        >>> images = torch.zeros(20_000, 3, 32, 32, dtype=torch.uint8)
        >>> [len(piece) for piece in pieces(images)]
        [5461, 5461, 5461, 3617]
    """
    count = max(1, _PIECE // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), count):
        yield images[start : start + count]
