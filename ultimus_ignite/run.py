"""One run, wired in the order in which its events fire."""

from collections.abc import Callable
from contextlib import nullcontext

from ignite.engine import Engine, Events

from ultimus_ignite.build import Parts
from ultimus_ignite.data.ahead import made_ahead
from ultimus_ignite.errors import Interrupted
from ultimus_ignite.handlers import NonFiniteError
from ultimus_ignite.handlers.support.history_csv import to_csv
from ultimus_ignite.lifecycle.ending import (
    evaluate_last,
    final_weights,
    is_complete,
    is_over,
    load_final_weights,
    measure,
    why_it_ended,
)
from ultimus_ignite.lifecycle.provenance import describe_data
from ultimus_ignite.lifecycle.range_test import choose_max_lr
from ultimus_ignite.lifecycle.resume import restore_newest
from ultimus_ignite.lifecycle.run_state import Run, create_run
from ultimus_ignite.run_directory import RunDirectory, Status

ENDINGS: dict[type[BaseException], Status] = {
    Interrupted: "interrupted",
    KeyboardInterrupt: "interrupted",
    SystemExit: "interrupted",
    NonFiniteError: "non-finite",
}
Configure = Callable[[Engine, Engine], object]
"""Attaches handlers of the user, given the trainer and the evaluator of the epochs."""


def run(
    parts: Parts,
    directory: RunDirectory,
    *,
    extend_epochs: bool = False,
    configure: Configure | None = None,
) -> Run:
    """Train what was built in an opened run directory; if it already holds a run, resume that run.

    Args, result and errors are those of `ultimus_ignite.training.train`.
    """
    run = create_run(choose_max_lr(parts, directory), directory)
    history, logger = run.history, run.logger
    restore_newest(run, extend_epochs=extend_epochs)
    was_over = is_over(run)
    if was_over and is_complete(run):
        load_final_weights(run)
        if directory.is_writer:
            print(f"{directory.path} is finished: {len(history.rows)} epochs, nothing left to do")
        return run
    _attach(run, configure)

    # They end from right to left: the status is written after the handlers are detached.
    status = directory.running(run.description, ENDINGS)
    with run.events, status as facts, logger, run.stop, run.guard:
        logger.write(describe_data(run.parts))
        if was_over:
            logger.write("Nothing is left to train: the files that the folder lacks are written")
        if history.rows:  # a kill, or whoever moved the folder, may have left less
            directory.write(directory.history, to_csv(history.rows).encode())
            run.events.write(history.rows)
        _train(run.parts)
        if run.stop.received and not is_over(run):
            raise Interrupted(run.stop.received)
        if ended_early := why_it_ended(run):
            facts["ended_early"], line = ended_early
            logger.write(line)
        facts |= (result := measure(run))
        run.events.write_result(run.description["recipe"], result, epoch=len(history.rows))
        directory.write(directory.model, final_weights(run))
    return run


def _attach(run: Run, configure: Configure | None) -> None:
    """Attach the handlers: those of one event run in the order in which they stand here."""
    trainer, evaluator, evaluated = run.parts.trainer, run.parts.evaluator, run.parts.evaluated
    # ITERATION_STARTED, the step, ITERATION_COMPLETED
    run.scheduler.attach(trainer)
    run.guard.attach(trainer)
    run.logger.attach(trainer, evaluator, dataset=evaluated.title)
    # EPOCH_COMPLETED
    trainer.add_event_handler(Events.EPOCH_COMPLETED, _evaluate, run)
    run.history.attach(trainer, evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: run.events.write(run.history.rows))
    run.early_end.attach(trainer)
    # A signal, at the end of its iteration or epoch
    run.stop.attach(trainer)
    # COMPLETED, also after a signal
    trainer.add_event_handler(Events.COMPLETED, evaluate_last, run)
    run.curves.attach(trainer)
    # The user's own, on any event
    if configure is not None:
        configure(trainer, evaluator)
    # Last on every event: a saved state is complete, and the guard has checked it
    if (every := run.parts.recipe.checkpoint_every) is not None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), run.guard.check)
    run.checkpointer.attach(trainer)


def _evaluate(trainer: Engine, run: Run) -> None:
    """Evaluate an epoch, if it is to be."""
    epoch, recipe = trainer.state.epoch, run.parts.recipe
    if epoch % recipe.evaluate_every == 0 or epoch == recipe.epochs:
        run.parts.evaluator.run(run.parts.evaluated.batches)


def _train(parts: Parts) -> None:
    """Run the trainer from its present iteration."""
    trainer, stream, epochs = parts.trainer, parts.stream, parts.recipe.epochs
    if trainer.state.iteration == epochs * stream.epoch_length:
        trainer.fire_event(Events.COMPLETED)  # the run was killed just before this event
    else:
        rest = stream.starting_at(trainer.state.iteration)
        with made_ahead(rest) if parts.is_light else nullcontext(rest) as batches:
            trainer.run(batches, max_epochs=epochs, epoch_length=stream.epoch_length)
