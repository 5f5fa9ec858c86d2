"""mnist_save_resume with Ignite's handlers and its deterministic engine.

Ignite promises an exact resume only from the beginning of an epoch.
"""

import torch
from ignite.engine import Events
from ignite.engine.deterministic import DeterministicEngine
from ignite.handlers import Checkpoint, DiskSaver, LRScheduler, ProgressBar, TerminateOnNan
from ignite.metrics import RunningAverage
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

from ignite_examples import mnist_save_resume


def main(folder, file, crash_at=None):
    task = mnist_save_resume.build(crash_at, DeterministicEngine)
    trainer = task.trainer
    loader = DataLoader(task.data, mnist_save_resume.BATCH_SIZE, shuffle=True)
    steps = mnist_save_resume.EPOCHS * len(loader)
    cycle = OneCycleLR(task.optimizer, mnist_save_resume.MAX_LR, total_steps=steps)
    scheduler = LRScheduler(cycle)
    trainer.add_event_handler(Events.ITERATION_STARTED, scheduler)
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    average = RunningAverage(output_transform=lambda loss: loss)
    average.attach(trainer, "loss")
    ProgressBar(file=file).attach(trainer, ["loss"])
    to_save = {
        "trainer": trainer,
        "model": task.model,
        "optimizer": task.optimizer,
        "scheduler": scheduler,
        "average": average,
    }
    saver = DiskSaver(folder / "checkpoints", require_empty=False)
    newest = Checkpoint(to_save, saver, n_saved=2)
    trainer.add_event_handler(Events.ITERATION_COMPLETED(every=mnist_save_resume.EVERY), newest)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, newest)
    paths = sorted(folder.glob("checkpoints/*.pt"), key=lambda path: path.stat().st_mtime_ns)
    if paths:
        Checkpoint.load_objects(to_save, torch.load(paths[-1], weights_only=False))
    trainer.run(loader, max_epochs=mnist_save_resume.EPOCHS)
    return task
