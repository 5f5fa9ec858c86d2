"""From a recipe to what is trained: data on the device, model, optimizer, batches, engines."""

from dataclasses import dataclass

import torch
from ignite.engine import Engine
from torch import nn
from torch.optim import Optimizer

from ultimus_ignite import modules
from ultimus_ignite.data.augment import Augment, Normalize
from ultimus_ignite.data.sources import ImageData, load
from ultimus_ignite.data.stream import EvaluationBatches, TrainingStream
from ultimus_ignite.engines import create_evaluator, create_trainer, select_device
from ultimus_ignite.handlers import OneCycleScheduler
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.seeding import derive_seed


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
    stream: TrainingStream
    test_batches: EvaluationBatches


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
    optimizer = create_optimizer(model)
    scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "float16")
    dtype = None if recipe.precision == "float32" else getattr(torch, recipe.precision)
    trainer = create_trainer(
        model,
        optimizer,
        device=device,
        seed=recipe.seed,
        max_grad_norm=recipe.max_grad_norm,
        accumulation_steps=recipe.accumulation_steps,
        autocast_dtype=dtype,
        scaler=scaler,
    )
    evaluator = create_evaluator(model, device=device, autocast_dtype=dtype)
    batches = create_batches(recipe, data, device)
    return Parts(device, data, model, optimizer, scaler, trainer, evaluator, *batches)


def create_model(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The recipe's model, initialised from its seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "init", 0))
        model: nn.Module = getattr(modules, recipe.model)(num_classes=num_classes)
    return model


def create_optimizer(model: nn.Module) -> Optimizer:
    """Adam in its fused form: one kernel for all parameters, and it skips a non-finite step."""
    return torch.optim.Adam(model.parameters(), fused=True)  # the scheduler sets the rate


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
) -> tuple[TrainingStream, EvaluationBatches]:
    """Training and test batches of images that are moved to the device once, as uint8."""
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
    test_batches = EvaluationBatches(
        data.test_images.to(device),
        data.test_labels.to(device),
        batch_size=recipe.batch_size,
        normalize=normalize,
    )
    return stream, test_batches
