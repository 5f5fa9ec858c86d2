"""The layers of a model as a table in plain text."""

from collections.abc import Iterator

from torch import nn
from torchinfo import summary
from torchinfo.layer_info import LayerInfo


def layer_table(model: nn.Module, image_size: int) -> str:
    """One row per layer, children before parents: name, output shape, own parameters.

    Args:
        model: takes images (B, 3, image_size, image_size).
        image_size: height and width of the images in pixels.

    Example:
        >>> print(layer_table(nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), 4).splitlines()[1])
                    Linear-2                    [-1, 2]              98
    """
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


def _children_first(layer: LayerInfo) -> Iterator[LayerInfo]:
    for child in layer.children:
        if child.depth == layer.depth + 1:
            yield from _children_first(child)
            if child.output_size:  # a container that is never called has none
                yield child
