"""Where in its epochs an Engine stands, also where `iteration / epoch_length` does not tell."""

from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events

from ultimus_ignite.handlers.support.private_names import skip_iterations, skipped_iterations


class EpochPosition:
    """Follows an Engine's epochs, so that it can be restored to where it was.

    Ignite restores an Engine from its iteration and its epoch's length. That fails where an epoch
    was ended early by ``terminate_epoch()``, and where the length is not known yet.

    Args:
        engine: it listens to this one's `rows`.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._began_at = 0  # iteration before the epoch's first
        self._is_completed = False
        self._is_first = False  # epoch of a run

    def rows(self) -> tuple[Any, ...]:
        """Events and handlers."""
        return (
            (Events.STARTED, self.start_run),
            (Events.EPOCH_STARTED, self.start_epoch),
            (Events.EPOCH_COMPLETED, self.complete_epoch),
        )

    def start_run(self) -> None:
        """A run's first epoch may begin in its middle."""
        self._is_first = True

    def start_epoch(self) -> None:
        """Note where the epoch begins."""
        state, done = self.engine.state, 0
        if self._is_first:
            done = state.iteration % state.epoch_length if state.epoch_length else state.iteration
            skipped = skipped_iterations(self.engine)
            if skipped is not None:  # set by a terminated run, or by `restore`
                done = skipped
        self._began_at = state.iteration - done
        self._is_first = self._is_completed = False

    def complete_epoch(self) -> None:
        """Note that the epoch is over."""
        self._is_completed = True

    @property
    def is_at_end(self) -> bool:
        """Whether the epoch's last iteration is done."""
        done = self.engine.state.iteration - self._began_at
        return bool(
            done == self.engine.state.epoch_length or self.engine.should_terminate_single_epoch
        )

    def state(self) -> dict[str, int]:
        """Finished epochs, and finished iterations of the next one."""
        state = self.engine.state
        is_completing = self.engine.last_event_name == Events.EPOCH_COMPLETED
        if self._is_completed or is_completing or self.is_at_end or state.epoch == 0:
            return {"epochs": state.epoch, "iterations": 0}
        return {"epochs": state.epoch - 1, "iterations": state.iteration - self._began_at}

    def restore(self, state: Mapping[str, Any], position: Mapping[str, int] | None) -> None:
        """Load an Engine's own state, then where it stood."""
        if position is None:  # of version 0.1.0
            self.engine.load_state_dict(state)
            return
        self.engine.load_state_dict({**state, "iteration": 0})  # 0 needs no epoch_length
        self.engine.state.iteration = state["iteration"]
        self.engine.state.epoch = position["epochs"]
        skip_iterations(self.engine, position["iterations"])
