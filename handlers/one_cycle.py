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
    """What a cycle will do: one row an iteration, one column a parameter group."""

    rates: list[list[float]]
    momenta: list[list[float]]  # SGD's momentum or Adam's beta1; empty rows where neither is cycled


class OneCycleScheduler(Attachable, Serializable):
    """Sets the rate (and momentum) of iteration i to those of torch's `OneCycleLR` at i - 1.

    The value is computed from the iteration alone, in constant time: there is nothing to replay,
    and a run that is resumed at iteration i goes on with the rate it would have had. Its only
    memory is the number of steps that a `GradScaler` skipped: they do not advance the cycle.
    The length of the cycle is the run's own: ``max_epochs x epoch_length``. Where epochs are ended
    early, by ``terminate_epoch()``, the run ends before the cycle does.

    =======================  ============
    Event                    Method
    =======================  ============
    ``STARTED``              `reset`
    ``ITERATION_STARTED``    `update`
    ``ITERATION_COMPLETED``  `count_skips`
    =======================  ============

    Args:
        optimizer: its parameter groups are written to.
        max_lr: the peak rate, one for all groups or one a group.
        total_steps: number of iterations of the cycle; when given, it must equal the run's.
        pct_start: share of the cycle spent rising, in [0, 1].
        anneal_strategy: ``"cos"`` or ``"linear"``.
        cycle_momentum: also move momentum (SGD) or beta1 (Adam), against the rate.
        base_momentum: momentum at the peak rate.
        max_momentum: momentum at both ends.
        div_factor: ``max_lr / div_factor`` is the first rate.
        final_div_factor: the first rate divided by it is the last rate.
        three_phase: fall back to the first rate symmetrically before annealing to the last.
        iterations_per_step: iterations that accumulate gradients for one step of the optimizer;
            the cycle counts steps.
        scaler: the `GradScaler` of the step, asked after each iteration whether it skipped; an
            enabled one makes that iteration wait for the device.

    Raises:
        ValueError: an argument is out of range (torch's own checks); at ``STARTED``: the run's
            length is unknown or differs from ``total_steps``; at ``ITERATION_STARTED``: the run
            goes beyond the end of the cycle.

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
            raise ValueError(
                f"{type(optimizer).__name__} has no momentum to cycle: give cycle_momentum=False"
            )
        if iterations_per_step < 1:
            raise ValueError(f"iterations_per_step must be at least 1, got {iterations_per_step}")
        self.optimizer = optimizer
        self.total_steps = total_steps
        self.iterations_per_step = iterations_per_step
        self.scaler = scaler
        self._skipped = 0
        self._scale = 0.0  # of the scaler, after the last iteration
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
        # Any long cycle will do to have torch check the options now rather than at STARTED.
        self._cycle = Cycle(optimizer, total_steps or 10_007, self._options)

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer whose iterations are optimizer steps."""
        rows: list[Any] = [(Events.STARTED, self.reset), (Events.ITERATION_STARTED, self.update)]
        if self.scaler is not None and self.scaler.is_enabled():
            rows.append((Events.ITERATION_COMPLETED, self.count_skips))
        return self._attach(engine, *rows)

    def reset(self, engine: Engine) -> None:
        """Fit the cycle to the run's length."""
        if engine.state.iteration == 0:
            self._skipped = 0
        if self.scaler is not None:
            self._scale = self.scaler.get_scale()
        self._cycle = Cycle(self.optimizer, self._run_length(engine), self._options)

    def update(self, engine: Engine) -> None:
        """Write the rate and momentum of this iteration into the optimizer."""
        step = (engine.state.iteration - 1) // self.iterations_per_step - self._skipped
        if step >= self._cycle.total_steps:
            raise ValueError(
                f"iteration {engine.state.iteration} lies beyond the {self._cycle.total_steps} "
                f"steps of the one-cycle schedule: run no further than max_epochs x epoch_length"
            )
        groups = self.optimizer.param_groups
        if len(groups) != self._cycle.num_groups:  # one was added in mid-run: unfrozen layers
            self._cycle = Cycle(self.optimizer, self._cycle.total_steps, self._options)
        for group, values in zip(groups, self._cycle.at(step), strict=True):
            for key, value in values.items():
                if isinstance(group[key], torch.Tensor):  # a compiled step looks at this very one
                    group[key].fill_(value)
                else:
                    group[key] = value

    def count_skips(self) -> None:
        """Notice a step that the scaler skipped: its scale has just gone down."""
        assert self.scaler is not None
        scale = self.scaler.get_scale()
        self._skipped += scale < self._scale
        self._scale = scale

    def state_dict(self) -> OrderedDict[str, Any]:
        """The number of skipped steps."""
        return OrderedDict(skipped=self._skipped)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with the skipped steps of the run that is resumed."""
        super().load_state_dict(state_dict)
        self._skipped = state_dict["skipped"]

    def simulate(self, total_steps: int | None = None) -> Schedule:
        """The whole curve, without training.

        Args:
            total_steps: length of the cycle; the one given to the constructor when left out.

        Raises:
            ValueError: no length is known.
        """
        total_steps = total_steps or self.total_steps
        if total_steps is None:
            raise ValueError("simulate needs total_steps: max_epochs x epoch_length")
        cycle = Cycle(self.optimizer, total_steps, self._options)
        rows = [cycle.at(step) for step in range(total_steps)]
        return Schedule(
            rates=[[group["lr"] for group in row] for row in rows],
            momenta=[[_momentum(group) for group in row if len(group) > 1] for row in rows],
        )

    def _run_length(self, engine: Engine) -> int:
        state = engine.state
        if state.max_iters is not None:  # first: Ignite derives max_epochs from it in mid-run
            iterations = state.max_iters
            source = f"max_iters = {state.max_iters}"
        elif state.max_epochs is not None and state.epoch_length is not None:
            iterations = state.max_epochs * state.epoch_length
            source = f"max_epochs x epoch_length = {state.max_epochs} x {state.epoch_length}"
        elif self.total_steps is not None:
            return self.total_steps
        else:
            raise ValueError(
                "the one-cycle schedule needs the run's length: give epoch_length to run(), "
                "or total_steps to OneCycleScheduler"
            )
        length = -(-iterations // self.iterations_per_step)
        if self.iterations_per_step > 1:
            source = f"({source}) / iterations_per_step = {self.iterations_per_step}"
        if self.total_steps not in (None, length):
            raise ValueError(
                f"total_steps = {self.total_steps}, but {source} = {length}: "
                "leave total_steps out and the run's length is taken"
            )
        return length


def _momentum(group: dict[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group["momentum"])
