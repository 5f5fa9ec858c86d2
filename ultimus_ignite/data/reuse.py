"""Decode only those files that changed since they were decoded last.

N: number of files. M: number of images that are known. S: side of the images.
"""

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ultimus_ignite.data.decoded_files import DecodedFiles
from ultimus_ignite.data.decoding import decode
from ultimus_ignite.data.marks import Bytes, find_marks


def decode_changed(
    paths: Sequence[str],
    size: int,
    files: DecodedFiles,
    known: Iterable[tuple[Bytes, Tensor]],
    *,
    skip_unreadable: bool = False,
) -> NDArray[np.bool_]:
    """As `ultimus_ignite.data.decoding.decode`, but images with a known mark are copied.

    Args:
        paths: N files.
        size: S, in pixels.
        files: has the marks of these files, and gets the images that are not present.
        known: pairs of marks, uint8 (M, 32), and their images, uint8 (M, 3, S, S).
        skip_unreadable: leave out what is not a readable image.

    Returns:
        Which files are images, bool (N,).

    Raises:
        DataError: as ``decode``.
        OSError: an image cannot be written.
    """
    is_missing = ~files.present
    copies = []
    for known_marks, images in known:
        sources = find_marks(files.marks, known_marks)
        is_found = is_missing & (sources >= 0)
        copies.append((np.flatnonzero(is_found), images.numpy(), sources[is_found]))
        is_missing &= ~is_found

    changed = np.flatnonzero(is_missing)
    kept = np.ones(len(paths), dtype=bool)
    kept[changed] = decode(  # first: copying is in vain if a file is unreadable
        [paths[row] for row in changed.tolist()],
        size,
        lambda index, pixels: files.store(changed[index], pixels),
        skip_unreadable=skip_unreadable,
    )
    for rows, pixels, sources in copies:
        for row, source in zip(rows.tolist(), sources.tolist(), strict=True):
            files.store(row, pixels[source])
    return kept
