"""`ultimus summary`: the layer table of a recipe's model."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ultimus_ignite.commands.train import parse_arguments

if TYPE_CHECKING:
    from torch import nn
    from torchinfo.layer_info import LayerInfo


def main(prog: str, argv: Sequence[str]) -> None:
    """Print the table of the model that the flags describe."""
    arguments = parse_arguments(prog, argv)

    from ultimus_ignite.build import create_model
    from ultimus_ignite.modules import UltimusNet

    model = create_model(arguments.flags, num_classes=10)
    if isinstance(model, UltimusNet):
        model.pool_first = False  # the layers as they are read, not as they are computed
    print(layer_table(model))


def layer_table(model: "nn.Module") -> str:
    """One row a layer, children before parents: name, output shape, own parameters.

    Args:
        model: takes images of shape (1, 3, 32, 32).
    """
    from torchinfo import summary

    statistics = summary(model, input_size=(1, 3, 32, 32), verbose=0)
    rows = []
    for number, layer in enumerate(_children_first(statistics.summary_list[0]), start=1):
        shape = str([-1, *layer.output_size[1:]])
        name = f"{layer.class_name}-{number}"
        rows.append(f"{name:>20}  {shape:>25} {layer.leftover_params():>15,}")
    total, trainable = statistics.total_params, statistics.trainable_params
    return "\n".join(
        [
            *rows,
            "=" * 64,
            f"Total params: {total:,}",
            f"Trainable params: {trainable:,}",
            f"Non-trainable params: {total - trainable:,}",
            f"Multiply-adds an image: {statistics.total_mult_adds:,}",
        ]
    )


def _children_first(layer: "LayerInfo") -> Iterator["LayerInfo"]:
    for child in layer.children:
        if child.depth == layer.depth + 1:
            yield from _children_first(child)
            if child.output_size:  # a container that is never called has none
                yield child
