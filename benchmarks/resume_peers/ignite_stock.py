"""Ignite's own: `DeterministicEngine`, `Checkpoint` and `DiskSaver`.

https://docs.pytorch.org/ignite/engine.html, "Resuming the training" and "Dataflow synchronization".
The page saves at the end of an epoch and says that every n iterations is possible, too. Its
``torch.load(checkpoint_file)`` raises: the random state in it is no weight.

With no worker process a loader draws its batches only after the engine has put back the random
state of the checkpoint, and so draws others; a worker's are drawn before.
"""

from typing import Any

import torch
from ignite.engine import DeterministicEngine, Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, LRScheduler, ProgressBar, TerminateOnNan
from ignite.metrics import RunningAverage
from ignite.utils import manual_seed

from resume_peers.task import EPOCHS, EVERY, SEED, Task


def every_epoch(task: Task) -> None:
    train(task, Events.EPOCH_COMPLETED)


def every_10(task: Task, every: int = EVERY, **options: Any) -> None:
    train(task, Events.ITERATION_COMPLETED(every=every), **options)


def every_10_worker(task: Task) -> None:
    train(task, Events.ITERATION_COMPLETED(every=EVERY), num_workers=1)


def train(
    task: Task,
    save_event: Any,
    num_workers: int = 0,
    n_saved: int = 2,
    show_bar: bool = False,
    terminate_on_nan: bool = False,
) -> None:
    def update(engine: Engine, batch: Any) -> torch.Tensor:
        task.log(engine.state.iteration, batch[2])
        return task.step(batch)

    trainer = DeterministicEngine(update)  # resume
    schedule = LRScheduler(task.one_cycle())
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    if terminate_on_nan:
        trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    if show_bar:
        RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
        RunningAverage(output_transform=torch.exp).attach(trainer, "perplexity")
        ProgressBar().attach(trainer, ["loss", "perplexity"])

    to_save = {"trainer": trainer, "model": task.model}  # resume
    to_save |= {"optimizer": task.optimizer, "schedule": schedule}  # resume
    saver = DiskSaver(task.folder, require_empty=False)  # resume
    trainer.add_event_handler(save_event, Checkpoint(to_save, saver, n_saved=n_saved))  # resume
    saved = sorted(task.folder.glob("*.pt"), key=lambda path: path.stat().st_mtime)  # resume
    if saved:  # resume
        checkpoint = torch.load(saved[-1], weights_only=False)  # resume
        Checkpoint.load_objects(to_save, checkpoint)  # resume

    manual_seed(SEED)  # resume
    trainer.run(task.loader(num_workers=num_workers), max_epochs=EPOCHS)
