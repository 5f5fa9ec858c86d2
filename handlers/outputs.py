"""What the handlers read from an engine's output."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def read_output(output: Any) -> tuple[Any, Any, int]:
    """``(loss, correct, count)`` of one iteration, without waiting for the device.

    Args:
        output: a mapping with ``loss`` (mean over the batch) and, where known, ``correct`` (number
            of right predictions) and ``count`` (number of samples); or the loss alone. Each is a
            number or a 0-d tensor.

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
    return (loss.detach() if isinstance(loss, Tensor) else loss), correct, count


def read_outputs(
    outputs: Sequence[tuple[Any, Any, int]],
) -> tuple[list[float], list[float], list[int]]:
    """Many results of `read_output` as losses, correct and counts, in one transfer.

    Returns:
        ``correct`` is empty where it is not known.

    Example:
        >>> read_outputs([(torch.tensor(0.5), torch.tensor(3), 4), (torch.tensor(0.25), 4, 4)])
        ([0.5, 0.25], [3.0, 4], [4, 4])
    """
    losses, correct, counts = zip(*outputs, strict=True) if outputs else ((),) * 3
    known = [value for value in correct if value is not None]
    values = read_values([*losses, *known])
    return values[: len(losses)], values[len(losses) :], list(counts)


def read_values(values: Sequence[Any]) -> list[float]:
    """Numbers and 0-d tensors as plain numbers; the tensors in one transfer from their device.

    Example:
        >>> read_values([torch.tensor(0.5), 1.0, torch.tensor(2.0)])
        [0.5, 1.0, 2.0]
        >>> read_values([torch.tensor(0.5, dtype=torch.float16), torch.tensor(2049)])
        [0.5, 2049.0]
    """
    tensors = [value for value in values if isinstance(value, Tensor)]
    # A count beside a float16 loss must not become one: integers take part as float32.
    tensors = [x if x.is_floating_point() else x.float() for x in tensors]
    read = iter(torch.stack(tensors).tolist() if tensors else ())
    return [next(read) if isinstance(value, Tensor) else value for value in values]
