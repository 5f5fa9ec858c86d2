"""mnist with this project's handlers."""

from ignite.engine import Events

from ignite_examples import mnist
from ultimus_ignite.handlers import BatchLogger, History, NonFiniteGuard


def main(folder, file):
    task = mnist.build()
    trainer = task.trainer
    NonFiniteGuard(task.optimizer).attach(trainer)
    BatchLogger(task.optimizer, file=file).attach(trainer, task.evaluators)

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate():
        for name, evaluator in task.evaluators.items():
            evaluator.run(task.loaders[name])

    task.history = History(task.optimizer, path=folder / "history.csv")
    task.history.attach(trainer, task.evaluators)
    trainer.run(task.train_loader, max_epochs=mnist.EPOCHS)
    return task
