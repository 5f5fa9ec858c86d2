"""reinforce with Ignite's handlers: a bar, a line and a CSV row an episode, a resume."""

import csv

import torch
from ignite.engine import Events
from ignite.handlers import Checkpoint, DiskSaver, ProgressBar, TerminateOnNan
from ignite.metrics import Average

from ignite_examples import reinforce


def main(folder, file, crash_at=None):
    task = reinforce.build(crash_at)
    trainer = task.trainer
    trainer.add_event_handler(Events.ITERATION_COMPLETED, TerminateOnNan())
    for name in ("reward", "probability"):
        Average(output_transform=lambda output, name=name: output[name]).attach(trainer, name)
    bar = ProgressBar(file=file)
    bar.attach(trainer)
    table = folder / "history.csv"

    @trainer.on(Events.EPOCH_COMPLETED)
    def write_row(engine):
        state = engine.state
        bar.log_message(f"episode {state.epoch}: running reward {state.running_reward:.2f}")
        row = {
            "epoch": state.epoch,
            "iteration": state.iteration,
            "train_reward": state.metrics["reward"],
            "train_probability": state.metrics["probability"],
        }
        is_new = not table.exists()
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, row)
            if is_new:
                writer.writeheader()
            writer.writerow(row)

    # Ignite restores the epoch from the iteration, which says nothing where episodes end early.
    trainer.state_dict_user_keys.append("episode")
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda: setattr(trainer.state, "episode", trainer.state.epoch)
    )
    trainer.state.episode = 0
    to_save = {"trainer": trainer, "policy": task.policy, "optimizer": task.optimizer}
    saver = DiskSaver(folder / "checkpoints", require_empty=False)
    newest = Checkpoint(to_save, saver, n_saved=2)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, newest)
    paths = sorted(folder.glob("checkpoints/*.pt"), key=lambda path: path.stat().st_mtime_ns)
    if paths:
        saved = torch.load(paths[-1], weights_only=True)
        iteration, saved["trainer"]["iteration"] = saved["trainer"]["iteration"], 0
        Checkpoint.load_objects(to_save, saved)
        trainer.state.epoch, trainer.state.iteration = trainer.state.episode, iteration
        trainer._init_iter = 0
    trainer.run(task.timesteps, max_epochs=reinforce.EPISODES)
    return task
