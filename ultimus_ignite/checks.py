"""What a recipe asks for and cannot get; every command refuses it before the first iteration.

What the flags alone tell is refused earlier, in `ultimus_ignite.commands.arguments`.
"""

from collections.abc import Callable
from typing import Any

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from ultimus_ignite.engines import evaluating
from ultimus_ignite.errors import one_line
from ultimus_ignite.machine.devices import select_device
from ultimus_ignite.networks.models import reason
from ultimus_ignite.networks.weights_file import encode_weights
from ultimus_ignite.recipe import Recipe, RecipeError


def usable_device(recipe: Recipe) -> torch.device:
    """The recipe's device, which exists and, if the recipe says so, can be compiled for.

    Raises:
        RecipeError: it does not exist, or there is no working compiler.
    """
    try:
        device = select_device(recipe.device)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    if recipe.compile:
        try:  # the model is only compiled in the first iteration
            torch.compile(torch.neg)(torch.zeros(1, device=device))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            advice = "install a C++ compiler such as g++, or leave out --compile"
            raise RecipeError(f"compile: {reason}: {advice}") from None
    return device


def check_given(**given: tuple[object, type]) -> None:
    """Refuse what is neither None nor of its type.

    Args:
        given: value and type, by the name of the argument.

    Raises:
        RecipeError: the first that is of another type, such as a name or a class.

    Example:
        >>> check_given(model=("resnet18", nn.Module))
        Traceback (most recent call last):
            ...
        ultimus_ignite.recipe.RecipeError: model= takes an instance of Module, got 'resnet18'
    """
    for name, (value, kind) in given.items():
        if value is not None and not isinstance(value, kind):
            wanted = f"takes an instance of {kind.__name__}"
            raise RecipeError(one_line(f"{name}= {wanted}, got {value!r:.99}"))


def check_batch_size(batch_size: int, count: int) -> None:
    """Refuse batches that cannot give each process an image.

    Args:
        batch_size: images per batch, over all processes.
        count: training images.

    Raises:
        RecipeError: they are too small.
    """
    largest, processes = min(batch_size, count), idist.get_world_size()
    if largest < processes:
        images = f"{largest} image{'s' * (largest > 1)}"
        raise RecipeError(f"batch_size: a batch of {images} is too small for {processes} processes")


def check_schedule(recipe: Recipe, total_steps: int) -> None:
    """Refuse a run whose rate never reaches half of ``max_lr``, for want of iterations.

    The rate rises up to step ``pct_start * total_steps - 1``, counted from 0, and falls after it.
    That is seldom a whole number, but a step beside it has at least half of the peak's rate unless
    the run has one step, or two with the peak between them. A peak at step 0 leaves no rise, for
    which `OneCycleLR` divides by zero.

    Args:
        recipe: its ``pct_start`` counts.
        total_steps: number of iterations of the run, at least 1.

    Raises:
        RecipeError: the rate would not come near ``max_lr``.

    Example:
        >>> check_schedule(Recipe(pct_start=0.1), 11)
        >>> check_schedule(Recipe(pct_start=0.1), 10)
        Traceback (most recent call last):
            ...
        ultimus_ignite.recipe.RecipeError: in 10 iterations with pct_start 0.1 the learning rate \
does not rise to max_lr: give more --epochs, a smaller --batch-size or another --pct-start
    """
    peak = recipe.pct_start * total_steps - 1
    if total_steps == 1 or peak == 0 or (total_steps == 2 and 0 < peak < 1):
        length = f"{total_steps} iteration{'s' * (total_steps > 1)}"
        raise RecipeError(
            f"in {length} with pct_start {recipe.pct_start:.4g} the learning rate does not rise to "
            "max_lr: give more --epochs, a smaller --batch-size or another --pct-start"
        )


def check_model(
    model: nn.Module,
    images: Tensor,
    *,
    name: str,
    num_classes: int,
    num_evaluated: int = 2,
    seed: int = 0,
) -> None:
    """Try a model on a few images, in eval mode and in training, and whether it can be saved.

    Its parameters, gradients, buffers and modes stay as they are, and so do torch's random numbers.

    Args:
        model: moved to the device of the images; its layers that are lazy are made by this.
        images: as the model will get them in training, float32 (B, 3, S, S).
        name: of the model, for messages.
        num_classes: number of logits that are wanted.
        num_evaluated: the least number of images that it will get in eval mode, tried if fewer.
        seed: of the weights of lazy layers.

    Raises:
        RecipeError: it fails, or it gives anything but logits that depend on trained parameters.

    Example:
        >>> check_model(nn.Flatten(), torch.zeros(2, 3, 8, 8), name="Flat", num_classes=10)
        Traceback (most recent call last):
            ...
        ultimus_ignite.recipe.RecipeError: model: Flat gives torch.float32 (2, 192) for 2 images \
of 8x8 pixels, expected logits (2, 10)
    """
    try:
        model.to(images.device)
    except Exception as error:  # such as a model without numbers, on the meta device
        why = reason(error)
        raise RecipeError(f"model: {name} cannot be moved to {images.device}: {why}") from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        with evaluating(model), torch.no_grad():
            for count in sorted({len(images), min(len(images), num_evaluated)}, reverse=True):
                few = images[:count]
                _check_logits(_call(model, few, name), few, name, num_classes)
        # Clones, because BatchNorm and its like change their buffers in training.
        buffers = {key: buffer.clone() for key, buffer in model.named_buffers()}
        with torch.enable_grad():
            logits = _call(lambda x: functional_call(model, buffers, (x,)), images, name)
        _check_logits(logits, images, name, num_classes)
    if not logits.requires_grad:
        raise RecipeError(f"model: the logits of {name} depend on no parameter that is trained")
    try:
        encode_weights(model.state_dict())
    except Exception as error:  # at the end of the run it would be too late
        raise RecipeError(f"model: {name} has no safetensors file: {reason(error)}") from error


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer of another model.

    Raises:
        RecipeError: it has a parameter that is not one of the model's.
    """
    parameters = set(model.parameters())
    if not all(parameters.issuperset(group["params"]) for group in optimizer.param_groups):
        raise RecipeError("optimizer: it has parameters of another model: make it from this one")


def _call(model: Callable[[Tensor], Any], images: Tensor, name: str) -> Any:
    try:
        return model(images)
    except Exception as error:
        why = reason(error) + _advice(images)
        raise RecipeError(f"model: {name} fails on {_describe(images)}: {why}") from error


def _check_logits(logits: Any, images: Tensor, name: str, num_classes: int) -> None:
    expected = f"for {_describe(images)}, expected logits ({len(images)}, {num_classes})"
    if not isinstance(logits, Tensor):
        raise RecipeError(f"model: {name} gives a {type(logits).__name__} {expected}")
    if logits.shape != (len(images), num_classes) or not logits.is_floating_point():
        found = f"{logits.dtype} {tuple(logits.shape)}"
        advice = _advice(images) * (logits.ndim == 1)  # such as by squeeze()
        raise RecipeError(f"model: {name} gives {found} {expected}{advice}")
    if logits.device != images.device:
        found = f"logits on {logits.device}"
        raise RecipeError(f"model: {name} gives {found} for images on {images.device}")


def _advice(images: Tensor) -> str:
    advice = "; an epoch's last batch is that small: choose another --batch-size"
    return advice * (len(images) <= 1)


def _describe(images: Tensor) -> str:
    count = f"{len(images)} image{'s' * (len(images) != 1)}"
    return f"{count} of {images.shape[-2]}x{images.shape[-1]} pixels"
