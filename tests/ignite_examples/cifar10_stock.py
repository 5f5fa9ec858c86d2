"""cifar10 with Ignite's handlers: one cycle, a bar, the newest and the best, a resume, a CSV."""

import csv

import torch
from ignite.engine import Events
from ignite.handlers import (
    Checkpoint,
    DiskSaver,
    LRScheduler,
    ProgressBar,
    TerminateOnNan,
    global_step_from_engine,
)
from ignite.metrics import Average, RunningAverage
from torch.optim.lr_scheduler import OneCycleLR

from ignite_examples import cifar10


def main(folder, file, crash_at=None):
    task = cifar10.build(crash_at)
    trainer, evaluator = task.trainer, task.evaluator
    steps = cifar10.EPOCHS * len(task.train_loader)
    scheduler = LRScheduler(OneCycleLR(task.optimizer, cifar10.MAX_LR, total_steps=steps))
    trainer.add_event_handler(Events.ITERATION_STARTED, scheduler)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, TerminateOnNan(output_transform=lambda output: output["loss"])
    )
    RunningAverage(output_transform=lambda output: output["loss"]).attach(trainer, "loss")
    Average(output_transform=lambda output: output["loss"]).attach(trainer, "mean_loss")
    bar = ProgressBar(file=file)
    bar.attach(trainer, ["loss"])
    table = folder / "history.csv"

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine):
        metrics = evaluator.run(task.val_loader).metrics
        bar.log_message(f"epoch {engine.state.epoch}: accuracy {metrics['accuracy']:.4f}")
        row = {
            "epoch": engine.state.epoch,
            "lr": task.optimizer.param_groups[0]["lr"],
            "train_loss": engine.state.metrics["mean_loss"],
            **{f"val_{name}": value for name, value in metrics.items()},
        }
        is_new = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    best = Checkpoint(
        {"model": task.model},
        DiskSaver(folder / "best", require_empty=False),
        n_saved=1,
        score_function=lambda engine: evaluator.state.metrics["accuracy"],
        global_step_transform=global_step_from_engine(trainer),
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, best)
    to_save = {
        "trainer": trainer,
        "model": task.model,
        "optimizer": task.optimizer,
        "scheduler": scheduler,
        "best": best,
    }
    newest = Checkpoint(
        to_save,
        DiskSaver(folder / "checkpoints", require_empty=False),
        n_saved=2,
        global_step_transform=global_step_from_engine(trainer),
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, newest)
    paths = sorted(folder.glob("checkpoints/*.pt"), key=lambda path: path.stat().st_mtime_ns)
    if paths:
        Checkpoint.load_objects(to_save, torch.load(paths[-1], weights_only=True))
    trainer.run(task.train_loader, max_epochs=cifar10.EPOCHS)
    task.best_weights = torch.load(folder / "best" / best.last_checkpoint, weights_only=True)
    return task
