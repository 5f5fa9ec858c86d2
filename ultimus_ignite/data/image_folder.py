"""`folder:DIR`: images of any format and size, decoded once to 32x32 and cached."""

import hashlib
import json
import os
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ultimus_ignite.data.image_data import IMAGE_SHAPE, DataError, ImageData
from ultimus_ignite.data.reuse import Bytes, decode_changed, mark_files
from ultimus_ignite.data.scratch import scratch_folder

Split = dict[str, list[os.DirEntry[str]]]
"""The files of each class, both sorted by name."""

_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


def load_folder(root: Path, data_dir: Path) -> ImageData:
    """Read ``root/train/<class>/*`` and ``root/test/<class>/*``.

    Classes and files are sorted by name; hidden ones (leading dot) are ignored. An image is what a
    viewer shows of it on white, resized to 32x32 whatever its aspect ratio; see
    `ultimus_ignite.data.pixels`.

    The tensors are cached in ``data_dir/cache``, in one file per folder. The next call maps that
    file into memory instead of decoding, as long as every image has its old name, size and times.
    Otherwise it decodes those that have not.

    Args:
        root: absolute path of the folder.
        data_dir: folder of the cache; if it cannot be written, there is a warning.

    Returns:
        The decoded images, named ``folder:ROOT``.

    Raises:
        DataError: a folder or file is missing, unreadable or not in the layout above.
    """
    try:
        train, test = _list_split(root / "train"), _list_split(root / "test")
        marks = [mark_files(_paths(split)) for split in (train, test)]
    except OSError as error:
        layout = "expected DIR/train/<class>/* and DIR/test/<class>/*"
        raise DataError(f"{error.filename}: {error.strerror}; {layout}") from error
    if train.keys() != test.keys():
        odd = ", ".join(sorted(train.keys() ^ test.keys())[:5])
        raise DataError(f"{root}: train and test must have the same classes; only one has {odd}")

    name, classes = f"folder:{root}", tuple(train)
    fingerprint = _fingerprint(train, test, marks)
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    cache = data_dir / "cache" / f"folder-{key}.safetensors"
    data = _read_cache(cache, fingerprint, name, classes)
    if data is None:
        known = _read_known(cache)
        train_part, test_part = map(partial(_decode_split, known=known), (train, test), marks)
        data = ImageData.measure(name, classes, train_part, test_part)
        _write_cache(cache, fingerprint, data, np.concatenate(marks))
    return data


def _list_split(folder: Path) -> Split:
    """The classes of one split and their files."""
    split: Split = {}
    for entry in _visible(folder):
        if not entry.is_dir():
            raise DataError(f"{entry.path}: expected a class folder, got a file")
        split[entry.name] = files = _visible(entry.path)
        if not files:
            raise DataError(f"{entry.path}: expected images, got an empty folder")
        for file in files:
            if not file.is_file():  # a named pipe would block the decoder for ever
                found = "a folder" if file.is_dir() else "a broken link or special file"
                raise DataError(f"{file.path}: expected an image file, got {found}")
    if not split:
        raise DataError(f"{folder}: expected a folder for each class, got an empty folder")
    return split


def _visible(folder: Path | str) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, by name."""
    try:
        with os.scandir(folder) as entries:
            return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
    except ValueError as error:  # a null byte, or half of a surrogate pair
        raise DataError(f"{str(folder)!r}: not a path: {error}") from error


def _paths(split: Split) -> list[str]:
    return [file.path for files in split.values() for file in files]


def _fingerprint(train: Split, test: Split, marks: list[Bytes]) -> str:
    """A hash that changes when a file is added, removed, renamed or changed."""
    digest = hashlib.sha256()
    for split, its_marks in zip((train, test), marks, strict=True):
        for class_name, files in split.items():
            digest.update(b"%b\0%d\0" % (os.fsencode(class_name), len(files)))
        digest.update(its_marks.tobytes())
    return digest.hexdigest()


def _decode_split(split: Split, marks: Bytes, known: tuple[Bytes, Bytes]) -> tuple[Tensor, Tensor]:
    """Images, uint8 (N, 3, 32, 32), and labels, int64 (N,)."""
    labels = [label for label, files in enumerate(split.values()) for _ in files]
    images, _ = decode_changed(_paths(split), marks, IMAGE_SHAPE[1], known)
    return torch.from_numpy(images), torch.tensor(labels)


def _seal(fingerprint: str, summary: str) -> str:
    """A hash that ties a cache to the state of its folder, and detects a damaged summary."""
    return hashlib.sha256(f"{fingerprint} {summary}".encode()).hexdigest()


def _read_cache(
    cache: Path, fingerprint: str, name: str, classes: tuple[str, ...]
) -> ImageData | None:
    """The cached tensors, mapped copy-on-write; None if there is no valid, current cache."""
    try:
        with safe_open(cache, framework="pt") as file:  # checks header and size
            metadata = file.metadata()
            summary = metadata["summary"]
            if metadata["seal"] != _seal(fingerprint, summary):
                return None
            tensors = {key: file.get_tensor(key) for key in _TENSORS}
        mean, std, sha256 = json.loads(summary)
        return ImageData(name, classes, mean=tuple(mean), std=tuple(std), sha256=sha256, **tensors)
    except (OSError, SafetensorError, KeyError, TypeError, DataError):
        return None


def _read_known(cache: Path) -> tuple[Bytes, Bytes]:
    """The marks and images of an outdated cache; none of either if there is no valid one."""
    try:
        with safe_open(cache, framework="np") as file:
            marks = file.get_tensor("marks")
            images = np.concatenate([file.get_tensor(f"{s}_images") for s in ("train", "test")])
        if (len(marks), *IMAGE_SHAPE) == images.shape:
            return marks, images
    except (OSError, SafetensorError, ValueError):
        pass
    return np.empty((0, 0), np.uint8), np.empty((0, *IMAGE_SHAPE), np.uint8)


def _write_cache(cache: Path, fingerprint: str, data: ImageData, marks: Bytes) -> None:
    """Replace the cache in one step, or warn."""
    summary = json.dumps([data.mean, data.std, data.sha256])
    metadata = {"summary": summary, "seal": _seal(fingerprint, summary)}
    try:
        with scratch_folder(cache.parent) as scratch:
            temporary = scratch / cache.name
            with temporary.open("xb") as file:
                tensors = {key: getattr(data, key) for key in _TENSORS}
                tensors["marks"] = torch.from_numpy(marks)
                file.write(save(tensors, metadata))
                # Without fsync, a power cut could leave zeros that no check of the header shows.
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(cache)
    except OSError as error:
        reason = f"{cache}: cannot be written ({error.strerror})"
        warnings.warn(f"{reason}; the images will be decoded again next time", stacklevel=3)
