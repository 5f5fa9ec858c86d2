"""This repository: as its README, "Attach one handler"."""

from typing import Any

from ignite.engine import Engine, Events
from torch.utils.data import DataLoader

from resume_peers.task import BATCH_SIZE, EPOCHS, EVERY, MAX_LR, SEED, Task
from ultimus_ignite.data.sampler import EndlessBatches
from ultimus_ignite.engines import create_trainer
from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    GracefulStop,
    History,
    NonFiniteGuard,
    OneCycleScheduler,
)


def train(
    task: Task,
    every: int = EVERY,
    show_bar: bool = False,
    guard: bool = False,
    graceful_stop: bool = False,
) -> None:
    trainer = create_trainer(
        task.model,
        task.optimizer,
        device="cpu",
        seed=SEED,  # resume
    )
    OneCycleScheduler(task.optimizer, max_lr=MAX_LR).attach(trainer)
    if show_bar:
        BatchLogger(task.optimizer).attach(trainer)
        History(task.optimizer).attach(trainer)
    if guard:
        NonFiniteGuard(task.optimizer).attach(trainer)
    if graceful_stop:
        GracefulStop().attach(trainer)

    @trainer.on(Events.ITERATION_COMPLETED)
    def log(engine: Engine) -> None:
        task.log(engine.state.iteration, engine.state.batch[2])

    to_save: dict[str, Any] = {"trainer": trainer, "model": task.model}  # resume
    to_save |= {"optimizer": task.optimizer}  # resume
    checkpointer = Checkpointer(to_save, directory=task.folder, every=every)  # resume
    checkpointer.attach(trainer).resume()  # resume
    start = trainer.state.iteration  # resume
    batches = EndlessBatches(task.data, batch_size=BATCH_SIZE, seed=SEED, start=start)  # resume
    trainer.run(DataLoader(task.data, batch_sampler=batches), max_epochs=EPOCHS)
