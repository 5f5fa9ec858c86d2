"""Many image files to pixels, on all cores.

N: number of files. S: side of the images.
"""

import os
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ultimus_ignite.data.decoder_processes import Decoded, decode_here, decode_in_processes
from ultimus_ignite.data.image_data import DataError
from ultimus_ignite.data.pixels import UnreadableError
from ultimus_ignite.data.progress import Progress

_ALONE = 0.5  # seconds after which other processes help; they take about 0.3 s to start
_CHUNKS_PER_SECOND = 10  # of one helper
_NAMED = 5  # unreadable files that an error names

Store: TypeAlias = Callable[[int, NDArray[np.uint8]], None]
"""Takes the position of a file and its pixels, uint8 (3, S, S)."""


def decode(
    paths: Sequence[str | Path], size: int, store: Store, *, skip_unreadable: bool = False
) -> NDArray[np.bool_]:
    """Read image files as squares of the pixels that a viewer shows on white.

    Args:
        paths: N files, as for `decode_each`.
        size: S, in pixels.
        store: called once for each image, as soon as it is decoded, in any order.
        skip_unreadable: leave out what is not a readable image.

    Returns:
        Which files are images, bool (N,).

    Raises:
        DataError: some are not readable images and are not to be skipped; it counts them and names
            five. All others have been stored.

    Example:
        >>> from tempfile import NamedTemporaryFile
        >>> from PIL import Image
        >>> with NamedTemporaryFile(suffix=".png") as good, NamedTemporaryFile() as empty:
        ...     Image.new("RGB", (9, 9), "red").save(good.name)
        ...     images = np.empty((2, 3, 32, 32), np.uint8)
        ...     decode([good.name, empty.name], 32, images.__setitem__, skip_unreadable=True)
        array([ True, False])
        >>> images[0, :, 0, 0]
        array([255,   0,   0], dtype=uint8)
    """
    names = [os.fspath(path) for path in paths]
    kept = np.ones(len(names), dtype=bool)
    reasons: dict[int, UnreadableError] = {}
    with closing(decode_each(names, size)) as everything:
        for index, decoded in everything:
            if isinstance(decoded, UnreadableError):
                reasons[index] = decoded
                kept[index] = False
            else:
                store(index, decoded)
    if reasons and not skip_unreadable:
        lines = [f"{names[i]}: not a readable image: {reasons[i]}" for i in sorted(reasons)]
        raise DataError(_explain(lines))
    return kept


def decode_each(paths: Sequence[str], size: int) -> Generator[tuple[int, Decoded], None, None]:
    """Read image files one by one, those that are unreadable included.

    What takes longer than half a second is shared with one process per core, until the generator is
    closed. A terminal shows a bar, anything else a line every 30 s.

    Args:
        paths: files of the formats of `ultimus_ignite.data.pixels.read_pixels`.
        size: S, in pixels.

    Yields:
        The position of each file in ``paths``, in any order, and its pixels, uint8 (3, S, S), or
        why it is not a readable image.
    """
    progress = Progress(len(paths), "decoding", "images")
    with progress, closing(_decode_all(paths, size)) as everything:
        for index, decoded in everything:
            yield index, decoded
            progress.update()


def _decode_all(paths: Sequence[str], size: int) -> Generator[tuple[int, Decoded], None, None]:
    """The position of each file and what was decoded: here at first, then in other processes."""
    done, started = 0, time.monotonic()
    cores = _count_cores()
    while done < len(paths) and (cores == 1 or time.monotonic() < started + _ALONE):
        yield done, decode_here([paths[done]], size)[0]
        done += 1
    chunk = max(1, round(done / _ALONE / _CHUNKS_PER_SECOND))
    with closing(decode_in_processes(paths[done:], size, cores, chunk)) as rest:
        for index, decoded in rest:
            yield done + index, decoded


def _count_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))  # those that this process may use
    return os.cpu_count() or 1


def _explain(unreadable: list[str]) -> str:
    """One line on files that are not images, each given as its path and the reason."""
    if len(unreadable) == 1:
        return f"{unreadable[0]}; --skip-unreadable leaves it out"
    named = "; ".join(unreadable[:_NAMED])
    more = f"; and {len(unreadable) - _NAMED} more" if len(unreadable) > _NAMED else ""
    count = f"{len(unreadable)} files cannot be used (--skip-unreadable leaves them out)"
    return f"{count}: {named}{more}"
