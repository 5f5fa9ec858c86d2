"""The one-cycle formula: the learning rate and momentum of any step, from its number."""

import math
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

_MOMENTUM_RISES, _MOMENTUM_FALLS = (
    ("base_momentum", "max_momentum"),
    ("max_momentum", "base_momentum"),
)
_MOMENTUM_STAYS = ("max_momentum", "max_momentum")


class Cycle:
    """The values that torch's `OneCycleLR` sets, in constant time and for steps in any order.

    `OneCycleLR` itself, with a stand-in optimizer, checks the options and computes the limits of
    rate and momentum. The formula does its operations in the same order, so every bit is equal.

    Args:
        optimizer: its groups are only read.
        total_steps: length of the cycle.
        options: the other arguments of `OneCycleLR`.

    Raises:
        ValueError: an option is out of range, or a phase has zero length.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, options: dict[str, Any]) -> None:
        self.total_steps = total_steps
        self.num_groups = len(optimizer.param_groups)
        self._options = options
        kept = [k for k in ("betas", "momentum") if k in optimizer.defaults]
        self._momentum_key = kept[0] if options["cycle_momentum"] else None
        stand_in = Optimizer(
            [  # the rate may be a tensor
                {"params": [torch.zeros(1)], "lr": float(g["lr"]), **{k: g[k] for k in kept}}
                for g in optimizer.param_groups
            ],
            dict(optimizer.defaults),
        )
        try:
            OneCycleLR(stand_in, total_steps=total_steps, **options)
        except ZeroDivisionError:
            raise ValueError(
                f"pct_start x total_steps = {options['pct_start']} x {total_steps} leaves a phase "
                "of zero length: change pct_start or train for more iterations"
            ) from None
        self._groups = stand_in.param_groups
        # For each phase: its last step, then the start and end of the rate and of the momentum.
        peak, last = options["pct_start"] * total_steps - 1, total_steps - 1
        self._phases = [(peak, ("initial_lr", "max_lr"), _MOMENTUM_FALLS)]
        if options["three_phase"]:
            self._phases.append((2 * peak, ("max_lr", "initial_lr"), _MOMENTUM_RISES))
            self._phases.append((last, ("initial_lr", "min_lr"), _MOMENTUM_STAYS))
        else:
            self._phases.append((last, ("max_lr", "min_lr"), _MOMENTUM_RISES))

    def at(self, step: int) -> list[dict[str, Any]]:
        """For each group ``lr`` and, if momentum is cycled, ``momentum`` or ``betas``."""
        begin = 0.0
        for phase in self._phases:
            if step <= phase[0]:
                break
            begin = phase[0]
        end, rate, momentum = phase
        share = (step - begin) / (end - begin)  # completed part of the phase
        values = [{"lr": self._anneal(group, rate, share)} for group in self._groups]
        if self._momentum_key is not None:
            for value, group in zip(values, self._groups, strict=True):
                beta = self._anneal(group, momentum, share)
                is_adam = self._momentum_key == "betas"
                value[self._momentum_key] = (beta, *group["betas"][1:]) if is_adam else beta
        return values

    def _anneal(self, group: dict[str, Any], keys: tuple[str, str], share: float) -> Any:
        start, end = group[keys[0]], group[keys[1]]
        if self._options["anneal_strategy"] == "linear":
            return (end - start) * share + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * share) + 1)
