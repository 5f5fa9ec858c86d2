"""siamese with this project's handlers."""

from ignite.engine import Events

from ignite_examples import siamese
from ultimus_ignite.handlers import (
    BatchLogger,
    CurveRenderer,
    History,
    NonFiniteGuard,
    OneCycleScheduler,
)


def main(folder, file):
    task = siamese.build()
    trainer, evaluator = task.trainer, task.evaluator
    OneCycleScheduler(task.optimizer, max_lr=siamese.MAX_LR, cycle_momentum=False).attach(trainer)
    NonFiniteGuard(task.optimizer).attach(trainer)
    BatchLogger(task.optimizer, file=file).attach(trainer, evaluator)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(task.test_loader))
    task.history = History(task.optimizer).attach(trainer, evaluator)
    CurveRenderer(task.history, path=folder / "curves.png").attach(trainer)
    trainer.run(task.train_loader, max_epochs=siamese.EPOCHS)
    return task
