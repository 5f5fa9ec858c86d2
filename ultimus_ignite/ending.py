"""How a run ends: whether it is over, why, with which weights, and what they are worth."""

import torch
from safetensors.torch import save
from torch import Tensor

from ultimus_ignite.handlers.support.history_csv import to_csv
from ultimus_ignite.run_directory import RunDirectoryError
from ultimus_ignite.run_state import Run


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


def why_it_ended(run: Run) -> tuple[str, str] | None:
    """The field that has ended a run early, and a line that says so; None if none has."""
    history, recipe = run.history, run.parts.recipe
    reason = run.early_end.reason(run.parts.trainer.state.iteration)
    if reason is None or len(history.rows) == recipe.epochs:
        return None
    column = f"{history.evaluated}_accuracy"
    best = max(history.rows, key=lambda row: row[column] or 0.0)
    return reason, (
        f"Ended by {reason} = {getattr(recipe, reason)} after epoch {len(history.rows)} of "
        f"{recipe.epochs}; epoch {best['epoch']} was the best: {best[column]:.2%}"
    )


def final_weights(run: Run) -> bytes:
    """The content of ``model.safetensors``.

    If there is a validation set, the final weights are those of the best epoch.
    """
    if run.parts.validates:
        state = run.checkpointer.load_best()[1]["model"]
    else:
        state = run.parts.model.state_dict()
    # Safetensors takes neither tensors that share memory, such as tied weights, nor those in
    # another order than that of their dimensions, nor the other objects that a module may save.
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    format = torch.contiguous_format
    return save({key: value.clone(memory_format=format) for key, value in tensors.items()})


def test(run: Run) -> dict[str, float | None]:
    """Loss and accuracy of the final weights on the test set; without one, on the validation set.

    If there is a validation set, the final weights are those of the best epoch, and the test set is
    measured only here.
    """
    measures = ("loss", "accuracy")
    parts, rows = run.parts, run.history.rows
    if not parts.validates:
        return {f"test_{name}": rows[-1][f"test_{name}"] for name in measures}
    iteration, best = run.checkpointer.load_best()
    parts.model.load_state_dict(best["model"])
    epoch = iteration // parts.stream.epoch_length
    line = f"Epoch {epoch} was the best by validation"
    if parts.test is None:
        run.logger.write(f"{line}; there is no test set")
        return {f"val_{name}": rows[epoch - 1][f"val_{name}"] for name in measures}
    run.logger.write(f"{line}; the test set is measured only now:")
    parts.tester.run(parts.test.batches)
    run.logger.report(parts.tester)
    return {f"test_{name}": parts.tester.state.metrics[name] for name in measures}
