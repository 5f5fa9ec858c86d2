"""The position of an Engine within its epochs, even if `iteration / epoch_length` is wrong."""

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from ultimus_ignite.handlers.support.private_names import skip_iterations, skipped_iterations


class EpochPosition:
    """Follows an Engine's epochs, so that a resumed run continues at the same iteration.

    Ignite derives the epoch from the iteration and the epoch's length. That fails if
    ``terminate_epoch()`` has ended an epoch early, or if the length is not known yet.

    Args:
        engine: the Engine to follow; add `rows` to it.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._began_at = 0  # iteration before the epoch's first
        self._is_completed = False
        self._is_first = False  # the next epoch is the first of a run

    def rows(self) -> tuple[Any, ...]:
        """The events and their handlers."""
        return (
            (Events.STARTED, self.start_run),
            (Events.EPOCH_STARTED, self.start_epoch),
            (Events.EPOCH_COMPLETED, self.complete_epoch),
        )

    def start_run(self) -> None:
        """Note that the next epoch is the run's first, which may begin in the middle."""
        self._is_first = True

    def start_epoch(self) -> None:
        """Note where the epoch begins."""
        state = self.engine.state
        # Only a terminated run and `restore` set the skipped iterations.
        done = skipped_iterations(self.engine) if self._is_first else 0
        if done is None:
            done = state.iteration % state.epoch_length if state.epoch_length else state.iteration
        self._began_at = state.iteration - done
        self._is_first = self._is_completed = False

    def complete_epoch(self) -> None:
        """Note that the epoch is complete."""
        self._is_completed = True

    @property
    def is_at_end(self) -> bool:
        """Whether the epoch's last iteration is done."""
        state = self.engine.state
        is_full = state.iteration - self._began_at == state.epoch_length
        return bool(is_full or self.engine.should_terminate_single_epoch)

    def state(self) -> dict[str, int]:
        """The number of finished epochs, and of finished iterations in the next one."""
        state = self.engine.state
        is_completing = self.engine.last_event_name == Events.EPOCH_COMPLETED
        if self._is_completed or is_completing or self.is_at_end or state.epoch == 0:
            return {"epochs": state.epoch, "iterations": 0}
        return {"epochs": state.epoch - 1, "iterations": state.iteration - self._began_at}

    def restore(self, state: Mapping[str, Any], position: Mapping[str, int] | None) -> None:
        """Load an Engine's own state, then its position."""
        if position is None:  # saved by version 0.1.0
            self.engine.load_state_dict(state)
            return
        self.engine.load_state_dict({**state, "iteration": 0})  # 0 needs no epoch_length
        self.engine.state.iteration = state["iteration"]
        self.engine.state.epoch = position["epochs"]
        skip_iterations(self.engine, position["iterations"])
