"""mnist_save_resume with this project's handlers and its batch sampler."""

import torch
from ignite.engine import Events
from torch.utils.data import DataLoader

from ignite_examples import mnist_save_resume
from ultimus_ignite.data.sampler import EndlessBatches
from ultimus_ignite.handlers import BatchLogger, Checkpointer, NonFiniteGuard, OneCycleScheduler


def main(folder, file, crash_at=None):
    task = mnist_save_resume.build(crash_at)
    trainer = task.trainer
    # For the dropout: what is random is a function of the iteration.
    trainer.add_event_handler(
        Events.ITERATION_STARTED, lambda: torch.manual_seed(trainer.state.iteration)
    )
    OneCycleScheduler(task.optimizer, max_lr=mnist_save_resume.MAX_LR).attach(trainer)
    NonFiniteGuard(task.optimizer).attach(trainer)
    log = BatchLogger(task.optimizer, file=file).attach(trainer)
    checkpointer = Checkpointer(
        {
            "trainer": trainer,
            "model": task.model,
            "optimizer": task.optimizer,
            "log": log,
        },
        directory=folder / "checkpoints",
        every=mnist_save_resume.EVERY,
    ).attach(trainer)
    checkpointer.resume()
    batches = EndlessBatches(
        task.data, batch_size=mnist_save_resume.BATCH_SIZE, start=trainer.state.iteration
    )
    loader = DataLoader(task.data, batch_sampler=batches)
    trainer.run(loader, max_epochs=mnist_save_resume.EPOCHS)
    return task
