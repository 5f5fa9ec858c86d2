"""mnist with Ignite's handlers: a bar, both sets after each epoch, a CSV, an end at NaN."""

import csv

from ignite.engine import Events
from ignite.handlers import ProgressBar, TerminateOnNan
from ignite.metrics import Average, RunningAverage

from ignite_examples import mnist


def main(folder, file):
    task = mnist.build()
    trainer = task.trainer
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    RunningAverage(output_transform=lambda loss: loss).attach(trainer, "loss")
    Average().attach(trainer, "mean_loss")
    bar = ProgressBar(file=file)
    bar.attach(trainer, ["loss"])
    task.rows = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine):
        row = {
            "epoch": engine.state.epoch,
            "lr": task.optimizer.param_groups[0]["lr"],
            "running_loss": engine.state.metrics["mean_loss"],
        }
        for name, evaluator in task.evaluators.items():
            metrics = evaluator.run(task.loaders[name]).metrics
            row |= {f"{name}_{metric}": value for metric, value in metrics.items()}
            bar.log_message(
                f"{name}, epoch {engine.state.epoch}: "
                f"accuracy {metrics['accuracy']:.4f}, nll {metrics['nll']:.4f}"
            )
        task.rows.append(row)
        with (folder / "history.csv").open("w", newline="") as table:
            writer = csv.DictWriter(table, row)
            writer.writeheader()
            writer.writerows(task.rows)

    trainer.run(task.train_loader, max_epochs=mnist.EPOCHS)
    return task
