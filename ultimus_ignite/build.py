"""From a recipe to what is trained: data on the device, model, optimizer, batches, engines."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from torch import Tensor, nn
from torch.optim import Optimizer

from ultimus_ignite.data.augment import Augment, Normalize
from ultimus_ignite.data.sources import ImageData, load
from ultimus_ignite.data.stream import EvaluationBatches, TrainingStream
from ultimus_ignite.engines import create_evaluator, create_trainer, select_device
from ultimus_ignite.handlers import OneCycleScheduler
from ultimus_ignite.modules import UltimusNet, UltimusTokenNet, UltimusTokenNetLarge
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.seeding import derive_seed

MODELS: dict[str, Callable[..., nn.Module]] = {
    "UltimusNet": UltimusNet,
    "UltimusTokenNet": UltimusTokenNet,
    "UltimusTokenNetLarge": UltimusTokenNetLarge,
}


@dataclass(frozen=True)
class Parts:
    """What a recipe stands for, ready to be wired."""

    device: torch.device
    data: ImageData
    model: nn.Module
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    trainer: Engine
    evaluator: Engine
    """Measures the model after each epoch, on the test or the validation images."""
    tester: Engine
    """Measures it on the test images once, at the end of a run with validation images."""
    stream: TrainingStream
    test_batches: EvaluationBatches
    val_batches: EvaluationBatches | None
    """The held-out training images, where there are any."""


def build(recipe: Recipe) -> Parts:
    """Load the data and make everything that a recipe names.

    Raises:
        RecipeError: the device does not exist.
        DataError: the data cannot be had or are not what they should be.

    Example:
        >>> parts = build(Recipe(data="digits", device="cpu"))
        >>> parts.stream.epoch_length, sum(p.numel() for p in parts.model.parameters())
        (3, 25786)
    """
    try:
        device = select_device(recipe.device)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    data = load(recipe.data, recipe.data_dir)
    model = create_model(recipe, num_classes=len(data.classes)).to(device)
    if recipe.compile:
        model.compile()  # in place: the keys of its state stay plain
    optimizer = create_optimizer(model, weight_decay=recipe.weight_decay)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    dtype = None if recipe.precision == "float32" else getattr(torch, recipe.precision)
    trainer = create_trainer(
        model,
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
    stream, test_batches, val_batches = create_batches(recipe, data, device)
    return Parts(
        device,
        data,
        model,
        optimizer,
        scaler,
        trainer,
        evaluator,
        tester,
        stream,
        test_batches,
        val_batches,
    )


def create_model(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The recipe's model, initialised from its seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "init", 0))
        model = MODELS[recipe.model](num_classes=num_classes)
    return model


def create_optimizer(model: nn.Module, *, weight_decay: float = 0.0) -> Optimizer:
    """AdamW in its fused form: one kernel a parameter group, and it skips a non-finite step.

    Biases and norms do not decay: a norm's scale is what lets the weights before it shrink.
    Without decay this is Adam.
    """
    by_decay = defaultdict(list)  # without decay a single group, which is a single kernel
    for parameter in model.parameters():
        by_decay[weight_decay if parameter.ndim > 1 else 0.0].append(parameter)
    groups = [{"params": same, "weight_decay": decay} for decay, same in by_decay.items()]
    return torch.optim.AdamW(groups, fused=True)  # the scheduler sets the rate


def create_scheduler(
    recipe: Recipe, optimizer: Optimizer, scaler: torch.amp.GradScaler | None = None
) -> OneCycleScheduler:
    """The recipe's one-cycle rate; Adam's momentum stays as it is, as in the seed.

    Raises:
        RecipeError: ``max_lr`` is still ``auto``.
    """
    if recipe.max_lr == "auto":
        raise RecipeError("max_lr: auto is for train-cifar; ultimus find-lr shows what it finds")
    return OneCycleScheduler(
        optimizer,
        scaler=scaler,
        max_lr=recipe.max_lr,
        pct_start=recipe.pct_start,
        anneal_strategy=recipe.anneal_strategy,
        cycle_momentum=False,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
    )


def create_batches(
    recipe: Recipe, data: ImageData, device: torch.device
) -> tuple[TrainingStream, EvaluationBatches, EvaluationBatches | None]:
    """Training, test and validation batches of images moved to the device once, as uint8.

    Raises:
        DataError: there are too few images for ``val_fraction``.
    """
    held_out = None
    if recipe.val_fraction:
        data, *held_out = data.hold_out(recipe.val_fraction, recipe.seed)
    normalize = Normalize(data.mean, data.std)
    augment = Augment(
        normalize,
        crop_padding=recipe.crop_padding,
        flip=recipe.flip,
        cutout=recipe.cutout,
        cutout_size=recipe.cutout_size,
        grey=recipe.grey,
    )
    stream = TrainingStream(
        data.train_images.to(device),
        data.train_labels.to(device),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        augment=augment,
    )

    def evaluation_batches(images: Tensor, labels: Tensor) -> EvaluationBatches:
        return EvaluationBatches(
            images.to(device),
            labels.to(device),
            batch_size=recipe.batch_size,
            normalize=normalize,
        )

    test_batches = evaluation_batches(data.test_images, data.test_labels)
    return stream, test_batches, evaluation_batches(*held_out) if held_out else None
