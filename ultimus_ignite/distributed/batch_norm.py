"""BatchNorm over the batch of all processes, on any device.

`torch.nn.SyncBatchNorm` does the same for GPUs, and refuses tensors of the CPU.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over the ranks, and of its gradients."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        total = own.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class CommonBatchNorm(_BatchNorm):
    """`nn.BatchNorm1d`, `2d` or `3d` whose mean and variance in training are of all processes.

    Each process may have another number of images, also none. The sums cross the processes twice
    in the forward and twice in the backward pass: first the mean, then the squares of the distances
    from it, because a difference of two large sums would cost digits.

    Shape:
        ``(B, C, ...) -> (B, C, ...)``, any number of dimensions from two on.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2 dimensions, got {input.dim()}")

    def forward(self, input: Tensor) -> Tensor:
        if not (self.training or self.running_mean is None):
            return super().forward(input)
        self._check_input_dim(input)
        others = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1, *[1] * (input.dim() - 2)]
        x = input.float() if input.dtype in (torch.float16, torch.bfloat16) else input
        count = x.new_tensor([x.numel() / x.shape[1]])
        sums = SumOverRanks.apply(torch.cat([x.sum(others), count]))
        mean, count = sums[:-1] / sums[-1], sums[-1].detach()
        centred = x - mean.view(shape)
        variance = SumOverRanks.apply(centred.square().sum(others)) / count
        if self.training and self.track_running_stats:
            self._follow(mean.detach(), variance.detach() * count / (count - 1))
        output = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            output = output * self.weight.view(shape) + self.bias.view(shape)
        return output.to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics towards those of a batch."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)
        for running, batch in ((self.running_mean, mean), (self.running_var, variance)):
            assert running is not None
            running.lerp_(batch.to(running.dtype), share)


def synchronize_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Replace every BatchNorm of a model, keeping parameters, buffers and the keys of its state.

    What is in eval mode is frozen, and stays as it is.
    """
    if device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return converted
    plain = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    for name, module in [*model.named_modules()]:
        if isinstance(module, plain):
            common = _common(module)
            if not name:
                return common
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, common)
    return model


def _common(module: Any) -> CommonBatchNorm:
    common = CommonBatchNorm(
        module.num_features,
        eps=module.eps,
        momentum=module.momentum,
        affine=module.affine,
        track_running_stats=module.track_running_stats,
    )
    common._parameters, common._buffers = module._parameters, module._buffers
    return common.train(module.training)
