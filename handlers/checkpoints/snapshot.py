"""The content of a checkpoint: the states of objects, and the metadata of their run."""

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
FORMATS = (1, 2)  # version 0.1.0 wrote 1, which has no run
OWN = {"format", "run", "step", "metadata", "best", "positions", "types"}


class Snapshot:
    """Saves the states of objects, checks whether a checkpoint fits them, and loads it.

    Args:
        to_save: objects with ``state_dict`` and ``load_state_dict``, by name.
        metadata: plain values that must be equal in a checkpoint and in the run that loads it.
        assumed: values to assume for metadata that a checkpoint lacks.

    Raises:
        ValueError: an object has the name of one of the checkpoint's own entries.
        TypeError: an object has no ``state_dict`` or no ``load_state_dict``.

    Attributes:
        positions: the `EpochPosition` of each Engine in ``to_save``.
    """

    def __init__(
        self, to_save: Mapping[str, Any], *, metadata: Mapping[str, Any], assumed: Mapping[str, Any]
    ) -> None:
        if taken := ", ".join(sorted(OWN & to_save.keys())):
            raise ValueError(f"to_save: {taken}: a checkpoint's own entry, choose another name")
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
        # An optimizer loads the state of another class, but fails at its next step.
        self._types = {k: type(v).__name__ for k, v in to_save.items() if isinstance(v, Optimizer)}

    def consolidate(self) -> None:
        """Have objects gather what their state lacks, on each rank, before rank 0 saves it."""
        for live in self.to_save.values():
            if hasattr(live, "consolidate_state_dict"):
                live.consolidate_state_dict()

    def take(self, *, is_trial: bool = False, **own: Any) -> dict[str, Any]:
        """The current states.

        Args:
            is_trial: leave out the uninitialized parameters of lazy modules.
            own: other entries of the checkpoint: the run, the step and the best.

        Raises:
            CheckpointError: an object's state cannot be read, or is not finite.
        """
        state = {
            "format": FORMAT,
            "metadata": self.metadata,
            **own,
            "positions": {name: each.state() for name, each in self.positions.items()},
            "types": self._types,
        }
        for name, live in self.to_save.items():
            try:
                state[name] = save_state(live, with_lazy=not is_trial)
                check_finite(live, state[name], name)
            except Exception as error:  # of any kind: ``live`` may be a user's own class
                raise CheckpointError(f"Checkpointer cannot save {name}: {error}") from error
        return state

    def check_fit(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Refuse a checkpoint of a different run, before it changes any object.

        Raises:
            CheckpointError: the checkpoint does not fit; the message names every difference.
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
                "resume with the original settings, or choose another folder"
            )
        for name, live in self.to_save.items():
            try:
                check_finite(live, checkpoint[name], name)
            except ValueError as error:
                raise CheckpointError(f"{path}: refused: {error}") from None

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Load a checkpoint that fits into the objects.

        Raises:
            CheckpointError: an object cannot load its state, which another version of it may have
                saved; the objects before it in ``to_save`` are loaded.
        """
        for name, live in self.to_save.items():
            try:
                if name in self.positions:
                    position = checkpoint.get("positions", {}).get(name)
                    self.positions[name].restore(checkpoint[name], position)
                else:
                    load_state(live, checkpoint[name])
            except Exception as error:  # of any kind: ``live`` may be a user's own class
                raise CheckpointError(
                    f"Checkpointer cannot load {name} ({type(error).__name__}: {error}): "
                    "resume with the code that saved it, or choose another folder"
                ) from error

    def _differing_names(self, checkpoint: Mapping[str, Any]) -> list[str]:
        differing = sorted((checkpoint.keys() - OWN) ^ self.to_save.keys())
        saved = checkpoint.get("metadata", {})
        before = {**self.assumed, **saved}
        for key in sorted(self.metadata.keys() | saved.keys()):
            old, new = before.get(key), self.metadata.get(key)
            if encode({"": old}) != encode({"": new}):  # == fails for arrays and NaN
                differing.append(f"{key}: {old} -> {new}")
        for name, kind in checkpoint.get("types", {}).items():
            if kind != self._types.get(name, kind):
                differing.append(f"{name}: {kind} -> {self._types[name]}")
        return differing
