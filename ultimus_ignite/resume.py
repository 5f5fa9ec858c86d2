"""Resuming a run: what a checkpoint must share with it, and what may change."""

import contextlib
from dataclasses import asdict

import ignite.distributed as idist

from ultimus_ignite.build import Parts, create_scheduler
from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers import BatchLogger, Checkpointer, CheckpointError, History
from ultimus_ignite.handlers.support.history_csv import to_csv
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError

# Fields that may differ when a run is resumed, because they do not change what is computed. The
# epochs do; `restore_newest` checks them.
MAY_CHANGE = {"data", "data_dir", "skip_unreadable", "device", "checkpoint_every", "epochs"}
MAY_CHANGE |= {"patience", "max_hours"}

# The values of fields that an older checkpoint lacks: their defaults. If a default changes after
# its field was added, the earlier default belongs here. CHANGELOG names every new field.
ASSUMED = asdict(Recipe())


def restore_newest(
    recipe: Recipe,
    parts: Parts,
    checkpointer: Checkpointer,
    directory: RunDirectory,
    logger: BatchLogger,
    *,
    extend_epochs: bool,
) -> None:
    """Restore the newest checkpoint, if there is one.

    Raises:
        CheckpointError: the checkpoint cannot be resumed.
        RecipeError: all epochs of the recipe are already done.
    """
    try:
        checkpoint = checkpointer.load_newest()
    except CheckpointError as error:
        if changes := _changes_of_data(parts, directory):
            raise CheckpointError(f"{directory.path} was begun on other data: {changes}") from error
        raise
    if checkpoint is None:
        if directory.model.exists():  # to begin anew would replace it
            raise CheckpointError(
                f"{directory.path} holds the weights of a finished run, but no checkpoint: "
                "choose another --out"
            )
        return
    epochs_before = checkpoint["trainer"]["max_epochs"]
    if epochs_before != recipe.epochs and not extend_epochs:
        raise CheckpointError(
            f"{directory.path} was begun with another number of epochs (epochs: "
            f"{epochs_before} -> {recipe.epochs}): give the same, or --extend-epochs"
        )
    checkpointer.restore(checkpoint)
    if epochs_before != recipe.epochs:
        logger.write(_what_extending_does(recipe, epochs_before, parts))
    with contextlib.suppress(RunDirectoryError):  # missing or damaged, which decides nothing
        if directory.read_status()["status"] == "running":  # and this process has its lock
            iteration = parts.trainer.state.iteration
            logger.write(f"The run before was killed; it continues after iteration {iteration}")


def is_complete(directory: RunDirectory, history: History, model: bytes) -> bool:
    """Whether the folder holds, whole, every file that the end of a run writes.

    Args:
        directory: an opened `RunDirectory`.
        history: the history of the run, which is over.
        model: what ``model.safetensors`` must hold.
    """
    try:
        directory.read_description()
        return (
            directory.read_status()["status"] == "finished"
            and directory.history.read_text(encoding="utf-8") == to_csv(history.rows)
            and directory.curves.exists()
            and directory.model.read_bytes() == model
        )
    except (OSError, ValueError, RunDirectoryError):  # ValueError: not UTF-8
        return False


def identity(recipe: Recipe, parts: Parts) -> dict[str, object]:
    """The values that a checkpoint must share with the run that resumes it."""
    fields = {key: value for key, value in asdict(recipe).items() if key not in MAY_CHANGE}
    return {**fields, "data_sha256": parts.data.sha256, "world_size": idist.get_world_size()}


def _changes_of_data(parts: Parts, directory: RunDirectory) -> str:
    """How the data differ from those that ``recipe.json`` describes, and what to do.

    Empty if they do not differ or if the file does not tell.
    """
    try:
        before = directory.read_description()["data"]
        if before["sha256"] == parts.data.sha256:
            return ""
    except (RunDirectoryError, KeyError):
        return ""
    data = parts.data
    now = {"name": data.name, "classes": len(data.classes), **data.counts}
    changed = [key for key in now if before.get(key, now[key]) != now[key]]
    what = {split: f"{split} images" for split in data.counts}
    changes = [f"{what.get(key, key)}: {before[key]} -> {now[key]}" for key in changed]
    if "train" not in before:  # written by version 0.1.0
        counts = ", ".join(f"{count} {split}" for split, count in data.counts.items())
        changes.append(f"{counts} images now, how many there were is not recorded")
    elif not changes:
        changes.append("as many images as before, but other pixels or labels")
    advice = "restore the data, or give another --out"
    return one_line(f"{', '.join(changes)}; {advice}")


def _what_extending_does(recipe: Recipe, epochs_before: int, parts: Parts) -> str:
    """One line that says how the learning rate changes."""
    done, epoch_length = parts.trainer.state.iteration, parts.stream.epoch_length
    if done >= recipe.epochs * epoch_length:
        past = done // epoch_length
        raise RecipeError(f"epochs must be above the {past} already done, got {recipe.epochs}")
    scheduler = create_scheduler(recipe, parts.optimizer)
    rates, rates_before = (
        [row[0] for row in scheduler.simulate(epochs * epoch_length).rates]
        for epochs in (recipe.epochs, epochs_before)
    )
    before = repr(rates_before[done]) if done < len(rates_before) else "none, the run was over"
    return (
        f"epochs: {epochs_before} -> {recipe.epochs}: the rate of iteration {done + 1} "
        f"is {rates[done]!r} (before: {before}), and falls to {rates[-1]!r}"
    )
