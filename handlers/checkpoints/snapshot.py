"""What a checkpoint holds: the states of some objects, and what tells whose they are."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine
from torch.optim import Optimizer

from ultimus_ignite.handlers.checkpoints.format import encode
from ultimus_ignite.handlers.checkpoints.saved_state import (
    check_finite,
    differences,
    load_state,
    save_state,
)
from ultimus_ignite.handlers.checkpoints.store import CheckpointError
from ultimus_ignite.handlers.support.epoch_position import EpochPosition

FORMAT = 2
FORMATS = (1, 2)  # 1, of version 0.1.0, knows no run
OWN = {"format", "run", "step", "metadata", "best", "positions", "types"}


class Snapshot:
    """Takes the states of live objects, says whether others fit them, and loads those.

    Args:
        to_save: objects with ``state_dict`` and ``load_state_dict``, by name.
        metadata: plain values that a checkpoint must share with the run that loads it.
        assumed: for metadata that older checkpoints lack, the values that these were made with.

    Raises:
        ValueError: a name is one of the checkpoint's own.
        TypeError: an object has no ``state_dict`` or no ``load_state_dict``.

    Attributes:
        positions: where the Engines among the objects stand.
    """

    def __init__(
        self, to_save: Mapping[str, Any], *, metadata: Mapping[str, Any], assumed: Mapping[str, Any]
    ) -> None:
        if taken := OWN & to_save.keys():
            raise ValueError(f"to_save: {', '.join(sorted(taken))} is the checkpoint's own name")
        for name, live in to_save.items():
            if not (hasattr(live, "state_dict") and hasattr(live, "load_state_dict")):
                raise TypeError(
                    f"to_save[{name!r}] is a {type(live).__name__} without state_dict or "
                    "load_state_dict: only objects with both can be saved and restored"
                )
        self.to_save = dict(to_save)
        self.metadata = dict(metadata)
        self.assumed = dict(assumed)
        self.positions = {k: EpochPosition(v) for k, v in to_save.items() if isinstance(v, Engine)}

    def take(self, *, is_trial: bool = False, **own: Any) -> dict[str, Any]:
        """The states as they are now.

        Args:
            is_trial: leave out what a lazy module has not made yet.
            own: the run, the step and the best of it.

        Raises:
            CheckpointError: an object gives no state, or one that is not finite.
        """
        state = {
            "format": FORMAT,
            "metadata": self.metadata,
            **own,
            "positions": {name: each.state() for name, each in self.positions.items()},
            "types": self._types(),
        }
        for name, live in self.to_save.items():
            try:
                state[name] = save_state(live, with_lazy=not is_trial)
                check_finite(live, state[name], name)
            except Exception as error:  # of a user's own object, too
                raise CheckpointError(f"Checkpointer cannot save {name}: {error}") from error
        return state

    def check_fit(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Refuse what another run has written, before any live object is touched.

        Raises:
            CheckpointError: names every difference.
        """
        if checkpoint.get("format") not in FORMATS:
            raise CheckpointError(
                f"{path} has format {checkpoint.get('format')}, this version reads {FORMAT}: "
                "resume with the version that wrote it"
            )
        differing = self._differing_names(checkpoint)
        for name, live in self.to_save.items():
            if name in checkpoint:
                differing += differences(live, checkpoint[name], name)
        if differing:
            raise CheckpointError(
                f"{path} was written by a different run ({', '.join(differing)}): "
                "resume with what it was started with, or choose another folder"
            )
        for name, live in self.to_save.items():
            try:
                check_finite(live, checkpoint[name], name)
            except ValueError as error:
                raise CheckpointError(f"{path}: refused: {error}") from None

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Load a checkpoint that fits into the live objects."""
        for name, live in self.to_save.items():
            if name in self.positions:
                position = checkpoint.get("positions", {}).get(name)
                self.positions[name].restore(checkpoint[name], position)
            else:
                load_state(live, checkpoint[name])

    def _types(self) -> dict[str, str]:
        """Of the optimizers: what one kind has saved another takes, and fails at its next step."""
        return {k: type(v).__name__ for k, v in self.to_save.items() if isinstance(v, Optimizer)}

    def _differing_names(self, checkpoint: Mapping[str, Any]) -> list[str]:
        differing = sorted((checkpoint.keys() - OWN) ^ self.to_save.keys())
        saved = checkpoint.get("metadata", {})
        before = {**self.assumed, **saved}
        for key in sorted(self.metadata.keys() | saved.keys()):
            old, new = before.get(key), self.metadata.get(key)
            if encode({"": old}) != encode({"": new}):  # arrays and NaN are not equal by ==
                differing.append(f"{key}: {old} -> {new}")
        now = self._types()
        for name, kind in checkpoint.get("types", {}).items():
            if kind != now.get(name, kind):
                differing.append(f"{name}: {kind} -> {now[name]}")
        return differing
