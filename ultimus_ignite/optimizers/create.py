"""The optimizer that a recipe names, and its one-cycle rate."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Optimizer

from ultimus_ignite.handlers import OneCycleScheduler
from ultimus_ignite.optimizers.muon import Muon
from ultimus_ignite.recipe import OptimizerName, Recipe, RecipeError

ADAMW_RATE = 1 / 12  # of Muon's: rates of 0.01 and 0.12 train `large` best


def create_optimizer(
    model: nn.Module, name: OptimizerName = "adamw", *, weight_decay: float = 0.0
) -> Optimizer:
    """The optimizer of what is trained in a model.

    ``adamw`` is fused: one kernel per parameter group, and non-finite steps are skipped. Biases and
    norms do not decay: a norm's scale allows the weights before it to shrink. Without decay this is
    Adam. ``muon`` takes all weights of two or more dimensions but the last, which is the
    classifier's.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(map(torch.is_floating_point, trained))  # none is complex
    if name == "adamw":
        return AdamW(_by_decay(trained, weight_decay), fused=fused)  # the scheduler sets the rate
    kernels = [parameter for parameter in trained if parameter.ndim > 1][:-1]
    taken = set(map(id, kernels))
    groups = _by_decay([p for p in trained if id(p) not in taken], weight_decay)
    return Muon(kernels, [{**group, "lr": ADAMW_RATE} for group in groups], lr=1.0, fused=fused)


def _by_decay(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """AdamW's groups; without decay there is one, so one kernel."""
    by_decay = defaultdict(list)
    for parameter in parameters:
        by_decay[weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    return [{"params": same, "weight_decay": decay} for decay, same in by_decay.items()]


def create_scheduler(
    recipe: Recipe, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None
) -> OneCycleScheduler:
    """The recipe's one-cycle rate. As in the original notebook, Adam's momentum is not cycled.

    The group with the highest rate gets the recipe's, the others in proportion.

    Raises:
        RecipeError: ``max_lr`` is still ``auto``.
    """
    if recipe.max_lr == "auto":
        raise RecipeError("max_lr: auto needs a training run; ultimus find-lr prints its rates")
    rates = [float(group["lr"]) for group in optimizer.param_groups]
    highest = max(rates)
    shares = [rate / highest if highest else 1.0 for rate in rates]
    return OneCycleScheduler(
        optimizer,
        scaler=scaler,
        max_lr=[recipe.max_lr * share for share in shares],
        pct_start=recipe.pct_start,
        anneal_strategy=recipe.anneal_strategy,
        cycle_momentum=False,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
    )
