"""`ultimus summary`: the layer table of a recipe's model."""

from collections.abc import Sequence
from dataclasses import dataclass

from ultimus_ignite.commands.arguments import RecipeArguments, parse_recipe


@dataclass(frozen=True, kw_only=True)
class SummaryArguments(RecipeArguments):
    """Print the layers of a recipe's model, for the classes of its --data.

    Of the data, only the names in a folder are read.
    """


def main(prog: str, argv: Sequence[str]) -> None:
    """Print the layer table."""
    arguments = parse_recipe(SummaryArguments, prog, argv)

    import torch

    from ultimus_ignite.checks import check_model
    from ultimus_ignite.data.sources import count_classes
    from ultimus_ignite.modules import UltimusNet
    from ultimus_ignite.networks.layer_table import layer_table
    from ultimus_ignite.networks.models import create_model, find_model

    recipe = arguments.recipe
    find_model(recipe.model)
    num_classes = count_classes(recipe.data)
    model = create_model(recipe, num_classes=num_classes)
    images = torch.zeros(2, 3, recipe.image_size, recipe.image_size)
    check_model(model, images, name=recipe.model, num_classes=num_classes)
    if isinstance(model, UltimusNet):
        model.pool_first = False  # show the layers in the order of the code
    print(layer_table(model, recipe.image_size))
    print(f"Classes: {num_classes} (--data {recipe.data})")
