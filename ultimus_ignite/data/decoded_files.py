"""Decoded images on disk; a process that is killed loses those of the last seconds only.

N: number of files. S: side of their images.
"""

import os
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from ultimus_ignite.data.marks import MARK_SIZE, Bytes, digest_of

_INTERVAL = 5.0  # seconds of work that a kill may lose


class DecodedFiles:
    """The images of a list of files, on disk as they are decoded.

    ``NAME.pixels`` has a row for each file, and ``NAME.marks`` the mark of each row that is there
    and zeros for the others. A mark is written when its pixels are on the disk, so that after a
    kill or a power cut a row with a mark is right. NAME is a hash of all marks: a list that has
    changed has another name.

    Used in a ``with`` block, by one process at a time.

    Args:
        folder: of both files; what is in them is kept.
        marks: uint8 (N, 32), of the files.
        size: S, in pixels.

    Attributes:
        marks: as given.
        present: bool (N,), which images were there when the block began.

    Raises:
        OSError: a file cannot be written; the disk may be full.
    """

    def __init__(self, folder: Path, marks: Bytes, size: int) -> None:
        self.marks = marks
        self._folder, self._size = folder, size
        self._unmarked: list[int] = []  # rows that are stored and perhaps not yet on the disk

    def __enter__(self) -> Self:
        name = name_of(self.marks)
        with ExitStack() as stack:
            self._pixels, self._journal = (
                stack.enter_context(_open(path)) for path in _paths(self._folder, name)
            )
            saved = read_marks(self._folder, name, self._size)[: len(self.marks)]
            self.present = np.zeros(len(self.marks), dtype=bool)
            self.present[: len(saved)] = (saved == self.marks[: len(saved)]).all(axis=1)
            # Before the pixels get their full length: no mark may stand for a row that was lost.
            self._journal.write((self.marks * self.present[:, None]).tobytes())
            _sync(self._journal)
            self._pixels.truncate(len(self.marks) * _row_size(self._size))
            _sync_folder(self._folder)
            self._due = time.monotonic() + _INTERVAL
            self._files = stack.pop_all()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._files:
            self._save()

    def store(self, row: int, pixels: Bytes) -> None:
        """Write the image of a file, uint8 (3, S, S)."""
        self._pixels.seek(row * pixels.size)
        self._pixels.write(pixels.tobytes())
        self._unmarked.append(row)
        if time.monotonic() >= self._due:
            self._save()

    def _save(self) -> None:
        _sync(self._pixels)
        for row in self._unmarked:
            self._journal.seek(row * MARK_SIZE)
            self._journal.write(self.marks[row].tobytes())
        _sync(self._journal)
        self._unmarked.clear()
        self._due = time.monotonic() + _INTERVAL


def name_of(marks: Bytes) -> str:
    """The name of the files that hold the images with these marks."""
    return digest_of(marks)[:16]


def read_marks(folder: Path, name: str, size: int) -> Bytes:
    """The marks of all rows that the pixels have, zeros where no image is.

    Raises:
        OSError: a file is missing or cannot be read.
    """
    pixels, marks = _paths(folder, name)
    rows = pixels.stat().st_size // _row_size(size)
    saved = np.frombuffer(marks.read_bytes(), np.uint8)
    return saved[: len(saved) // MARK_SIZE * MARK_SIZE].reshape(-1, MARK_SIZE)[:rows]


def map_pixels(folder: Path, name: str, count: int, size: int) -> Tensor:
    """The first rows of pixels, as a read-only map of the file.

    Torch knows no read-only tensors, so that a process that writes to this one ends (SIGSEGV). A
    private map, which can be written, would count as memory that the process needs.

    Args:
        folder: of the file.
        name: of the file, see `name_of`.
        count: N, the number of rows.
        size: S, in pixels.

    Returns:
        uint8 (N, 3, S, S).

    Raises:
        OSError: the file is missing or cannot be read.
        ValueError: it has fewer rows.
    """
    shape = (count, 3, size, size)
    if not count:  # what is empty cannot be mapped
        return torch.empty(shape, dtype=torch.uint8)
    array = np.memmap(_paths(folder, name)[0], np.uint8, mode="r", shape=shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
        return torch.from_numpy(array)


def names_in(folder: Path) -> Iterator[str]:
    """The names of all decoded files in a folder."""
    return (path.stem for path in sorted(folder.glob("*.marks")))


def remove(folder: Path, name: str) -> None:
    """Delete both files, the pixels first; maps of them stay valid."""
    for path in _paths(folder, name):
        path.unlink(missing_ok=True)


def _paths(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.pixels", folder / f"{name}.marks"


def _row_size(size: int) -> int:
    return 3 * size * size  # bytes


def _open(path: Path) -> IO[bytes]:
    path.touch()
    return path.open("r+b")


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
