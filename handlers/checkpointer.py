"""Checkpoints of a run: the newest two and the best."""

import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer
from typing_extensions import Self

from ultimus_ignite.handlers.checkpoint_store import CheckpointError, CheckpointStore

FORMAT = 1


class Checkpointer:
    """Saves what a run needs to go on, through a `CheckpointStore`; attach it last.

    ========================  =================
    Event                     Method
    ========================  =================
    ``ITERATION_COMPLETED``   `save_iteration`
    ``EPOCH_COMPLETED``       `save_epoch`
    ``TERMINATE``             `save_iteration`
    ``COMPLETED``             `check`
    ========================  =================

    A save that fails (a full disk) is a warning, and is tried again at the next one; when the last
    one of the run has failed, `check` raises. Nothing is saved between an epoch's last iteration
    and the end of its ``EPOCH_COMPLETED``, so that a resumed run never misses an evaluation.

    Args:
        to_save: objects with ``state_dict`` and ``load_state_dict``, by name; the trainer is one.
        directory: where the checkpoints lie.
        every: also save after every so many iterations.
        score_function: score of the epoch just completed, higher is better, NaN is worst; the best
            checkpoint is kept beside the newest two.
        metadata: plain values that a checkpoint must share with the run that loads it.

    Raises:
        ValueError: ``every`` is not positive.
        OSError: from `check`, the last save of the run failed.

    Example:
        >>> import tempfile
        >>> trainer = Engine(lambda engine, batch: None)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Checkpointer({"trainer": trainer}, directory=folder).attach(trainer)
        ...     _ = trainer.run(range(3), max_epochs=4)
        ...     sorted(path.name for path in Path(folder).glob("*.pt"))
        ['ckpt-000000009.pt', 'ckpt-000000012.pt']
    """

    def __init__(
        self,
        to_save: Mapping[str, Any],
        *,
        directory: Path | str,
        every: int | None = None,
        score_function: Callable[[Engine], float] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be a positive number of iterations, got {every}")
        self.to_save = dict(to_save)
        self.store = CheckpointStore(directory)
        self.every = every
        self.score_function = score_function
        self.metadata = dict(metadata or {})
        self.best_iteration: int | None = None
        self.best_score = -math.inf
        self._failure: OSError | None = None

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer, after every handler whose state is saved."""
        if self.every is not None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED(every=self.every), self.save_iteration
            )
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save_epoch)
        engine.add_event_handler(Events.TERMINATE, self.save_iteration)
        engine.add_event_handler(Events.COMPLETED, self.check)
        return self

    def save_iteration(self, engine: Engine) -> None:
        """Save in the middle of an epoch; its end is left to `save_epoch`."""
        state = engine.state
        if state.epoch_length is None or state.iteration % state.epoch_length:
            self._save(engine)

    def save_epoch(self, engine: Engine) -> None:
        """Score the epoch and save."""
        if self.score_function is not None:
            score = self.score_function(engine)
            if score > self.best_score:  # never true of NaN
                self.best_score, self.best_iteration = float(score), engine.state.iteration
        self._save(engine)

    def check(self) -> None:
        """Do not let a run end well whose last state is not on disk."""
        if self._failure is not None:
            raise self._failure

    def load_newest(self) -> dict[str, Any] | None:
        """The newest valid checkpoint, or None where there is none at all.

        Raises:
            CheckpointError: there are checkpoints, but none is valid, or the newest belongs to
                another run.
        """
        newest = self.store.load_newest()
        if newest is None:
            return None
        path, checkpoint = newest
        self._check_fit(path, checkpoint)
        return checkpoint

    def load_best(self) -> tuple[int, dict[str, Any]]:
        """The iteration and the checkpoint with the best score of this run.

        Raises:
            CheckpointError: no epoch has had a score, or its checkpoint is not valid.
        """
        if self.best_iteration is None:
            raise CheckpointError(f"{self.store.directory}: no epoch has a score to be the best by")
        path = self.store.path(self.best_iteration)
        return self.best_iteration, self.store.load(path)

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Load a checkpoint into the live objects."""
        for name, live in self.to_save.items():
            live.load_state_dict(checkpoint[name])
        self.best_iteration, self.best_score = checkpoint["best"]

    def _save(self, engine: Engine) -> None:
        checkpoint = {
            "format": FORMAT,
            "metadata": self.metadata,
            "best": (self.best_iteration, self.best_score),
            **{name: live.state_dict() for name, live in self.to_save.items()},
        }
        protect = () if self.best_iteration is None else (self.best_iteration,)
        try:
            self.store.save(checkpoint, iteration=engine.state.iteration, protect=protect)
            self._failure = None
        except OSError as error:
            self._failure = error
            warnings.warn(f"checkpoint not saved, the older ones are kept: {error}", stacklevel=2)

    def _check_fit(self, path: Path, checkpoint: Mapping[str, Any]) -> None:
        """Refuse what another run has written, before any live object is touched."""
        if checkpoint.get("format") != FORMAT:
            raise CheckpointError(
                f"{path} has format {checkpoint.get('format')}, this version reads {FORMAT}: "
                "resume with the version that wrote it"
            )
        expected = {"format", "metadata", "best", *self.to_save}
        differing = {name: name for name in expected ^ checkpoint.keys()}
        metadata = checkpoint.get("metadata", {})
        for key in sorted(self.metadata.keys() | metadata.keys()):
            old, new = metadata.get(key), self.metadata.get(key)
            if old != new:
                differing[key] = f"{key}: {old} -> {new}"
        for name, live in self.to_save.items():
            if name in checkpoint:
                old, new = _layout(live, checkpoint[name]), _layout(live, live.state_dict())
                for key in sorted(old.keys() | new.keys()):
                    if old.get(key) != new.get(key):
                        differing[key] = f"{name}.{key}: {old.get(key)} -> {new.get(key)}"
        if differing:
            raise CheckpointError(
                f"{path} was written by a different run ({', '.join(differing.values())}): "
                "resume with what it was started with, or choose another folder"
            )


def _layout(live: Any, state: Mapping[str, Any]) -> dict[str, Any]:
    """What two states must share for one object to load both."""
    if isinstance(live, nn.Module):
        return {key: tuple(value.shape) for key, value in state.items()}
    if isinstance(live, Optimizer):
        return {"group sizes": [len(group["params"]) for group in state["param_groups"]]}
    return {}
