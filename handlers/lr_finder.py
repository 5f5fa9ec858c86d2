"""A learning-rate range test that leaves no trace."""

import copy
import math
import random
from collections.abc import Callable, Collection, Iterable, Iterator, MutableMapping
from contextlib import ExitStack, contextmanager, suppress
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
    """A range test cannot run; the message says why and what to do."""

    exit_code = 2  # of a command that ends with this error


class LRFinder:
    """Trains with rising learning rates, keeps the loss at each, and restores everything.

    It attaches to nothing: `run` calls the trainer's step without handlers or optimizer hooks.
    Afterwards, also after an error or Ctrl-C, all of this is bit for bit as before:

    - weights, buffers, gradients, train mode and other attributes of every submodule (each refers
      to its old object; changes inside a list or a dict are not undone);
    - the optimizer's state, groups and attributes, and the scaler; also any other optimizer that
      the step uses (a GAN's second), whose rates the test does not change;
    - the random state of torch (CPU and accelerators), numpy, Python and the loader's generators;
    - the trainer: its step gets a stand-in, with a copy of the user's values in ``state``.

    Anything else (a scheduler, an EMA) is not restored. The test needs memory for a second copy.

    Args:
        model: everything that the step trains; put several models into an `nn.ModuleList`.
        optimizer: its group with the highest rate gets the tested rate, the others in proportion.
        start_lr: rate of the first step, above 0.
        end_lr: rate of the last step, above ``start_lr``.
        iterations: number of steps, at least 3.
        mode: ``"exponential"`` (equal ratios from step to step) or ``"linear"`` (equal steps).
        scaler: the `GradScaler` that the step uses, if any.
        output_transform: turns the step's output into the loss, or into a mapping with ``loss``.

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
        >>> curve.diverged_at > 1.0  # if |1 - 2 lr| > 1, each step enlarges the error
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
            raise LRFinderError(f"0 < start_lr < end_lr must hold, got {start_lr} and {end_lr}")
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
        """Run the test; it ends early if the loss diverges.

        Args:
            trainer: the engine whose step is called.
            data: its batches; a loader shorter than the test starts again.

        Returns:
            The loss of each step, with the rate that this step used.
        """
        curve = LRCurve()
        with leaving_no_trace(self.model, self.optimizer, self.scaler, data):
            engine = _stand_in(trainer, epoch_length=len(self.rates))
            if not self.model.training:  # the trainer may leave this to a handler
                self.model.train()
            for rate, batch in zip(self._rates_set(), _endless(data), strict=False):
                engine.state.iteration += 1
                engine.state.batch = batch
                engine.state.output = process_function(trainer)(engine, batch)
                loss = float(self._read_output.loss(self._read_output(engine)[0]))
                # All ranks must stop at the same step, or one waits for the others for ever.
                curve.add(rate, float(idist.all_reduce(loss)) / idist.get_world_size())
                if curve.diverged_at is not None:
                    break
        if not curve.rates:
            raise LRFinderError("the loss is not finite at the first step: check model, data, loss")
        return curve

    def _rates_set(self) -> Iterator[float]:
        """Set each rate in the optimizer, then yield it."""
        groups = self.optimizer.param_groups
        before = [float(group["lr"]) for group in groups]
        shares = [own / max(before) if max(before) else 1.0 for own in before]
        for rate in self.rates:
            for group, share in zip(groups, shares, strict=True):
                if isinstance(group["lr"], Tensor):  # a compiled step reads this tensor
                    group["lr"].fill_(rate * share)
                else:
                    group["lr"] = rate * share
            yield rate


@contextmanager
def leaving_no_trace(
    model: nn.Module, optimizer: Optimizer, scaler: torch.amp.GradScaler | None, data: Any
) -> Iterator[None]:
    """Restore everything that `LRFinder` lists, however the body ends.

    The body works on copies, and the originals are put back on exit. Weights and buffers stay the
    same tensors, because other objects refer to them: only their values are copied back.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(range(torch.accelerator.device_count())))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002 - the global one
        sampler = getattr(data, "sampler", None)
        batch_sampler = getattr(data, "batch_sampler", None)
        for owner in (data, sampler, batch_sampler, getattr(batch_sampler, "sampler", None)):
            if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
                stack.callback(generator.set_state, generator.get_state())

        known: set[Any] = set()  # parameters and optimizers that will be restored
        _lend_parameters(stack, [*_parameters(optimizer), *model.parameters()], known)
        for buffer in model.buffers():
            stack.callback(buffer.detach().copy_, buffer.detach().clone())
        for module in model.modules():
            for live in (vars(module), buffers_of(module)):
                stack.callback(_put_back, live, dict(live))
        if scaler is not None:
            _lend(stack, vars(scaler))
        _lend_optimizer(stack, optimizer, known)

        def lend_another(other: Optimizer, *_: Any) -> None:
            """Before its first step in the test, the optimizer's state is still the original."""
            if other not in known:
                for parameter in set(_parameters(other)) - known:
                    parameter.grad, gradient = None, parameter.grad  # the test's gradient
                    _lend_parameters(stack, [parameter], known)
                    parameter.grad = gradient
                _lend_optimizer(stack, other, known)

        stack.callback(register_optimizer_step_pre_hook(lend_another).remove)
        yield


def _lend_parameters(stack: ExitStack, parameters: Iterable[Tensor], known: set[Any]) -> None:
    for parameter in parameters:
        if parameter not in known:
            known.add(parameter)
            stack.callback(parameter.detach().copy_, parameter.detach().clone())
            stack.callback(setattr, parameter, "grad", parameter.grad)
            parameter.grad = None if parameter.grad is None else parameter.grad.clone()


def _lend_optimizer(stack: ExitStack, optimizer: Optimizer, known: set[Any]) -> None:
    known.add(optimizer)
    stack.callback(_put_back, vars(optimizer), dict(vars(optimizer)))
    for group in optimizer.param_groups:
        _lend(stack, group, but=["params"])
    _lend(stack, optimizer.state)
    drop_step_hooks(optimizer)  # they return with the optimizer's attributes


def _lend(stack: ExitStack, live: MutableMapping[Any, Any], but: Collection[str] = ()) -> None:
    """Replace the values of a dict by copies until the stack unwinds."""
    stack.callback(_put_back, live, dict(live))
    for key in live.keys() - but:
        live[key] = copy.deepcopy(live[key])


def _put_back(live: MutableMapping[Any, Any], original: dict[Any, Any]) -> None:
    live.update(original)  # before deleting, so that no key is ever missing
    for key in live.keys() - original.keys():
        del live[key]


def _parameters(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _stand_in(trainer: Engine, epoch_length: int) -> Engine:
    """A copy of the trainer before its first iteration, without handlers, for its step."""
    engine = without_handlers(trainer)
    own = {*vars(State()), "reading"}  # Ignite's names, and OutputReader's
    users = {name: value for name, value in vars(trainer.state).items() if name not in own}
    memo: dict[int, Any] = {}
    for name, value in users.items():
        with suppress(Exception):  # a lock or a file cannot be copied: it is shared
            users[name] = copy.deepcopy(value, memo)
    engine.state = State(epoch=1, max_epochs=1, epoch_length=epoch_length, **users)
    return engine


def _endless(data: Iterable[Any]) -> Iterator[Any]:
    """The batches, repeated without end."""
    while True:
        batch = nothing = object()
        for batch in data:
            yield batch
        if batch is nothing:
            raise LRFinderError("the data hold no batch, or cannot be iterated a second time")
