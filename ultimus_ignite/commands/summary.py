"""`ultimus summary`: the layer table of a recipe's model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ultimus_ignite.commands.arguments import RecipeArguments, parse_recipe

if TYPE_CHECKING:
    from torch import nn
    from torchinfo.layer_info import LayerInfo


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
    from ultimus_ignite.models import create_model, find_model
    from ultimus_ignite.modules import UltimusNet

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


def layer_table(model: "nn.Module", image_size: int) -> str:
    """One row per layer, children before parents: name, output shape, own parameters."""
    from torchinfo import summary

    statistics = summary(model, input_size=(1, 3, image_size, image_size), verbose=0)
    rows = []
    for number, layer in enumerate(_children_first(statistics.summary_list[0]), start=1):
        shape = str([-1, *layer.output_size[1:]])
        name = f"{layer.class_name}-{number}"
        rows.append(f"{name:>20}  {shape:>25} {layer.leftover_params():>15,}")
    total, trainable = statistics.total_params, statistics.trainable_params
    rows += [
        "=" * 64,
        f"Total params: {total:,}",
        f"Trainable params: {trainable:,}",
        f"Non-trainable params: {total - trainable:,}",
        f"Multiply-adds per image: {statistics.total_mult_adds:,}",
    ]
    return "\n".join(rows)


def _children_first(layer: "LayerInfo") -> Iterator["LayerInfo"]:
    for child in layer.children:
        if child.depth == layer.depth + 1:
            yield from _children_first(child)
            if child.output_size:  # a container that is never called has none
                yield child
