"""One model on several processes."""

import ignite.distributed as idist
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ultimus_ignite.distributed.batch_norm import synchronize_batch_norms


def replicate(model: nn.Module, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """The model whose state is saved, and the one that is trained; the same on one process.

    On several they share their parameters, of which every process has a copy. The second sums the
    gradients over the processes. Every BatchNorm takes its statistics from the whole batch.
    """
    if idist.get_world_size() == 1:
        return model, model
    model = synchronize_batch_norms(model, device)
    devices = [device] if device.type == "cuda" else None
    return model, DistributedDataParallel(model, device_ids=devices)
