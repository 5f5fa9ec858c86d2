"""The numbers of a run: one row an epoch, three values an iteration."""

import csv
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from ignite.base.mixins import Serializable
from ignite.engine import Engine, Events
from torch.optim import Optimizer
from typing_extensions import Self

from ultimus_ignite.handlers.outputs import read_output, read_outputs

SPLITS = ("test", "val")
Row = dict[str, float | None]
_NUMBER = {"epoch": int, "iteration": int}  # the others are floats


class History(Serializable):
    """Keeps what a run measured, and writes ``history.csv`` after each epoch.

    Losses are means over samples, accuracies fractions in [0, 1], ``lr`` is the rate of the
    epoch's first iteration, ``seconds`` the epoch's wall time up to its row. The outputs of an
    epoch's iterations stay where they are, on the device, and are read in one transfer at its end.

    =======================  ===========
    Event                    Method
    =======================  ===========
    ``STARTED``              `reset`
    ``EPOCH_STARTED``        `start`
    ``ITERATION_STARTED``    `note_rate`
    ``ITERATION_COMPLETED``  `update`
    evaluator's ``COMPLETED``  `note_test`
    ``EPOCH_COMPLETED``      `record`
    =======================  ===========

    Attach it after the scheduler and after the handler that runs the evaluator.

    Args:
        optimizer: the rate is read from its first parameter group.
        path: where to write the rows after each epoch; not written when left out.
        evaluated: ``test`` or ``val``: what the evaluator measures, and how the columns of
            ``history.csv`` are called.
        output_transform: turns ``engine.state.output`` into a mapping with ``loss`` (mean over the
            batch) and, where known, ``correct`` and ``count``; a bare loss will do.

    Raises:
        ValueError: ``evaluated`` is none of the two.

    Attributes:
        rows: one dict an epoch, keyed by the columns of ``history.csv``; None where not measured.
        rates: learning rate of every iteration.
        losses: training loss of every iteration of the completed epochs.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> trainer = Engine(lambda engine, batch: {"loss": 2.0, "correct": 1, "count": 4})
        >>> history = History(optimizer).attach(trainer)
        >>> _ = trainer.run(range(5), max_epochs=2)
        >>> history.rows[-1]["epoch"], history.rows[-1]["train_accuracy"]
        (2, 0.25)
    """

    rows: list[Row]
    rates: list[float]
    losses: list[float]
    _outputs: list[tuple[Any, Any, int]]  # (loss, correct, count) of this epoch's iterations
    _test: dict[str, float]  # of the evaluation since the last row
    _clock: float
    _seconds: float  # of this epoch, spent before the run was last resumed
    _state_dict_all_req_keys = ("rows", "rates", "losses", "unfinished", "seconds")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        path: Path | str | None = None,
        evaluated: Literal["test", "val"] = "test",
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self.optimizer = optimizer
        self.path = None if path is None else Path(path)
        self.output_transform = output_transform
        if evaluated not in SPLITS:
            raise ValueError(f"evaluated must be test or val, got {evaluated!r}")
        self.evaluated = evaluated
        self._clear()

    def attach(self, engine: Engine, evaluator: Engine | None = None) -> Self:
        """Attach to a trainer and, where there is one, to the evaluator it runs."""
        engine.add_event_handler(Events.STARTED, self.reset)
        engine.add_event_handler(Events.EPOCH_STARTED, self.start)
        engine.add_event_handler(Events.ITERATION_STARTED, self.note_rate)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.record)
        if evaluator is not None:
            evaluator.add_event_handler(Events.COMPLETED, self.note_test)
        return self

    def reset(self, engine: Engine) -> None:
        """Forget the last run, unless this one goes on with it."""
        if engine.state.iteration == 0:
            self._clear()

    def start(self) -> None:
        """Start the epoch's clock."""
        self._clock = time.monotonic()

    def note_rate(self) -> None:
        """Keep the rate that this iteration is about to use."""
        self.rates.append(float(self.optimizer.param_groups[0]["lr"]))

    def update(self, engine: Engine) -> None:
        """Keep this iteration's output, without reading it."""
        self._outputs.append(read_output(self.output_transform(engine.state.output)))

    def note_test(self, evaluator: Engine) -> None:
        """Keep the metrics ``loss`` and ``accuracy`` of the evaluator that has just run."""
        metrics = evaluator.state.metrics
        self._test = {key: metrics[key] for key in ("loss", "accuracy") if key in metrics}

    def record(self, engine: Engine) -> None:
        """Close the epoch's row and write ``history.csv``."""
        losses, correct, counts = read_outputs(self._outputs)
        total = sum(counts)
        self.losses += losses
        self.rows.append(
            {
                "epoch": engine.state.epoch,
                "iteration": engine.state.iteration,
                "lr": self.rates[-len(losses)],
                "train_loss": sum(x * n for x, n in zip(losses, counts, strict=True)) / total,
                "train_accuracy": sum(correct) / total if correct else None,
                f"{self.evaluated}_loss": self._test.get("loss"),
                f"{self.evaluated}_accuracy": self._test.get("accuracy"),
                "seconds": self._elapsed(),
            }
        )
        self._outputs, self._test, self._seconds = [], {}, 0.0
        if self.path is not None:
            try:
                write_csv(self.rows, self.path)
            except OSError as error:  # the rows are kept, the next epoch writes them all
                warnings.warn(f"{self.path} not written: {error.strerror}", stacklevel=2)

    def state_dict(self) -> OrderedDict[str, Any]:
        """Everything measured so far, the unfinished epoch included, as plain numbers."""
        losses, correct, counts = read_outputs(self._outputs)
        return OrderedDict(
            rows=[dict(row) for row in self.rows],
            rates=torch.tensor(self.rates, dtype=torch.float64),
            losses=torch.tensor(self.losses, dtype=torch.float64),
            unfinished={"losses": losses, "correct": correct, "counts": counts},
            seconds=self._elapsed(),
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a history where it was left."""
        super().load_state_dict(state_dict)
        self.rows = [dict(row) for row in state_dict["rows"]]
        self.rates = state_dict["rates"].tolist()
        self.losses = state_dict["losses"].tolist()
        losses, correct, counts = state_dict["unfinished"].values()
        self._outputs = list(zip(losses, correct or [None] * len(losses), counts, strict=True))
        self._seconds = state_dict["seconds"]

    def _clear(self) -> None:
        self.rows, self.rates, self.losses = [], [], []
        self._outputs, self._test = [], {}
        self._clock, self._seconds = time.monotonic(), 0.0

    def _elapsed(self) -> float:
        return self._seconds + time.monotonic() - self._clock


def columns(evaluated: str = "test") -> tuple[str, ...]:
    """The columns of ``history.csv``."""
    measured = ("train_loss", "train_accuracy", f"{evaluated}_loss", f"{evaluated}_accuracy")
    return ("epoch", "iteration", "lr", *measured, "seconds")


def write_csv(rows: list[Row], path: Path) -> None:
    """Write the rows so that a reader, or a kill, meets the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)  # floats are written with repr, None as nothing
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_csv(path: Path) -> list[Row]:
    """The rows of a ``history.csv``.

    Raises:
        ValueError: the file is not a history.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) not in map(columns, SPLITS):
            raise ValueError(
                f"{path} is not a history: its first line should be {','.join(columns('test'))}"
            )
        return [
            {key: _NUMBER.get(key, float)(value) if value else None for key, value in row.items()}
            for row in reader
        ]
