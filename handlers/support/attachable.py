"""What every handler shares: it attaches once, detaches, and knows whether its engine runs."""

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

from ignite.engine import Engine, Events
from typing_extensions import Self

from ultimus_ignite.handlers.support.private_names import RUN_CODE


def running_engines(frame: FrameType | None = None) -> Iterator[Engine]:
    """The engines whose `run` is among the callers, the innermost first.

    A run that ended in an exception fires no event, but its frame is gone: this is how a hook or a
    signal handler knows that there is nothing left to do. Five frames take half a microsecond.

    Args:
        frame: where to begin; the caller's frame when left out.

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
    """Base of the handlers: `detach`, and ``with`` where the process goes on after an exception.

    A subclass's ``attach`` is its table of events. What it touches outside its engine (a hook, a
    signal, a bar) it gives back in `close`.

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
        # The handler is kept: of a filtered event's handler, Ignite itself keeps a weak reference.
        self._rows: list[tuple[weakref.ref[Engine], Any, Callable[..., Any], tuple[Any, ...]]] = []

    def detach(self) -> None:
        """Take back every event handler, then `close`."""
        for reference, event, handler, _ in self._rows:
            engine = reference()
            if engine is not None and engine.has_event_handler(handler, event):
                engine.remove_event_handler(handler, event)
        self._rows.clear()
        self._engines.clear()
        self.close()

    def close(self) -> None:
        """Give back what is touched outside the engine; here nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    def _attach(self, engine: Engine, *rows: Any) -> Self:
        """Add ``(event, handler, *arguments)`` rows to the engine whose runs this handler follows.

        Raises:
            ValueError: it is attached to this engine already, or the engine is running.
        """
        if self._follows(engine):
            raise ValueError(
                f"{type(self).__name__} is attached to this engine already: detach() it first"
            )
        if engine in running_engines() and engine.last_event_name != Events.STARTED:
            raise ValueError(
                f"{type(self).__name__} is attached in the middle of a run: attach it before run()"
            )
        self._engines.append(weakref.ref(engine))
        self._listen(engine, (Events.STARTED, self._start), *rows)
        return self

    def _listen(self, engine: Engine, *rows: Any) -> None:
        """Add rows to an engine, each once."""
        known = [(reference(), *row) for reference, *row in self._rows]
        for event, handler, *arguments in rows:
            if (engine, event, handler, tuple(arguments)) not in known:
                engine.add_event_handler(event, handler, *arguments)
                self._rows.append((weakref.ref(engine), event, handler, tuple(arguments)))

    def _listen_to_each(
        self, evaluators: Mapping[str, Engine], handler: Callable[[Engine, str], None]
    ) -> None:
        """Call a handler with each evaluator and its name, once all of its metrics are there.

        Raises:
            ValueError: one evaluator has two names.
        """
        if len(set(map(id, evaluators.values()))) < len(evaluators):
            raise ValueError(
                f"{type(self).__name__}: one evaluator has two names, {', '.join(evaluators)}: its "
                "metrics could be told apart by nothing; make an evaluator for each"
            )
        for name, evaluator in evaluators.items():
            self._listen(
                evaluator,
                (Events.STARTED, self._go_last),
                (Events.COMPLETED, handler, name),
            )

    def _at_next(self, engine: Engine, event: Any, handler: Callable[[Engine], None]) -> None:
        """Call a handler once, when the event fires next, after all others: nothing an iteration.

        Args:
            engine: whose event.
            event: without a filter.
            handler: given the engine.
        """

        def once(engine: Engine) -> None:
            engine.remove_event_handler(once, event)
            self._rows.remove(row)
            handler(engine)

        row = (weakref.ref(engine), event, once, ())
        self._rows.append(row)
        engine.add_event_handler(event, once)

    def _go_last(self, engine: Engine, *events: Any) -> None:
        """Run after all handlers that were attached in the meantime: their order then is no matter.

        Args:
            engine: whose rows move to the end.
            events: of which events; of all but ``STARTED``, which may be firing, when left out.
        """
        for reference, event, handler, arguments in self._rows:
            moves = event in events if events else event != Events.STARTED
            # What is no longer there the user has taken away.
            if moves and reference() is engine and engine.has_event_handler(handler, event):
                engine.remove_event_handler(handler, event)
                engine.add_event_handler(event, handler, *arguments)

    def _running(self, frame: FrameType | None = None) -> Engine | None:
        """The engine among those it is attached to whose run is going on."""
        frame = frame or inspect.currentframe()
        while frame is not None:  # as running_engines, without the cost of a generator
            if frame.f_code is RUN_CODE:
                engine: Engine = frame.f_locals["self"]
                if self._follows(engine):
                    return engine
            frame = frame.f_back
        return None

    def _follows(self, engine: Engine) -> bool:
        return engine in [reference() for reference in self._engines]

    def _start(self, engine: Engine) -> None:
        engine.state.reading = None  # type: ignore[attr-defined]  # of the last run's last iteration
        others = (other for other in running_engines() if other is not engine)
        if any(map(self._follows, others)):
            raise ValueError(
                f"one {type(self).__name__} is attached to two engines, of which one runs within "
                "the other: make one for each"
            )
