"""The learning-rate range test of a recipe, and `--max-lr auto`."""

from dataclasses import asdict, replace

from ultimus_ignite.build import Parts
from ultimus_ignite.handlers import CheckpointStore, LRCurve, LRFinder, save_lr_curves
from ultimus_ignite.recipe import RangeTest, RecipeError
from ultimus_ignite.run_directory import RunDirectory


def range_test(parts: Parts, rates: RangeTest) -> LRCurve:
    """Try rising rates on the first batches of a run, and leave no trace.

    Raises:
        LRFinderError: a rate is out of range, or the loss is not finite from the start.
    """
    finder = LRFinder(parts.model, parts.optimizer, scaler=parts.scaler, **asdict(rates))
    return finder.run(parts.trainer, parts.stream.starting_at(0))


def choose_max_lr(parts: Parts, directory: RunDirectory) -> Parts:
    """The parts, with a number for ``max_lr``; for ``auto``, the range test's minimum rule.

    A resumed run keeps the rate in its newest checkpoint.

    Raises:
        CheckpointError: there are checkpoints, but none is valid.
        RecipeError: the loss has no minimum between the rates of the range test.
    """
    recipe = parts.recipe
    if recipe.max_lr != "auto":
        return parts
    if newest := CheckpointStore(directory.checkpoints).load_newest():
        max_lr = newest[1]["metadata"]["max_lr"]
        return replace(parts, recipe=replace(recipe, max_lr=max_lr))
    rates = RangeTest()
    curve = range_test(parts, rates)
    if directory.is_writer:
        save_lr_curves([curve], directory.path, title="Range test for --max-lr auto")
    max_lr = curve.minimum()
    if max_lr is None:
        raise RecipeError(
            f"max_lr: the loss has no minimum between {rates.start_lr} and {rates.end_lr} "
            f"({directory.path / 'lr_finder.png'}): give --max-lr a number"
        )
    return replace(parts, recipe=replace(recipe, max_lr=max_lr))
