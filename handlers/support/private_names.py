"""Private names of torch and Ignite that the handlers need, and what would replace each.

Their test is the first to fail when one of them changes.
"""

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim import Optimizer

# By this its frame is known among the callers; an event that fires however a run ends would do.
RUN_CODE = inspect.unwrap(Engine.run).__code__
# `torch.compile` puts it before the names of a module's state; `Module.compile()` does not.
COMPILED_PREFIX = "_orig_mod."
# Attribute of a module's state that holds its submodules' versions; an argument of
# `load_state_dict` would do.
VERSIONS = "_metadata"


def process_function(engine: Engine) -> Callable[[Engine, Any], Any]:
    """The step of an engine; a property of `Engine` would do."""
    step: Callable[[Engine, Any], Any] = engine._process_function
    return step


def without_handlers(engine: Engine) -> Engine:
    """A shallow copy that fires no event; a way to copy an `Engine` would do."""
    bare = copy.copy(engine)
    bare._event_handlers = defaultdict(list)
    return bare


def skipped_iterations(engine: Engine) -> int | None:
    """Iterations of the next epoch that are done; None: Ignite derives them from its length.

    An argument of `Engine.load_state_dict` would do.
    """
    iterations: int | None = engine._init_iter
    return iterations


def skip_iterations(engine: Engine, iterations: int) -> None:
    """Set what `skipped_iterations` reads."""
    engine._init_iter = iterations


def raise_flag_if_non_finite(tensors: list[Tensor], flag: Tensor, one: Tensor) -> None:
    """Set ``flag`` to 1 if a tensor holds NaN or infinity, without a copy of it or a wait.

    It is `GradScaler`'s kernel; to multiply by ``one`` changes no bit. A public test of many
    tensors at once would do.

    Raises:
        RuntimeError: a tensor is sparse, complex, of integers, a view, or on another device.
    """
    torch._amp_foreach_non_finite_check_and_unscale_(tensors, flag, one)


def skips_by_flag(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer skips its step if its ``found_inf`` is 1, as `GradScaler` asks."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The live dict of a module's own buffers; a public view of it would do."""
    return module._buffers


def drop_step_hooks(optimizer: Optimizer) -> None:
    """Forget the hooks on an optimizer's step; a method that removes them would do."""
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        setattr(optimizer, hooks, OrderedDict())
