"""Detects an exploding loss, on the device."""

from typing import Any

import torch
from torch import Tensor

WINDOW = 50  # iterations; their median loss is the reference
PATIENCE = 5  # high losses in a row: one bad batch is not an explosion


class ExplosionAlarm:
    """Goes off after 5 losses in a row that exceed ``ratio`` times the median of the last 50.

    The losses and the answer stay on the device. The median is computed every fifth iteration.

    Args:
        ratio: limit of the loss, as a multiple of the median.
        device: device of the losses.

    Attributes:
        exploded: 0-d tensor on the device, 1 from the first explosion on.

    Example:
        >>> alarm = ExplosionAlarm(20.0, torch.device("cpu"))
        >>> [bool(alarm.hear(loss, i)) for i, loss in enumerate([1.0] * 50 + [99.0] * 5)][-2:]
        [False, True]
    """

    def __init__(self, ratio: float, device: torch.device) -> None:
        self.ratio = ratio
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # Ring buffers. Until half of the losses are known, the median is infinite: no loss is high.
        self._losses = torch.full((WINDOW,), torch.inf, dtype=dtype, device=device)
        self._limit = torch.full((), torch.inf, dtype=dtype, device=device)
        self._high = torch.zeros(PATIENCE, dtype=torch.bool, device=device)
        self.exploded = torch.zeros((), device=device)

    def hear(self, loss: Any, iteration: int) -> Tensor:
        """Take the loss of an iteration and return `exploded`."""
        loss = torch.as_tensor(loss, dtype=self._losses.dtype, device=self._losses.device)
        if iteration % PATIENCE == 0:
            torch.mul(self._losses.median(), self.ratio, out=self._limit)
        self._high[iteration % PATIENCE].copy_(loss > self._limit)
        self._losses[iteration % WINDOW].copy_(loss)
        return self.exploded.logical_or_(self._high.all())
