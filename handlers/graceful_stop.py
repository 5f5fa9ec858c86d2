"""Ends training in good order when the machine or its user asks for it."""

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
from ultimus_ignite.handlers.support.ranks import CommonMoments, highest
from ultimus_ignite.handlers.support.sparing_loader import SparingLoader

AGREEMENT_INTERVAL = 1.0  # seconds between two questions to the other ranks


class GracefulStop(Attachable):
    """Turns a signal into ``terminate()`` at the end of the iteration.

    For an epoch's last iteration that is the end of ``EPOCH_COMPLETED``, so that an evaluation is
    always finished. A `Checkpointer` then saves on ``TERMINATE``. A second signal acts as if there
    were no GracefulStop: SIGINT raises KeyboardInterrupt, SIGTERM ends the process. So does any
    signal outside a run of the engine, also after an exception ended the run. The `DataLoader`
    workers of the engine and its evaluators survive the first signal, see `SparingLoader`.

    SIGHUP comes from a terminal that is closed, and may come more than once or along with SIGTERM
    (systemd sends both): it never counts as the second signal, nor makes the next one the second.
    A signal that is ignored when the run starts stays ignored: SIGHUP under ``nohup``, SIGINT in a
    background job of a shell script.

    Of several processes each needs one: a signal to any of them ends all of them after the same
    iteration, about a second later, and is ``received`` by all.

    =======================  =============
    Event                    Method
    =======================  =============
    ``STARTED``              `open`
    evaluator's ``STARTED``  `spare_workers`
    ``ITERATION_COMPLETED``  `end_iteration`
    ``EPOCH_COMPLETED``      `end_epoch`
    ``INTERRUPT``            `pause`
    ``TERMINATE``            `close_without_completed`
    ``COMPLETED``            `close`
    =======================  =============

    Args:
        signals: the signals to handle.

    Attributes:
        received: the signal that ended the run; None: there was none.

    Raises:
        ValueError: at ``STARTED``, outside the main thread: Python handles signals only there.

    Example:
        >>> trainer = Engine(lambda engine, batch: signal.raise_signal(signal.SIGTERM))
        >>> stop = GracefulStop().attach(trainer)
        >>> trainer.run(range(10), max_epochs=1).iteration, stop.received.name
        (1, 'SIGTERM')
    """

    def __init__(
        self,
        *,
        signals: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    ) -> None:
        super().__init__()
        self.signals = tuple(signals)
        self.received: signal.Signals | None = None
        self._is_known = False  # all ranks know of the signal
        self._previous: dict[int, Any] = {}  # each signal's handler before this one
        self._spared: list[Engine] = []  # engines whose loader is now a SparingLoader

    def attach(
        self, engine: Engine, evaluator: Engine | Mapping[str, Engine] | None = None
    ) -> Self:
        """Attach to a trainer, and to its evaluators if their loaders have workers."""
        evaluators = evaluator if isinstance(evaluator, Mapping) else {"": evaluator}
        for each in filter(None, evaluators.values()):
            self._listen(each, (Events.STARTED, self.spare_workers))
        self._position = EpochPosition(engine)
        return self._attach(
            engine,
            *self._position.rows(),
            # Run after handlers that end the epoch early, and after an epoch's evaluation.
            (Events.STARTED, self._go_last, Events.ITERATION_COMPLETED, Events.EPOCH_COMPLETED),
            (Events.STARTED, self.open),
            (Events.ITERATION_COMPLETED, self.end_iteration),
            (Events.EPOCH_COMPLETED, self.end_epoch),
            (Events.INTERRUPT, self.pause),
            (Events.TERMINATE, self.close_without_completed),
            (Events.COMPLETED, self.close),
        )

    def open(self, engine: Engine) -> None:
        """Start to handle the signals."""
        self.received, self._is_known = None, False
        self._moments = CommonMoments(AGREEMENT_INTERVAL, owner=self)
        self.close()  # an exception skips COMPLETED
        self.listen()
        self.spare_workers(engine)

    def spare_workers(self, engine: Engine) -> None:
        """Let the workers of this engine's loader survive the first signal."""
        loader = engine.state.dataloader
        if isinstance(loader, DataLoader) and loader.num_workers and self._running() is not None:
            engine.state.dataloader = SparingLoader(loader, [*self._previous])
            self._spared.append(engine)

    def listen(self) -> None:
        """Handle the signals that are not ignored, unless one has come already."""
        self._process = os.getpid()  # a forked process inherits the handler
        for number in self.signals if self.received is None else ():
            if signal.getsignal(number) is signal.SIG_IGN:
                self._previous.pop(number, None)
                continue
            try:
                previous = signal.signal(number, self._note)
            except ValueError as error:
                raise ValueError(
                    f"GracefulStop cannot listen here ({error}): run the engine in the main thread"
                ) from None
            if previous != self._note:
                self._previous[number] = previous or signal.SIG_DFL  # None: set outside Python

    def pause(self, engine: Engine) -> None:
        """Give the signals back until the run continues."""
        self.close()
        self._at_next(engine, Events.ITERATION_STARTED, lambda engine: self.listen())

    def end_iteration(self, engine: Engine) -> None:
        """Stop in mid-epoch; `end_epoch` stops after the last iteration."""
        if self._moments.is_alone or self._moments.is_due():
            self._tell()
        if self._is_known and not self._position.is_at_end:
            engine.terminate()

    def end_epoch(self, engine: Engine) -> None:
        """Stop after an epoch, unless it is the last one."""
        self._tell()
        if self._is_known and engine.state.epoch != engine.state.max_epochs:
            engine.terminate()

    def _tell(self) -> None:
        """Tell the other ranks of a signal, and take theirs."""
        if not self._moments.is_alone and (number := int(highest(self.received or 0))):
            self.received = signal.Signals(number)
        self._is_known = self.received is not None

    def close_without_completed(self, engine: Engine) -> None:
        """Close if ``terminate(skip_completed=True)`` ends the run."""
        if engine.should_terminate == "skip_completed":
            self.close()

    def close(self) -> None:
        """Give back the signals and the loaders."""
        self._give_back(*self._previous)
        while self._spared:
            state = self._spared.pop().state
            if isinstance(state.dataloader, SparingLoader):
                state.dataloader = state.dataloader.loader

    def _give_back(self, *numbers: int) -> None:
        for number in numbers:
            if signal.getsignal(number) == self._note:  # else someone has replaced it
                previous = self._previous.get(number, signal.SIG_DFL)
                signal.signal(number, _of_a_running_stop(previous, number))

    def _note(self, number: int, frame: FrameType | None) -> None:
        is_hangup = number == signal.SIGHUP
        if self._process != os.getpid() and get_worker_info() is not None:
            # A forked worker ignores one signal, and every SIGHUP.
            signal.signal(number, signal.SIG_IGN if is_hangup else signal.SIG_DFL)
            return
        is_ours = self._process == os.getpid() and self._running(frame) is not None
        before = self.received
        if is_ours and is_hangup and before is not None:
            return
        if is_ours and before in (None, signal.SIGHUP):
            if not is_hangup:  # a second signal then meets the previous handler
                self._give_back(*(self._previous.keys() - {signal.SIGHUP}))
            received = signal.Signals(number)
            # A SIGTERM may have come within this call. Python runs no handler between these lines.
            if self.received is None or not is_hangup:
                self.received = received
            around = _of_a_running_stop(self._previous.get(number), number)
            if before is None and isinstance(getattr(around, "__self__", None), GracefulStop):
                around(number, frame)  # the run around this one ends, too
            return
        self.close()
        previous = _of_a_running_stop(self._previous.pop(number, signal.SIG_DFL), number)
        if callable(previous):
            previous(number, frame)
        elif previous == signal.SIG_DFL:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


def _of_a_running_stop(handler: Any, number: int) -> Any:
    """The handler, or the one before it if it belongs to a GracefulStop whose run is over."""
    stop = getattr(handler, "__self__", None)
    if isinstance(stop, GracefulStop) and stop._running() is None:
        return _of_a_running_stop(stop._previous.get(number, signal.SIG_DFL), number)
    return handler
