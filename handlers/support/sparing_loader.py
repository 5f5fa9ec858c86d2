"""A DataLoader whose workers outlive the signal that ends their run."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader


class SparingLoader:
    """Starts a loader's workers so that the first of some signals does not end them.

    A terminal and a batch system send a signal to the whole process group. Workers that died of it
    would take the run with them, before it could save. From their first moment the signals are
    blocked, as a process inherits; once they have a handler of their own, the first signal is
    passed over and the second ends them. The loader itself is as before when its iterator is made.
    A fork server that is started meanwhile keeps them blocked, for its other children, too.

    Args:
        loader: what is iterated over; its other attributes can be reached.
        signals: which ones.
    """

    def __init__(self, loader: DataLoader[Any], signals: Sequence[signal.Signals]) -> None:
        self.loader = loader
        self.signals = signals

    def __iter__(self) -> Iterator[Any]:
        init = self.loader.worker_init_fn
        context = self.loader.multiprocessing_context or multiprocessing
        if context.get_start_method() != "fork":
            resource_tracker.ensure_running()  # when it starts, it unblocks the signals
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, self.signals)
        try:
            self.loader.worker_init_fn = partial(_pass_over_the_first, self.signals, init)
            return iter(self.loader)
        finally:
            self.loader.worker_init_fn = init
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # of a copy that is being made
            raise AttributeError(name)
        return getattr(self.loader, name)


def _pass_over_the_first(
    signals: Sequence[signal.Signals], init: Callable[[int], None] | None, worker: int
) -> None:
    """In a worker: a handler for each signal, then the loader's own ``worker_init_fn``."""

    def pass_over(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)

    for number in signals:
        signal.signal(number, pass_over)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
    if init is not None:
        init(worker)
