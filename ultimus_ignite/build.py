"""Build what a recipe names: data on the device, model, optimizer, batches, engines."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from torch import nn
from torch.optim import Optimizer

from ultimus_ignite.batches import Split, create_batches, is_light
from ultimus_ignite.checks import (
    check_batch_size,
    check_given,
    check_model,
    check_optimizer,
    check_schedule,
    usable_device,
)
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.sources import load
from ultimus_ignite.data.stream import TrainingStream
from ultimus_ignite.distributed.group import all_or_none, refuse_differences
from ultimus_ignite.distributed.replica import replicate
from ultimus_ignite.engines import create_evaluator, create_trainer
from ultimus_ignite.machine.devices import autocast_dtype, select_precision
from ultimus_ignite.machine.software import describe_software
from ultimus_ignite.networks.initial_weights import load_initial_weights
from ultimus_ignite.networks.models import create_model, find_model, name_of
from ultimus_ignite.optimizers.create import create_optimizer
from ultimus_ignite.recipe import Recipe
from ultimus_ignite.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Everything that a run needs, built but not yet wired."""

    recipe: Recipe
    """The recipe, with the names and sizes of what was really built."""
    device: torch.device
    data: ImageData
    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    trainer: Engine
    evaluator: Engine
    """Measures the model on ``evaluated`` after each epoch."""
    tester: Engine
    """Measures the model on ``test`` at the end of the run, if there is a validation set."""
    stream: TrainingStream
    test: Split | None
    """The test set; None if the data have none."""
    evaluated: Split
    """The images that judge the epochs: the validation set if there is one, else the test set."""
    is_light: bool
    """Batches are made ahead, while the step runs."""
    notes: tuple[str, ...] = ()
    """What a user should know of where the images are, and of the model, one line each."""

    @property
    def validates(self) -> bool:
        """Whether a validation set judges the epochs."""
        return self.evaluated is not self.test


def build(
    recipe: Recipe,
    *,
    model: nn.Module | None = None,
    data: ImageData | None = None,
    optimizer: Optimizer | None = None,
    resumes: bool = False,
) -> Parts:
    """Load the data and build everything that a recipe names, but for what is given.

    Args:
        recipe: what to train and how.
        model: used instead of the recipe's model; moved to the device.
        data: used instead of the recipe's data.
        optimizer: over the parameters of ``model``; used instead of the recipe's. The schedule sets
            its highest rate, and the others in proportion; ``weight_decay`` is its own.
        resumes: the weights will be those of a checkpoint, so the recipe's ``init`` is not read.

    Raises:
        RecipeError: the device, the model, its ``init`` or a compiler does not exist, what is given
            is of another type, the model does not fit the data, or the run is too short.
        DataError: the data are missing or malformed.

    Example:
        >>> parts = build(Recipe(data="digits", device="cpu"))
        >>> parts.stream.epoch_length, sum(p.numel() for p in parts.model.parameters())
        (3, 25786)
    """
    check_given(model=(model, nn.Module), data=(data, ImageData), optimizer=(optimizer, Optimizer))
    device = usable_device(recipe)
    recipe = replace(recipe, precision=select_precision(recipe.precision, device))
    if model is None:
        find_model(recipe.model)  # reading the data takes longer
    else:
        recipe = replace(recipe, model=name_of(model), model_args={})
    recipe, data = _load(recipe, data)
    refuse_differences(_what_must_agree(recipe, data))

    stream, test, evaluated = create_batches(recipe, data, device)
    check_batch_size(recipe.batch_size, len(stream.labels))
    check_schedule(recipe, recipe.epochs * stream.epoch_length)
    num_classes = len(data.classes)
    if model is None:
        model = create_model(recipe, num_classes=num_classes)
    _try(model, recipe, num_classes, stream, [split for split in (test, evaluated) if split])
    notes = [stream.note] if stream.note else []
    if recipe.init is not None and not resumes:
        notes.append(load_initial_weights(model, recipe.init, num_classes=num_classes))
    model, trained = replicate(model, device)
    if recipe.compile:
        model.compile()  # in place: the keys of its state_dict stay plain
    if optimizer is None:
        optimizer = create_optimizer(model, recipe.optimizer, weight_decay=recipe.weight_decay)
    else:
        check_optimizer(optimizer, model)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    trainer, evaluator, tester = create_engines(recipe, model, trained, optimizer, scaler, device)
    return Parts(
        recipe=recipe,
        device=device,
        data=data,
        model=model,
        optimizer=optimizer,
        scaler=scaler,
        trainer=trainer,
        evaluator=evaluator,
        tester=tester,
        stream=stream,
        test=test,
        evaluated=evaluated,
        is_light=is_light(model, stream.batch(0).images),
        notes=tuple(notes),
    )


def _load(recipe: Recipe, data: ImageData | None) -> tuple[Recipe, ImageData]:
    """The data, and the recipe with their name and with all sizes in pixels."""
    if data is not None:
        recipe = replace(recipe, data=data.name, image_size=data.image_size)
    else:
        with all_or_none():
            data = load(
                recipe.data,
                recipe.data_dir,
                image_size=recipe.image_size,
                skip_unreadable=recipe.skip_unreadable,
            )
    return replace(recipe, **recipe.sizes()), data


def _what_must_agree(recipe: Recipe, data: ImageData) -> dict[str, Any]:
    """What processes must share to train one model. Each may have the data in another place."""
    places = ("data", "data_dir", "device")
    fields = {name: value for name, value in asdict(recipe).items() if name not in places}
    return {**fields, "sha256 of the data": data.sha256, **describe_software()}


def _try(
    model: nn.Module,
    recipe: Recipe,
    num_classes: int,
    stream: TrainingStream,
    splits: Sequence[Split],
) -> None:
    """Try a model on as few images as it will ever get."""
    size, count = recipe.batch_size, len(stream.labels)
    images = stream.batch(0).images[:2]
    check = partial(check_model, model, name=recipe.model, num_classes=num_classes)
    check(
        images[: _smallest_batch(count, size, recipe.accumulation_steps)],
        num_evaluated=min(_smallest_batch(len(each.batches.labels), size) for each in splits),
        seed=derive_seed(recipe.seed, "init", 1),
    )
    if _smallest_batch(count, size) < idist.get_world_size():  # then some process has no image
        check(images[:0])


def _smallest_batch(count: int, batch_size: int, parts: int = 1) -> int:
    """The least number of images that a forward pass gets, if each batch is split into parts."""
    full = min(batch_size, count)
    last = count % full or full
    return min(len(part) for size in (full, last) for part in torch.empty(size).chunk(parts))


def create_engines(
    recipe: Recipe,
    model: nn.Module,
    trained: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    device: torch.device,
) -> tuple[Engine, Engine, Engine]:
    """The trainer, and two equal evaluators: one for each epoch, one for the end."""
    dtype = autocast_dtype(recipe)
    trainer = create_trainer(
        trained,
        optimizer,
        partial(F.cross_entropy, label_smoothing=recipe.label_smoothing),
        device=device,
        seed=recipe.seed,
        max_grad_norm=recipe.max_grad_norm,
        accumulation_steps=recipe.accumulation_steps,
        autocast_dtype=dtype,
        scaler=scaler,
    )
    evaluator, tester = (
        create_evaluator(model, device=device, autocast_dtype=dtype, mirror=recipe.mirror)
        for _ in range(2)
    )
    return trainer, evaluator, tester
