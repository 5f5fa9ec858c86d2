"""Ends training in good order when the machine, or its user, asks for it."""

import os
import signal
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events
from torch.utils.data import DataLoader, get_worker_info
from typing_extensions import Self

from ultimus_ignite.handlers.support.attachable import Attachable
from ultimus_ignite.handlers.support.epoch_position import EpochPosition
from ultimus_ignite.handlers.support.sparing_loader import SparingLoader


class GracefulStop(Attachable):
    """Turns a signal into ``terminate()`` at the next boundary.

    The boundary is the end of the iteration, or, for an epoch's last iteration, the end of
    ``EPOCH_COMPLETED``, so that an evaluation is finished and never lost. A `Checkpointer` then
    saves on ``TERMINATE``. A second signal is handled as if this handler were not there: SIGINT
    raises KeyboardInterrupt, SIGTERM ends the process. So is a signal outside a run of the engine,
    also after one that ended in an exception. The workers of the engine's `DataLoader`, and of the
    evaluators' that it is attached to, outlive the first signal, see `SparingLoader`.

    =======================  =============
    Event                    Method
    =======================  =============
    ``STARTED``              `open`
    evaluator's ``STARTED``  `spare_workers`
    ``ITERATION_COMPLETED``  `end_iteration`
    ``EPOCH_COMPLETED``      `end_epoch`
    ``INTERRUPT``            `pause`
    ``TERMINATE``            `close`
    ``COMPLETED``            `close`
    =======================  =============

    Args:
        signals: which signals to listen to.

    Attributes:
        received: the signal that ended the run, None where none came.

    Raises:
        ValueError: at ``STARTED``, outside the main thread: Python handles signals only there.

    Example:
        >>> trainer = Engine(lambda engine, batch: signal.raise_signal(signal.SIGTERM))
        >>> stop = GracefulStop().attach(trainer)
        >>> trainer.run(range(10), max_epochs=1).iteration, stop.received.name
        (1, 'SIGTERM')
    """

    def __init__(
        self, *, signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    ) -> None:
        super().__init__()
        self.signals = tuple(signals)
        self.received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}  # what handled a signal before this handler
        self._process = 0  # in which it listens: a fork inherits the handler
        self._spared: list[Engine] = []  # whose loader is a SparingLoader

    def attach(
        self, engine: Engine, evaluator: Engine | Mapping[str, Engine] | None = None
    ) -> Self:
        """Attach to a trainer, and to the evaluators it runs where their loaders have workers."""
        evaluators = evaluator if isinstance(evaluator, Mapping) else {"": evaluator}
        for each in filter(None, evaluators.values()):
            self._listen(each, (Events.STARTED, self.spare_workers))
        self._position = EpochPosition(engine)
        return self._attach(
            engine,
            *self._position.rows(),
            # After what may end the epoch early, and after the evaluation of one.
            (Events.STARTED, self._go_last, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED),
            (Events.STARTED, self.open),
            (Events.ITERATION_COMPLETED, self.end_iteration),
            (Events.EPOCH_COMPLETED, self.end_epoch),
            (Events.INTERRUPT, self.pause),
            (Events.TERMINATE, self.close),
            (Events.COMPLETED, self.close),
        )

    def open(self, engine: Engine) -> None:
        """Take the signals over."""
        self.received = None
        self.close()  # an exception skips COMPLETED
        self.listen()
        self.spare_workers(engine)

    def spare_workers(self, engine: Engine) -> None:
        """Have the workers that this engine's loader starts outlive the first signal."""
        loader = engine.state.dataloader
        if isinstance(loader, DataLoader) and loader.num_workers and self._running() is not None:
            engine.state.dataloader = SparingLoader(loader, self.signals)
            self._spared.append(engine)

    def listen(self) -> None:
        """Take the signals over, unless one has come already."""
        self._process = os.getpid()
        for number in self.signals if self.received is None else ():
            try:
                previous = signal.signal(number, self._note)
            except ValueError as error:
                raise ValueError(
                    f"GracefulStop cannot listen here ({error}): run the engine in the main thread"
                ) from None
            if previous != self._note:
                self._previous[number] = previous or signal.SIG_DFL  # None: not set by Python

    def pause(self, engine: Engine) -> None:
        """Give the signals back until the run goes on."""
        self.close()
        self._at_next(engine, Events.ITERATION_STARTED, lambda engine: self.listen())

    def end_iteration(self, engine: Engine) -> None:
        """Stop in the middle of an epoch; its last iteration is left to `end_epoch`."""
        if self.received and not self._position.is_at_end:
            engine.terminate()

    def end_epoch(self, engine: Engine) -> None:
        """Stop after an epoch, unless it was the last one."""
        if self.received and engine.state.epoch != engine.state.max_epochs:
            engine.terminate()

    def close(self) -> None:
        """Give the signals and the loader back."""
        for number, previous in self._previous.items():
            if signal.getsignal(number) == self._note:  # else somebody has taken it over since
                signal.signal(number, _of_a_running_stop(previous, number))
        while self._spared:
            state = self._spared.pop().state
            if isinstance(state.dataloader, SparingLoader):
                state.dataloader = state.dataloader.loader

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._process != os.getpid() and get_worker_info() is not None:
            signal.signal(number, signal.SIG_DFL)  # a worker, forked with this handler, passes over
            return
        is_first = (
            self.received is None
            and self._process == os.getpid()
            and self._running(frame) is not None
        )
        self.close()  # the second one finds what was there before
        previous = _of_a_running_stop(self._previous.pop(number, signal.SIG_DFL), number)
        if is_first:
            self.received = signal.Signals(number)
            if isinstance(getattr(previous, "__self__", None), GracefulStop):
                previous(number, frame)  # of a run around this one, which is to end as well
        elif callable(previous):
            previous(number, frame)
        elif previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _of_a_running_stop(handler: Any, number: int) -> Any:
    """A signal's handler, or what stood before it where it is of a stop whose run is over."""
    while isinstance(stop := getattr(handler, "__self__", None), GracefulStop):
        if stop._running() is not None:
            break
        handler = stop._previous.get(number, signal.SIG_DFL)
    return handler
