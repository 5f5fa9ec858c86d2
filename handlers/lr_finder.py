"""A learning-rate range test that leaves no trace."""

import contextlib
import copy
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from typing import Any, Literal

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, State
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from ultimus_ignite.handlers.support.lr_curve import LRCurve
from ultimus_ignite.handlers.support.outputs import OutputReader, as_it_is
from ultimus_ignite.handlers.support.private_names import (
    buffers_of,
    drop_step_hooks,
    process_function,
    without_handlers,
)


class LRFinderError(ValueError):
    """A range test cannot be made; the message says why and what to do."""

    exit_code = 2  # of a command that ends in it


class LRFinder:
    """Trains through rising rates, keeps the loss at each, and puts everything back.

    It attaches to nothing: `run` calls the trainer's own step, without the trainer's handlers and
    without the hooks that a handler may have put on the optimizer's step. Afterwards, also after an
    error or Ctrl-C, all of this is bit for bit what it was:

    - weights, buffers, gradients, train mode and other attributes of every submodule (which object
      an attribute is; not what a list or a dict holds);
    - the optimizer's state, groups and attributes, and the scaler; so it is with every other
      optimizer that the step uses (a GAN's second), whose rates stay what they are;
    - the random state of torch (CPU and accelerators), numpy, Python and the loader's generators;
    - the trainer: the step gets a stand-in for it, with a copy of what the user keeps in ``state``.

    What else a step changes (an average of the weights, a scheduler that it steps) is not put back.
    The memory needed is that of a second copy of all this.

    Args:
        model: all that the step trains; several models go into an `nn.ModuleList`.
        optimizer: its groups keep the ratios of their rates; the highest gets the tested rate.
        start_lr: rate of the first step, above 0.
        end_lr: rate of the last step, above ``start_lr``.
        iterations: number of steps, at least 3.
        mode: ``"exponential"`` (equal ratios from step to step) or ``"linear"`` (equal steps).
        scaler: the `GradScaler` that the step uses, where there is one.
        output_transform: turns the step's output into a mapping with ``loss``, or the loss.

    Raises:
        LRFinderError: an argument is out of range, or the optimizer has nothing to train; from
            `run`: there is no batch, or the loss is not finite at the first step.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> def update(engine, batch):
        ...     optimizer.zero_grad()
        ...     loss = (model(batch) - 3.0 * batch).square().mean()
        ...     loss.backward()
        ...     optimizer.step()
        ...     return loss
        >>> curve = LRFinder(model, optimizer).run(Engine(update), [torch.ones(4, 1)])
        >>> curve.diverged_at > 1.0  # where |1 - 2 lr| > 1 a step makes the error larger
        True
        >>> optimizer.param_groups[0]["lr"], model.weight.grad
        (0.1, None)

    Source: Smith 2017, https://arxiv.org/abs/1506.01186.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        start_lr: float = 1e-7,
        end_lr: float = 10.0,
        iterations: int = 100,
        mode: Literal["exponential", "linear"] = "exponential",
        scaler: torch.amp.GradScaler | None = None,
        output_transform: Callable[[Any], Any] = as_it_is,
    ) -> None:
        if not 0 < start_lr < end_lr < math.inf:
            raise LRFinderError(
                f"start_lr must lie above 0 and below end_lr, got {start_lr} and {end_lr}"
            )
        if iterations < 3:
            raise LRFinderError(f"iterations must be at least 3, got {iterations}")
        if mode not in ("exponential", "linear"):
            raise LRFinderError(f"mode must be exponential or linear, got {mode!r}")
        if not any(p.requires_grad for p in _parameters(optimizer)):
            raise LRFinderError("the optimizer has no parameters to train")
        space = np.geomspace if mode == "exponential" else np.linspace
        self.rates: list[float] = space(start_lr, end_lr, iterations).tolist()
        self.model = model
        self.optimizer = optimizer
        self.scaler = scaler
        self._read_output = OutputReader(self, output_transform)

    def run(self, trainer: Engine, data: Iterable[Any]) -> LRCurve:
        """Make the test, which ends early where the loss diverges.

        Args:
            trainer: whose step is run.
            data: its batches; a loader that is shorter than the test begins again.

        Returns:
            The loss of each step beside the rate that this step used.
        """
        curve = LRCurve()
        with leaving_no_trace(self.model, self.optimizer, self.scaler, data):
            engine = _stand_in(trainer, epoch_length=len(self.rates))
            if not self.model.training:  # a trainer may leave it to a handler to say so
                self.model.train()
            step = process_function(trainer)
            for rate, batch in zip(self._rates_set(), _endless(data), strict=False):
                engine.state.iteration += 1
                engine.state.batch = batch
                engine.state.output = step(engine, batch)
                loss = float(self._read_output.loss(self._read_output(engine)[0]))
                # Ranks that did not stop together would wait for each other for ever.
                curve.add(rate, float(idist.all_reduce(loss)) / idist.get_world_size())
                if curve.diverged_at is not None:
                    break
        if not curve.rates:
            raise LRFinderError(
                "the loss is not finite at the first step, before any rate was used: "
                "look at the weights, the data and the loss function"
            )
        return curve

    def _rates_set(self) -> Iterator[float]:
        """Each rate in turn, once the optimizer has it."""
        groups = self.optimizer.param_groups
        before = [float(group["lr"]) for group in groups]
        highest = max(before)
        for rate in self.rates:
            for group, own in zip(groups, before, strict=True):
                scaled = rate * (own / highest) if highest else rate
                if isinstance(group["lr"], Tensor):  # a compiled step looks at this very tensor
                    group["lr"].fill_(scaled)
                else:
                    group["lr"] = scaled
            yield rate


@contextlib.contextmanager
def leaving_no_trace(
    model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, data: Any
) -> Iterator[None]:
    """Whatever happens inside: afterwards all that `LRFinder` lists is as it was.

    The body works on copies; the originals are put back on exit. Only weights and buffers, which
    others hold on to, are worked on themselves, and have their values copied back.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(range(torch.accelerator.device_count())))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 - the global one
        sampler = getattr(data, "sampler", None)
        batch_sampler = getattr(data, "batch_sampler", None)
        for owner in (data, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                stack.callback(generator.set_state, generator.get_state())

        known: set[Any] = set()  # parameters and optimizers that will be put back
        _lend_parameters(stack, [*_parameters(optimizer), *model.parameters()], known)
        for buffer in model.buffers():
            stack.callback(buffer.detach().copy_, buffer.detach().clone())
        for module in model.modules():
            stack.callback(_put_back, vars(module), dict(vars(module)))
            buffers = buffers_of(module)
            stack.callback(_put_back, buffers, dict(buffers))
        if scaler is not None:
            _lend(stack, vars(scaler))
        _lend_optimizer(stack, optimizer, known)

        def lend_another(other: Optimizer, *_: Any) -> None:
            """Before its first step here: what it holds is still as it was."""
            if other not in known:
                for parameter in set(_parameters(other)) - known:
                    parameter.grad, gradient = None, parameter.grad  # of this test, not before it
                    _lend_parameters(stack, [parameter], known)
                    parameter.grad = gradient
                _lend_optimizer(stack, other, known)

        stack.callback(register_optimizer_step_pre_hook(lend_another).remove)
        yield


def _lend_parameters(
    stack: contextlib.ExitStack, parameters: Iterable[Tensor], known: set[Any]
) -> None:
    for parameter in parameters:
        if parameter not in known:
            known.add(parameter)
            stack.callback(parameter.detach().copy_, parameter.detach().clone())
            stack.callback(setattr, parameter, "grad", parameter.grad)
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()


def _lend_optimizer(stack: contextlib.ExitStack, optimizer: Optimizer, known: set[Any]) -> None:
    known.add(optimizer)
    stack.callback(_put_back, vars(optimizer), dict(vars(optimizer)))
    for group in optimizer.param_groups:
        _lend(stack, group, but=["params"])
    _lend(stack, optimizer.state)
    drop_step_hooks(optimizer)  # a handler's; they come back with the optimizer's attributes


def _lend(
    stack: contextlib.ExitStack, live: MutableMapping[Any, Any], but: Collection[str] = ()
) -> None:
    """Exchange the values of a dict for copies, until the stack unwinds."""
    stack.callback(_put_back, live, dict(live))
    for key in live.keys() - but:
        live[key] = copy.deepcopy(live[key])


def _put_back(live: MutableMapping[Any, Any], original: dict[Any, Any]) -> None:
    live.update(original)  # before anything is deleted: at no moment is a key missing
    for key in live.keys() - original.keys():
        del live[key]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _stand_in(trainer: Engine, epoch_length: int) -> Engine:
    """The trainer at its first iteration, without its handlers, for its step to look at."""
    engine = without_handlers(trainer)
    own, memo = {*vars(State()), "reading"}, dict[int, Any]()  # of the handlers, see OutputReader
    users = {k: _copy(v, memo) for k, v in vars(trainer.state).items() if k not in own}
    engine.state = State(epoch=1, max_epochs=1, epoch_length=epoch_length, **users)
    return engine


def _copy(value: Any, memo: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, memo)
    except Exception:  # a lock, a file: what cannot be copied is shared
        return value


def _endless(data: Iterable[Any]) -> Iterator[Any]:
    """The batches, again and again."""
    while True:
        batch = nothing = object()
        for batch in data:
            yield batch
        if batch is nothing:
            raise LRFinderError("the data hold no batch, or cannot be gone through a second time")
