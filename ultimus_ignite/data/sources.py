"""Load a data spec, such as `cifar10` or `folder:DIR`, as checked uint8 tensors.

Torch is loaded with the data, not with this module: a command checks the spec before it.
"""

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ultimus_ignite.errors import DataError

if TYPE_CHECKING:
    from ultimus_ignite.data.image_data import ImageData

__all__ = ["SOURCES", "DataError", "Source", "check", "count_classes", "load"]


class Source(NamedTuple):
    """A named data set."""

    num_classes: int
    load: "Callable[[Path], ImageData]"
    """Reads it, given the folder for downloads."""


def _load_cifar10(data_dir: Path) -> "ImageData":
    from ultimus_ignite.data.cifar import load_cifar

    return load_cifar("cifar10", data_dir)


def _load_cifar100(data_dir: Path) -> "ImageData":
    from ultimus_ignite.data.cifar import load_cifar

    return load_cifar("cifar100", data_dir)


def _load_digits(data_dir: Path) -> "ImageData":
    from ultimus_ignite.data.digits import load_digits

    return load_digits()


SOURCES = {
    "cifar10": Source(10, _load_cifar10),
    "cifar100": Source(100, _load_cifar100),
    "digits": Source(10, _load_digits),
}
"""The data sets that a spec may name."""


def load(
    spec: str, data_dir: Path | str, *, image_size: int = 32, skip_unreadable: bool = False
) -> "ImageData":
    """Load a data set; the images of a folder are mapped from its cache.

    Args:
        spec: one of

            - a key of `SOURCES`.
            - ``folder:DIR``: ``DIR/train/<class>/*`` with ``DIR/test``, ``DIR/val`` or both, or
              ``DIR/<class>/*``; see `ultimus_ignite.data.layout.find_layout`.
            - ``auto``: ``cifar10`` if it is present or can be downloaded, else ``digits``. Damaged
              data is an error.
        data_dir: folder for downloads and caches, made if needed. Data in it is never deleted.
        image_size: height and width of the images in pixels. The named data sets have 32, which
            are resized.
        skip_unreadable: leave out files of a ``folder:`` that are not readable images.

    Returns:
        The data; its ``name`` says which source ``auto`` took.

    Raises:
        DataError: the spec is unknown, or the data is missing, damaged or malformed.

    Example:
        >>> digits = load("digits", data_dir="data")
        >>> digits.train_images.shape, digits.test_images.shape
        (torch.Size([1437, 3, 32, 32]), torch.Size([360, 3, 32, 32]))
        >>> "".join(digits.classes)
        '0123456789'
    """
    check(spec)
    data_dir = _absolute(data_dir)
    if spec.startswith("folder:"):
        from ultimus_ignite.data.image_folder import load_folder

        root = _absolute(spec.removeprefix("folder:"))
        return load_folder(root, data_dir, image_size=image_size, skip_unreadable=skip_unreadable)
    return _load_named(spec, data_dir).resized(image_size)


def _load_named(spec: str, data_dir: Path) -> "ImageData":
    """One of `SOURCES`, or ``auto``."""
    if spec != "auto":
        return SOURCES[spec].load(data_dir)
    from ultimus_ignite.data.cifar import UnobtainableError

    try:
        return SOURCES["cifar10"].load(data_dir)
    except UnobtainableError:
        return SOURCES["digits"].load(data_dir)


def check(spec: str) -> None:
    """Refuse a spec that names neither a data set nor a folder, before any data is read.

    Raises:
        DataError: the spec is unknown, or its folder cannot be listed.

    Example:
        >>> check("cifar-10")
        Traceback (most recent call last):
            ...
        ultimus_ignite.errors.DataError: data must be one of cifar10, cifar100, digits, \
folder:DIR, auto, got 'cifar-10': did you mean cifar10?
    """
    if spec in SOURCES or spec == "auto":
        return
    if not spec.startswith("folder:") or spec == "folder:":
        choices = [*SOURCES, "folder:DIR", "auto"]
        meant = _meant(spec, choices)
        advice = f": did you mean {meant[0]}?" if meant else ""
        raise DataError(f"data must be one of {', '.join(choices)}, got {spec!r}{advice}")
    folder = _absolute(spec.removeprefix("folder:"))
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror}: give --data folder:DIR") from error


def count_classes(spec: str) -> int:
    """The number of classes of a data set; no image is read, only the names in a folder.

    Args:
        spec: as for `load`; both data sets of ``auto`` have ten classes.

    Raises:
        DataError: as for `load`.

    Example:
        >>> count_classes("cifar100")
        100
    """
    check(spec)
    if spec.startswith("folder:"):
        from ultimus_ignite.data.image_folder import read_layout

        return len(read_layout(_absolute(spec.removeprefix("folder:")))[1])
    return SOURCES["cifar10" if spec == "auto" else spec].num_classes


def _meant(spec: str, choices: list[str]) -> list[str]:
    """The spec that a misspelt one is near to, if any; that of a folder if it names one."""
    prefix, _, folder = spec.rpartition(":")
    is_folder = os.path.isdir(folder)  # noqa: PTH112 (False also for a name that is too long)
    if prefix.lower() in ("", "folder") and is_folder:
        return [f"folder:{folder}"]
    return difflib.get_close_matches(spec.lower(), choices, n=1)


def _absolute(path: Path | str) -> Path:
    """The path with ``~`` expanded, so that a relative and an absolute spelling share a cache."""
    try:
        absolute = Path(path).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise DataError(f"{path}: {error}") from error
    try:
        str(absolute).encode()
    except UnicodeEncodeError:
        raise DataError(f"{str(absolute)!r}: not UTF-8: rename it, or link to it") from None
    if "\0" in str(absolute):
        raise DataError(f"{str(absolute)!r}: not a path: embedded null byte")
    return absolute
