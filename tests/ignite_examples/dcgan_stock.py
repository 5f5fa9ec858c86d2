"""dcgan with Ignite's handlers: a bar, a CSV, both networks' checkpoints, Ctrl-C."""

import csv

from ignite.engine import Events
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar, TerminateOnNan
from ignite.metrics import Average, RunningAverage

from ignite_examples import dcgan


def main(folder, file):
    task = dcgan.build()
    trainer = task.trainer
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    for name in dcgan.COLUMNS:
        RunningAverage(output_transform=lambda output, name=name: output[name]).attach(
            trainer, name
        )
        Average(output_transform=lambda output, name=name: output[name]).attach(
            trainer, f"train_{name}"
        )
    ProgressBar(file=file).attach(trainer, list(dcgan.COLUMNS))
    task.rows = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def write_row(engine):
        names = [f"train_{name}" for name in dcgan.COLUMNS]
        row = {name: engine.state.metrics[name] for name in names}
        task.rows.append({"epoch": engine.state.epoch, **row})
        with (folder / "history.csv").open("w", newline="") as table:
            writer = csv.DictWriter(table, task.rows[0])
            writer.writeheader()
            writer.writerows(task.rows)

    checkpoint = Checkpoint(
        {
            "trainer": trainer,
            "generator": task.generator,
            "critic": task.critic,
            "optimizer_g": task.optimizer_g,
            "optimizer_d": task.optimizer_d,
        },
        DiskSaver(folder / "checkpoints", require_empty=False),
        n_saved=2,
    )
    trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)

    @trainer.on(Events.EXCEPTION_RAISED)
    def stop(engine, error):
        if not isinstance(error, KeyboardInterrupt):
            raise error
        checkpoint(engine)

    trainer.run(task.loader, max_epochs=dcgan.EPOCHS)
    return task
