"""The weights of a model as a safetensors file."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor


def encode_weights(state: Mapping[str, Any]) -> bytes:
    """The content of a safetensors file.

    Args:
        state: the ``state_dict`` of a module; what is no tensor is left out.

    Raises:
        Exception: of any kind: the format has no place for a tensor, such as a sparse one.

    Example:
        >>> from safetensors.torch import load
        >>> load(encode_weights(torch.nn.Linear(1, 2).state_dict()))["bias"].shape
        torch.Size([2])
    """
    # Safetensors takes neither tensors that share memory, such as tied weights, nor those in
    # another order than that of their dimensions.
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    format = torch.contiguous_format
    return save({key: value.clone(memory_format=format) for key, value in tensors.items()})
