"""The data of a run: checked tensors, with the names of the classes and the statistics.

N: number of images; images are always (N, 3, S, S), RGB, with one S for all of a run.
"""

import hashlib
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ultimus_ignite.data.rows import Images, Rows, pieces
from ultimus_ignite.errors import DataError

__all__ = ["DataError", "ImageData"]


@dataclass(frozen=True, slots=True, eq=False)
class ImageData:
    """A training set with a test set, a validation set or both, in host memory or mapped into it.

    Images that come from the cache of a folder are a read-only map of its file: they are read when
    they are used, need not fit into memory, and a process that writes to them ends (SIGSEGV).

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
    train_images: Images
    """uint8 (N, 3, S, S), N > 0; `Rows` of them if others of the same tensor are held out."""
    train_labels: Tensor
    """int64 (N,), 0 to ``len(classes) - 1``."""
    test_images: Images | None
    """As ``train_images``; None if there is no test set."""
    test_labels: Tensor | None
    """As ``train_labels``; None if there is no test set."""
    mean: tuple[float, float, float]
    """Mean of the training images per channel; the full range of a pixel is 0 to 1."""
    std: tuple[float, float, float]
    """Population standard deviation, otherwise as ``mean``."""
    sha256: str
    """Hash of the tensors and their shapes, in hex; it identifies the data of a run."""
    val_images: Images | None = None
    """As ``train_images``; they judge the epochs. None: the test set does."""
    val_labels: Tensor | None = None
    """As ``train_labels``; None if there is no validation set."""
    held_out: str = ""
    """How the test set was drawn from the other images, in words; empty if it came by itself."""
    notes: tuple[str, ...] = ()
    """What else a user should know of the data, one line each: what was left out or is missing."""

    def __post_init__(self) -> None:
        for split, (images, labels) in self.splits.items():
            _check(f"{self.name}, {split}", images, labels, len(self.classes))
            if images.shape[1:] != self.train_images.shape[1:]:
                found = f"{self.image_size} and {images.shape[-1]} pixels"
                raise DataError(f"{self.name}: train and {split} images differ in size: {found}")
        if len(self.splits) == 1:
            raise DataError(f"{self.name}: neither a test set nor a validation set")

    @property
    def splits(self) -> dict[str, tuple[Images, Tensor]]:
        """Images and labels of ``train``, ``val`` and ``test``, as far as there are any."""
        splits = {"train": (self.train_images, self.train_labels)}
        if self.val_images is not None and self.val_labels is not None:
            splits["val"] = self.val_images, self.val_labels
        if self.test_images is not None and self.test_labels is not None:
            splits["test"] = self.test_images, self.test_labels
        return splits

    @property
    def image_size(self) -> int:
        """S, the height and width of all images in pixels."""
        return self.train_images.shape[-1]

    @property
    def counts(self) -> dict[str, int]:
        """The number of images of ``train``, ``val`` and ``test``."""
        return {"train": 0, "val": 0, "test": 0} | {k: len(v[1]) for k, v in self.splits.items()}

    @classmethod
    def measure(
        cls,
        name: str,
        classes: tuple[str, ...],
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor] | None,
        val: tuple[Tensor, Tensor] | None = None,
    ) -> "ImageData":
        """Compute ``mean``, ``std`` and ``sha256``.

        Args:
            name: as the field.
            classes: as the field.
            train: images, uint8 (N, 3, S, S), and labels, int64 (N,).
            test: as ``train``; None if there is no test set.
            val: as ``train``; None if there is no validation set.

        Returns:
            The checked and measured data.

        Raises:
            DataError: as in the class.
        """
        test_images, test_labels = test or (None, None)
        val_images, val_labels = val or (None, None)
        # The data are checked first: the statistics need at least one image of the right shape.
        checked = cls(
            name,
            classes,
            *train,
            test_images,
            test_labels,
            mean=(0, 0, 0),
            std=(1, 1, 1),
            sha256="",
            val_images=val_images,
            val_labels=val_labels,
        )
        mean, std = _statistics(train[0])
        digest = hashlib.sha256()
        for split, tensors in checked.splits.items():
            if split == "val":  # the same images as a test set are other data
                digest.update(b"val")
            for tensor in tensors:
                digest.update(str(tuple(tensor.shape)).encode())
                for piece in pieces(tensor):
                    digest.update(piece.contiguous().numpy().data)
        return replace(checked, mean=mean, std=std, sha256=digest.hexdigest())

    def resized(self, image_size: int) -> "ImageData":
        """The same images at another size, by an antialiased bilinear filter, measured anew.

        Example:
            >>> images, labels = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.tensor([0, 1])
            >>> data = ImageData.measure("black", ("a", "b"), (images, labels), (images, labels))
            >>> data.resized(48).train_images.shape
            torch.Size([2, 3, 48, 48])
        """
        if image_size == self.image_size:
            return self
        resized = {
            split: (F.interpolate(images[:], image_size, mode="bilinear", antialias=True), labels)
            for split, (images, labels) in self.splits.items()
        }
        data = ImageData.measure(
            self.name, self.classes, resized["train"], resized.get("test"), resized.get("val")
        )
        return replace(data, held_out=self.held_out, notes=self.notes)

    def hold_out(self, fraction: float, seed: int) -> "ImageData":
        """Hold out a share of each class's training images, as the validation set.

        Args:
            fraction: share of the training images, in (0, 1).
            seed: decides which images are held out.

        Returns:
            The same data with fewer training images, their mean and std, and a validation set, both
            as `Rows` of the present training images; the ``sha256`` is still that of the source.

        Raises:
            DataError: there is a validation set already, or a class would have no image in one of
                the two parts.

        Example:
            >>> images, labels = torch.zeros(8, 3, 32, 32, dtype=torch.uint8), torch.arange(8) % 2
            >>> data = ImageData.measure("black", ("a", "b"), (images, labels), (images, labels))
            >>> data.hold_out(0.25, seed=1).counts
            {'train': 6, 'val': 2, 'test': 8}
        """
        from sklearn.model_selection import train_test_split  # 1 s, which most runs do not need

        if self.val_images is not None:
            reason = f"its {len(self.val_images)} validation images judge the epochs already"
            raise DataError(f"{self.name}: {reason}: leave out --val-fraction")
        try:
            parts = train_test_split(
                torch.arange(len(self.train_labels)).numpy(),
                test_size=fraction,
                random_state=seed % 2**32,
                stratify=self.train_labels.numpy(),
            )
        except ValueError as error:
            raise DataError(f"{self.name}: val_fraction {fraction} does not fit: {error}") from None
        kept, held_out = map(torch.from_numpy, parts)
        images = self.train_images[:]
        mean, std = _statistics(Rows(images, kept.sort().values))  # sorted: a file is read in order
        return replace(
            self,
            train_images=Rows(images, kept),
            train_labels=self.train_labels[kept],
            mean=mean,
            std=std,
            val_images=Rows(images, held_out),
            val_labels=self.train_labels[held_out],
        )


def _statistics(images: Images) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation of each channel."""
    histograms = torch.zeros(3, 256, dtype=torch.int64)
    for piece in pieces(images):
        for histogram, channel in zip(histograms, piece.unbind(1), strict=True):
            histogram += channel.flatten().bincount(minlength=256)
    mean, std = zip(*map(_mean_and_std, histograms), strict=True)
    return mean, std


def _check(split: str, images: Images, labels: Tensor, num_classes: int) -> None:
    """Raise `DataError` unless images and labels are what `ImageData` promises."""
    shape = tuple(images.shape)
    is_square = len(shape) == 4 and shape[1:] == (3, shape[-1], shape[-1])
    if images.dtype != torch.uint8 or not is_square or 0 in shape:
        found = f"{images.dtype} {shape}"
        raise DataError(f"{split} images: expected torch.uint8 (N > 0, 3, S, S), got {found}")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        found = f"{labels.dtype} {tuple(labels.shape)}"
        raise DataError(f"{split} labels: expected torch.int64 ({len(images)},), got {found}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise DataError(f"{split} labels: expected 0 to {num_classes - 1}, got {low} to {high}")


def _mean_and_std(histogram: Tensor) -> tuple[float, float]:
    """Mean and population standard deviation of uint8 values in [0, 1], of which there are so many.

    Integer sums over the histogram are exact on every machine and with any number of threads.
    """
    level = torch.arange(256)
    count = int(histogram.sum())
    total, squares = int(histogram @ level), int(histogram @ level**2)
    return total / count / 255, math.sqrt(count * squares - total**2) / count / 255
