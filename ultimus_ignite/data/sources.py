"""A data spec, such as `cifar10` or `folder:DIR`, to checked uint8 tensors."""

import os
import socket
import tarfile
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ultimus_ignite.data.image_data import DataError, ImageData
from ultimus_ignite.data.image_folder import load_folder
from ultimus_ignite.data.scratch import scratch_folder

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

# torchvision and scikit-learn are imported where they are used: a folder starts without either.

__all__ = ["DataError", "ImageData", "load"]

_TIMEOUT = 10.0  # seconds without a byte from the server


class _UnobtainableError(DataError):
    """The data set is neither present nor to be had: the one failure that `auto` forgives."""


def load(spec: str, data_dir: Path | str) -> ImageData:
    """Bring a data set into memory.

    Args:
        spec: one of

            - ``cifar10``, ``cifar100``: read from ``data_dir``; downloaded where missing.
            - ``digits``: the 1,797 handwritten digits that scikit-learn ships, each pixel enlarged
              to 4x4; 360 of them, stratified, are the test set. Needs neither network nor disk.
            - ``folder:DIR``: ``DIR/train/<class>/*`` and ``DIR/test/<class>/*``; see
              `ultimus_ignite.data.image_folder.load_folder`.
            - ``auto``: ``cifar10`` where it is present or can be downloaded, else ``digits``.
              Data that is present but damaged is an error here too.
        data_dir: holds downloads and caches; made where needed. Data found in it is never deleted.

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
    match spec:
        case "cifar10" | "cifar100":
            return _load_cifar(spec, data_dir)
        case "digits":
            return _load_digits()
        case "auto":
            try:
                return _load_cifar("cifar10", data_dir)
            except _UnobtainableError:
                return _load_digits()
    raise DataError(f"{spec!r}: expected one of cifar10, cifar100, digits, folder:DIR, auto")


def _absolute(path: Path | str) -> Path:
    """The path with ``~`` expanded, so that a relative and an absolute spelling share a cache."""
    try:
        return Path(path).expanduser().absolute()
    except RuntimeError as error:  # ~nobody
        raise DataError(f"{path}: {error}") from error


def _load_digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    flat, labels = load_digits(return_X_y=True)  # (1797, 64), 0 to 16
    pixels = np.rint(flat * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    images = pixels.repeat(3, axis=1).repeat(4, axis=2).repeat(4, axis=3)
    split = train_test_split(images, labels, test_size=360, stratify=labels, random_state=0)
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, split)
    train, test = (train_images, train_labels), (test_images, test_labels)
    return ImageData.measure("digits", tuple("0123456789"), train, test)


def _load_cifar(name: str, data_dir: Path) -> ImageData:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_dir / dataset.base_folder
    if not os.path.lexists(folder):
        _fetch(dataset, data_dir)
    try:  # torchvision compares the md5 of every file before it unpickles any
        train, test = (dataset(data_dir, train=train) for train in (True, False))
    except (OSError, RuntimeError) as error:
        expected = dict([*dataset.train_list, *dataset.test_list])
        expected[dataset.meta["filename"]] = dataset.meta["md5"]
        damaged = ", ".join(f for f, md5 in expected.items() if not _is_intact(folder / f, md5))
        advice = "delete the folder to fetch it again"
        raise DataError(f"{folder}: missing or damaged: {damaged}; {advice}") from error
    # torchvision turned the files' own (N, 3, 32, 32) into (N, 32, 32, 3): turn them back.
    tensors = [
        (torch.from_numpy(split.data).permute(0, 3, 1, 2), torch.tensor(split.targets))
        for split in (train, test)
    ]
    return ImageData.measure(name, tuple(train.classes), *tensors)


def _fetch(dataset: "type[CIFAR10]", data_dir: Path) -> None:
    """Unpack the archive in ``data_dir``, or else the server's, once its md5 is right."""
    archive, folder = data_dir / dataset.filename, data_dir / dataset.base_folder
    if os.path.lexists(archive) and not _is_intact(archive, dataset.tgz_md5):
        raise DataError(f"{archive}: expected md5 {dataset.tgz_md5}; delete it to fetch it again")
    try:
        with scratch_folder(data_dir) as scratch:
            if not archive.exists():
                archive = scratch / dataset.filename
                _download(dataset.url, archive, dataset.tgz_md5)
            with tarfile.open(archive) as members:
                members.extractall(scratch, filter=_harmless)
            (scratch / dataset.base_folder).rename(folder)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        if folder.is_dir():
            return  # another process was faster, and its files are as good
        advice = f"give --data digits, or put {dataset.filename} into {data_dir}"
        raise _UnobtainableError(f"{dataset.url}: cannot be fetched ({error}): {advice}") from error


def _harmless(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
    """Nothing outside the folder, and the umask's permissions instead of the archive's."""
    member = tarfile.data_filter(member, folder)
    return member.replace(mode=None, deep=False)  # type: ignore[arg-type]  # None is documented


def _download(url: str, archive: Path, md5: str) -> None:
    """Download and check; a server that hangs ends in a TimeoutError."""
    from torchvision.datasets.utils import download_url

    # torchvision has no timeout of its own, so the process-wide one is lent to it.
    previous = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_TIMEOUT)
    try:
        download_url(url, archive.parent, archive.name, md5)
    finally:
        socket.setdefaulttimeout(previous)


def _is_intact(path: Path, md5: str) -> bool:
    from torchvision.datasets.utils import check_integrity

    try:
        return bool(check_integrity(path, md5))
    except OSError:  # unreadable
        return False
