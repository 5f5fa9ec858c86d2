"""dcgan with this project's handlers."""

from ignite_examples import dcgan
from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    GracefulStop,
    History,
    NonFiniteGuard,
)


def main(folder, file):
    task = dcgan.build()
    trainer = task.trainer
    NonFiniteGuard(task.optimizer_d).attach(trainer)
    NonFiniteGuard(task.optimizer_g).attach(trainer)
    BatchLogger(task.optimizer_d, file=file).attach(trainer)
    task.history = History(task.optimizer_d, path=folder / "history.csv").attach(trainer)
    GracefulStop().attach(trainer)
    Checkpointer(
        {
            "trainer": trainer,
            "generator": task.generator,
            "critic": task.critic,
            "optimizer_g": task.optimizer_g,
            "optimizer_d": task.optimizer_d,
        },
        directory=folder / "checkpoints",
    ).attach(trainer)
    trainer.run(task.loader, max_epochs=dcgan.EPOCHS)
    return task
