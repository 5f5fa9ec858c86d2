"""A DataLoader whose workers survive the signal that ends the run."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader


class SparingLoader:
    """Starts a loader's workers so that they ignore a signal the first time it arrives.

    A terminal and a batch system send a signal to the whole process group. If it killed a worker,
    the run would fail before it could save. So the workers start with the signals blocked, until
    each has a handler that ignores the first signal; a second one kills it, but never SIGHUP. The
    loader itself does not change. A fork server started meanwhile blocks the signals in all of its
    children.

    Args:
        loader: the loader to iterate over; its attributes are attributes of this object too.
        signals: the signals to ignore once.
    """

    def __init__(self, loader: DataLoader[Any], signals: Sequence[int]) -> None:
        self.loader = loader
        self.signals = signals

    def __iter__(self) -> Iterator[Any]:
        init = self.loader.worker_init_fn
        context = self.loader.multiprocessing_context or multiprocessing
        if context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # its start would unblock the signals
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        try:
            self.loader.worker_init_fn = partial(_ignore_the_first, self.signals, init)
            return iter(self.loader)
        finally:
            self.loader.worker_init_fn = init
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # not set yet in an object that is being copied
            raise AttributeError(name)
        return getattr(self.loader, name)


def _ignore_the_first(
    signals: Sequence[int], init: Callable[[int], None] | None, worker: int
) -> None:
    """In a worker: set a handler for each signal, then call the loader's ``worker_init_fn``."""

    def ignore_once(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in signals:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else ignore_once)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    if init is not None:
        init(worker)
