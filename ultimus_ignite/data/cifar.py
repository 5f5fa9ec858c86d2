"""`cifar10` and `cifar100`: torchvision's data sets, downloaded and checked if missing."""

import os
import shutil
import socket
import tarfile
from collections.abc import Iterable
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ultimus_ignite.data.image_data import DataError, ImageData
from ultimus_ignite.data.scratch import scratch_folder

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

_TIMEOUT = 10.0  # seconds without a byte from the server


class UnobtainableError(DataError):
    """The data set is missing and cannot be fetched: only then does `auto` take the digits."""


def load_cifar(name: str, data_dir: Path) -> ImageData:
    """Read ``cifar10`` or ``cifar100`` from a folder, after fetching it if it is not there.

    Raises:
        UnobtainableError: it is missing and cannot be fetched.
        DataError: it is damaged.
    """
    # Imported here: a folder of images does not need it.
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    folder = data_dir / dataset.base_folder
    if not os.path.lexists(folder):
        _fetch(dataset, data_dir)
    try:  # torchvision compares the md5 of every file before it unpickles any
        train, test = (dataset(data_dir, train=train) for train in (True, False))
    except (OSError, RuntimeError) as error:
        files = _files(dataset).items()
        damaged = ", ".join(name for name, md5 in files if not _is_intact(folder / name, md5))
        advice = "delete the folder to fetch it again"
        raise DataError(f"{folder}: missing or damaged: {damaged}; {advice}") from error
    # torchvision turns the (N, 3, 32, 32) of the files into (N, 32, 32, 3): turn it back.
    tensors = [
        (torch.from_numpy(split.data).permute(0, 3, 1, 2), torch.tensor(split.targets))
        for split in (train, test)
    ]
    return ImageData.measure(name, tuple(train.classes), *tensors)


def _fetch(dataset: "type[CIFAR10]", data_dir: Path) -> None:
    """Unpack the archive from ``data_dir`` or else from the server, if its md5 is right."""
    archive, folder = data_dir / dataset.filename, data_dir / dataset.base_folder
    if os.path.lexists(archive) and not _is_intact(archive, dataset.tgz_md5):
        raise DataError(f"{archive}: expected md5 {dataset.tgz_md5}; delete it to fetch it again")
    try:
        with scratch_folder(data_dir) as scratch:
            if not archive.exists():
                archive = scratch / dataset.filename
                _download(dataset.url, archive, dataset.tgz_md5)
            _unpack(archive, scratch / dataset.base_folder, _files(dataset))
            (scratch / dataset.base_folder).rename(folder)
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        if folder.is_dir():
            return  # another process has fetched the same files
        advice = f"give --data digits, or put {dataset.filename} into {data_dir}"
        raise UnobtainableError(f"{dataset.url}: cannot be fetched ({error}): {advice}") from error


def _files(dataset: "type[CIFAR10]") -> dict[str, str]:
    """The md5 of each file that torchvision reads."""
    named = dict([*dataset.train_list, *dataset.test_list])
    return named | {dataset.meta["filename"]: dataset.meta["md5"]}


def _unpack(archive: Path, folder: Path, names: Iterable[str]) -> None:
    """Write the named files to a new folder, and nothing else that the archive may hold."""
    folder.mkdir()
    wanted = {f"{folder.name}/{name}": folder / name for name in names}
    with tarfile.open(archive) as members:
        for member in members:
            if member.isfile() and member.name in wanted:
                with wanted[member.name].open("wb") as file:
                    shutil.copyfileobj(members.extractfile(member), file)  # type: ignore[arg-type]


def _download(url: str, archive: Path, md5: str) -> None:
    """Download and check the md5; TimeoutError if the server hangs."""
    from torchvision.datasets.utils import download_url

    # torchvision has no timeout, so the timeout of the whole process is set for the download.
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
