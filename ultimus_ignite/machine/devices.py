"""What a run computes on, and with which numbers."""

from collections.abc import Callable
from typing import Any

import torch

from ultimus_ignite.recipe import Precision, Recipe


def select_device(name: str | torch.device = "auto") -> torch.device:
    """The device of that name; ``auto`` is the first available one of cuda, mps and cpu.

    Raises:
        ValueError: there is no such device.

    Example:
        >>> select_device("cpu")
        device(type='cpu')
    """
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
            reason = str(error).splitlines()[0]
            raise ValueError(f"device {name!r} cannot be used: {reason}; try auto") from None
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def select_precision(name: Precision, device: torch.device) -> Precision:
    """The precision of that name; ``auto`` is bfloat16 where it is fast, else float32.

    It is on GPUs since Ampere and on processors with AVX512-BF16, which those with AMX have, too.
    A training step of `UltimusTokenNetLarge` takes 1.0 s there instead of 2.0, but 4 s without.

    Example:
        >>> select_precision("float16", torch.device("cpu"))
        'float16'
    """
    if name != "auto":
        return name
    # torch 2.10 does not tell.
    capabilities: Callable[[], dict[str, Any]] = getattr(torch.cpu, "get_capabilities", dict)
    is_fast = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "cpu": lambda: capabilities().get("avx512_bf16", False),
    }
    return "bfloat16" if is_fast.get(device.type, bool)() else "float32"


def autocast_dtype(recipe: Recipe) -> torch.dtype | None:
    """The precision of the recipe's forward pass; None for float32, which needs no autocast."""
    return None if recipe.precision == "float32" else getattr(torch, recipe.precision)
