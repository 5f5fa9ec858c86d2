"""The classes of image files.

S: side of the images.
"""

import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import closing
from glob import glob
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ultimus_ignite.data.decoding import decode_each
from ultimus_ignite.data.pixels import UnreadableError
from ultimus_ignite.data.walk import Walk
from ultimus_ignite.errors import DataError
from ultimus_ignite.results.loaded_run import LoadedRun


class Guess(NamedTuple):
    """A class that an image may be of."""

    class_name: str
    probability: float
    """In [0, 1], rounded to six digits: what follows them depends on which images share a batch."""


class Found(NamedTuple):
    """Files that may be images."""

    paths: list[str]
    passed_over: list[str]
    """Paths of what is neither an image nor a mistake, as `Walk` finds it, sorted."""


def find_files(places: Sequence[str]) -> Found:
    """The files that names, folders and patterns stand for, in the order given.

    The files in a folder, and those that a pattern such as ``photos/**/*.jpg`` fits, are sorted. A
    file comes once. The name of a file that does not exist stands for itself, so that reading it
    tells what is wrong.

    Raises:
        DataError: a folder holds a broken link or a special file, or cannot be read.

    Example:
        >>> find_files(["missing.jpg"]).paths
        ['missing.jpg']
    """
    walk = Walk()
    paths: list[str] = []
    for place in places:
        is_name = os.path.lexists(place)
        fitting = [] if is_name else sorted(glob(place, recursive=True))  # noqa: PTH207 - any kind
        for path in fitting or [place]:
            paths += _list_files(walk, path)
    return Found(list(dict.fromkeys(paths)), sorted(walk.passed_over))


def _list_files(walk: Walk, path: str) -> list[str]:
    """The path itself, or the files in the folder that it leads to."""
    try:
        kind = stat.S_IFMT(os.stat(path).st_mode)  # noqa: PTH116 - the paths are text
    except OSError:
        return [path]
    if kind not in (stat.S_IFDIR, stat.S_IFREG):  # reading from a pipe would wait for ever
        raise DataError(f"{path}: expected an image, got a pipe or other special file")
    try:
        return walk.list_images(path) if kind == stat.S_IFDIR else [path]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}") from error


def predict_files(
    run: LoadedRun, paths: Sequence[str], *, top: int = 3
) -> list[list[Guess] | UnreadableError]:
    """Classify image files of any size and mode; a file that is not readable stops no other.

    They are decoded by one process per core and classified in batches of the run's size, so that
    any number of them needs little memory. A terminal shows a bar.

    Args:
        run: whose model and preprocessing count.
        paths: files.
        top: how many classes are wanted for each file, at least 1.

    Returns:
        For each file its most probable classes, the first the most probable, or why it is not a
        readable image.
    """
    answers: dict[int, list[Guess] | UnreadableError] = {}
    waiting: dict[int, NDArray[np.uint8]] = {}
    with closing(decode_each(paths, run.recipe.image_size)) as everything:
        for index, decoded in everything:
            if isinstance(decoded, UnreadableError):
                answers[index] = decoded
                continue
            waiting[index] = decoded
            if len(waiting) == run.recipe.batch_size:
                answers |= zip(waiting, _rank(run, waiting.values(), top), strict=True)
                waiting.clear()
    if waiting:
        answers |= zip(waiting, _rank(run, waiting.values(), top), strict=True)
    return [answers[index] for index in range(len(paths))]


def _rank(run: LoadedRun, images: Iterable[NDArray[np.uint8]], top: int) -> list[list[Guess]]:
    """The most probable classes of each image, uint8 (3, S, S)."""
    pixels = torch.from_numpy(np.stack([*images]))
    probabilities = run.predict(run.normalize(pixels)).probabilities
    best = probabilities.topk(min(top, len(run.classes)))
    return [
        [Guess(run.classes[i], round(p, 6)) for p, i in zip(*row, strict=True)]
        for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
