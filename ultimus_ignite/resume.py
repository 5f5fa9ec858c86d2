"""Going on with a run: what its checkpoints must share with it, and what may change."""

from dataclasses import asdict

import ignite.distributed as idist

from ultimus_ignite.build import Parts, create_scheduler
from ultimus_ignite.handlers import BatchLogger, Checkpointer, CheckpointError
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.run_directory import RunDirectory

# Fields that may differ when a run is resumed: they do not change what is computed, except for the
# epochs, which have a check of their own.
MAY_CHANGE = {"data", "data_dir", "device", "checkpoint_every", "epochs"}

# What a field that an older checkpoint lacks stands for: its default. Where a default changes later
# than its field came, the one of the time belongs here; CHANGELOG names every new field.
ASSUMED = asdict(Recipe())


def go_on(
    recipe: Recipe,
    parts: Parts,
    checkpointer: Checkpointer,
    directory: RunDirectory,
    logger: BatchLogger,
    *,
    extend_epochs: bool,
) -> bool:
    """Restore the newest checkpoint, where there is one.

    Returns:
        Whether the run is already finished.

    Raises:
        CheckpointError: the checkpoint cannot be resumed.
        RecipeError: the epochs are already over.
    """
    checkpoint = checkpointer.load_newest()
    if checkpoint is None:
        return False
    epochs_before = checkpoint["trainer"]["max_epochs"]
    if epochs_before != recipe.epochs and not extend_epochs:
        raise CheckpointError(
            f"{directory.path} was begun with another number of epochs (epochs: "
            f"{epochs_before} -> {recipe.epochs}): give the same, or --extend-epochs"
        )
    checkpointer.restore(checkpoint)
    if epochs_before != recipe.epochs:
        logger.write(_what_extending_does(recipe, epochs_before, parts))
        return False
    return bool(directory.read_status()["status"] == "finished")


def identity(recipe: Recipe, parts: Parts) -> dict[str, object]:
    """What a checkpoint must share with the run that goes on from it."""
    fields = {key: value for key, value in asdict(recipe).items() if key not in MAY_CHANGE}
    return {**fields, "data_sha256": parts.data.sha256, "world_size": idist.get_world_size()}


def _what_extending_does(recipe: Recipe, epochs_before: int, parts: Parts) -> str:
    """A line that says how the next rate changes.

    Raises:
        RecipeError: the epochs are already over.
    """
    done, epoch_length = parts.trainer.state.iteration, parts.stream.epoch_length
    if done >= recipe.epochs * epoch_length:
        raise RecipeError(
            f"epochs must be more than the {done // epoch_length} that are done, "
            f"got {recipe.epochs}"
        )
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
