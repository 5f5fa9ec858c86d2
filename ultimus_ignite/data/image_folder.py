"""`folder:DIR`: images of any format and size, decoded once to squares and cached."""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ultimus_ignite.data.class_names import check_class_names
from ultimus_ignite.data.folder_cache import FolderCache
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.layout import EXPECTED, Classes, Layout, find_layout
from ultimus_ignite.data.marks import mark_files
from ultimus_ignite.data.walk import describe_passed_over
from ultimus_ignite.errors import DataError, one_line

_NAMED = 5  # of what a note counts


def load_folder(
    root: Path, data_dir: Path, *, image_size: int = 32, skip_unreadable: bool = False
) -> ImageData:
    """Read a folder of images in one of the layouts of `ultimus_ignite.data.layout`.

    Classes and files are sorted by name. An image is what a viewer shows of it on white, resized
    to a square whatever its aspect ratio; see `ultimus_ignite.data.pixels`.

    The pixels are decoded into ``data_dir/cache``, into one file per folder and size, which is
    mapped into memory: the images may be more than memory holds. The next call maps that file
    instead of decoding, as long as every image has its old name, size and times. Otherwise it
    decodes those that have not. A decoding that is killed is continued.

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
    layout, classes = read_layout(root)
    paths = [p for split in layout.splits.values() for files in split.values() for p in files]
    try:
        marks = mark_files(paths)  # they hold the paths, so the layout, too
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; {EXPECTED}") from error

    name = f"folder:{root}"
    key = hashlib.sha256(os.fsencode(root)).hexdigest()[:16]
    cache = FolderCache(data_dir / "cache" / f"folder-{key}-{image_size}", image_size)
    assemble = partial(_assemble, name, classes, layout.splits)
    cached = cache.read(marks)
    if cached is not None and (skip_unreadable or cached.is_image.all()):
        data, is_image = assemble(*cached), cached.is_image
    else:
        data, is_image = cache.build(paths, marks, assemble, skip_unreadable=skip_unreadable)
    left_out = [paths[index] for index in np.flatnonzero(~is_image).tolist()]
    notes = _describe(layout.passed_over, left_out, data)
    return replace(data, held_out=layout.held_out, notes=notes)


def read_layout(root: Path) -> tuple[Layout, tuple[str, ...]]:
    """The layout of a folder and the sorted names of its classes; no image is opened.

    Raises:
        DataError: the folder is missing, unreadable or in none of the layouts.
    """
    try:
        layout = find_layout(root)
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; {EXPECTED}") from error
    return layout, check_class_names(layout.splits, root)


def _assemble(
    name: str,
    classes: tuple[str, ...],
    splits: Mapping[str, Classes],
    images: Tensor,
    is_image: NDArray[np.bool_],
    measured: Mapping[str, Any] | None = None,
) -> ImageData:
    """Divide the images by split and label them.

    Args:
        name: as in `ImageData`.
        classes: as in `ImageData`.
        splits: N files.
        images: uint8 (M, 3, S, S), in the order of the files.
        is_image: bool (N,), which files are images; M of them.
        measured: ``mean``, ``std`` and ``sha256``, if they are known.
    """
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for split, files in splits.items():
        sizes = [len(paths) for paths in files.values()]
        labels = np.repeat([classes.index(class_name) for class_name in files], sizes)
        of_split, is_image = np.split(is_image, [len(labels)])
        labels = labels[of_split]
        counts = np.bincount(labels, minlength=len(classes))
        lost = [c for c in files if split == "train" and not counts[classes.index(c)]]
        if lost or not len(labels):
            raise DataError(f"{name}: no readable image is left in {'/'.join([split, *lost[:1]])}")
        parts[split] = images[: len(labels)], torch.from_numpy(labels)
        images = images[len(labels) :]
    if measured is None:
        return ImageData.measure(name, classes, parts["train"], parts.get("test"), parts.get("val"))
    test, val = (parts.get(split, (None, None)) for split in ("test", "val"))
    return ImageData(
        name,
        classes,
        *parts["train"],
        test_images=test[0],
        test_labels=test[1],
        val_images=val[0],
        val_labels=val[1],
        **measured,
    )


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
