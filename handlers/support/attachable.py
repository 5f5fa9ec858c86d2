"""What every handler shares: attach once, detach, and know whether the engine is running."""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any

from ignite.engine import Engine, Events
from typing_extensions import Self

from ultimus_ignite.handlers.support.private_names import RUN_CODE


def running_engines(frame: FrameType | None = None) -> Iterator[Engine]:
    """The engines whose `run` is on the call stack, the innermost first.

    A run that ends in an exception fires no event, but its frame leaves the stack. This tells a
    hook or a signal handler that the run is over. Five frames take about a microsecond.

    Args:
        frame: where to begin; the caller's frame by default.

    Example:
        >>> trainer = Engine(lambda engine, batch: engine in running_engines())
        >>> trainer.run([0]).output, trainer in running_engines()
        (True, False)
    """
    frame = frame or inspect.currentframe()
    while frame is not None:
        if frame.f_code is RUN_CODE:
            yield frame.f_locals["self"]
        frame = frame.f_back


class Attachable:
    """Base class of the handlers.

    The ``attach`` of a subclass is its table of events. Its `close` undoes every change outside
    the engine: hooks, signal handlers, bars. If the process continues after an exception, use
    ``with``, which calls `detach` at its end.

    Example:
        >>> class Counter(Attachable):
        ...     count = 0
        ...     def attach(self, engine):
        ...         return self._attach(engine, (Events.ITERATION_COMPLETED, self.update))
        ...     def update(self):
        ...         self.count += 1
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with Counter().attach(trainer) as counter:
        ...     _ = trainer.run(range(3))
        >>> _ = trainer.run(range(3))
        >>> counter.count
        3
    """

    def __init__(self) -> None:
        self._engines: list[weakref.ref[Engine]] = []
        # Keeps the handlers alive: for an event with a filter, Ignite holds only a weak reference.
        self._rows: list[tuple[weakref.ref[Engine], Any, Callable[..., Any], tuple[Any, ...]]] = []

    def detach(self) -> None:
        """Remove every event handler, then `close`."""
        for reference, event, handler, _ in self._rows:
            engine = reference()
            if engine is not None and engine.has_event_handler(handler, event):
                engine.remove_event_handler(handler, event)
        self._rows.clear()
        self._engines.clear()
        self.close()

    def close(self) -> None:
        """Undo the changes outside the engine; the base class makes none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.detach()

    def _attach(self, engine: Engine, *rows: Any) -> Self:
        """Follow an engine's runs, and add ``(event, handler, *arguments)`` rows to it.

        Raises:
            ValueError: it is attached to this engine already, or the engine is running.
        """
        name = type(self).__name__
        if self._follows(engine):
            raise ValueError(f"{name} is attached to this engine already: detach() it first")
        if engine in running_engines() and engine.last_event_name != Events.STARTED:
            raise ValueError(f"{name} is attached in the middle of a run: attach it before run()")
        self._engines.append(weakref.ref(engine))
        self._listen(engine, (Events.STARTED, self._start), *rows)
        return self

    def _listen(self, engine: Engine, *rows: Any) -> None:
        """Add rows to an engine, except those added before."""
        for event, handler, *arguments in rows:
            row = weakref.ref(engine), event, handler, tuple(arguments)
            if row not in self._rows:
                engine.add_event_handler(event, handler, *arguments)
                self._rows.append(row)

    def _listen_to_each(
        self, evaluators: Mapping[str, Engine], handler: Callable[[Engine, str], None]
    ) -> None:
        """Call a handler with each evaluator and its name, after its metrics are computed."""
        if len(set(map(id, evaluators.values()))) < len(evaluators):
            raise ValueError(
                f"{type(self).__name__}: one evaluator has two names, {', '.join(evaluators)}: "
                "create an evaluator for each name"
            )
        for name, evaluator in evaluators.items():
            rows = (Events.STARTED, self._go_last), (Events.COMPLETED, handler, name)
            self._listen(evaluator, *rows)

    def _at_next(self, engine: Engine, event: Any, handler: Callable[[Engine], None]) -> None:
        """Call a handler once, after the others of the next event; the event has no filter."""

        def once(engine: Engine) -> None:
            engine.remove_event_handler(once, event)
            self._rows.remove(row)
            handler(engine)

        row = (weakref.ref(engine), event, once, ())
        self._rows.append(row)
        engine.add_event_handler(event, once)

    def _go_last(self, engine: Engine, *events: Any) -> None:
        """Move this handler's rows to the end, so that the order of attaching does not matter.

        Only rows of ``events`` move; by default all but ``STARTED``, which may be firing.
        """
        for reference, event, handler, arguments in self._rows:
            moves = event in events if events else event != Events.STARTED
            # The user may have removed the handler.
            if moves and reference() is engine and engine.has_event_handler(handler, event):
                engine.remove_event_handler(handler, event)
                engine.add_event_handler(event, handler, *arguments)

    def _running(self, frame: FrameType | None = None) -> Engine | None:
        """The running engine that this handler is attached to, if any."""
        return next(filter(self._follows, running_engines(frame)), None)

    def _follows(self, engine: Engine) -> bool:
        return weakref.ref(engine) in self._engines

    def _start(self, engine: Engine) -> None:
        engine.state.reading = None  # type: ignore[attr-defined]  # left by the previous run
        if any(other is not engine and self._follows(other) for other in running_engines()):
            raise ValueError(
                f"one {type(self).__name__} is attached to two engines, and one of them runs "
                "inside the other: create one for each engine"
            )
