"""Batches of a user's own data set, from any iteration on."""

import math
from collections.abc import Iterator, Sized

import torch
from torch.utils.data import Sampler

from ultimus_ignite.seeding import derive_seed


class EndlessBatches(Sampler[list[int]]):
    """A `DataLoader`'s ``batch_sampler`` that begins at any iteration and never ends.

    The order of epoch e is a ``randperm`` seeded by (seed, e); its last batch may be smaller. So a
    run that is resumed at iteration k sees the same samples as the unbroken run, but random numbers
    of the data set itself (a random crop) may differ. ``len`` is the number of batches per epoch.

    Args:
        dataset: only its length is used.
        batch_size: samples per batch.
        seed: seed of the order.
        start: 0-based iteration to begin at: ``trainer.state.iteration``.

    Raises:
        ValueError: there are no samples, or an argument is out of range.

    Example:
        >>> resumed = EndlessBatches(range(10), batch_size=4, seed=1, start=2)
        >>> len(resumed), [len(batch) for batch, _ in zip(resumed, range(3))]
        (3, [2, 4, 4])
    """

    def __init__(self, dataset: Sized, *, batch_size: int, seed: int = 0, start: int = 0) -> None:
        if len(dataset) == 0:
            raise ValueError("the data set is empty")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if start < 0:
            raise ValueError(f"start must be at least 0, got {start}")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.start = start

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        epoch, step = divmod(self.start, len(self))
        while True:
            order = epoch_order(len(self.dataset), self.seed, epoch).tolist()
            for first in range(step * self.batch_size, len(order), self.batch_size):
                yield order[first : first + self.batch_size]
            epoch, step = epoch + 1, 0


def epoch_order(length: int, seed: int, epoch: int) -> torch.Tensor:
    """The order of ``length`` samples in one 0-based epoch, int64 ``(length,)``."""
    generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
    return torch.randperm(length, generator=generator)
