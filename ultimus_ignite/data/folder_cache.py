"""The cache of a folder of images: their pixels in one file, mapped into memory.

N: number of files. M: number of them that are readable images. S: side of the images.
"""

import fcntl
import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ultimus_ignite.data.decoded_files import (
    DecodedFiles,
    map_pixels,
    name_of,
    names_in,
    read_marks,
    remove,
)
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.marks import Bytes, digest_of, find_marks
from ultimus_ignite.data.reuse import decode_changed
from ultimus_ignite.data.scratch import scratch_folder


class Cached(NamedTuple):
    """What a cache has."""

    images: Tensor
    """uint8 (M, 3, S, S), in the order of the files; a read-only map."""
    is_image: NDArray[np.bool_]
    """bool (N,), which files are readable images."""
    measured: dict[str, Any]
    """``mean``, ``std`` and ``sha256`` as in `ImageData`."""


@dataclass(frozen=True)
class FolderCache:
    """The cache of one folder; it is never wrong, only missing or outdated.

    ``index.json`` names the `DecodedFiles` that are complete. Others are of a decoding that was
    killed or refused: their images are not decoded again, and the next complete ones replace them.

    Args:
        folder: of the cache; no other cache is in it.
        image_size: S, in pixels.
    """

    folder: Path
    image_size: int

    def read(self, marks: Bytes) -> Cached | None:
        """What was cached of the files with these marks; None if there is no valid, current cache.

        Args:
            marks: uint8 (N, 32).
        """
        try:
            index = json.loads(self._index.read_bytes())
            name, mean, std = index["name"], tuple(index["mean"]), tuple(index["std"])
            measured = {"mean": mean, "std": std, "sha256": index["sha256"]}
            if index["seal"] != _seal(marks, name, measured):
                return None
            of_images = read_marks(self.folder, name, self.image_size)
            if name != name_of(of_images):  # some were lost, or are being decoded again
                return None
            is_image = np.ones(len(marks), dtype=bool)
            if len(of_images) < len(marks):
                is_image = find_marks(marks, of_images) >= 0
            images = map_pixels(self.folder, name, len(of_images), self.image_size)
            return Cached(images, is_image, measured)
        except (OSError, LookupError, TypeError, ValueError):
            return None

    def build(
        self,
        paths: Sequence[str],
        marks: Bytes,
        measure: Callable[[Tensor, NDArray[np.bool_]], ImageData],
        *,
        skip_unreadable: bool,
    ) -> tuple[ImageData, NDArray[np.bool_]]:
        """Decode what is not known, and replace the cache in one step.

        If another process does so at this moment, or the cache cannot be written, of which there is
        a warning, the pixels are in a file that is gone when this process ends.

        Args:
            paths: N files.
            marks: uint8 (N, 32), of the files.
            measure: from images and ``is_image`` as in `Cached` to the data.
            skip_unreadable: leave out what is not a readable image.

        Returns:
            What ``measure`` returned, and which files are images, bool (N,).

        Raises:
            DataError: a file is not a readable image, or ``measure`` raised it. What was decoded is
                kept.
            OSError: neither the cache nor the folder of temporary files can be written.
        """
        try:
            with self._locked():
                images, is_image = self._decode(self.folder, paths, marks, skip_unreadable)
                data = measure(images, is_image)
                self._commit(marks, is_image, data)
                return data, is_image
        except BlockingIOError:
            elsewhere = self.folder
        except OSError as error:
            self._warn(error)
            elsewhere = Path(gettempdir())
        with scratch_folder(elsewhere) as scratch:
            images, is_image = self._decode(scratch, paths, marks, skip_unreadable)
            return measure(images, is_image), is_image

    def _decode(
        self, folder: Path, paths: Sequence[str], marks: Bytes, skip_unreadable: bool
    ) -> tuple[Tensor, NDArray[np.bool_]]:
        """The images in a file of ``folder``, and which files they are."""
        size = self.image_size
        with DecodedFiles(folder, marks, size) as files:
            is_image = decode_changed(
                paths, size, files, self._known(), skip_unreadable=skip_unreadable
            )
        images = map_pixels(folder, name_of(marks), len(marks), size)
        if is_image.all():
            return images, is_image
        # What is unreadable left gaps: the images move together, in another file.
        of_images = marks[is_image]
        with DecodedFiles(folder, of_images, size) as files:
            readable = [paths[row] for row in np.flatnonzero(is_image).tolist()]
            decode_changed(readable, size, files, [(marks, images)])
        return map_pixels(folder, name_of(of_images), len(of_images), size), is_image

    def _known(self) -> Iterator[tuple[Bytes, Tensor]]:
        """Marks and images of all that was decoded, complete or not, current or not."""
        for name in names_in(self.folder):
            with suppress(OSError, ValueError):  # another process replaced it, or it is damaged
                marks = read_marks(self.folder, name, self.image_size)
                yield marks, map_pixels(self.folder, name, len(marks), self.image_size)

    @property
    def _index(self) -> Path:
        return self.folder / "index.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Make the folder; no other process writes in it. A kill releases the lock.

        The processes of one run wait for each other: the first decodes for all.

        Raises:
            BlockingIOError: another run has locked it.
            OSError: the folder cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as lock:
            waits = "LOCAL_RANK" in os.environ  # set by torchrun and Ignite
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
            yield

    def _commit(self, marks: Bytes, is_image: NDArray[np.bool_], data: ImageData) -> None:
        """Let the index name what was decoded, and remove all else; or warn."""
        name = name_of(marks[is_image])
        measured = {"mean": data.mean, "std": data.std, "sha256": data.sha256}
        index = {"name": name, "seal": _seal(marks, name, measured), **measured}
        temporary = self._index.with_suffix(".tmp")
        try:
            with temporary.open("w") as file:
                json.dump(index, file)
                # Without fsync, a power cut could leave an empty file in place of the old index.
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self._index)
            for other in set(names_in(self.folder)) - {name}:
                remove(self.folder, other)
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        reason = f"{self.folder}: cannot be written ({error.strerror})"
        warnings.warn(f"{reason}; the images will be decoded again next time", stacklevel=4)


def _seal(marks: Bytes, name: str, measured: dict[str, Any]) -> str:
    """A hash that ties an index to the state of its folder, and detects a damaged index."""
    content = json.dumps([digest_of(marks), name, measured], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
