"""Load a data spec, such as `cifar10` or `folder:DIR`, as checked uint8 tensors."""

from collections.abc import Callable
from pathlib import Path

from ultimus_ignite.data.cifar import UnobtainableError, load_cifar
from ultimus_ignite.data.digits import load_digits
from ultimus_ignite.data.image_data import DataError, ImageData
from ultimus_ignite.data.image_folder import load_folder

__all__ = ["SOURCES", "DataError", "ImageData", "load"]

SOURCES: dict[str, Callable[[Path], ImageData]] = {
    "cifar10": lambda data_dir: load_cifar("cifar10", data_dir),
    "cifar100": lambda data_dir: load_cifar("cifar100", data_dir),
    "digits": lambda data_dir: load_digits(),
}
"""What loads each named data set, given the folder for downloads."""


def load(spec: str, data_dir: Path | str) -> ImageData:
    """Load a data set into memory.

    Args:
        spec: one of

            - a key of `SOURCES`.
            - ``folder:DIR``: ``DIR/train/<class>/*`` and ``DIR/test/<class>/*``; see
              `ultimus_ignite.data.image_folder.load_folder`.
            - ``auto``: ``cifar10`` if it is present or can be downloaded, else ``digits``. Damaged
              data is an error.
        data_dir: folder for downloads and caches, made if needed. Data in it is never deleted.

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
    data_dir = _absolute(data_dir)
    if spec.startswith("folder:") and spec != "folder:":
        return load_folder(_absolute(spec.removeprefix("folder:")), data_dir)
    if spec == "auto":
        try:
            return SOURCES["cifar10"](data_dir)
        except UnobtainableError:
            return SOURCES["digits"](data_dir)
    if spec not in SOURCES:
        raise DataError(f"{spec!r}: expected one of {', '.join(SOURCES)}, folder:DIR, auto")
    return SOURCES[spec](data_dir)


def _absolute(path: Path | str) -> Path:
    """The path with ``~`` expanded, so that a relative and an absolute spelling share a cache."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise DataError(f"{path}: {error}") from error
