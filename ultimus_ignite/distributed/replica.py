"""One model on several processes."""

import inspect
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ultimus_ignite.distributed.batch_norm import CommonBatchNorm, synchronize_batch_norms


def replicate(model: nn.Module, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The model whose state is saved, and the one that is trained; the same on one process.

    On several they share their parameters, of which every process has a copy. The second sums the
    gradients over the processes. Every BatchNorm takes its statistics from the whole batch.
    """
    if idist.get_world_size() == 1:
        return model, model
    model = synchronize_batch_norms(model, device)
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: _has_buffers_of_its_own(model)}  # torch 2.14 has renamed it
    devices = [device] if device.type == "cuda" else None
    return model, DistributedDataParallel(model, device_ids=devices, **options)


def _has_buffers_of_its_own(model: nn.Module) -> bool:
    """Whether a buffer is saved that may follow the images of one process.

    Each step then begins with those of rank 0, for which the processes wait.
    """
    common = {
        id(buffer)
        for module in model.modules()
        if isinstance(module, CommonBatchNorm | nn.SyncBatchNorm)
        for buffer in module.buffers(recurse=False)
    }
    saved = model.state_dict(keep_vars=True).values()
    return any(
        isinstance(value, torch.Tensor) and not value.requires_grad and id(value) not in common
        for value in saved
    )
