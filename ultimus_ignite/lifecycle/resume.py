"""Resuming a run from its newest checkpoint."""

import contextlib

from ultimus_ignite.build import Parts
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers import CheckpointError
from ultimus_ignite.lifecycle.run_state import Run
from ultimus_ignite.optimizers.create import create_scheduler
from ultimus_ignite.recipe import RecipeError
from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError


def restore_newest(run: Run, *, extend_epochs: bool) -> None:
    """Restore the newest checkpoint, if there is one.

    Raises:
        CheckpointError: the checkpoint cannot be resumed.
        RecipeError: all epochs of the recipe are already done.
    """
    directory, epochs = run.directory, run.parts.recipe.epochs
    try:
        checkpoint = run.checkpointer.load_newest()
    except CheckpointError as error:
        if changes := _changes_of_data(run.parts.data, directory):
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
    if epochs_before != epochs and not extend_epochs:
        raise CheckpointError(
            f"{directory.path} was begun with another number of epochs (epochs: "
            f"{epochs_before} -> {epochs}): give the same, or --extend-epochs"
        )
    run.checkpointer.restore(checkpoint)
    if epochs_before != epochs:
        run.logger.write(_what_extending_does(run.parts, epochs_before))
    with contextlib.suppress(RunDirectoryError):  # missing or damaged, which decides nothing
        if directory.read_status()["status"] == "running":  # and this process has its lock
            iteration = run.parts.trainer.state.iteration
            run.logger.write(f"The run before was killed; it continues after iteration {iteration}")


def _changes_of_data(data: ImageData, directory: RunDirectory) -> str:
    """How the data differ from those that ``recipe.json`` describes, and what to do.

    Empty if they do not differ or if the file does not tell.
    """
    try:
        before = directory.read_description()["data"]
        if before["sha256"] == data.sha256:
            return ""
    except (RunDirectoryError, KeyError):
        return ""
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


def _what_extending_does(parts: Parts, epochs_before: int) -> str:
    """One line that says how the learning rate changes."""
    recipe = parts.recipe
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
