"""Batches that are made while a step runs."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Batch = TypeVar("Batch")


@contextmanager
def made_ahead(batches: Iterator[Batch], *, count: int = 2) -> Iterator[Iterator[Batch]]:
    """The same batches, of which a thread makes the next ones while the step runs.

    It gets half of torch's threads, and leaves the step the other half. An exception in the making
    of a batch is raised when its turn comes. At the end of the block the thread has ended.

    Args:
        batches: endless.
        count: batches that are made ahead at most.

    Example:
        >>> import itertools
        >>> with made_ahead(itertools.count(5)) as numbers:
        ...     [next(numbers) for _ in range(3)]
        [5, 6, 7]
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    maker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")

    def taken() -> Iterator[Batch]:
        made = deque(maker.submit(next, batches) for _ in range(count))
        while True:
            yield made.popleft().result()
            made.append(maker.submit(next, batches))

    try:
        yield taken()
    finally:
        maker.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
