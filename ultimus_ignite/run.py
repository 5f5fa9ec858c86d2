"""One run, wired in the order in which its events fire."""

import importlib.metadata
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Events
from ignite.handlers.tensorboard_logger import OutputHandler, TensorboardLogger
from safetensors.torch import save
from torch import nn

from ultimus_ignite import modules
from ultimus_ignite.data.augment import Augment, Normalize
from ultimus_ignite.data.sources import ImageData, load
from ultimus_ignite.data.stream import EvaluationBatches, TrainingStream
from ultimus_ignite.engines import create_evaluator, create_trainer, select_device
from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    CurveRenderer,
    History,
    OneCycleScheduler,
)
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.run_directory import RunDirectory, write_atomically
from ultimus_ignite.seeding import derive_seed

# Fields that may differ when a run is resumed: where things are, not what is computed.
PLACES = {"data", "data_dir", "device"}


def run(recipe: Recipe, directory: RunDirectory) -> History:
    """Train by a recipe in an opened run directory, going on with what is there.

    Args:
        recipe: what to do.
        directory: an opened `RunDirectory`.

    Returns:
        What was measured.

    Raises:
        DataError: the data cannot be had or are not what they should be.
        CheckpointError: what is there cannot be gone on with.
        RecipeError: the device does not exist.
        OSError: the last checkpoint could not be written.

    Example:
        >>> import tempfile
        >>> recipe = Recipe(data="digits", epochs=1, device="cpu")
        >>> with tempfile.TemporaryDirectory() as folder, RunDirectory(folder).open() as directory:
        ...     history = run(recipe, directory)  # doctest: +ELLIPSIS
        data: digits, 1437 training and 360 test images of 10 classes
        EPOCH: 1 (LR: 1.856635533445111e-05)
        ...
        >>> history.rows[-1]["iteration"]
        3
    """
    try:
        device = select_device(recipe.device)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    data = load(recipe.data, recipe.data_dir)
    model = create_model(recipe, num_classes=len(data.classes)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.max_lr, fused=True)
    stream, test_batches = create_batches(recipe, data, device)

    trainer = create_trainer(model, optimizer, device=device, seed=recipe.seed)
    evaluator = create_evaluator(model, device=device)

    OneCycleScheduler(
        optimizer,
        max_lr=recipe.max_lr,
        pct_start=recipe.pct_start,
        anneal_strategy=recipe.anneal_strategy,
        cycle_momentum=False,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
    ).attach(trainer)
    logger = BatchLogger(optimizer, log_path=directory.log).attach(trainer, evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(test_batches))
    history = History(optimizer, path=directory.history).attach(trainer, evaluator)
    checkpointer = Checkpointer(
        {
            "trainer": trainer,
            "model": model,
            "optimizer": optimizer,
            "logger": logger,
            "history": history,
        },
        directory=directory.checkpoints,
        score_function=lambda _: evaluator.state.metrics["accuracy"],
        metadata={
            **{key: value for key, value in asdict(recipe).items() if key not in PLACES},
            "data_sha256": data.sha256,
        },
    )

    if checkpoint := checkpointer.load_newest():
        checkpointer.restore(checkpoint)
        if trainer.state.iteration == recipe.epochs * stream.epoch_length:
            print(f"{directory.path} is finished: {recipe.epochs} epochs, nothing left to do")
            return history
    directory.begin(describe(recipe, data, device), data=data.name)
    logger.write(_first_line(recipe, data))

    tensorboard = TensorboardLogger(logdir=str(directory.path))
    try:
        with tensorboard:
            tensorboard.attach(
                trainer,
                OutputHandler("epoch", output_transform=lambda _: _measured(history)),
                Events.EPOCH_COMPLETED,
            )
            CurveRenderer(
                history,
                path=directory.curves,
                title=directory.title(),
                writer=tensorboard.writer,
            ).attach(trainer)
            checkpointer.attach(trainer)
            trainer.run(
                stream.starting_at(trainer.state.iteration),
                max_epochs=recipe.epochs,
                epoch_length=stream.epoch_length,
            )
        write_atomically(directory.model, save(model.state_dict()))
    except KeyboardInterrupt:
        directory.set_status("interrupted")
        raise
    except BaseException:
        directory.set_status("failed")
        raise
    finally:
        logger.close()
    directory.set_status("finished")
    return history


def create_model(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The recipe's model, initialised from its seed alone."""
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(recipe.seed, "init", 0))
        model: nn.Module = getattr(modules, recipe.model)(num_classes=num_classes)
    return model


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


def describe(recipe: Recipe, data: ImageData, device: torch.device) -> dict[str, Any]:
    """What it takes to repeat a run, for ``recipe.json``."""
    packages = ("torch", "torchvision", "pytorch-ignite", "ultimus-ignite")
    return {
        "recipe": asdict(recipe),
        "data": {"name": data.name, "sha256": data.sha256},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in packages},
        },
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """Revision of this source tree, None where it is not a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _first_line(recipe: Recipe, data: ImageData) -> str:
    line = (
        f"data: {data.name}, {len(data.train_images)} training and {len(data.test_images)} "
        f"test images of {len(data.classes)} classes"
    )
    if recipe.data == "auto" and data.name == "digits":
        line = (
            f"CIFAR-10 IS NOT IN {recipe.data_dir} AND CANNOT BE DOWNLOADED: "
            f"TRAINING ON HANDWRITTEN DIGITS INSTEAD\n{line}"
        )
    return line


def _measured(history: History) -> dict[str, float]:
    """The numbers of the last epoch, those that were measured."""
    return {
        key: value
        for key, value in history.rows[-1].items()
        if key not in ("epoch", "iteration") and value is not None
    }
