"""Start from the weights of another run or of a file, as in fine-tuning."""

import os
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers.checkpoints.saved_state import load_state, plain_names, save_state
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
    weights = _read(path)
    weights = {name: weights[key] for key, name in plain_names(weights).items()}
    state = save_state(model)
    own = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if differing := sorted(weights.keys() ^ own.keys()):
        whose = "the model has no" if differing[0] in weights else "the file lacks"
        raise RecipeError(one_line(f"init: {path}: {whose} {differing[0]}: is it another model?"))
    misfits = [key for key in sorted(own) if weights[key].shape != own[key].shape]
    for key in misfits:
        theirs, ours = weights[key].shape, own[key].shape
        if not ours or theirs[1:] != ours[1:] or ours[0] != num_classes:
            sizes = f"{tuple(theirs)}, the model has {tuple(ours)}"
            raise RecipeError(one_line(f"init: {path}: {key} is {sizes}: is it another model?"))
    state.update({key: weights[key] for key in own.keys() - set(misfits)})
    load_state(model, state)
    note = f"init: {len(own) - len(misfits)} of {len(own)} tensors from {path}"
    if misfits:
        before = len(weights[misfits[0]])
        anew = f"made anew for {num_classes} classes instead of {before}"
        note += f"; {anew}: {', '.join(misfits)}"
    return one_line(note)


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        what = "the folder of a finished run, or a safetensors file"
        raise RecipeError(one_line(f"init: {path}: there is no such file: give {what}")) from None
    except (OSError, SafetensorError) as error:
        raise RecipeError(one_line(f"init: {path}: not a safetensors file ({error})")) from error
