"""Checkpoints of a run: the newest two and the best."""

import math
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ignite.distributed as idist
from ignite.engine import Engine, Events
from typing_extensions import Self

from ultimus_ignite.handlers.checkpoints.format import encode
from ultimus_ignite.handlers.checkpoints.snapshot import Snapshot
from ultimus_ignite.handlers.checkpoints.store import CheckpointError, CheckpointStore
from ultimus_ignite.handlers.support.attachable import Attachable, running_engines
from ultimus_ignite.handlers.support.epoch_position import EpochPosition
from ultimus_ignite.handlers.support.ranks import Peers


class Checkpointer(Attachable):
    """Saves everything that a run needs to resume, through a `CheckpointStore`.

    ========================  =================
    Event                     Method
    ========================  =================
    ``STARTED``               `begin`
    first ``EPOCH_STARTED``   encodes everything once
    ``ITERATION_COMPLETED``   `save_iteration`
    ``EPOCH_COMPLETED``       `save_epoch`
    ``TERMINATE``             `save_last`
    ``INTERRUPT``             `save_last`
    ``COMPLETED``             `save_last`, `check`
    ========================  =================

    It runs after all other handlers of an event, whatever the order of attaching. Call `resume`
    before ``trainer.run()``: the script then resumes, or starts if nothing is saved yet. Ignite
    starts a loader at its first batch, also in mid-epoch. To continue at the right batch, use
    ``ultimus_ignite.data.sampler.EndlessBatches(..., start=trainer.state.iteration)``.

    A state that cannot be saved is refused before the first iteration. A failed save (a full disk)
    warns, and the next save tries again; if the run's last save failed, `check` raises. An epoch's
    last iteration is saved after its evaluation, at the end of ``EPOCH_COMPLETED``; a run that is
    terminated on this iteration is saved without one. Nothing is saved after an exception: it may
    come in mid-step. Only rank 0 writes. On an evaluator, it counts the trainer's iterations.

    Args:
        to_save: objects with ``state_dict`` and ``load_state_dict``, by name; include the trainer.
        directory: folder for the checkpoints of this run only.
        every: number of iterations between additional saves; None: save only after epochs.
        keep: number of newest checkpoints to keep, at least 2.
        score_function: score of an epoch; the checkpoint with the highest is kept, NaN is worst.
        global_step_transform: ``(engine, event) -> iteration``, for the file names; for example
            Ignite's ``global_step_from_engine(trainer)``.
        metadata: plain values that must be the same in a checkpoint and in the run that loads it.
        assumed: values of ``metadata`` for older checkpoints that lack them.

    Raises:
        ValueError: ``every`` is not positive, or ``keep`` is less than 2.
        TypeError: an object has no ``state_dict`` or no ``load_state_dict``.
        CheckpointError: before the first iteration: a state cannot be saved, or the folder holds
            another run; from a save: a trained parameter or a moment is NaN or infinite.
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

    # The Checkpointer of each folder: two at once would delete each other's checkpoints.
    _writers: ClassVar = weakref.WeakValueDictionary[Path, "Checkpointer"]()

    def __init__(
        self,
        to_save: Mapping[str, Any],
        *,
        directory: Path | str,
        every: int | None = None,
        keep: int = 2,
        score_function: Callable[[Engine], float] | None = None,
        global_step_transform: Callable[[Engine, Any], int] | None = None,
        metadata: Mapping[str, Any] | None = None,
        assumed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if every is not None and every < 1:
            raise ValueError(f"every must be a positive number of iterations, got {every}")
        self.snapshot = Snapshot(to_save, metadata=metadata or {}, assumed=assumed or {})
        self.store = CheckpointStore(directory, keep=keep)
        self.every = every
        self.score_function = score_function
        self.global_step_transform = global_step_transform
        self.best_iteration: int | None = None
        self.best_score = -math.inf
        self._saved = [position.engine for position in self.snapshot.positions.values()]
        self._trainer: weakref.ref[Engine] | None = None  # it counts the iterations
        self._last_step: int | None = None  # the last one saved or restored
        self._last_iteration: int | None = None  # the trainer's, at that step
        self._failure: OSError | None = None

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer, or to an evaluator to save after each evaluation."""
        in_epoch: list[Any] = []
        if self.every is not None:
            in_epoch = [(Events.ITERATION_COMPLETED(every=self.every), self.save_iteration)]
        positions = self.snapshot.positions.values()
        for position in positions:
            self._listen(position.engine, *position.rows())
        self._position = next((p for p in positions if p.engine is engine), EpochPosition(engine))
        return self._attach(
            engine,
            *self._position.rows(),
            (Events.STARTED, self.begin),
            (Events.EPOCH_STARTED, self._go_last),  # after all handlers whose state is saved
            *in_epoch,
            (Events.EPOCH_COMPLETED, self.save_epoch),
            (Events.TERMINATE, self.save_last),
            (Events.INTERRUPT, self.save_last),
            (Events.COMPLETED, self.save_last),
            (Events.COMPLETED, self.check),
        )

    def begin(self, engine: Engine) -> None:
        """Refuse a run that cannot be saved, or a folder that another run uses."""
        step = self._step(engine)
        Peers(self).require()
        if self.store.run is None or (self._last_step is not None and step < self._last_step):
            if idist.broadcast(idist.get_rank() == 0 and bool(self.store.paths())):
                raise self._taken_error()
            self.store.run = str(idist.broadcast(uuid.uuid4().hex))
            self.best_iteration, self.best_score = None, -math.inf
            self._last_step = self._last_iteration = None
        folder = self.store.directory.absolute()
        other = self._writers.get(folder, self)
        if other is not self and other._running() is not None:
            raise CheckpointError(f"two Checkpointers save into {folder}: give each its own folder")
        self._writers[folder] = self
        self._failure = None
        self._at_next(engine, Events.EPOCH_STARTED, self._rehearse)

    def _rehearse(self, engine: Engine) -> None:
        """Encode every state once, after all other handlers and before the first step."""
        try:
            encode(self.snapshot.take(is_trial=True))
        except ValueError as error:
            raise CheckpointError(f"Checkpointer cannot save {error}") from error

    def _taken_error(self) -> CheckpointError:
        why = "holds a run whose trainer cannot be resumed: add the trainer to to_save"
        if self._last_step is None:
            why = "holds the checkpoints of another run: call resume() to continue it"
        elif self._saved:
            why = "holds a finished run: give more max_epochs to continue it"
        return CheckpointError(f"{self.store.directory} {why}, or choose another directory")

    def save_iteration(self, engine: Engine) -> None:
        """Save in mid-epoch; `save_epoch` saves after the last iteration."""
        if not self._position.is_at_end:
            self._save(engine)

    def save_epoch(self, engine: Engine) -> None:
        """Score the epoch and save."""
        score = math.nan if self.score_function is None else self.score_function(engine)
        try:
            score = float(score)
        except (TypeError, ValueError):
            raise TypeError(f"Checkpointer: score_function gave {score!r}, not a number") from None
        if score > self.best_score:  # never true of NaN
            self.best_score, self.best_iteration = score, self._step(engine)
        self._save(engine)

    def save_last(self, engine: Engine) -> None:
        """Save when a run ends or is interrupted, unless this iteration is already saved."""
        if self._source(engine).state.iteration != self._last_iteration:
            self._save(engine)

    def check(self) -> None:
        """Raise the error of the run's last save, if that failed."""
        if self._failure is not None:
            raise self._failure

    def resume(self) -> bool:
        """Restore the newest checkpoint; False if there is none.

        Raises:
            CheckpointError: see `load_newest` and `restore`.
        """
        checkpoint = self.load_newest()
        if checkpoint is not None:
            self.restore(checkpoint)
        return checkpoint is not None

    def load_newest(self) -> dict[str, Any] | None:
        """The valid checkpoint that was written last; None if the folder holds none.

        Raises:
            CheckpointError: no checkpoint in the folder is valid, or the newest is another run's.
        """
        newest = self.store.load_newest()
        if newest is not None:
            self.snapshot.check_fit(*newest)
        return None if newest is None else newest[1]

    def load_best(self) -> tuple[int, dict[str, Any]]:
        """Iteration and state of the checkpoint with the best score of this run.

        Raises:
            CheckpointError: no epoch has a score, or the best checkpoint is not valid.
        """
        if self.best_iteration is None:
            raise CheckpointError(f"{self.store.directory}: no epoch has a score, so none is best")
        return self.best_iteration, self.store.load(self.store.path(self.best_iteration))

    def restore(self, checkpoint: Mapping[str, Any]) -> None:
        """Load a checkpoint into the live objects and continue its run.

        Raises:
            CheckpointError: an object cannot load what was saved of it.
        """
        self.snapshot.restore(checkpoint)
        self.best_iteration, self.best_score = checkpoint["best"]
        self.store.run = checkpoint.get("run") or uuid.uuid4().hex
        self._last_step = checkpoint.get("step")
        self._last_iteration = self._saved[0].state.iteration if self._saved else self._last_step

    def _step(self, engine: Engine) -> int:
        if self.global_step_transform is not None:
            return int(self.global_step_transform(engine, Events.ITERATION_COMPLETED))
        return self._source(engine).state.iteration

    def _source(self, engine: Engine) -> Engine:
        """The engine that counts the iterations: of an evaluator, its trainer."""
        if self._saved and engine not in self._saved:
            return self._saved[0]
        *_, outermost = engine, *running_engines()
        if outermost is not engine:
            self._trainer = weakref.ref(outermost)
        return (self._trainer and self._trainer()) or outermost

    def _save(self, engine: Engine) -> None:
        step, iteration = self._step(engine), self._source(engine).state.iteration
        if step == self._last_step and iteration != self._last_iteration:
            raise CheckpointError(
                f"Checkpointer: step {step} repeats at iteration {iteration}: return iterations "
                "from global_step_transform, or leave it out"
            )
        best = (self.best_iteration, self.best_score)
        self.snapshot.consolidate()
        state = self.snapshot.take(run=self.store.run, step=step, best=best)
        protect = () if self.best_iteration is None else (self.best_iteration,)
        self._failure = None
        if idist.get_rank() == 0:
            try:
                self.store.save(state, iteration=step, protect=protect)
            except OSError as error:
                self._failure = error
                warnings.warn(f"checkpoint not saved, older ones are kept: {error}", stacklevel=2)
                return
        self._last_step, self._last_iteration = step, iteration
