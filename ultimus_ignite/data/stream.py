"""The batches of a run: batch k is a pure function of (seed, k)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ultimus_ignite.data.augment import Augment
from ultimus_ignite.data.placement import send
from ultimus_ignite.data.rows import Images, select
from ultimus_ignite.data.sampler import epoch_order
from ultimus_ignite.data.share import WHOLE, Share
from ultimus_ignite.seeding import derive_seed


class Batch(NamedTuple):
    """``(images, labels)`` of this process's share, and what batch they are of."""

    images: Tensor
    labels: Tensor
    iteration: int
    """0-based."""
    total: int
    """Images of the whole batch, over all processes."""


class TrainingStream:
    """Endless training batches that begin at any iteration.

    The order of epoch e is a ``randperm`` seeded by (seed, e); its last batch may be smaller. The
    augmentation of batch k is seeded by (seed, k). So a run that is resumed at iteration k sees the
    same batches as the unbroken run, on any number of processes.

    Args:
        images: uint8 ``(N, 3, H, W)``.
        labels: int64 ``(N,)``, on the same device.
        batch_size: images per batch, over all processes.
        seed: the run's seed.
        augment: applied to every batch, on the device that trains.
        device: the one that trains; None: where the images are.
        share: what this process computes of each batch.
        note: a line for the log on where the images are.

    Raises:
        ValueError: there are no images.

    Example:
        >>> from ultimus_ignite.data.augment import Normalize
        >>> images, labels = torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10)
        >>> augment = Augment(Normalize((0.5,) * 3, (0.25,) * 3), flip=0.5)
        >>> stream = TrainingStream(images, labels, batch_size=4, seed=1, augment=augment)
        >>> stream.epoch_length, [len(stream.batch(k).labels) for k in range(4)]
        (3, [4, 4, 2, 4])
    """

    def __init__(
        self,
        images: Images,
        labels: Tensor,
        *,
        batch_size: int,
        seed: int,
        augment: Augment,
        device: torch.device | None = None,
        share: Share = WHOLE,
        note: str = "",
    ) -> None:
        if len(images) == 0:
            raise ValueError("there are no training images")
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.augment = augment
        self.device = device or images.device
        self.share = share
        self.note = note
        self.epoch_length = math.ceil(len(images) / batch_size)
        self._order: tuple[int, Tensor] = (-1, torch.empty(0))  # the last epoch and its order

    def starting_at(self, iteration: int) -> Iterator[Batch]:
        """Batches ``iteration``, ``iteration + 1``, ... without end."""
        while True:
            yield self.batch(iteration)
            iteration += 1

    def batch(self, iteration: int) -> Batch:
        """The batch of one 0-based iteration."""
        epoch, step = divmod(iteration, self.epoch_length)
        start = step * self.batch_size
        whole = self.order(epoch)[start : start + self.batch_size]
        own = self.share.of_batch(len(whole))
        images, labels = (
            send(select(each, whole[own]), self.device) for each in (self.images, self.labels)
        )
        seed = derive_seed(self.seed, "augment", iteration)
        shape = torch.Size((len(whole), *images.shape[1:]))
        draws = self.augment.draw(shape, torch.Generator().manual_seed(seed)).part(own)
        images = self.augment(images, draws.to(self.device))
        return Batch(images, labels, iteration, total=len(whole))

    def order(self, epoch: int) -> Tensor:
        """The indices of the images in the order of one 0-based epoch."""
        if self._order[0] != epoch:
            order = epoch_order(len(self.images), self.seed, epoch)
            self._order = (epoch, order.to(self.images.device))
        return self._order[1]


@dataclass(eq=False, repr=False)
class EvaluationBatches:
    """Every image of a share exactly once, in order; the last batch may be smaller.

    If there are fewer images than processes, some have a batch without images.

    Example:
        >>> images, labels = torch.zeros(5, 3, 2, 2, dtype=torch.uint8), torch.arange(5)
        >>> batches = EvaluationBatches(images, labels, batch_size=2, normalize=torch.Tensor.float)
        >>> len(batches), [y.tolist() for _, y in batches]
        (3, [[0, 1], [2, 3], [4]])
    """

    images: Images
    labels: Tensor
    _: KW_ONLY
    batch_size: int
    """Images per batch, over all processes."""
    normalize: Callable[[Tensor], Tensor]
    device: torch.device | None = None
    """The one that computes; None: where the images are."""
    share: Share = WHOLE

    def __len__(self) -> int:
        return len(range(0, max(1, len(self.images)), self._step))

    @property
    def _step(self) -> int:
        """Images that all processes compute at a time."""
        return math.ceil(self.batch_size / self.share.ranks) * self.share.ranks

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self.device or self.images.device
        for start in range(0, max(1, len(self.images)), self._step):
            part = self.share.of_set(start, start + self._step)
            images, labels = (send(each[part], device) for each in (self.images, self.labels))
            yield self.normalize(images), labels
