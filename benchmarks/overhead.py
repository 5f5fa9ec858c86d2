"""Claim: a full stack of handlers costs less than 100 us an iteration around a tiny step.

    pip install -e '.[benchmarks]'
    python benchmarks/overhead.py

Microseconds an iteration on one thread. Every contestant trains the same linear layer on the same
8 samples in memory, shows loss and accuracy in a bar, moves a one-cycle rate every iteration and,
the notebook's loop apart, saves a checkpoint every epoch. The bars are drawn, to a terminal that
shows nothing. "Over bare" is what is left after the step itself. Ignite with as many handlers as
ours has, each of which does nothing, is the limit: no handlers can be faster.

Median of interleaved rounds. Hardware, versions and results: docs/results.md.
"""

import argparse
import contextlib
import itertools
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from ignite.handlers import Checkpoint, DiskSaver, LRScheduler, ProgressBar, TerminateOnNan
from ignite.metrics import RunningAverage
from report import SilentTerminal, medians, print_environment, print_table
from torch import Tensor
from tqdm import tqdm

from ultimus_ignite.handlers import (
    BatchLogger,
    Checkpointer,
    History,
    NonFiniteGuard,
    OneCycleScheduler,
)

MAX_LR = 0.01
# In an iteration: the rate is set, noted by History; guard, log and history look at the output.
EVENTS_OF_OURS = [Events.ITERATION_STARTED] * 2 + [Events.ITERATION_COMPLETED] * 3


@dataclass
class Batches:
    """The same batch some times over, in an epoch. Lightning takes a list for several loaders."""

    batch: tuple[Tensor, Tensor]
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self.batch, self.length)


@dataclass
class Task:
    """What every contestant trains, anew in every round."""

    epochs: int
    epoch_length: int
    folder: Path  # for checkpoints
    terminal: SilentTerminal

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Linear(16, 10)
        self.optimizer = torch.optim.Adam(self.model.parameters(), fused=True)
        self.batches = Batches((torch.randn(8, 16), torch.arange(8)), self.epoch_length)

    def torch_schedule(self, optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=MAX_LR,
            total_steps=self.epochs * self.epoch_length,
            cycle_momentum=False,
        )

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        inputs, labels = batch
        logits = self.model(inputs)
        correct = (logits.detach().argmax(dim=1) == labels).sum()
        return {"loss": F.cross_entropy(logits, labels), "correct": correct, "count": len(labels)}

    def step(self, batch: tuple[Tensor, Tensor]) -> dict[str, Any]:
        self.optimizer.zero_grad()
        output = self.forward(batch)
        output["loss"].backward()
        self.optimizer.step()
        return output | {"loss": output["loss"].detach()}


def bare_torch(task: Task) -> None:
    for _ in range(task.epochs):
        for batch in task.batches:
            task.step(batch)


def notebook_loop(task: Task) -> None:
    schedule = task.torch_schedule(task.optimizer)
    for _ in range(task.epochs):
        correct = processed = 0
        bar = tqdm(task.batches, file=task.terminal)
        for batch_id, batch in enumerate(bar):
            output = task.step(batch)
            schedule.step()
            correct += output["correct"].item()
            processed += output["count"]
            bar.set_description(
                f"Batch_id={batch_id} Loss={output['loss'].item():.5f} "
                f"Accuracy={100 * correct / processed:.2f}%"
            )


def ignite_bare(task: Task) -> None:
    trainer = Engine(lambda engine, batch: task.step(batch))
    trainer.run(task.batches, max_epochs=task.epochs)


def ignite_empty(task: Task) -> None:
    trainer = Engine(lambda engine, batch: task.step(batch))
    for event in EVENTS_OF_OURS:
        trainer.add_event_handler(event, lambda engine: None)
    trainer.run(task.batches, max_epochs=task.epochs)


def ignite_stock(task: Task) -> None:
    trainer = Engine(lambda engine, batch: task.step(batch))
    schedule = LRScheduler(task.torch_schedule(task.optimizer))
    trainer.add_event_handler(Events.ITERATION_STARTED, schedule)
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, TerminateOnNan(lambda output: output["loss"])
    )
    loss = RunningAverage(output_transform=lambda output: output["loss"])
    loss.attach(trainer, "loss")
    accuracy = RunningAverage(output_transform=lambda output: output["correct"] / output["count"])
    accuracy.attach(trainer, "accuracy")
    ProgressBar(file=task.terminal).attach(trainer, ["loss", "accuracy"])
    to_save = {"trainer": trainer, "model": task.model, "optimizer": task.optimizer}
    saver = DiskSaver(str(task.folder), require_empty=False)
    checkpoint = Checkpoint(to_save, saver, n_saved=2, global_step_transform=_epoch)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, checkpoint)
    trainer.run(task.batches, max_epochs=task.epochs)


def _epoch(engine: Engine, event: Any) -> int:
    return engine.state.epoch


def lightning(task: Task) -> None:
    import lightning as L
    from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = task.model

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            output = task.forward(batch)
            accuracy = output["correct"] / output["count"]
            self.log_dict({"loss": output["loss"], "accuracy": accuracy}, prog_bar=True)
            return output["loss"]

        def configure_optimizers(self) -> Any:
            schedule = {"scheduler": task.torch_schedule(task.optimizer), "interval": "step"}
            return {"optimizer": task.optimizer, "lr_scheduler": schedule}

    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=task.epochs,
        logger=False,
        enable_model_summary=False,
        callbacks=[TQDMProgressBar(), ModelCheckpoint(task.folder)],
    )
    trainer.fit(Module(), task.batches)


def ultimus(task: Task) -> None:
    trainer = Engine(lambda engine, batch: task.step(batch))
    schedule = OneCycleScheduler(task.optimizer, max_lr=MAX_LR, cycle_momentum=False)
    logger = BatchLogger(task.optimizer, file=task.terminal)
    history = History(task.optimizer)
    to_save = {"trainer": trainer, "model": task.model, "optimizer": task.optimizer}
    to_save |= {"logger": logger, "history": history}
    checkpointer = Checkpointer(to_save, directory=task.folder)
    guard = NonFiniteGuard(task.optimizer)
    for handler in (schedule, guard, logger, history, checkpointer):
        handler.attach(trainer)
    trainer.run(task.batches, max_epochs=task.epochs)


CONTESTANTS = {
    "bare torch": bare_torch,
    "notebook's loop": notebook_loop,
    "Ignite, no handler": ignite_bare,
    "Ignite, handlers that do nothing": ignite_empty,
    "Ignite, its own handlers": ignite_stock,
    "Lightning": lightning,
    "ultimus-ignite": ultimus,
}


def microseconds(train: Callable[[Task], None], epochs: int, epoch_length: int) -> float:
    """Wall time of a whole run, an iteration."""
    terminal = SilentTerminal()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(terminal),
        contextlib.redirect_stderr(terminal),
    ):
        task = Task(epochs, epoch_length, Path(folder), terminal)
        start = time.perf_counter()
        train(task)
        return (time.perf_counter() - start) / (epochs * epoch_length) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--epoch-length", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    times = medians(
        {
            name: partial(microseconds, train, arguments.epochs, arguments.epoch_length)
            for name, train in CONTESTANTS.items()
        },
        rounds=arguments.rounds,
    )
    over = {name: time - times["bare torch"] for name, time in times.items()}
    ours = over["ultimus-ignite"]
    print_table(
        ["loop", "us an iteration", "over bare", "ratio to ours"],
        [
            [name, f"{times[name]:.0f}", f"{over[name]:+.0f}", f"{over[name] / ours:.2f}"]
            for name in times
        ],
    )
    print_environment("pytorch-ignite", "lightning", "ultimus-ignite")


if __name__ == "__main__":
    main()
