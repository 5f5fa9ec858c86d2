"""reinforce with this project's handlers."""

from ignite.engine import Events

from ignite_examples import reinforce
from ultimus_ignite.handlers import BatchLogger, Checkpointer, History, NonFiniteGuard


def main(folder, file, crash_at=None):
    task = reinforce.build(crash_at)
    trainer = task.trainer
    NonFiniteGuard(task.optimizer).attach(trainer)
    log = BatchLogger(file=file).attach(trainer)
    task.history = History(task.optimizer, path=folder / "history.csv").attach(trainer)
    trainer.add_event_handler(
        Events.EPOCH_COMPLETED,
        lambda: log.write(f"running reward {trainer.state.running_reward:.2f}"),
    )
    checkpointer = Checkpointer(
        {
            "trainer": trainer,
            "policy": task.policy,
            "optimizer": task.optimizer,
            "history": task.history,
        },
        directory=folder / "checkpoints",
    ).attach(trainer)
    checkpointer.resume()
    trainer.run(task.timesteps, max_epochs=reinforce.EPISODES)
    return task
