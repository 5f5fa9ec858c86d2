"""Saves, checks and loads the state of one object, under names without wrapper prefixes."""

from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ultimus_ignite.handlers.support.private_names import COMPILED_PREFIX, EXTRA_STATE, VERSIONS


def save_state(live: Any, *, with_lazy: bool = True) -> Any:
    """The state of an object; the names of a module's state have no wrapper prefix.

    Args:
        live: an object with ``state_dict``.
        with_lazy: include the uninitialized parameters of lazy modules.

    Example:
        >>> list(save_state(nn.DataParallel(nn.Linear(1, 1))))
        ['weight', 'bias']
    """
    state = live.state_dict()
    if not isinstance(live, nn.Module):
        return state
    keys = [key for key in state if with_lazy or not is_lazy(state[key])]
    renamed = OrderedDict((name, state[key]) for key, name in plain_names(keys).items())
    versions = getattr(state, VERSIONS, {})
    vars(renamed)[VERSIONS] = {n: versions[k] for k, n in _plain_modules(versions).items()}
    return renamed


def load_state(live: Any, state: Any) -> None:
    """Load a state from `save_state` into an object, in the same wrappers or in others.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> load_state(nn.DataParallel(model), {"weight": torch.ones(1, 1), "bias": torch.zeros(1)})
        >>> model.weight.item()
        1.0
    """
    if isinstance(live, nn.Module):
        own = live.state_dict()
        keys = {name: key for key, name in plain_names(own).items()}
        names = plain_names(state)  # version 0.1.0 saved the names with their prefixes
        renamed = OrderedDict((keys.get(name, name), state[k]) for k, name in names.items())
        versions = getattr(state, VERSIONS, {})
        modules = _plain_modules(getattr(own, VERSIONS, {}))
        vars(renamed)[VERSIONS] = {k: versions[n] for k, n in modules.items() if n in versions}
        state = renamed
    live.load_state_dict(state)


def differences(live: Any, state: Any, name: str) -> list[str]:
    """Why an object cannot load a state: one text per difference, ``name: old -> new``.

    Example:
        >>> differences(nn.Linear(2, 1), nn.Linear(3, 1).state_dict(), "model")
        ['model.weight: (1, 3) -> (1, 2)']
    """
    old, new = _layout(live, state), _layout(live, live.state_dict())
    return [
        f"{name}.{key}: {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and "not made yet" not in (old.get(key), new.get(key))
    ]


def check_finite(live: Any, state: Any, name: str) -> None:
    """Check a module's trained parameters or an optimizer's moments; other state may be infinite.

    Raises:
        ValueError: one holds NaN or infinity; the message names it.
    """
    if isinstance(live, nn.Module):
        trained = [key for key, parameter in live.named_parameters() if parameter.requires_grad]
        names = plain_names(live.state_dict())
        checked = {names[key]: state.get(names[key]) for key in trained if key in names}
    elif isinstance(live, Optimizer):
        checked = dict(_tensors(state["state"], "state"))
    else:
        return
    by_device: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
    for key, tensor in checked.items():
        if isinstance(tensor, Tensor) and not is_lazy(tensor):
            by_device[tensor.device][key] = _is_finite(tensor)
    for verdicts in by_device.values():
        answers = torch.stack([*verdicts.values()]).tolist()  # one device sync
        for key, is_finite in zip(verdicts, answers, strict=True):
            if not is_finite:
                raise ValueError(f"{name}.{key} holds NaN or infinity")


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Map the keys of a module's state to names without the prefixes of DDP and `torch.compile`.

    Example:
        >>> plain_names(["module._orig_mod.head.weight"])
        {'module._orig_mod.head.weight': 'head.weight'}
    """
    names = {key: key.replace(COMPILED_PREFIX, "") for key in keys}
    while names and all(name.startswith("module.") for name in names.values()):
        names = {key: name.removeprefix("module.") for key, name in names.items()}
    return names if len(set(names.values())) == len(names) else {key: key for key in names}


def _plain_modules(paths: Iterable[str]) -> dict[str, str]:
    """`plain_names` for the paths of modules; the outermost module has an empty path."""
    names = plain_names(f"{path}." for path in paths if path)
    return {"": ""} | {key.rstrip("."): name.rstrip(".") for key, name in names.items()}


def _layout(live: Any, state: Any) -> dict[str, Any]:
    """The part of a state that must be equal for an object to load it."""
    if isinstance(live, nn.Module):
        return {
            name: "not made yet" if is_lazy(state[key]) else tuple(state[key].shape)
            for key, name in plain_names(state).items()
            if not key.endswith(EXTRA_STATE)  # its shape may change
        }
    if isinstance(live, Optimizer):
        return {"group sizes": [len(group["params"]) for group in state["param_groups"]]}
    return {}


def _tensors(value: Any, key: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            yield from _tensors(item, f"{key}[{name!r}]")
    elif isinstance(value, list | tuple):
        yield from _tensors(dict(enumerate(value)), key)


def _is_finite(tensor: Tensor) -> Tensor:
    """A 0-d bool on the tensor's device."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = (tensor.coalesce() if tensor.layout is torch.sparse_coo else tensor).values()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return torch.ones((), dtype=torch.bool, device=tensor.device)
    # min and max are NaN if any element is; unlike isfinite(), they need no memory.
    smallest, largest = torch.aminmax(tensor)
    return smallest.isfinite() & largest.isfinite()
