"""The weights of a model as a safetensors file, with what applying them needs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ultimus_ignite.errors import UserError, one_line
from ultimus_ignite.handlers.checkpoints.saved_state import load_state, plain_names, save_state

METADATA_KEY = "ultimus_ignite"


class WeightsError(UserError):
    """A file does not hold the weights of a model; the message names the file."""


def encode_weights(state: Mapping[str, Any], metadata: Mapping[str, Any] | None = None) -> bytes:
    """The content of a safetensors file.

    Args:
        state: the ``state_dict`` of a module; what is no tensor is left out.
        metadata: what JSON can hold; one text under the key `METADATA_KEY`, because safetensors
            writes several keys in an order that changes from process to process.

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
    contiguous = {key: value.clone(memory_format=format) for key, value in tensors.items()}
    texts = None if metadata is None else {METADATA_KEY: json.dumps(metadata, ensure_ascii=False)}
    return save(contiguous, texts)


def load_weights(model: nn.Module, path: Path, *, num_classes: int | None = None) -> dict[str, int]:
    """Load the weights of a safetensors file into a model.

    The prefixes that DataParallel and `torch.compile` give to names do not count.

    Args:
        model: its tensors are replaced.
        path: the file.
        num_classes: number of logits of the model. If given, a classifier for other classes keeps
            its own weights: tensors whose first dimension, and only that, differs from the file and
            is this number.

    Returns:
        The names that kept their own weights, with the first dimension in the file.

    Raises:
        WeightsError: there is no such file, it is none of safetensors, or of another model.
    """
    weights = _read(path)
    weights = {name: weights[key] for key, name in plain_names(weights).items()}
    state = save_state(model)
    own = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if differing := sorted(weights.keys() ^ own.keys()):
        whose = "the model has no" if differing[0] in weights else "the file lacks"
        raise WeightsError(one_line(f"{path}: {whose} {differing[0]}: is it another model?"))
    kept = {key: value for key, value in own.items() if weights[key].shape != value.shape}
    for key, value in sorted(kept.items()):
        theirs, ours = weights[key].shape, value.shape
        if not ours or theirs[1:] != ours[1:] or ours[0] != num_classes:
            sizes = f"{tuple(theirs)}, the model has {tuple(ours)}"
            raise WeightsError(one_line(f"{path}: {key} is {sizes}: is it another model?"))
    state.update({key: weights[key] for key in own.keys() - kept.keys()})
    load_state(model, state)
    return {key: len(weights[key]) for key in sorted(kept)}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise WeightsError(one_line(f"{path}: there is no such file")) from None
    except (OSError, SafetensorError) as error:
        raise WeightsError(one_line(f"{path}: not a safetensors file ({error})")) from error
