"""Checkpoints of a run: the newest two and the best."""

import math
import uuid
import warnings
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from typing_extensions import Self

from ultimus_ignite.handlers.checkpoints.format import encode
from ultimus_ignite.handlers.checkpoints.snapshot import Snapshot
from ultimus_ignite.handlers.checkpoints.store import CheckpointError, CheckpointStore
from ultimus_ignite.handlers.support.attachable import Attachable, running_engines
from ultimus_ignite.handlers.support.epoch_position import EpochPosition


class Checkpointer(Attachable):
    """Saves what a run needs to go on, through a `CheckpointStore`.

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

    On each event it comes last, whatever was attached after it. Two lines resume a script, and
    begin it where nothing is saved yet::

        checkpointer.resume()
        trainer.run(loader, max_epochs=5)

    Ignite begins a loader at its first batch. Where a run may be cut off within an epoch,
    ``DataLoader(dataset, batch_sampler=EndlessBatches(dataset, batch_size=64,
    start=trainer.state.iteration))`` begins at the right one, see `ultimus_ignite.data.sampler`.

    What cannot be saved is refused before the first iteration. A save that fails (a full disk) is a
    warning, and is tried again at the next one; when the last one of the run has failed, `check`
    raises. An iteration that ends its epoch is saved at the end of ``EPOCH_COMPLETED``, so that a
    resumed run never misses an evaluation; but a run that is terminated on that iteration is saved
    without one. After an exception, which may come in the middle of a step, nothing is saved. In a
    distributed run rank 0 writes.

    Attached to an evaluator, it saves at the end of each evaluation; the iteration is that of the
    trainer whose run the evaluation is part of.

    Args:
        to_save: objects with ``state_dict`` and ``load_state_dict``, by name; the trainer is one.
        directory: where the checkpoints lie, of this run and no other.
        every: also save after every so many iterations.
        keep: how many of the newest checkpoints are kept, at least 2.
        score_function: score of the epoch just completed, higher is better, NaN is worst; the best
            checkpoint is kept beside the newest.
        global_step_transform: ``(engine, event) -> iteration``, such as Ignite's
            ``global_step_from_engine(trainer)``; it names the files.
        metadata: plain values that a checkpoint must share with the run that loads it.
        assumed: for metadata that older checkpoints lack, the values that these were made with.

    Raises:
        ValueError: ``every`` is not positive, or ``keep`` is less than 2.
        TypeError: an object has no ``state_dict`` or no ``load_state_dict``.
        CheckpointError: before the first iteration: an object's state cannot be saved, or the
            folder holds another run; from a save: a trained parameter or a moment is NaN or
            infinite.
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
        self._trainer: weakref.ref[Engine] | None = None  # whose iterations are counted
        self._last_step: int | None = None  # that was saved, or restored
        self._last_iteration: int | None = None  # of the trainer, at that step
        self._failure: OSError | None = None

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer, or to the evaluator that gives the score."""
        rows: list[Any] = [
            (Events.STARTED, self.begin),
            (Events.EPOCH_STARTED, self._go_last),  # after all handlers whose state is saved
        ]
        if self.every is not None:
            every = Events.ITERATION_COMPLETED(every=self.every)
            rows.append((every, self.save_iteration))
        self._position = EpochPosition(engine)
        for position in self.snapshot.positions.values():
            self._listen(position.engine, *position.rows())
            if position.engine is engine:
                self._position = position
        return self._attach(
            engine,
            *self._position.rows(),
            *rows,
            (Events.EPOCH_COMPLETED, self.save_epoch),
            (Events.TERMINATE, self.save_last),
            (Events.INTERRUPT, self.save_last),
            (Events.COMPLETED, self.save_last),
            (Events.COMPLETED, self.check),
        )

    def begin(self, engine: Engine) -> None:
        """Refuse a run that could not be saved, or whose checkpoints would mix with another's."""
        step = self._step(engine)
        if self.store.run is None or (self._last_step is not None and step < self._last_step):
            is_taken = idist.get_rank() == 0 and bool(self.store.paths())
            if idist.broadcast(is_taken):
                raise CheckpointError(f"{self.store.directory} {self._why_taken()}")
            self.store.run = str(idist.broadcast(uuid.uuid4().hex))
            self.best_iteration, self.best_score = None, -math.inf
            self._last_step = self._last_iteration = None
        folder = self.store.directory.absolute()
        other = _WRITERS.setdefault(folder, self)
        if other is not self:
            if other._running() is not None:
                raise CheckpointError(f"two Checkpointers save into {folder}: give each its own")
            _WRITERS[folder] = self
        self._failure = None
        self._at_next(engine, Events.EPOCH_STARTED, self._rehearse)

    def _rehearse(self, engine: Engine) -> None:
        """Encode everything once, when all is in place and nothing is trained yet."""
        try:
            encode(self._take(engine, is_trial=True))
        except ValueError as error:
            raise CheckpointError(f"Checkpointer cannot save {error}") from error

    def _why_taken(self) -> str:
        if self._last_step is None:
            what = "holds the checkpoints of another run: call resume() to go on with it"
        elif self.snapshot.positions:
            what = "holds a finished run: give more max_epochs to go on with it"
        else:
            what = (
                "holds a run whose trainer is not in to_save, so that it begins anew: put it there"
            )
        return f"{what}, or choose another directory"

    def save_iteration(self, engine: Engine) -> None:
        """Save in the middle of an epoch; its end is left to `save_epoch`."""
        if not self._position.is_at_end:
            self._save(engine)

    def save_epoch(self, engine: Engine) -> None:
        """Score the epoch and save."""
        if self.score_function is not None:
            score = self.score_function(engine)
            try:
                score = float(score)
            except (TypeError, ValueError):
                raise TypeError(
                    f"Checkpointer: score_function must give a number, got {score!r}"
                ) from None
            if score > self.best_score:  # never true of NaN
                self.best_score, self.best_iteration = score, self._step(engine)
        self._save(engine)

    def save_last(self, engine: Engine) -> None:
        """Save where a run ends or halts, unless that iteration is saved already."""
        if self._source(engine).state.iteration != self._last_iteration:
            self._save(engine)

    def check(self) -> None:
        """Do not let a run end well whose last state is not on disk."""
        if self._failure is not None:
            raise self._failure

    def resume(self) -> bool:
        """Go on from the newest checkpoint, where there is one; whether there was.

        Raises:
            CheckpointError: see `load_newest`.
        """
        checkpoint = self.load_newest()
        if checkpoint is not None:
            self.restore(checkpoint)
        return checkpoint is not None

    def load_newest(self) -> dict[str, Any] | None:
        """The checkpoint written last that is valid, or None where there is none at all.

        Raises:
            CheckpointError: there are checkpoints, but none is valid, or the newest belongs to
                another run.
        """
        newest = self.store.load_newest()
        if newest is None:
            return None
        path, checkpoint = newest
        self.snapshot.check_fit(path, checkpoint)
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
        """Load a checkpoint into the live objects; the run then goes on as its own."""
        self.snapshot.restore(checkpoint)
        self.best_iteration, self.best_score = checkpoint["best"]
        self.store.run = checkpoint.get("run") or uuid.uuid4().hex
        self._last_step = checkpoint.get("step")
        engines = [position.engine for position in self.snapshot.positions.values()]
        self._last_iteration = engines[0].state.iteration if engines else self._last_step

    def _step(self, engine: Engine) -> int:
        if self.global_step_transform is not None:
            return int(self.global_step_transform(engine, Events.ITERATION_COMPLETED))
        return self._source(engine).state.iteration

    def _source(self, engine: Engine) -> Engine:
        """The trainer: the engine itself, or the one that is saved or runs around an evaluator."""
        saved = [position.engine for position in self.snapshot.positions.values()]
        if not saved or engine in saved:
            *_, outermost = engine, *running_engines()
            if outermost is not engine:
                self._trainer = weakref.ref(outermost)
            return (self._trainer and self._trainer()) or outermost
        return saved[0]

    def _take(self, engine: Engine, *, is_trial: bool = False) -> dict[str, Any]:
        return self.snapshot.take(
            is_trial=is_trial,
            run=self.store.run,
            step=self._step(engine),
            best=(self.best_iteration, self.best_score),
        )

    def _save(self, engine: Engine) -> None:
        step, iteration = self._step(engine), self._source(engine).state.iteration
        if step == self._last_step and iteration != self._last_iteration:
            raise CheckpointError(
                f"Checkpointer: step {step} comes again at iteration {iteration}: let "
                "global_step_transform give iterations, or leave it out"
            )
        state = self._take(engine)
        protect = () if self.best_iteration is None else (self.best_iteration,)
        self._failure = None
        if idist.get_rank() == 0:
            try:
                self.store.save(state, iteration=step, protect=protect)
            except OSError as error:
                self._failure = error
                message = f"checkpoint not saved, the older ones are kept: {error}"
                warnings.warn(message, stacklevel=2)
                return
        self._last_step, self._last_iteration = step, iteration


# Who saves where: two that did so at once would delete each other's checkpoints.
_WRITERS: weakref.WeakValueDictionary[Path, Checkpointer] = weakref.WeakValueDictionary()
