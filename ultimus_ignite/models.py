"""From the model that a recipe names to a network."""

from collections.abc import Callable

import torch
from torch import nn

from ultimus_ignite.modules import MODELS
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.seeding import derive_seed


def find_model(recipe: Recipe) -> Callable[..., nn.Module]:
    """The class of the recipe's model.

    Raises:
        RecipeError: there is no such model.
    """
    if recipe.model not in MODELS:
        raise RecipeError(f"model must be one of {', '.join(MODELS)}, got {recipe.model!r}")
    return MODELS[recipe.model]


def create_model(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The recipe's model, with initial weights that depend only on the recipe's seed.

    Raises:
        RecipeError: there is no such model.
    """
    model_class = find_model(recipe)
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "init", 0))
        return model_class(num_classes=num_classes)
