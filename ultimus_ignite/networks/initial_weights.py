"""Start from the weights of another run or of a file, as in fine-tuning."""

import os
from pathlib import Path

import torch
from torch import nn

from ultimus_ignite.errors import one_line
from ultimus_ignite.networks.weights_file import WeightsError, load_weights
from ultimus_ignite.recipe import RecipeError
from ultimus_ignite.run_directory import RunDirectory


def load_initial_weights(model: nn.Module, source: str, *, num_classes: int) -> str:
    """Load weights into a model; a classifier for other classes keeps its own, which are random.

    A tensor belongs to the classifier if its first dimension, and only that, differs from the
    source and is the number of classes. The prefixes that DataParallel and `torch.compile` give to
    names do not count.

    Args:
        model: its tensors are replaced.
        source: the folder of a finished run, or a safetensors file.
        num_classes: number of logits of the model.

    Returns:
        One line on what was loaded and what was not.

    Raises:
        RecipeError: there are no such weights, or they are those of another model.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from safetensors.torch import save_file
        >>> with TemporaryDirectory() as folder:
        ...     save_file(nn.Linear(4, 100).state_dict(), f"{folder}/linear.safetensors")
        ...     note = load_initial_weights(
        ...         nn.Linear(4, 10), f"{folder}/linear.safetensors", num_classes=10
        ...     )
        >>> note.split("; ")[1]
        'made anew for 10 classes instead of 100: bias, weight'
    """
    path = Path(os.path.expanduser(source))  # noqa: PTH111 (leaves an unknown ~user)
    if path.is_dir():
        path = RunDirectory(path).model
    try:
        anew = load_weights(model, path, num_classes=num_classes)
    except WeightsError as error:
        advice = (
            "" if path.exists() else ": give the folder of a finished run, or a safetensors file"
        )
        raise RecipeError(f"init: {error}{advice}") from error
    count = len(list(filter(torch.is_tensor, model.state_dict().values())))
    note = f"init: {count - len(anew)} of {count} tensors from {path}"
    if anew:
        before = next(iter(anew.values()))
        note += f"; made anew for {num_classes} classes instead of {before}: {', '.join(anew)}"
    return one_line(note)
