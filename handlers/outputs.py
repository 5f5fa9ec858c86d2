"""What the handlers read from an engine's output."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def read_output(output: Any) -> tuple[Any, Any, int]:
    """``(loss, correct, count)`` of one iteration, without waiting for the device.

    Args:
        output: a mapping with ``loss`` (mean over the batch) and, where known, ``correct`` (number
            of right predictions) and ``count`` (number of samples); or the loss alone. The first
            two are numbers or 0-d tensors of one device, ``count`` is an int.

    Returns:
        ``correct`` is None where it is not known; a loss without a count counts as one sample.

    Example:
        >>> read_output({"loss": 2.3, "correct": 7, "count": 64})
        (2.3, 7, 64)
        >>> read_output(2.3)
        (2.3, None, 1)
    """
    if isinstance(output, Mapping):
        loss, correct, count = output["loss"], output.get("correct"), output.get("count", 1)
    else:
        loss, correct, count = output, None, 1
    if isinstance(loss, Tensor) and loss.requires_grad:
        loss = loss.detach()
    return loss, correct, count


def read_outputs(
    outputs: Sequence[tuple[Any, Any, int]],
) -> tuple[list[float], list[float], list[int]]:
    """Many results of `read_output` as losses, correct and counts, in one transfer.

    Returns:
        ``correct`` is empty unless it is known of every iteration.

    Example:
        >>> read_outputs([(torch.tensor(0.5), torch.tensor(3), 4), (torch.tensor(0.25), 4, 4)])
        ([0.5, 0.25], [3.0, 4], [4, 4])
        >>> read_outputs([(0.5, 3, 4), (0.25, None, 4)])
        ([0.5, 0.25], [], [4, 4])
        >>> read_outputs([(torch.tensor(0.5, dtype=torch.float16), torch.tensor(2049), 4096)])
        ([0.5], [2049.0], [4096])
    """
    losses, correct, counts = zip(*outputs, strict=True) if outputs else ((),) * 3
    known = all(value is not None for value in correct)
    losses_read, correct_read = _read(losses, correct if known else ())
    return losses_read, correct_read, list(counts)


def _read(*columns: Sequence[Any]) -> list[list[float]]:
    """Numbers and 0-d tensors as plain numbers; all tensors in one transfer from their device."""
    tensors = [[value for value in column if isinstance(value, Tensor)] for column in columns]
    # A column is stacked alone, as tensors of one dtype are four times faster to stack.
    stacks = [torch.stack(column) for column in tensors if column]
    if stacks:
        # Beside it they become float32 at least: float16 could not hold a count of 2,049.
        stacks.append(torch.empty(0, dtype=torch.float32, device=stacks[0].device))
    read = iter(torch.cat(stacks).tolist() if stacks else ())
    return [
        [next(read) if isinstance(value, Tensor) else value for value in column]
        for column in columns
    ]
