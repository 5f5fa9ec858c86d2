"""The data of a run: four checked tensors, with the names of the classes and the statistics.

N: number of images; images are always (N, 3, 32, 32), RGB.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ultimus_ignite.errors import DataError

__all__ = ["IMAGE_SHAPE", "DataError", "ImageData"]

IMAGE_SHAPE = (3, 32, 32)


@dataclass(frozen=True, slots=True, eq=False)
class ImageData:
    """A training set and a test set, in host memory.

    Raises:
        DataError: a tensor's dtype or shape, a count or a label is not as stated below.

    Example:
        >>> images, labels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1])
        >>> data = ImageData.measure("black", ("a", "b"), (images, labels), (images, labels))
        >>> data.mean
        (0.0, 0.0, 0.0)
        >>> ImageData.measure("black", ("a",), (images, labels), (images, labels))
        Traceback (most recent call last):
            ...
        ultimus_ignite.errors.DataError: black, train labels: expected 0 to 0, got 0 to 1
    """

    name: str
    """The source: ``cifar10``, ``cifar100``, ``digits`` or ``folder:DIR``, never ``auto``."""
    classes: tuple[str, ...]
    """Names of the classes; label i is ``classes[i]``."""
    train_images: Tensor
    """uint8 (N, 3, 32, 32), N > 0. If cached: a private memory map of the file, read on use."""
    train_labels: Tensor
    """int64 (N,), 0 to ``len(classes) - 1``."""
    test_images: Tensor
    """As ``train_images``."""
    test_labels: Tensor
    """As ``train_labels``."""
    mean: tuple[float, float, float]
    """Mean of the training images per channel; the full range of a pixel is 0 to 1."""
    std: tuple[float, float, float]
    """Population standard deviation, otherwise as ``mean``."""
    sha256: str
    """Hash of the four tensors and their shapes, in hex; it identifies the data of a run."""

    def __post_init__(self) -> None:
        _check(f"{self.name}, train", self.train_images, self.train_labels, len(self.classes))
        _check(f"{self.name}, test", self.test_images, self.test_labels, len(self.classes))

    @classmethod
    def measure(
        cls,
        name: str,
        classes: tuple[str, ...],
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
    ) -> "ImageData":
        """Compute ``mean``, ``std`` and ``sha256``.

        Args:
            name: as the field.
            classes: as the field.
            train: images, uint8 (N, 3, 32, 32), and labels, int64 (N,).
            test: as ``train``.

        Returns:
            The checked and measured data.

        Raises:
            DataError: as in the class.
        """
        # The data are checked first: the statistics need at least one image of the right shape.
        checked = cls(name, classes, *train, *test, mean=(0, 0, 0), std=(1, 1, 1), sha256="")
        mean, std = _statistics(train[0])
        digest = hashlib.sha256()
        for tensor in (*train, *test):
            digest.update(str(tuple(tensor.shape)).encode())
            digest.update(tensor.contiguous().numpy().data)
        return replace(checked, mean=mean, std=std, sha256=digest.hexdigest())

    def hold_out(self, fraction: float, seed: int) -> tuple["ImageData", Tensor, Tensor]:
        """Hold out a share of each class's training images, for validation.

        Args:
            fraction: share of the training images, in (0, 1).
            seed: decides which images are held out.

        Returns:
            The rest, with its own mean and std, and the images and labels that are held out.

        Raises:
            DataError: a class would have no image in one of the two parts.

        Example:
            >>> images, labels = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 2
            >>> data = ImageData.measure("black", ("a", "b"), (images, labels), (images, labels))
            >>> rest, _, held_out = data.hold_out(0.25, seed=1)
            >>> rest.train_labels.bincount().tolist(), held_out.bincount().tolist()
            ([3, 3], [1, 1])
        """
        from sklearn.model_selection import train_test_split  # 1 s, which most runs do not need

        try:
            kept, held_out = train_test_split(
                torch.arange(len(self.train_labels)).numpy(),
                test_size=fraction,
                random_state=seed % 2**32,
                stratify=self.train_labels.numpy(),
            )
        except ValueError as error:
            raise DataError(f"{self.name}: val_fraction {fraction} does not fit: {error}") from None
        kept, held_out = torch.from_numpy(kept), torch.from_numpy(held_out)
        images, labels = self.train_images[kept], self.train_labels[kept]
        mean, std = _statistics(images)
        rest = replace(self, train_images=images, train_labels=labels, mean=mean, std=std)
        return rest, self.train_images[held_out], self.train_labels[held_out]


def _statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel."""
    mean, std = zip(*map(_mean_and_std, images.unbind(1)), strict=True)
    return mean, std


def _check(split: str, images: Tensor, labels: Tensor, num_classes: int) -> None:
    """Raise `DataError` unless images and labels are what `ImageData` promises."""
    if images.dtype != torch.uint8 or images.shape[1:] != IMAGE_SHAPE or not len(images):
        found = f"{images.dtype} {tuple(images.shape)}"
        raise DataError(f"{split} images: expected torch.uint8 (N > 0, 3, 32, 32), got {found}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{labels.dtype} {tuple(labels.shape)}"
        raise DataError(f"{split} labels: expected torch.int64 ({len(images)},), got {found}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"{split} labels: expected 0 to {num_classes - 1}, got {low} to {high}")


def _mean_and_std(channel: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of uint8 values, each in [0, 1].

    Integer sums over the histogram are exact on every machine and with any number of threads.
    """
    count = channel.numel()
    histogram = channel.flatten().bincount(minlength=256)
    level = torch.arange(256)
    total, squares = int(histogram @ level), int(histogram @ level**2)
    return total / count / 255, math.sqrt(count * squares - total**2) / count / 255
