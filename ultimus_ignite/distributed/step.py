"""What a training step does on several ranks, besides the sums of its gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def split(
    images: Tensor, labels: Tensor, count: int, total: int, ranks: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """The parts of a batch that are computed one after the other, as many on each rank."""
    if ranks == 1:
        return zip(images.chunk(count), labels.chunk(count), strict=True)
    count = max(1, min(count, total // ranks))  # no part is empty unless the share is
    return zip(images.tensor_split(count), labels.tensor_split(count), strict=True)


def begin_sum(
    output: dict[str, Any], ranks: int, total: int | None
) -> Callable[[], dict[str, Any]]:
    """Begin to sum an output over the ranks; returns what waits for the sums.

    Args:
        output: its loss is weighted by the rank's share, times the number of ranks.
        ranks: their number.
        total: the labels of all ranks; None if only their sum tells, which waits for the device.
    """
    loss = output["loss"]
    exact = {"dtype": torch.float64, "device": loss.device}
    sums = torch.stack([torch.as_tensor(number, **exact) for number in output.values()])
    work = dist.all_reduce(sums, async_op=True)

    def finish() -> dict[str, Any]:
        work.wait()
        summed = dict(zip(output, sums.unbind(), strict=True))
        summed["loss"] = (summed["loss"] / ranks).to(loss.dtype)
        return {**summed, "count": int(summed["count"]) if total is None else total}

    return finish
