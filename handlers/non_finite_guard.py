"""Stops a run before NaN or infinity reaches the weights, or when its loss explodes."""

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Self

from ultimus_ignite.handlers.outputs import read_output

CHECK_INTERVAL = 1.0  # seconds between two readings of the flag
WINDOW = 50  # iterations whose median loss is the measure of an explosion
PATIENCE = 5  # iterations in a row that make one: a single bad batch does not


class NonFiniteError(RuntimeError):
    """The loss or its gradient became NaN or infinite, or the loss exploded; says where."""


class NonFiniteGuard:
    """Looks at the gradients just before the optimizer's step, and at the loss just after it.

    A flag on the device goes up with the first NaN or infinity and stays up. A fused optimizer
    reads it there and skips the step by itself, so no iteration waits for the device: the flag is
    read once a second and at the end of an epoch, and the run then stops with the weights as they
    were before the bad step. For an optimizer that is not fused the flag is read at every step.
    Under a `GradScaler`, which expects infinite gradients and skips them, only the loss counts.

    With ``max_loss_ratio`` the flag also goes up when 5 losses in a row are more than that many
    times the median of the last 50, a median that is taken every fifth iteration.

    =======================  ===========
    Event                    Method
    =======================  ===========
    ``STARTED``              `reset`
    the optimizer's step     `inspect_gradients`
    ``ITERATION_COMPLETED``  `inspect_loss`
    ``EPOCH_COMPLETED``      `check`
    ``TERMINATE``            `check`
    =======================  ===========

    Attach it before a `Checkpointer`; where that saves every n iterations, call `check` then too.

    Args:
        optimizer: whose step is guarded.
        max_loss_ratio: how many times its running median the loss may be; any when None.
        output_transform: turns ``engine.state.output`` into a mapping with ``loss``, or the loss.

    Raises:
        ValueError: ``max_loss_ratio`` is not above 1.
        NonFiniteError: from `check`, or from the optimizer's step where it is not fused.

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
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        if max_loss_ratio is not None and not max_loss_ratio > 1:
            raise ValueError(f"max_loss_ratio must be above 1, got {max_loss_ratio}")
        self.optimizer = optimizer
        self.max_loss_ratio = max_loss_ratio
        self.output_transform = output_transform
        self._is_fused = all(group.get("fused") for group in optimizer.param_groups)
        device = optimizer.param_groups[0]["params"][0].device
        self._found = torch.zeros((), device=device)  # 1 from the first non-finite number on
        self._bad = torch.zeros((), device=device)  # iterations since then
        self._losses = torch.zeros(WINDOW, device=device)  # the last ones, in a ring
        self._limit = torch.zeros((), device=device)  # a loss above it is too high
        self._high = torch.zeros(PATIENCE, dtype=torch.bool, device=device)  # the last were, a ring
        self._exploded = torch.zeros((), device=device)  # 1 from the first explosion on
        self._one = torch.ones((), device=device)
        self._rates: list[float] = []  # of the iterations since the last reading
        self._first_unread = 1
        self._next_check = 0.0

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer, before any handler that saves."""
        self.optimizer.register_step_pre_hook(self.inspect_gradients)
        engine.add_event_handler(Events.STARTED, self.reset)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.inspect_loss)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check)
        engine.add_event_handler(Events.TERMINATE, self.check)
        return self

    def reset(self, engine: Engine) -> None:
        """Begin with the flag down."""
        self._found.zero_()
        self._bad.zero_()
        self._losses.fill_(torch.inf)  # nothing is above the median until half of it is known
        self._limit.fill_(torch.inf)
        self._high.zero_()
        self._exploded.zero_()
        self._rates.clear()
        self._first_unread = engine.state.iteration + 1
        self._next_check = time.monotonic() + CHECK_INTERVAL

    def inspect_gradients(self, optimizer: Optimizer, *_: Any) -> None:
        """Raise the flag if a gradient is not finite, and have the step skipped."""
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and found_inf is not self._found:
            return  # a GradScaler is at work
        gradients = defaultdict(list)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradients[parameter.grad.dtype].append(parameter.grad)
        for same_dtype in gradients.values():
            self._look_at(same_dtype)
        if self._is_fused:
            optimizer.grad_scale = None  # type: ignore[attr-defined]
            optimizer.found_inf = self._found  # type: ignore[attr-defined]
        elif self._found.item():
            self._bad.add_(self._found)
            self._rates.append(self._rate())
            self.check()

    def inspect_loss(self, engine: Engine) -> None:
        """Raise the flag if the loss is not finite; read it when the last reading is old enough."""
        loss = read_output(self.output_transform(engine.state.output))[0]
        loss = torch.as_tensor(loss, device=self._found.device)
        self._look_at([loss])
        if self.max_loss_ratio is not None:
            self._compare(loss, engine.state.iteration, self.max_loss_ratio)
        self._bad.add_(self._found)
        self._rates.append(self._rate())
        if time.monotonic() >= self._next_check:
            self.check()

    def check(self) -> None:
        """Read the flag, and end the run if it is up."""
        bad, exploded = torch.stack([self._bad, self._exploded]).tolist()
        if bad:
            good = len(self._rates) - int(bad)
            what = "the loss or its gradient became NaN or infinite"
            if exploded:
                what = f"{PATIENCE} losses in a row were {self.max_loss_ratio} times their median"
            raise NonFiniteError(
                f"{what} at iteration {self._first_unread + good}, "
                f"rate {self._rates[good]}: lower the learning rate or clip the gradients; "
                "the weights are still finite"
            )
        self._first_unread += len(self._rates)
        self._rates.clear()
        self._next_check = time.monotonic() + CHECK_INTERVAL

    def _compare(self, loss: Tensor, iteration: int, ratio: float) -> None:
        if iteration % PATIENCE == 0:
            torch.mul(self._losses.median(), ratio, out=self._limit)
        self._high[iteration % PATIENCE].copy_(loss > self._limit)
        self._found.logical_or_(self._exploded.logical_or_(self._high.all()))
        self._losses[iteration % WINDOW].copy_(loss)

    def _look_at(self, tensors: list[Tensor]) -> None:
        # GradScaler's own kernel: multiplies by 1, which changes no bit, and raises the flag.
        torch._amp_foreach_non_finite_check_and_unscale_(tensors, self._found, self._one)

    def _rate(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])
