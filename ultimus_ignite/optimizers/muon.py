"""Orthogonal steps for the kernels of a network, AdamW for everything else, in one optimizer."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic x -> a x + b x^3 + c x^5, steep at zero


class Muon(Optimizer):
    """Muon for convolutions and linear layers, AdamW for the other parameters.

    A kernel ``(out, in, ...)`` is a matrix with a row for each output channel. Its momentum is made
    nearly orthogonal, so that a step changes all directions alike, also those with a weak gradient.
    Before each step the kernel is scaled to the norm ``sqrt(out)``, so that a rate is the share of
    it that a step changes. This is for networks with a norm behind each kernel, which undoes the
    scale; where a norm is frozen, or the scale of a weight matters, take AdamW.

    Args:
        kernels: parameters of two or more dimensions.
        others: parameter groups of `AdamW`; not empty.
        lr: the rate of both.
        momentum: of the orthogonal steps, as Nesterov has it.
        steps: Newton-Schulz iterations; three are enough for convolutions.
        fused: AdamW's.

    Raises:
        ValueError: a kernel has fewer than two dimensions.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> optimizer = Muon([network[0].weight], [{"params": network[1].parameters()}], lr=0.1)
        >>> network(torch.randn(2, 3, 5, 5)).square().sum().backward()
        >>> optimizer.step()
        >>> [len(group["params"]) for group in optimizer.param_groups]
        [1, 2]

    Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/; scaling and three iterations as
    in airbench94_muon.
    """

    def __init__(
        self,
        kernels: Sequence[nn.Parameter],
        others: Sequence[dict[str, Any]],
        *,
        lr: float = 1e-3,
        momentum: float = 0.8,
        steps: int = 3,
        fused: bool = True,
    ) -> None:
        if flat := [tuple(kernel.shape) for kernel in kernels if kernel.ndim < 2]:
            raise ValueError(f"a kernel has two or more dimensions, got {flat[0]}")
        self._adamw = AdamW(others, lr=lr, fused=fused)
        own = {"momentum": momentum, "steps": steps, "weight_decay": 0.0, "fused": False}
        super().__init__(
            [{"params": kernels, **own}, *self._adamw.param_groups], self._adamw.defaults
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_adamw": self._adamw}

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step, with the gradients that are there."""
        kernels, *others = self.param_groups
        for kernel in kernels["params"]:
            if kernel.grad is not None:
                state = self.state[kernel]
                if not state:
                    state["momentum"] = torch.zeros_like(kernel)
                momentum = state["momentum"].mul_(kernels["momentum"]).add_(kernel.grad)
                direction = kernel.grad + kernels["momentum"] * momentum
                kernel.mul_(len(kernel) ** 0.5 / kernel.norm().clamp_min(EPSILON))
                kernel.sub_(orthogonalised(direction, kernels["steps"]), alpha=kernels["lr"])
        self._adamw.param_groups, self._adamw.state = others, self.state  # loading replaces them
        self._adamw.step()


EPSILON = 1e-7


def orthogonalised(kernel: Tensor, steps: int) -> Tensor:
    """The same singular vectors, with singular values near 1: between 0.7 and 1.2 after five steps.

    Newton-Schulz iterations need products of matrices alone. A singular value that is s before one
    is ``a s + b s^3 + c s^5`` after it.

    Args:
        kernel: ``(out, in, ...)``.
        steps: number of iterations.

    Example:
        >>> orthogonalised(torch.diag(torch.tensor([3.0, 1.0])), 5).diag().round(decimals=1)
        tensor([0.8000, 1.1000])
    """
    a, b, c = COEFFICIENTS
    matrix = kernel.flatten(1)
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mH if is_tall else matrix
    x = x / x.norm().clamp_min(EPSILON)  # all singular values are 1 or less
    for _ in range(steps):
        gram = x @ x.mH
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mH if is_tall else x
    return orthogonal.reshape(kernel.shape)
