"""Stops a run before NaN or infinity reaches the weights, or when its loss explodes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from ultimus_ignite.handlers.support.attachable import Attachable
from ultimus_ignite.handlers.support.explosion_alarm import PATIENCE, ExplosionAlarm
from ultimus_ignite.handlers.support.outputs import OutputReader, as_it_is
from ultimus_ignite.handlers.support.private_names import (
    lend_flag,
    lent_flag,
    raise_flag_if_non_finite,
    take_flag_back,
)
from ultimus_ignite.handlers.support.ranks import CommonMoments, highest

CHECK_INTERVAL = 1.0  # seconds between two readings of the flag


class NonFiniteError(RuntimeError):
    """The loss or a gradient became NaN or infinite, or the loss exploded; names the iteration."""

    exit_code = 4  # of a command that ends with this error


class NonFiniteGuard(Attachable):
    """Checks the gradients just before the optimizer's step, and the loss just after it.

    The first NaN or infinity sets a flag on the device. A fused optimizer reads the flag there and
    skips its steps from then on, so no iteration waits for the device. The host reads the flag once
    a second and after each epoch, and ends the run with the weights from before the bad step. If an
    optimizer is not fused, the host reads it at every step. With a `GradScaler`, which skips
    infinite gradients itself, only the loss is checked. Outside the engine's run, no step is
    guarded. For a `Checkpointer` that saves every n iterations, call `check` every n iterations.

    Of several processes each needs a guard: what one of them finds ends all of them, at the same
    iteration.

    =======================  ===========
    Event                    Method
    =======================  ===========
    ``STARTED``              `reset`
    the optimizer's step     `inspect_gradients`
    ``ITERATION_COMPLETED``  `inspect_loss`
    ``EPOCH_COMPLETED``      `check`
    ``TERMINATE``            `check`, `close`
    ``INTERRUPT``            `pause`
    ``COMPLETED``            `close`
    =======================  ===========

    Args:
        optimizer: its steps are guarded.
        max_loss_ratio: 5 losses in a row above this ratio times the median of the last 50 also
            set the flag; the median is computed every fifth iteration. None: no limit.
        output_transform: turns ``engine.state.output`` into a loss or mapping, see `OutputReader`.
            If a number is called ``loss``, only that is checked; else all numbers are.

    Raises:
        ValueError: ``max_loss_ratio`` is not above 1, or ``optimizer`` is not a torch optimizer.
        TypeError: at the first iteration: the step's output holds no number.
        NonFiniteError: from `check`, or from the step of an optimizer that is not fused.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
        >>> def update(engine, batch):
        ...     optimizer.zero_grad()
        ...     loss = (weight * batch).sum()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> trainer = Engine(update)
        >>> _ = NonFiniteGuard(optimizer).attach(trainer)
        >>> trainer.logger.disabled = True
        >>> trainer.run([1.0, float("inf"), 1.0])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        ultimus_ignite.handlers.non_finite_guard.NonFiniteError: ... at iteration 2, rate 0.1: ...
        >>> weight.item()
        0.8999999761581421
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_loss_ratio: float | None = None,
        output_transform: Callable[[Any], Any] = as_it_is,
    ) -> None:
        super().__init__()
        if not isinstance(optimizer, Optimizer):
            kind = type(optimizer).__name__
            raise ValueError(f"NonFiniteGuard needs a torch.optim.Optimizer, got {kind}")
        if max_loss_ratio is not None and not max_loss_ratio > 1:
            raise ValueError(f"max_loss_ratio must be above 1, got {max_loss_ratio}")
        self.optimizer = optimizer
        self.max_loss_ratio = max_loss_ratio
        self._read_output = OutputReader(self, output_transform)
        self._hooks: list[RemovableHandle] = []  # on the optimizer's step, during a run
        self._rates: list[float] = []  # of the iterations since the last reading

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer."""
        return self._attach(
            engine,
            (Events.STARTED, self.reset),
            (Events.ITERATION_COMPLETED, self.inspect_loss),
            (Events.EPOCH_COMPLETED, self.check),
            (Events.TERMINATE, self.check),
            (Events.TERMINATE, self.close),  # COMPLETED may be skipped
            (Events.INTERRUPT, self.pause),
            (Events.COMPLETED, self.close),
        )

    def reset(self, engine: Engine) -> None:
        """Clear the flag, on the device of the parameters."""
        self.close()  # an exception skips COMPLETED
        devices = [p.device for group in self.optimizer.param_groups for p in group["params"]]
        device = devices[0] if devices else torch.device("cpu")
        self._flag = torch.zeros((), device=device)  # 1 from the first non-finite number on
        self._flagged = torch.zeros((), device=device)  # number of iterations since then
        self._moments = CommonMoments(CHECK_INTERVAL, owner=self)
        # Gradients are the same on all ranks, losses may not be: the next check tells the others.
        self._of_loss = self._flag if self._moments.is_alone else torch.zeros_like(self._flag)
        self._one = torch.ones((), device=device)
        ratio = self.max_loss_ratio
        self._alarm = None if ratio is None else ExplosionAlarm(ratio, device)
        self._rates.clear()
        self._first_unread = engine.state.iteration + 1
        self._hook_on(engine)

    def pause(self, engine: Engine) -> None:
        """Stop guarding the optimizer until the run continues."""
        self.close()
        self._at_next(engine, Events.ITERATION_STARTED, self._hook_on)

    def close(self) -> None:
        """Remove the hooks and the flag from the optimizer."""
        while self._hooks:
            self._hooks.pop().remove()
        self._take_flag_back()

    def inspect_gradients(self, optimizer: Optimizer, args: Any = (), kwargs: Any = None) -> Any:
        """Set the flag if a gradient is not finite, so that the step is not taken."""
        if self._running() is None:  # the run ended in an exception and left its hooks
            self._take_flag_back()
            # Remove them in the last hook after the step: torch is iterating over the hooks now.
            self._hooks.append(optimizer.register_step_post_hook(lambda *_: self.close()))
            return None
        if (lent := lent_flag(optimizer)) is not None and lent is not self._flag:
            return None  # a GradScaler checks the gradients
        closure = args[1] if len(args) > 1 else (kwargs or {}).get("closure")
        if closure is None:
            self._look_at_gradients()
            return None

        def checked_closure() -> Any:
            loss = closure()  # computes the gradients
            self._look_at_gradients()
            return loss

        return (args[0], checked_closure), {}

    def _look_at_gradients(self) -> None:
        optimizer = self.optimizer
        for group in optimizer.param_groups:
            if gradients := [p.grad for p in group["params"] if p.grad is not None]:
                self._look_at(gradients, self._flag)
        if not lend_flag(optimizer, self._flag) and self._flag.item():
            self._count_iteration()
            self._end_run(int(self._flagged))

    def inspect_loss(self, engine: Engine) -> None:
        """Set the flag if the loss is not finite; read it if the interval has passed."""
        values, _ = self._read_output(engine)
        for loss in (values["loss"],) if "loss" in values else values.values():
            if isinstance(loss, Tensor):
                self._look_at([loss], self._of_loss)
            elif isinstance(loss, float) and not math.isfinite(loss):
                self._of_loss.fill_(1.0)
        if self._alarm is not None and values:
            loss = self._read_output.loss(values)
            self._of_loss.logical_or_(self._alarm.hear(loss, engine.state.iteration))
        self._count_iteration()
        if self._moments.is_due():
            self.check()

    def check(self) -> None:
        """Read the flag; if it is set, on any rank, end the run."""
        flagged = float(self._flagged)
        if flagged := int(flagged if self._moments.is_alone else highest(flagged)):
            self._end_run(flagged)
        self._first_unread += len(self._rates)
        self._rates.clear()

    def _end_run(self, flagged: int) -> None:
        good = len(self._rates) - flagged
        what = "the loss or its gradient became NaN or infinite"
        if self._alarm is not None and self._alarm.exploded:
            what = f"{PATIENCE} losses in a row were {self.max_loss_ratio} times their median"
        self.close()
        raise NonFiniteError(
            f"{what} at iteration {self._first_unread + good}, "
            f"rate {self._rates[good]}: lower the learning rate or clip the gradients"
            # LBFGS moves the weights between the evaluations of its closure.
            f"{'' if isinstance(self.optimizer, LBFGS) else '; the weights are still finite'}"
        )

    def _hook_on(self, engine: Engine) -> None:
        self.close()  # `pause` waits for an iteration, which may be one of the next run
        self._hooks.append(self.optimizer.register_step_pre_hook(self.inspect_gradients))
        self._hooks.append(self.optimizer.register_step_post_hook(self._take_flag_back))

    def _take_flag_back(self, *_: Any) -> None:
        flag = lent_flag(self.optimizer)
        if flag is not None and flag is getattr(self, "_flag", None):
            take_flag_back(self.optimizer)

    def _look_at(self, tensors: list[Tensor], flag: Tensor) -> None:
        """Set a flag if a tensor holds NaN or infinity."""
        try:
            raise_flag_if_non_finite(tensors, flag, self._one)
        except RuntimeError:  # sparse, complex, on another device: one by one
            for tensor in tensors:
                if tensor.layout is torch.sparse_coo:
                    tensor = tensor.coalesce().values()
                is_bad = tensor.to_dense().isfinite().all().logical_not()
                flag.logical_or_(is_bad.to(flag.device))

    def _count_iteration(self) -> None:
        self._flagged.add_(self._flag)
        if self._of_loss is not self._flag:
            self._flagged.add_(self._of_loss * (1 - self._flag))
        self._rates.append(float(self.optimizer.param_groups[0]["lr"]))
