"""The learning-rate range test of a recipe, and `--max-lr auto`."""

from dataclasses import replace

from ultimus_ignite.build import Parts
from ultimus_ignite.handlers import LRCurve, LRFinder, save_lr_curves
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.run_directory import RunDirectory

START_LR, END_LR, ITERATIONS = 0.004, 0.04, 100  # the seed's


def range_test(
    parts: Parts,
    *,
    start_lr: float = START_LR,
    end_lr: float = END_LR,
    iterations: int = ITERATIONS,
) -> LRCurve:
    """Try rising rates on the batches that a run would see first, and leave no trace.

    Raises:
        LRFinderError: an argument is out of range, or the loss is not finite from the start.
    """
    finder = LRFinder(
        parts.model,
        parts.optimizer,
        start_lr=start_lr,
        end_lr=end_lr,
        iterations=iterations,
        scaler=parts.scaler,
    )
    return finder.run(parts.trainer, parts.stream.starting_at(0))


def choose_max_lr(recipe: Recipe, parts: Parts, directory: RunDirectory) -> Recipe:
    """The recipe with a number for ``max_lr``; ``auto`` is the minimum rule's, as in the seed.

    A run that is resumed keeps the rate it was begun with.

    Raises:
        RecipeError: the test finds no minimum.
    """
    if recipe.max_lr != "auto":
        return recipe
    if directory.recipe.exists():
        return replace(recipe, max_lr=directory.read_recipe()["recipe"]["max_lr"])
    curve = range_test(parts)
    save_lr_curves([curve], directory.path, title="Range test for --max-lr auto")
    max_lr = curve.minimum()
    if max_lr is None:
        raise RecipeError(
            f"max_lr: the loss has no minimum between {START_LR} and {END_LR} "
            f"({directory.path / 'lr_finder.png'}): give --max-lr a number"
        )
    return replace(recipe, max_lr=max_lr)
