"""What a recipe asks for and cannot get; every command refuses it before the first iteration.

What the flags alone tell is refused earlier, in `ultimus_ignite.commands.arguments`.
"""

import torch

from ultimus_ignite.engines import select_device
from ultimus_ignite.recipe import Recipe, RecipeError


def usable_device(recipe: Recipe) -> torch.device:
    """The recipe's device, which exists and, if the recipe says so, can be compiled for.

    Raises:
        RecipeError: it does not exist, or there is no working compiler.
    """
    try:
        device = select_device(recipe.device)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if recipe.compile:
        try:  # the model is only compiled in the first iteration
            torch.compile(torch.neg)(torch.zeros(1, device=device))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            advice = "install a C++ compiler such as g++, or leave out --compile"
            raise RecipeError(f"compile: {reason}: {advice}") from None
    return device


def check_schedule(recipe: Recipe, total_steps: int) -> None:
    """Refuse a run whose rate never reaches half of ``max_lr``, for want of iterations.

    The rate rises up to step ``pct_start * total_steps - 1``, counted from 0, and falls after it.
    That is seldom a whole number, but a step beside it has at least half of the peak's rate unless
    the run has one step, or two with the peak between them. A peak at step 0 leaves no rise, for
    which `OneCycleLR` divides by zero.

    Args:
        recipe: its ``pct_start`` counts.
        total_steps: number of iterations of the run, at least 1.

    Raises:
        RecipeError: the rate would not come near ``max_lr``.

    Example:
        >>> check_schedule(Recipe(pct_start=0.1), 11)
        >>> check_schedule(Recipe(pct_start=0.1), 10)
        Traceback (most recent call last):
            ...
        ultimus_ignite.recipe.RecipeError: in 10 iterations with pct_start 0.1 the learning rate \
does not rise to max_lr: give more --epochs, a smaller --batch-size or another --pct-start
    """
    peak = recipe.pct_start * total_steps - 1
    if total_steps == 1 or peak == 0 or (total_steps == 2 and 0 < peak < 1):
        length = f"{total_steps} iteration{'s' * (total_steps > 1)}"
        raise RecipeError(
            f"in {length} with pct_start {recipe.pct_start:.4g} the learning rate does not rise to "
            "max_lr: give more --epochs, a smaller --batch-size or another --pct-start"
        )
