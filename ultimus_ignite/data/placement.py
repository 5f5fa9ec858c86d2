"""Where the images of a run are kept: on the device that trains, or in host memory."""

from collections.abc import Iterable

import torch
from torch import Tensor

from ultimus_ignite.data.rows import Images

_SHARE = 0.5  # of the device's free memory that images may take; training needs the rest


def explain_if_too_large(images: Iterable[Images], device: torch.device) -> str:
    """Whether a GPU is too small for these images; then they stay in host memory.

    Args:
        images: of all splits, each uint8.
        device: the one that trains. On others than CUDA's nothing is too large.

    Returns:
        A line for the log; empty if they fit into half of what is free.

    Example:
        >>> explain_if_too_large([torch.zeros(9, 3, 32, 32)], torch.device("cpu"))
        ''
    """
    if device.type != "cuda":
        return ""
    needed = sum(each.shape.numel() for each in images)
    free, _ = torch.cuda.mem_get_info(device)
    if needed <= _SHARE * free:
        return ""
    return (
        f"images: {needed / 1e9:.1f} GB stay in host memory, {free / 1e9:.1f} GB are free on "
        f"{device}; batches go through pinned memory"
    )


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A part of a batch on the device that trains; from host memory, without waiting for a GPU."""
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
