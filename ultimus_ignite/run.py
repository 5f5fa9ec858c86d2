"""One run, wired in the order in which its events fire."""

from ignite.engine import Events
from safetensors.torch import save

from ultimus_ignite.build import Parts, build, create_scheduler
from ultimus_ignite.errors import Interrupted
from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    CurveRenderer,
    EarlyEnd,
    GracefulStop,
    History,
    NonFiniteError,
    NonFiniteGuard,
)
from ultimus_ignite.handlers.support.files import replace_file
from ultimus_ignite.handlers.support.history_csv import write_csv
from ultimus_ignite.provenance import describe, describe_data
from ultimus_ignite.range_test import choose_max_lr
from ultimus_ignite.recipe import Recipe
from ultimus_ignite.resume import ASSUMED, identity, is_complete, restore_newest
from ultimus_ignite.run_directory import RunDirectory, Status, title_of
from ultimus_ignite.tensorboard import EpochEvents

ENDINGS: dict[type[BaseException], Status] = {
    Interrupted: "interrupted",
    KeyboardInterrupt: "interrupted",
    SystemExit: "interrupted",
    NonFiniteError: "non-finite",
}


def run(recipe: Recipe, directory: RunDirectory, *, extend_epochs: bool = False) -> History:
    """Train by a recipe in an opened run directory; if it already holds a run, resume that run.

    Args:
        recipe: what to train and how.
        directory: an opened `RunDirectory`.
        extend_epochs: resume although the run was begun with another number of epochs.

    Returns:
        The history of the run.

    Raises:
        DataError: the data are missing or malformed.
        CheckpointError: the checkpoint cannot be resumed.
        Interrupted: a signal ended the run, which is saved and can be resumed.
        NonFiniteError: the loss or its gradient became NaN or infinite.
        RecipeError: the device or the model does not exist, or all epochs are already done.
        OSError: the last checkpoint could not be written.

    Example:
        >>> import tempfile
        >>> recipe = Recipe(data="digits", epochs=2, device="cpu")
        >>> with tempfile.TemporaryDirectory() as folder, RunDirectory(folder).open() as directory:
        ...     history = run(recipe, directory)  # doctest: +ELLIPSIS
        data: digits, 1437 training and 360 test images of 10 classes
        EPOCH: 1 (LR: 1.856635533445111e-05)
        ...
        >>> history.rows[-1]["iteration"]
        6
    """
    parts = build(recipe)
    recipe = choose_max_lr(recipe, parts, directory)
    model, optimizer = parts.model, parts.optimizer
    trainer, evaluator, evaluated = parts.trainer, parts.evaluator, parts.evaluated
    scheduler = create_scheduler(recipe, optimizer, parts.scaler)
    logger = BatchLogger(optimizer, log_path=directory.log)
    history = History(optimizer, path=directory.history, evaluated=evaluated.name)
    to_save = {"trainer": trainer, "model": model, "optimizer": optimizer, "scaler": parts.scaler}
    to_save |= {"scheduler": scheduler, "logger": logger, "history": history}
    checkpointer = Checkpointer(
        to_save,
        directory=directory.checkpoints,
        every=recipe.checkpoint_every,
        score_function=lambda _: evaluator.state.metrics["accuracy"],
        metadata=identity(recipe, parts),
        assumed=ASSUMED,
    )
    early_end = EarlyEnd(history, patience=recipe.patience, max_hours=recipe.max_hours)

    restore_newest(recipe, parts, checkpointer, directory, logger, extend_epochs=extend_epochs)
    is_over = _is_over(parts, recipe, early_end)
    if is_over and is_complete(directory, history, _final_model(parts, checkpointer)):
        print(f"{directory.path} is finished: {len(history.rows)} epochs, nothing left to do")
        return history
    description = describe(recipe, parts)
    events = EpochEvents(directory.path)

    # ITERATION_STARTED, the step, ITERATION_COMPLETED
    scheduler.attach(trainer)
    guard = NonFiniteGuard(optimizer, max_loss_ratio=recipe.max_loss_ratio).attach(trainer)
    logger.attach(trainer, evaluator, dataset=evaluated.title)
    # EPOCH_COMPLETED
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(evaluated.batches))
    history.attach(trainer, evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: events.write(history.rows))
    early_end.attach(trainer)
    # A signal, at the end of its iteration or epoch
    stop = GracefulStop().attach(trainer)
    # COMPLETED, also after a signal
    CurveRenderer(
        history, path=directory.curves, title=title_of(description), writer=events
    ).attach(trainer)
    # Last on every event: a saved state is complete, and the guard has checked it
    if recipe.checkpoint_every is not None:
        every = Events.ITERATION_COMPLETED(every=recipe.checkpoint_every)
        trainer.add_event_handler(every, guard.check)
    checkpointer.attach(trainer)

    # They end from right to left: the status is written after the handlers are detached.
    with events, directory.running(description, ENDINGS) as facts, logger, stop, guard:
        logger.write(describe_data(recipe, parts))
        if is_over:
            logger.write("Nothing is left to train: the files that the folder lacks are written")
        if history.rows:  # a kill, or whoever moved the folder, may have left less
            write_csv(history.rows, directory.history)
            events.write(history.rows)
        _train(parts, recipe.epochs)
        if stop.received and not _is_over(parts, recipe, early_end):
            raise Interrupted(stop.received)
        reason = early_end.reason(trainer.state.iteration)
        if reason is not None and len(history.rows) < recipe.epochs:
            facts["ended_early"] = reason
            logger.write(_why_it_ended(recipe, history, reason))
        facts |= _test(parts, history, checkpointer, logger)
        replace_file(directory.model, _final_model(parts, checkpointer))
    return history


def _is_over(parts: Parts, recipe: Recipe, early_end: EarlyEnd) -> bool:
    """Whether nothing is left to train: all epochs are done, or the run has ended early."""
    iteration = parts.trainer.state.iteration
    is_done = iteration >= recipe.epochs * parts.stream.epoch_length
    return is_done or early_end.reason(iteration) is not None


def _train(parts: Parts, epochs: int) -> None:
    """Run the trainer from its present iteration."""
    trainer, stream = parts.trainer, parts.stream
    if trainer.state.iteration == epochs * stream.epoch_length:
        trainer.fire_event(Events.COMPLETED)  # the run was killed just before this event
    else:
        rest = stream.starting_at(trainer.state.iteration)
        trainer.run(rest, max_epochs=epochs, epoch_length=stream.epoch_length)


def _why_it_ended(recipe: Recipe, history: History, reason: str) -> str:
    """The line for a run that has ended early."""
    column = f"{history.evaluated}_accuracy"
    best = max(history.rows, key=lambda row: row[column] or 0.0)
    return (
        f"Ended by {reason} = {getattr(recipe, reason)} after epoch {len(history.rows)} of "
        f"{recipe.epochs}; epoch {best['epoch']} was the best: {best[column]:.2%}"
    )


def _final_model(parts: Parts, checkpointer: Checkpointer) -> bytes:
    """The content of ``model.safetensors``.

    If there is a validation set, the final weights are those of the best epoch.
    """
    if parts.validates:
        return save(checkpointer.load_best()[1]["model"])
    return save(parts.model.state_dict())


def _test(
    parts: Parts, history: History, checkpointer: Checkpointer, logger: BatchLogger
) -> dict[str, float | None]:
    """Loss and accuracy of the final weights on the test set; without one, on the validation set.

    If there is a validation set, the final weights are those of the best epoch, and the test set is
    measured only here.
    """
    measures = ("loss", "accuracy")
    if not parts.validates:
        return {f"test_{name}": history.rows[-1][f"test_{name}"] for name in measures}
    iteration, best = checkpointer.load_best()
    parts.model.load_state_dict(best["model"])
    epoch = iteration // parts.stream.epoch_length
    line = f"Epoch {epoch} was the best by validation"
    if parts.test is None:
        logger.write(f"{line}; there is no test set")
        return {f"val_{name}": history.rows[epoch - 1][f"val_{name}"] for name in measures}
    logger.write(f"{line}; the test set is measured only now:")
    parts.tester.run(parts.test.batches)
    logger.report(parts.tester)
    return {f"test_{name}": parts.tester.state.metrics[name] for name in measures}
