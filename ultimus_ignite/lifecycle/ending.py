"""How a run ends: whether it is over, why, with which weights, and what they are worth."""

from math import isnan

import ignite.distributed as idist
from ignite.engine import Engine

from ultimus_ignite.errors import UserError
from ultimus_ignite.handlers.checkpoints.saved_state import load_state, save_state
from ultimus_ignite.handlers.support.history_csv import to_csv
from ultimus_ignite.lifecycle.provenance import describe_model
from ultimus_ignite.lifecycle.run_state import Run, last_accuracy
from ultimus_ignite.networks.weights_file import encode_weights
from ultimus_ignite.run_directory import RunDirectoryError


def is_over(run: Run) -> bool:
    """Whether nothing is left to train: all epochs are done, or the run has ended early."""
    parts = run.parts
    iteration = parts.trainer.state.iteration
    is_done = iteration >= parts.recipe.epochs * parts.stream.epoch_length
    return is_done or run.early_end.reason(iteration) is not None


def is_complete(run: Run) -> bool:
    """Whether the folder of a run that is over holds, whole, every file that its end writes."""
    directory = run.directory
    try:
        directory.read_description()
        return (
            directory.read_status()["status"] == "finished"
            and directory.history.read_text(encoding="utf-8") == to_csv(run.history.rows)
            and directory.curves.exists()
            and directory.model.read_bytes() == final_weights(run)
        )
    except (OSError, ValueError, RunDirectoryError):  # ValueError: not UTF-8
        return False


def evaluate_last(trainer: Engine, run: Run) -> None:
    """Evaluate the epoch with which a run has ended early, if `evaluate_every` has left it out."""
    rows = run.history.rows
    is_whole = rows and rows[-1]["iteration"] == trainer.state.iteration
    goes_on = run.stop.received is not None and not is_over(run)
    if is_whole and not goes_on and isnan(last_accuracy(run.history)):
        run.parts.evaluator.run(run.parts.evaluated.batches)
        run.events.write(rows)
        run.checkpointer.save_epoch(trainer)


def why_it_ended(run: Run) -> tuple[str, str] | None:
    """What has ended a run early, a field or ``handler``, and a line that says so; None if nothing.

    Raises:
        UserError: a handler has terminated the trainer before there was anything to measure.
    """
    history, recipe = run.history, run.parts.recipe
    if len(history.rows) == recipe.epochs:
        return None
    reason = run.early_end.reason(run.parts.trainer.state.iteration)
    cause = f"{reason} = {getattr(recipe, reason)}" if reason else "a handler"
    if not history.rows:
        raise UserError("a handler ended the run in its first epoch: there is nothing to measure")
    column = f"{history.evaluated}_accuracy"
    best = max(history.rows, key=lambda row: row[column] or 0.0)
    line = f"Ended by {cause} after epoch {len(history.rows)} of {recipe.epochs}"
    if best[column] is not None:
        line += f"; epoch {best['epoch']} was the best: {best[column]:.2%}"
    return reason or "handler", line


def final_weights(run: Run) -> bytes:
    """The content of ``model.safetensors``.

    If there is a validation set, the final weights are those of the best epoch.
    """
    if run.parts.validates:
        state = run.checkpointer.load_best()[1]["model"]
    else:
        state = save_state(run.parts.model)
    parts = run.parts
    normalize = parts.stream.augment.normalize
    return encode_weights(state, describe_model(parts.recipe, parts.data.classes, normalize))


def load_final_weights(run: Run) -> int:
    """Load the final weights into the model; returns the iteration that they are from."""
    if not run.parts.validates:
        return run.parts.trainer.state.iteration
    idist.barrier()  # the first process may still be writing it
    iteration, best = run.checkpointer.load_best()
    load_state(run.parts.model, best["model"])
    return iteration


def measure(run: Run) -> dict[str, float | None]:
    """Loss and accuracy of the final weights on the test set; without one, on the validation set.

    If there is a validation set, the final weights are those of the best epoch, and the test set is
    measured only here.
    """
    measures = ("loss", "accuracy")
    parts, rows = run.parts, run.history.rows
    if not parts.validates:
        return {f"test_{name}": rows[-1][f"test_{name}"] for name in measures}
    epoch = load_final_weights(run) // parts.stream.epoch_length
    line = f"Epoch {epoch} was the best by validation"
    if parts.test is None:
        run.logger.write(f"{line}; there is no test set")
        return {f"val_{name}": rows[epoch - 1][f"val_{name}"] for name in measures}
    run.logger.write(f"{line}; the test set is measured only now:")
    parts.tester.run(parts.test.batches)
    run.logger.report(parts.tester)
    return {f"test_{name}": parts.tester.state.metrics[name] for name in measures}
