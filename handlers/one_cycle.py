"""One-cycle learning rate and momentum, as a function of the iteration."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from ignite.base.mixins import Serializable
from ignite.engine import Engine, Events
from torch.optim import Optimizer
from typing_extensions import Self

from ultimus_ignite.handlers.support.attachable import Attachable
from ultimus_ignite.handlers.support.cycle import Cycle


class Schedule(NamedTuple):
    """The values of a whole cycle: one row per step, one column per parameter group."""

    rates: list[list[float]]
    momenta: list[list[float]]  # SGD's momentum or Adam's beta1; empty rows if it is not cycled


class OneCycleScheduler(Attachable, Serializable):
    """Sets the rate (and momentum) of iteration i to that of torch's `OneCycleLR` at step i - 1.

    Each value is computed from the iteration alone, in constant time, so a resumed run replays
    nothing. The only state is the number of steps that a `GradScaler` skipped: they do not advance
    the cycle. The cycle is as long as the run, ``max_epochs x epoch_length``; if
    ``terminate_epoch()`` shortens epochs, the run ends before the cycle does.

    =======================  ============
    Event                    Method
    =======================  ============
    ``STARTED``              `reset`
    ``ITERATION_STARTED``    `update`
    ``ITERATION_COMPLETED``  `count_skips`
    =======================  ============

    Args:
        optimizer: its parameter groups are written to.
        max_lr: the peak rate, one for all groups or one per group.
        total_steps: number of steps in the cycle; if given, it must equal the run's.
        pct_start: fraction of the cycle in which the rate rises, in [0, 1].
        anneal_strategy: ``"cos"`` or ``"linear"``.
        cycle_momentum: also cycle momentum (SGD) or beta1 (Adam), opposite to the rate.
        base_momentum: momentum at the peak rate.
        max_momentum: momentum at both ends.
        div_factor: the first rate is ``max_lr / div_factor``.
        final_div_factor: the last rate is the first rate divided by this.
        three_phase: return to the first rate, as slowly as it rose, before annealing to the last.
        iterations_per_step: iterations per optimizer step, if gradients are accumulated.
        scaler: the step's `GradScaler`, to count skips; if enabled, iterations wait for the device.

    Raises:
        ValueError: an argument is out of range; at ``STARTED``: the run's length is unknown or not
            ``total_steps``; at ``ITERATION_STARTED``: the run is longer than the cycle.

    Example:
        >>> from ignite.engine import Engine
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1, momentum=0.9)
        >>> trainer = Engine(lambda engine, batch: optimizer.param_groups[0]["lr"])
        >>> _ = OneCycleScheduler(optimizer, max_lr=1.0, div_factor=10.0).attach(trainer)
        >>> trainer.run(range(10), max_epochs=1).output  # the last of ten rates
        1e-05

    Source: Smith and Topin 2017, https://arxiv.org/abs/1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        iterations_per_step: int = 1,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        super().__init__()
        if cycle_momentum and not {"momentum", "betas"} & optimizer.defaults.keys():
            kind = type(optimizer).__name__
            raise ValueError(f"{kind} has no momentum to cycle: give cycle_momentum=False")
        if iterations_per_step < 1:
            raise ValueError(f"iterations_per_step must be at least 1, got {iterations_per_step}")
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.iterations_per_step = iterations_per_step
        self.scaler = scaler
        self._skipped = 0
        self._options: dict[str, Any] = {
            "max_lr": max_lr,
            "pct_start": pct_start,
            "anneal_strategy": anneal_strategy,
            "cycle_momentum": cycle_momentum,
            "base_momentum": base_momentum,
            "max_momentum": max_momentum,
            "div_factor": div_factor,
            "final_div_factor": final_div_factor,
            "three_phase": three_phase,
        }
        # Let torch check the options now, not at STARTED; any long cycle will do.
        self._cycle = Cycle(optimizer, total_steps or 10_007, self._options)

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer."""
        rows: list[Any] = [(Events.STARTED, self.reset), (Events.ITERATION_STARTED, self.update)]
        if self.scaler is not None and self.scaler.is_enabled():
            rows.append((Events.ITERATION_COMPLETED, self.count_skips))
        return self._attach(engine, *rows)

    def reset(self, engine: Engine) -> None:
        """Fit the cycle to the run's length."""
        if engine.state.iteration == 0:
            self._skipped = 0
        if self.scaler is not None:
            self._scale = self.scaler.get_scale()  # after the last iteration
        self._cycle = Cycle(self.optimizer, self._run_length(engine), self._options)

    def update(self, engine: Engine) -> None:
        """Write the rate and momentum of this iteration into the optimizer."""
        step = (engine.state.iteration - 1) // self.iterations_per_step - self._skipped
        if step >= self._cycle.total_steps:
            raise ValueError(
                f"iteration {engine.state.iteration} is beyond the {self._cycle.total_steps} steps "
                "of OneCycleScheduler: run at most max_epochs x epoch_length iterations"
            )
        groups = self.optimizer.param_groups
        if len(groups) != self._cycle.num_groups:  # a group was added in mid-run (unfrozen layers)
            self._cycle = Cycle(self.optimizer, self._cycle.total_steps, self._options)
        for group, values in zip(groups, self._cycle.at(step), strict=True):
            for key, value in values.items():
                if isinstance(group[key], torch.Tensor):  # a compiled step reads this tensor
                    group[key].fill_(value)
                else:
                    group[key] = value

    def count_skips(self) -> None:
        """Count a step that the scaler skipped: its scale has then gone down."""
        assert self.scaler is not None
        scale = self.scaler.get_scale()
        self._skipped += scale < self._scale
        self._scale = scale

    def state_dict(self) -> OrderedDict[str, Any]:
        """The number of skipped steps."""
        return OrderedDict(skipped=self._skipped)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue with the skipped steps of the resumed run."""
        super().load_state_dict(state_dict)
        self._skipped = state_dict["skipped"]

    def simulate(self, total_steps: int | None = None) -> Schedule:
        """The whole cycle, without training.

        Args:
            total_steps: length of the cycle; None: the constructor's.

        Raises:
            ValueError: no length is known.
        """
        total_steps = total_steps or self.total_steps
        if total_steps is None:
            raise ValueError("simulate needs total_steps: give max_epochs x epoch_length")
        cycle = Cycle(self.optimizer, total_steps, self._options)
        rows = [cycle.at(step) for step in range(total_steps)]
        return Schedule(
            rates=[[group["lr"] for group in row] for row in rows],
            momenta=[[_momentum(group) for group in row if len(group) > 1] for row in rows],
        )

    def _run_length(self, engine: Engine) -> int:
        state = engine.state
        if state.max_iters is not None:  # first: Ignite derives max_epochs from it in mid-run
            iterations, source = state.max_iters, f"max_iters = {state.max_iters}"
        elif state.max_epochs is not None and state.epoch_length is not None:
            iterations = state.max_epochs * state.epoch_length
            source = f"max_epochs x epoch_length = {state.max_epochs} x {state.epoch_length}"
        elif self.total_steps is not None:
            return self.total_steps
        else:
            raise ValueError("OneCycleScheduler needs total_steps, or run() needs epoch_length")
        length = -(-iterations // self.iterations_per_step)
        if self.iterations_per_step > 1:
            source = f"({source}) / iterations_per_step = {self.iterations_per_step}"
        if self.total_steps not in (None, length):
            raise ValueError(
                f"total_steps = {self.total_steps}, but {source} = {length}: leave total_steps out"
            )
        return length


def _momentum(group: dict[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group["momentum"])
