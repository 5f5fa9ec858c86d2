"""From a recipe to the folder of a finished run, with what comes after training."""

from pathlib import Path

from torch import nn
from torch.optim import Optimizer

from ultimus_ignite.build import build
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.distributed.group import joined, open_directory
from ultimus_ignite.lifecycle.run_state import Run
from ultimus_ignite.recipe import Recipe
from ultimus_ignite.results.model_card import write_card
from ultimus_ignite.run import Configure, run
from ultimus_ignite.run_directory import RunDirectory


def train(
    recipe: Recipe,
    *,
    out: Path | str,
    model: nn.Module | None = None,
    data: ImageData | None = None,
    optimizer: Optimizer | None = None,
    resume: bool = False,
    extend_epochs: bool = False,
    configure: Configure | None = None,
    process_timeout: float = 300.0,
) -> Run:
    """Train as ``train-cifar`` does: log, history, checkpoints, curves, final weights, model card.

    Args:
        recipe: what to train and how.
        out: folder of the run.
        model: your own, instead of the recipe's: ``images (B, 3, S, S) -> logits (B, classes)``.
            What is frozen in it stays frozen: parameters that need no gradient, and modules in eval
            mode.
        data: your own, instead of the recipe's.
        optimizer: your own over the parameters of ``model``, instead of the recipe's; its schedule
            sets the highest rate, and the others in proportion.
        resume: continue the run in ``out``, or begin one if there is none.
        extend_epochs: resume although the run was begun with another number of epochs.
        configure: attaches your own handlers, given the trainer and the evaluator of the epochs.
            They come after the run's own, but before the checkpoint.
        process_timeout: if torchrun has started several processes, or the caller has made a group
            of them, they train one model. Seconds after which one that waits gives up.

    Returns:
        The run, with its model and its handlers.

    Raises:
        DataError: the data are missing or malformed.
        RecipeError: the device or the model does not exist, the model does not fit the data, or all
            epochs are already done.
        RunDirectoryError: the folder holds a run and ``resume`` is False, is in use, or cannot be
            written.
        CheckpointError: the checkpoint cannot be resumed.
        Interrupted: a signal ended the run, which is saved and can be resumed.
        NonFiniteError: the loss or its gradient became NaN or infinite.
        UserError: a handler terminated the trainer in the first epoch.
        LostProcess: another process of the run has ended, or does not answer.
        OSError: the last checkpoint could not be written.

    Example:
        >>> import tempfile
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))
        >>> recipe = Recipe(data="digits", epochs=2, device="cpu", max_lr=1e-3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train(recipe, out=folder, model=net)  # doctest: +ELLIPSIS
        data: digits, 1437 training and 360 test images of 10 classes
        EPOCH: 1 (LR: 1e-06)
        ...
        >>> run.history.rows[-1]["iteration"]
        6
    """
    with (
        joined(recipe.device, timeout=process_timeout),
        open_directory(RunDirectory(out), resume=resume) as directory,
    ):
        parts = build(
            recipe,
            model=model,
            data=data,
            optimizer=optimizer,
            resumes=directory.has_checkpoints,
        )
        done = run(parts, directory, extend_epochs=extend_epochs, configure=configure)
        if directory.is_writer:
            write_card(directory)
    return done
