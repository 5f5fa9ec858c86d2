"""What a run consists of: the parts that were built, its folder, and its handlers."""

import math
from dataclasses import dataclass
from typing import Any

from ultimus_ignite.build import Parts
from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    CurveRenderer,
    EarlyEnd,
    GracefulStop,
    History,
    NonFiniteGuard,
    OneCycleScheduler,
)
from ultimus_ignite.lifecycle.identity import ASSUMED, identity
from ultimus_ignite.lifecycle.provenance import describe
from ultimus_ignite.lifecycle.tensorboard import EpochEvents
from ultimus_ignite.optimizers.create import create_scheduler
from ultimus_ignite.run_directory import RunDirectory, title_of


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, with the handlers that `ultimus_ignite.run.run` attaches."""

    parts: Parts
    directory: RunDirectory
    description: dict[str, Any]
    """The content of ``recipe.json``."""
    scheduler: OneCycleScheduler
    guard: NonFiniteGuard
    logger: BatchLogger
    history: History
    events: EpochEvents
    early_end: EarlyEnd
    stop: GracefulStop
    curves: CurveRenderer
    checkpointer: Checkpointer


def create_run(parts: Parts, directory: RunDirectory) -> Run:
    """Make the handlers of a run; none is attached yet."""
    recipe, optimizer = parts.recipe, parts.optimizer
    description = describe(parts)
    scheduler = create_scheduler(recipe, optimizer, parts.scaler)
    logger = BatchLogger(optimizer, log_path=directory.log)
    history = History(optimizer, path=directory.history, evaluated=parts.evaluated.name)
    events = EpochEvents(directory.path)
    to_save = {"trainer": parts.trainer, "model": parts.model, "optimizer": optimizer}
    to_save |= {"scaler": parts.scaler, "scheduler": scheduler}
    to_save |= {"logger": logger, "history": history}
    return Run(
        parts=parts,
        directory=directory,
        description=description,
        scheduler=scheduler,
        guard=NonFiniteGuard(optimizer, max_loss_ratio=recipe.max_loss_ratio),
        logger=logger,
        history=history,
        events=events,
        early_end=EarlyEnd(history, patience=recipe.patience, max_hours=recipe.max_hours),
        stop=GracefulStop(),
        curves=CurveRenderer(
            history, path=directory.curves, title=title_of(description), writer=events
        ),
        checkpointer=Checkpointer(
            to_save,
            directory=directory.checkpoints,
            every=recipe.checkpoint_every,
            score_function=lambda _: last_accuracy(history),
            metadata=identity(parts),
            assumed=ASSUMED,
        ),
    )


def last_accuracy(history: History) -> float:
    """The accuracy after the last epoch; NaN if it is not measured."""
    accuracy = history.rows[-1][f"{history.evaluated}_accuracy"]
    return math.nan if accuracy is None else accuracy
