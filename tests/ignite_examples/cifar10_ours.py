"""cifar10 with this project's handlers."""

from ignite.engine import Events

from ignite_examples import cifar10
from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    History,
    NonFiniteGuard,
    OneCycleScheduler,
)


def main(folder, file, crash_at=None):
    task = cifar10.build(crash_at)
    trainer, evaluator = task.trainer, task.evaluator
    OneCycleScheduler(task.optimizer, max_lr=cifar10.MAX_LR).attach(trainer)
    NonFiniteGuard(task.optimizer).attach(trainer)
    BatchLogger(task.optimizer, file=file).attach(trainer, evaluator, dataset="Validation set")
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(task.val_loader))
    history = History(task.optimizer, path=folder / "history.csv", evaluated="val")
    task.history = history.attach(trainer, evaluator)
    checkpointer = Checkpointer(
        {
            "trainer": trainer,
            "model": task.model,
            "optimizer": task.optimizer,
            "history": history,
        },
        directory=folder / "checkpoints",
        score_function=lambda engine: evaluator.state.metrics["accuracy"],
    ).attach(trainer)
    checkpointer.resume()
    trainer.run(task.train_loader, max_epochs=cifar10.EPOCHS)
    task.best_weights = checkpointer.load_best()[1]["model"]
    return task
