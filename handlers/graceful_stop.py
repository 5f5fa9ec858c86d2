"""Ends training in good order when the machine, or its user, asks for it."""

import signal
from collections.abc import Sequence
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events
from typing_extensions import Self


class GracefulStop:
    """Turns a signal into ``terminate()`` at the next boundary.

    The boundary is the end of the iteration, or, for an epoch's last iteration, the end of
    ``EPOCH_COMPLETED``, so that an evaluation is finished and never lost. A `Checkpointer` then
    saves on ``TERMINATE``. A second signal is handled as if this handler were not there: SIGINT
    raises KeyboardInterrupt, SIGTERM ends the process.

    =======================  =============
    Event                    Method
    =======================  =============
    ``STARTED``              `listen`
    ``ITERATION_COMPLETED``  `end_iteration`
    ``EPOCH_COMPLETED``      `end_epoch`
    ``COMPLETED``            `close`
    =======================  =============

    Attach it after the handler that runs the evaluator. An exception skips ``COMPLETED``: call
    `close` in a ``finally`` where the process goes on after one.

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
        self.signals = tuple(signals)
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer."""
        engine.add_event_handler(Events.STARTED, self.listen)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.end_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.end_epoch)
        engine.add_event_handler(Events.COMPLETED, self.close)
        return self

    def listen(self) -> None:
        """Take the signals over."""
        self.received = None
        for number in self.signals:
            self._previous[number] = signal.signal(number, self._note)

    def end_iteration(self, engine: Engine) -> None:
        """Stop in the middle of an epoch; its last iteration is left to `end_epoch`."""
        state = engine.state
        if self.received and (not state.epoch_length or state.iteration % state.epoch_length):
            engine.terminate()

    def end_epoch(self, engine: Engine) -> None:
        """Stop after an epoch, unless it was the last one."""
        if self.received and engine.state.epoch != engine.state.max_epochs:
            engine.terminate()

    def close(self) -> None:
        """Give the signals back."""
        while self._previous:
            signal.signal(*self._previous.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self.close()  # the second one finds what was there before
