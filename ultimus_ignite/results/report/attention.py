"""What the `UltimusBlock`s of a model look at in example images.

Letters: B images, N tokens, K key dimensions; S: side of the images.
"""

from math import isqrt
from typing import Any, NamedTuple

from torch import Tensor, nn

from ultimus_ignite.modules import UltimusBlock
from ultimus_ignite.results.loaded_run import LoadedRun
from ultimus_ignite.results.report.pictures import matrix, overlay

MOST = 256  # numbers in one table


class AttentionMap(NamedTuple):
    """What one block does with one image."""

    picture: str
    """As a data URI."""
    is_matrix: bool
    """Whether it is over features: a K x K matrix."""
    caption: str
    numbers: list[list[float]]
    """The shown weights; empty if they are too many for a table."""


def attention_maps(run: LoadedRun, pixels: Tensor) -> dict[str, list[AttentionMap]]:
    """For each block by its name, one map per image.

    Over tokens a map shows how much the token in the middle of the image looks at each position;
    over features it is the K x K matrix, a row for each key dimension.

    Args:
        run: its model may have no such block, which gives no maps.
        pixels: example images, uint8 (B, 3, S, S).
    """
    return {
        name: [_map(block, image, each) for image, each in zip(pixels, weights, strict=True)]
        for name, (block, weights) in capture(run, pixels).items()
        if block.over == "features" or isqrt(weights.shape[-1]) ** 2 == weights.shape[-1]
    }


def capture(run: LoadedRun, pixels: Tensor) -> dict[str, tuple[UltimusBlock, Tensor]]:
    """Each block with its weights, float32 (B, N, N) or (B, K, K), in one forward pass."""
    captured: dict[str, tuple[UltimusBlock, Tensor]] = {}

    def hook_of(name: str) -> Any:
        def keep(block: nn.Module, args: Any, kwargs: Any) -> None:
            assert isinstance(block, UltimusBlock)
            if name not in captured:  # a mirrored evaluation, or a shared block, calls it again
                weights = block.attention(*args, **kwargs).float().cpu()
                rest = range(1, weights.dim() - 2)  # axes between the images and the matrix
                captured[name] = block, weights.mean(tuple(rest)) if rest else weights

        return keep

    hooks = [
        module.register_forward_pre_hook(hook_of(name), with_kwargs=True)
        for name, module in run.model.named_modules()
        if isinstance(module, UltimusBlock)
    ]
    try:
        run.logits(run.normalize(pixels))
    finally:
        for hook in hooks:
            hook.remove()
    return captured


def _map(block: UltimusBlock, image: Tensor, weights: Tensor) -> AttentionMap:
    is_matrix = block.over == "features"
    if is_matrix:
        picture, shown = matrix(weights), weights
    else:
        side = isqrt(len(weights))
        middle = (side // 2, side // 2)
        shown = weights[middle[0] * side + middle[1]].view(side, side)
        picture = overlay(image, shown, middle)
    caption = f"at most {shown.max():.1%}"
    return AttentionMap(
        picture, is_matrix, caption, shown.tolist() if shown.numel() <= MOST else []
    )
