"""Private names of torch and Ignite that the handlers use. "Wanted": what could replace them.

If torch or Ignite changes one of them, ``test_private_names.py`` fails first.
"""

import copy
import inspect
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Finds the frame of `Engine.run` on the call stack. Wanted: an event after a run, however it ends.
RUN_CODE = inspect.unwrap(Engine.run).__code__
# `torch.compile` puts it before the keys of a module's state; `Module.compile()` does not.
COMPILED_PREFIX = "_orig_mod."
# Attribute of a module's state: the submodules' versions. Wanted: an argument of `load_state_dict`.
VERSIONS = "_metadata"
# End of the key under which a module's state holds what `get_extra_state` returns.
EXTRA_STATE = "_extra_state"


def process_function(engine: Engine) -> Callable[[Engine, Any], Any]:
    """The step of an engine. Wanted: a property of `Engine`."""
    step: Callable[[Engine, Any], Any] = engine._process_function
    return step


def without_handlers(engine: Engine) -> Engine:
    """A shallow copy without event handlers. Wanted: a method that copies an `Engine`."""
    bare = copy.copy(engine)
    bare._event_handlers = defaultdict(list)
    return bare


def skipped_iterations(engine: Engine) -> int | None:
    """Finished iterations of the next epoch; None if Ignite derives them from its length."""
    iterations: int | None = engine._init_iter
    return iterations


def skip_iterations(engine: Engine, iterations: int) -> None:
    """Set `skipped_iterations`. Wanted: an argument of `Engine.load_state_dict`."""
    engine._init_iter = iterations


def raise_flag_if_non_finite(tensors: list[Tensor], flag: Tensor, one: Tensor) -> None:
    """Set ``flag`` to 1 if a tensor holds NaN or infinity, without a copy or a device sync.

    It is `GradScaler`'s kernel, and its multiplication by ``one`` changes no bit. Wanted: a public
    test of many tensors at once.

    Raises:
        RuntimeError: a tensor is sparse, complex, integer, a view, or on another device.
    """
    torch._amp_foreach_non_finite_check_and_unscale_(tensors, flag, one)


def lend_flag(optimizer: Optimizer, flag: Tensor) -> bool:
    """Have an optimizer skip its steps while ``flag`` is 1; False if it cannot.

    A fused optimizer does so for `GradScaler`. Wanted: an argument of its step.
    """
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    if not getattr(optimizer, "_step_supports_amp_scaling", False):
        return False
    optimizer.grad_scale, optimizer.found_inf = None, flag  # type: ignore[attr-defined]
    return True


def lent_flag(optimizer: Optimizer) -> Tensor | None:
    """The flag that `lend_flag` or a `GradScaler` has lent to an optimizer."""
    return getattr(optimizer, "found_inf", None)


def take_flag_back(optimizer: Optimizer) -> None:
    """Undo `lend_flag`."""
    del optimizer.grad_scale, optimizer.found_inf  # type: ignore[attr-defined]


def buffers_of(module: nn.Module) -> dict[str, Tensor | None]:
    """The live dict of a module's own buffers. Wanted: public access to it."""
    return module._buffers


def drop_step_hooks(optimizer: Optimizer) -> None:
    """Remove all hooks from an optimizer's step. Wanted: a method that does so."""
    for hooks in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        setattr(optimizer, hooks, OrderedDict())


def store_of_the_group() -> "Store | None":
    """What the processes of the default group share by name; None without a group of torch's.

    Wanted: a public way to it.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return None
    store: Store = dist.distributed_c10d._get_default_store()
    return store
