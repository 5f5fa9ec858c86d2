"""`folder:DIR`: images of any format and size, decoded once to squares and cached."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ultimus_ignite.data.class_names import check_class_names
from ultimus_ignite.data.folder_cache import FolderCache
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.layout import EXPECTED, Classes, find_layout
from ultimus_ignite.data.reuse import Bytes, decode_changed, mark_files
from ultimus_ignite.data.walk import describe_passed_over
from ultimus_ignite.errors import DataError, one_line

_NAMED = 5  # of what a note counts


def load_folder(
    root: Path, data_dir: Path, *, image_size: int = 32, skip_unreadable: bool = False
) -> ImageData:
    """Read a folder of images in one of the layouts of `ultimus_ignite.data.layout`.

    Classes and files are sorted by name. An image is what a viewer shows of it on white, resized
    to a square whatever its aspect ratio; see `ultimus_ignite.data.pixels`.

    The tensors are cached in ``data_dir/cache``, in one file per folder and size. The next call
    maps that file into memory instead of decoding, as long as every image has its old name, size
    and times. Otherwise it decodes those that have not.

    Args:
        root: absolute path of the folder.
        data_dir: folder of the cache; if it cannot be written, there is a warning.
        image_size: height and width of the decoded images, in pixels.
        skip_unreadable: leave out what is not a readable image.

    Returns:
        The decoded images, named ``folder:ROOT``; its notes say what was passed over or left out.

    Raises:
        DataError: a folder or file is missing, unreadable or in none of the layouts.
    """
    try:
        layout = find_layout(root)
        classes = check_class_names(layout.splits, root)
        paths = [p for split in layout.splits.values() for files in split.values() for p in files]
        marks = mark_files(paths)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; {EXPECTED}") from error

    name = f"folder:{root}"
    fingerprint = hashlib.sha256(marks.tobytes()).hexdigest()  # of the paths, so of the layout, too
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    cache = FolderCache(data_dir / "cache" / f"folder-{key}-{image_size}.safetensors", image_size)
    data = cache.read(fingerprint, name, classes, layout.splits)
    kept = np.ones(len(paths), dtype=bool)
    if data is not None and sum(data.counts.values()) < len(paths):
        kept = _is_among(marks, cache.read_known()[0])
    if data is None or not (skip_unreadable or kept.all()):
        known = cache.read_known()
        images, kept = decode_changed(
            paths, marks, image_size, known, skip_unreadable=skip_unreadable
        )
        data = _assemble(name, classes, layout.splits, images, kept)
        cache.write(fingerprint, data, marks[kept])
    left_out = [paths[index] for index in np.flatnonzero(~kept).tolist()]
    notes = _describe(layout.passed_over, left_out, data)
    return replace(data, held_out=layout.held_out, notes=notes)


def _is_among(marks: Bytes, known: Bytes) -> NDArray[np.bool_]:
    """Whether each mark is known, bool (N,)."""
    rows = {mark.tobytes() for mark in known}
    return np.array([mark.tobytes() in rows for mark in marks])


def _assemble(
    name: str,
    classes: tuple[str, ...],
    splits: Mapping[str, Classes],
    images: Bytes,
    kept: NDArray[np.bool_],
) -> ImageData:
    """Divide the images by split and label them.

    Args:
        name: as in `ImageData`.
        classes: as in `ImageData`.
        splits: N files.
        images: uint8 (M, 3, S, S), in the order of the files.
        kept: bool (N,), which files are images; M of them.
    """
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for split, files in splits.items():
        sizes = [len(paths) for paths in files.values()]
        labels = np.repeat([classes.index(class_name) for class_name in files], sizes)
        of_split, kept = np.split(kept, [len(labels)])
        labels = labels[of_split]
        its_images, images = np.split(images, [len(labels)])
        lost = [c for c in files if split == "train" and classes.index(c) not in labels]
        if lost or not len(labels):
            raise DataError(f"{name}: no readable image is left in {'/'.join([split, *lost[:1]])}")
        parts[split] = torch.from_numpy(its_images), torch.from_numpy(labels)
    return ImageData.measure(name, classes, parts["train"], parts.get("test"), parts.get("val"))


def _describe(passed_over: list[str], left_out: list[str], data: ImageData) -> tuple[str, ...]:
    """One line each on what is passed over, what is left out, and classes without images."""
    lines = [describe_passed_over(passed_over)] if passed_over else []
    if left_out:
        count = f"{len(left_out)} unreadable {'file' if len(left_out) == 1 else 'files'}"
        more = f", and {len(left_out) - _NAMED} more" if len(left_out) > _NAMED else ""
        lines.append(f"left out: {count} ({', '.join(left_out[:_NAMED])}{more})")
    for split, (_, labels) in data.splits.items():
        counts = labels.bincount(minlength=len(data.classes)).tolist()
        absent = [name for name, count in zip(data.classes, counts, strict=True) if not count]
        if absent:
            named = ", ".join(absent[:_NAMED]) + (", ..." if len(absent) > _NAMED else "")
            lines.append(f"warning: {split} has no images of {named}: 0 of 0 are right there")
    return tuple(map(one_line, lines))
