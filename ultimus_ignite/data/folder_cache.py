"""The cache of a folder of images: its decoded tensors in one file, mapped into memory.

M: number of images; unreadable files that were left out have none. S: side of the images.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.layout import SPLITS
from ultimus_ignite.data.reuse import Bytes
from ultimus_ignite.data.scratch import scratch_folder


@dataclass(frozen=True)
class FolderCache:
    """The cache of one folder; it is never wrong, only missing or outdated.

    Args:
        path: the file.
        image_size: S, in pixels.
    """

    path: Path
    image_size: int

    def read(
        self, fingerprint: str, name: str, classes: tuple[str, ...], splits: Iterable[str]
    ) -> ImageData | None:
        """The cached data, mapped copy-on-write; None if there is no valid, current cache.

        Args:
            fingerprint: of the folder as it is now.
            name: as in `ImageData`.
            classes: as in `ImageData`.
            splits: those of the folder.
        """
        keys = [f"{split}_{part}" for split in splits for part in ("images", "labels")]
        try:
            with safe_open(self.path, framework="pt") as file:  # checks header and size
                metadata = file.metadata()
                summary = metadata["summary"]
                if metadata["seal"] != _seal(fingerprint, summary):
                    return None
                fields: dict[str, Any] = {"test_images": None, "test_labels": None}
                fields |= {key: file.get_tensor(key) for key in keys}
            mean, std, sha256 = json.loads(summary)
            fields |= {"mean": tuple(mean), "std": tuple(std), "sha256": sha256}
            return ImageData(name, classes, **fields)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError):
            return None

    def read_known(self) -> tuple[Bytes, Bytes]:
        """The marks, (M, 32), and images, (M, 3, S, S), also of an outdated cache; M may be 0."""
        shape = (3, self.image_size, self.image_size)
        try:
            with safe_open(self.path, framework="np") as file:
                marks = file.get_tensor("marks")
                present = set(file.keys())
                keys = [key for split in SPLITS if (key := f"{split}_images") in present]
                images = np.concatenate([file.get_tensor(key) for key in keys])
            if (len(marks), *shape) == images.shape:
                return marks, images
        except (OSError, SafetensorError, ValueError):
            pass
        return np.empty((0, 0), np.uint8), np.empty((0, *shape), np.uint8)

    def write(self, fingerprint: str, data: ImageData, marks: Bytes) -> None:
        """Replace the cache in one step, or warn."""
        summary = json.dumps([data.mean, data.std, data.sha256])
        metadata = {"summary": summary, "seal": _seal(fingerprint, summary)}
        tensors = {"marks": torch.from_numpy(marks)}
        for split, (images, labels) in data.splits.items():
            tensors |= {f"{split}_images": images, f"{split}_labels": labels}
        try:
            with scratch_folder(self.path.parent) as scratch:
                temporary = scratch / self.path.name
                with temporary.open("xb") as file:
                    file.write(save(tensors, metadata))
                    # Without fsync, a power cut could leave zeros that the header does not show.
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.path)
        except OSError as error:
            reason = f"{self.path}: cannot be written ({error.strerror})"
            warnings.warn(f"{reason}; the images will be decoded again next time", stacklevel=3)


def _seal(fingerprint: str, summary: str) -> str:
    """A hash that ties a cache to the state of its folder, and detects a damaged summary."""
    return hashlib.sha256(f"{fingerprint} {summary}".encode()).hexdigest()
