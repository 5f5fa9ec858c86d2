"""The numbers of a run: one row per epoch, rate and loss per iteration."""

import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.base.mixins import Serializable
from ignite.engine import Engine, Events
from torch.optim import Optimizer
from typing_extensions import Self

from ultimus_ignite.handlers.support.attachable import Attachable
from ultimus_ignite.handlers.support.epoch_readings import EpochReadings
from ultimus_ignite.handlers.support.history_csv import Row, columns, rows_until, write_csv
from ultimus_ignite.handlers.support.outputs import OutputReader, as_it_is, scalars
from ultimus_ignite.handlers.support.ranks import Peers
from ultimus_ignite.handlers.support.thinned import Thinned


class History(Attachable, Serializable):
    """Collects the numbers of a run, and writes ``history.csv`` after each epoch.

    Each number in the step's output has a column with its mean over the epoch's samples, such as
    ``train_loss``; each scalar metric of an evaluator has one, such as ``test_loss``. Accuracies
    are fractions in [0, 1], ``lr`` is the rate of the epoch's first iteration, and ``seconds`` the
    epoch's wall time up to its row. An evaluation belongs to the epoch in which it ends, even if
    the row is already written. Outputs stay on the device and are read in one transfer per epoch.

    Of several ranks each needs one. Once an epoch they exchange their numbers, for means over the
    samples of all, unless the step has returned the same on all of them; the seconds are those of
    rank 0, which alone writes, and the metrics are the evaluator's. If a rank has no History, the
    numbers are this rank's, and a warning says so.

    =========================  ==============
    Event                      Method
    =========================  ==============
    ``STARTED``                `reset`
    ``EPOCH_STARTED``          `start`
    ``ITERATION_STARTED``      `note_rate`
    ``ITERATION_COMPLETED``    `update`
    evaluator's ``COMPLETED``  `note_metrics`
    ``EPOCH_COMPLETED``        `record`
    ``COMPLETED``              `record_rest`
    =========================  ==============

    Args:
        optimizer: the rate is read from its first parameter group.
        path: CSV file to write after each epoch; None: no file.
        evaluated: ``test`` or ``val``: the prefix of a single evaluator's columns.
        output_transform: turns ``engine.state.output`` into a loss or mapping, see `OutputReader`.

    Raises:
        ValueError: ``evaluated`` is neither ``test`` nor ``val``.
        TypeError: at the first iteration: the step's output holds no number.

    Attributes:
        rows: one dict per epoch, keyed by the columns of ``history.csv``; None: not measured.
        rates: learning rate of each iteration.
        losses: training loss of each iteration of the completed epochs; empty if the output has
            several numbers and none is called ``loss``.
        every: 1; in a run of more than 131,072 iterations, the number of iterations from one of the
            ``rates`` or ``losses`` to the next: they are thinned out, to keep checkpoints small.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> trainer = Engine(lambda engine, batch: {"loss": 2.0, "correct": 1, "count": 4})
        >>> history = History(optimizer).attach(trainer)
        >>> _ = trainer.run(range(5), max_epochs=2)
        >>> history.rows[-1]["epoch"], history.rows[-1]["train_accuracy"]
        (2, 0.25)
    """

    _state_dict_all_req_keys = ("rows", "rates", "losses", "unfinished", "seconds")

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        path: Path | str | None = None,
        evaluated: str = "test",
        output_transform: Callable[[Any], Any] = as_it_is,
    ) -> None:
        super().__init__()
        if not hasattr(optimizer, "param_groups"):
            raise TypeError(f"History needs an optimizer, got {type(optimizer).__name__}")
        if evaluated not in ("test", "val"):
            raise ValueError(f"evaluated must be test or val, got {evaluated!r}")
        self.optimizer = optimizer
        self.path = None if path is None else Path(path)
        self.evaluated = evaluated
        self._read_output = OutputReader(self, output_transform)
        self._columns = columns("train", evaluated)
        self._own = "train"  # prefix of the columns of the step's output
        self._gather: Callable[[Any], list[Any]] = lambda own: [own]  # what each rank gives
        self._clear()

    def _clear(self) -> None:
        self.rows: list[Row] = []
        self._rates, self._losses = Thinned(), Thinned()
        self._epoch: int | None = None  # of the readings
        self._iteration, self._rate = 0, 0.0
        self._clear_epoch()

    @property
    def rates(self) -> list[float]:
        return self._rates.values

    @property
    def losses(self) -> list[float]:
        return self._losses.values

    @property
    def every(self) -> int:
        return self._rates.every

    def _clear_epoch(self) -> None:
        self._readings = EpochReadings(self)
        self._pending: Row = {}  # metrics of this epoch's evaluations
        self._seconds = 0.0  # spent in this epoch before the run was last resumed
        self._clock = time.monotonic()

    def attach(
        self, engine: Engine, evaluator: Engine | Mapping[str, Engine] | None = None
    ) -> Self:
        """Attach to a trainer and to the evaluators it runs.

        Args:
            engine: the trainer.
            evaluator: one evaluator, whose columns begin with ``evaluated``; or several, by prefix.
                With a prefix ``train``, the columns of the step's output begin with ``running``.
        """
        self._attach(
            engine,
            (Events.STARTED, self._go_last, Events.ITERATION_STARTED),  # after any scheduler
            (Events.STARTED, self.reset),
            (Events.EPOCH_STARTED, self.start),
            (Events.ITERATION_STARTED, self.note_rate),
            (Events.ITERATION_COMPLETED, self.update),
            (Events.EPOCH_COMPLETED, self.record),
            (Events.COMPLETED, self.record_rest),
        )
        if isinstance(evaluator, Mapping):
            self._columns = columns("train")
            self._own = "running" if "train" in evaluator else "train"
        elif evaluator is not None:
            evaluator = {self.evaluated: evaluator}
        self._listen_to_each(evaluator or {}, self.note_metrics)
        return self

    def reset(self, engine: Engine) -> None:
        """Forget the last run, unless this run resumes it."""
        self._gather = Peers(self).gather
        if engine.state.iteration == 0:
            self._clear()
        elif self._epoch is None and not self.rows:
            self._keep_file(engine.state.iteration)

    def _keep_file(self, iteration: int) -> None:
        """Keep the rows of a file whose run goes on without its history."""
        if self.path is None:
            return
        self.rows = self._gather(rows_until(iteration, self.path))[0]  # rank 0 writes the file
        if self.rows and idist.get_rank() == 0:
            warnings.warn(
                f"History was not loaded, but the run goes on after iteration {iteration}: give it "
                f"to the Checkpointer's to_save; of {self.path} only whole epochs are kept",
                stacklevel=2,
            )

    def start(self, engine: Engine) -> None:
        """Start the epoch's clock; first write the row of an epoch that was cut off."""
        self._enter(engine.state.epoch)
        self._clock = time.monotonic()

    def note_rate(self) -> None:
        """Note the rate that this iteration will use."""
        self._rate = float(self.optimizer.param_groups[0]["lr"])

    def update(self, engine: Engine) -> None:
        """Keep this iteration's output on the device."""
        self._readings.add(*self._read_output(engine), rate=self._rate)
        self._rates.extend([self._rate])
        self._iteration = engine.state.iteration

    def note_metrics(self, evaluator: Engine, name: str) -> None:
        """Keep the scalar metrics of an evaluator that has just run."""
        if (trainer := self._running()) is not None:
            self._enter(trainer.state.epoch)
        if not self._epoch:
            return  # measured before the first epoch
        metrics = scalars(evaluator.state.metrics).items()
        measured = {f"{name}_{k}": v for k, v in metrics if k != "count"}  # not a result
        if not self.rows or self.rows[-1]["epoch"] != self._epoch:
            self._pending.update(measured)
            return
        row = self.rows[-1]
        if trainer is None:  # after the run, the evaluator may measure something else
            measured = {k: v for k, v in measured.items() if row.get(k) is None}
        row.update(measured)
        self._write()

    def record(self, engine: Engine) -> None:
        """Close the epoch's row and write ``history.csv``."""
        if self._readings.iterations:
            self._iteration = engine.state.iteration
            self._record()

    def record_rest(self, engine: Engine) -> None:
        """Close the row of an epoch without ``EPOCH_COMPLETED``, unless the run was cut off."""
        if not engine.should_terminate or engine.state.iteration == engine.state.max_iters:
            self.record(engine)

    def consolidate_state_dict(self) -> None:
        """Exchange the numbers of the unfinished epoch, before rank 0 saves; call it on each rank.

        `Checkpointer` does. Without it, the state has this rank's numbers of that epoch.
        """
        self._readings.read(self._gather)

    def state_dict(self) -> OrderedDict[str, Any]:
        """Everything measured so far, also in the unfinished epoch."""
        return OrderedDict(
            rows=[dict(row) for row in self.rows],
            rates=self._rates.state_dict(),
            losses=self._losses.state_dict(),
            unfinished={
                "epoch": self._epoch,
                "iteration": self._iteration,
                "metrics": dict(self._pending),
                **self._readings.state_dict(),
            },
            seconds=self._seconds + time.monotonic() - self._clock,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue a saved history."""
        super().load_state_dict(state_dict)
        self._clear()
        self.rows = [dict(row) for row in state_dict["rows"]]
        self._rates = Thinned(state=state_dict["rates"])
        self._losses = Thinned(state=state_dict["losses"])
        self._seconds = state_dict["seconds"]
        unfinished = state_dict["unfinished"]
        if "means" in unfinished:
            self._epoch, self._iteration = unfinished["epoch"], unfinished["iteration"]
            self._readings = EpochReadings(self, unfinished)
            self._pending = dict(unfinished["metrics"])
        else:  # written by version 0.1.0
            losses, correct, counts = unfinished.values()
            for loss, hits, count in zip(losses, correct or losses, counts, strict=True):
                values = {"loss": loss} | ({"correct": hits} if correct else {})
                self._readings.add(values, count, rate=0.0)
        if self._readings.iterations and "rate" not in unfinished:  # of an earlier version
            self._readings.first_rate = self.rates[-self._readings.iterations]

    def _enter(self, epoch: int) -> None:
        """Enter a later epoch; while a run resumes, the trainer still shows the epoch before."""
        if epoch > (self._epoch or 0):
            if self._readings.iterations and self._epoch is not None:
                self._record()
            self._pending = {}
            self._epoch = epoch

    def _record(self) -> None:
        self.consolidate_state_dict()
        self._losses.extend(self._readings.losses)
        seconds = self._seconds + time.monotonic() - self._clock
        row: Row = dict.fromkeys(self._columns)
        row["epoch"], row["iteration"] = self._epoch, self._iteration
        row["lr"] = self._readings.first_rate
        row["seconds"] = self._gather(seconds)[0]
        row.update({f"{self._own}_{k}": v for k, v in self._readings.means.values().items()})
        row.update(self._pending)
        self.rows.append(row)
        self._clear_epoch()
        self._write()

    def _write(self) -> None:
        if self.path is not None and idist.get_rank() == 0:
            try:
                write_csv(self.rows, self.path)
            except OSError as error:  # the next epoch writes all rows again
                warnings.warn(f"{self.path} not written: {error.strerror}", stacklevel=2)
