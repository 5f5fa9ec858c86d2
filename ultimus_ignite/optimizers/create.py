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

ADAMW_RATE = 1 / 12  # of Muon's: `large` has 0.01 and 0.12


def create_optimizer(
    model: nn.Module, name: OptimizerName = "adamw", *, weight_decay: float = 0.0
) -> Optimizer:
    """The optimizer of what is trained in a model.

    ``adamw`` is fused: one kernel per parameter group, and non-finite steps are skipped. Biases and
    norms do not decay: a norm's scale allows the weights before it to shrink. Without decay this is
    Adam. ``muon`` takes the weights of convolutions and linear layers, but not the last linear
    layer's, whose scale matters.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = all(map(torch.is_floating_point, trained))  # none is complex
    if name == "adamw":
        return AdamW(_by_decay(trained, weight_decay), fused=fused)  # the scheduler sets the rate
    kernels = _kernels(model)
    taken = set(map(id, kernels))
    groups = _by_decay([p for p in trained if id(p) not in taken], weight_decay)
    return Muon(kernels, [{**group, "lr": ADAMW_RATE} for group in groups], lr=1.0, fused=fused)


def _kernels(model: nn.Module) -> list[nn.Parameter]:
    """What Muon takes; not a depthwise convolution, whose rows share no input."""
    linear = [
        module.get_parameter("weight")
        for module in model.modules()
        if isinstance(module, nn.Linear)
    ]
    convolutions = [
        module.get_parameter("weight")
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and module.groups == 1
    ]
    found = {id(weight): weight for weight in convolutions + linear if weight.requires_grad}
    if linear:
        found.pop(id(linear[-1]), None)
    return list(found.values())


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
    return OneCycleScheduler(
        optimizer,
        scaler=scaler,
        max_lr=_peaks(optimizer, recipe.max_lr),
        pct_start=recipe.pct_start,
        anneal_strategy=recipe.anneal_strategy,
        cycle_momentum=False,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
    )


def _peaks(optimizer: Optimizer, max_lr: float) -> float | list[float]:
    """One peak for all groups, also for those that come later, or one for each."""
    groups = optimizer.param_groups
    if len({float(group["lr"]) for group in groups}) == 1 and "initial_lr" not in groups[0]:
        return max_lr
    # Kept, as torch's own schedulers keep it: in mid-cycle the present rates are rounded.
    rates = [float(group.setdefault("initial_lr", float(group["lr"]))) for group in groups]
    highest = max(rates)
    return [max_lr * (rate / highest if highest else 1.0) for rate in rates]
