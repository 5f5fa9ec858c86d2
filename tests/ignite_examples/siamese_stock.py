"""siamese with Ignite's handlers: one cycle, a bar, the test set, an end at NaN, the curves."""

from ignite.engine import Events
from ignite.handlers import LRScheduler, ProgressBar, TerminateOnNan
from ignite.metrics import Average, RunningAverage
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.optim.lr_scheduler import OneCycleLR

from ignite_examples import siamese


def main(folder, file):
    task = siamese.build()
    trainer, evaluator = task.trainer, task.evaluator
    cycle = OneCycleLR(
        task.optimizer,
        siamese.MAX_LR,
        total_steps=siamese.EPOCHS * len(task.train_loader),
        cycle_momentum=False,
    )
    trainer.add_event_handler(Events.ITERATION_STARTED, LRScheduler(cycle))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    RunningAverage(output_transform=lambda loss: loss.item()).attach(trainer, "loss")
    Average(output_transform=lambda loss: loss.item()).attach(trainer, "train_loss")
    bar = ProgressBar(file=file)
    bar.attach(trainer, ["loss"])
    task.rows = []

    @trainer.on(Events.EPOCH_COMPLETED)
    def evaluate(engine):
        metrics = evaluator.run(task.test_loader).metrics
        bar.log_message(
            f"Test set: Average loss: {metrics['loss']:.4f}, Accuracy: {metrics['accuracy']:.2%}"
        )
        row = {f"test_{name}": value for name, value in metrics.items()}
        task.rows.append({"train_loss": engine.state.metrics["train_loss"], **row})

    @trainer.on(Events.COMPLETED)
    def draw():
        figure = Figure()
        FigureCanvasAgg(figure)
        for axes, name in zip(figure.subplots(1, 3), task.rows[0], strict=True):
            axes.plot([row[name] for row in task.rows])
            axes.set_title(name)
        figure.savefig(folder / "curves.png")

    trainer.run(task.train_loader, max_epochs=siamese.EPOCHS)
    return task
