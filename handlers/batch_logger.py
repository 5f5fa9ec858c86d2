"""The log of the original notebook: the rate, a bar over the batches, a line per evaluation."""

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import ignite.distributed as idist
from ignite.base.mixins import Serializable
from ignite.engine import Engine, Events
from torch import Tensor
from torch.optim import Optimizer
from typing_extensions import Self

from ultimus_ignite.handlers.support.attachable import Attachable
from ultimus_ignite.handlers.support.display import Display
from ultimus_ignite.handlers.support.means import Means
from ultimus_ignite.handlers.support.outputs import OutputReader, as_it_is, scalars


class BatchLogger(Attachable, Serializable):
    """Logs training batch by batch, in the format of the original notebook::

        EPOCH: 1 (LR: 1.856635533445111e-05)
        Batch_id=97 Loss=2.62711 Accuracy=15.57%: 100%|██████████| 98/98 [00:20<00:00,  4.84it/s]

        Test set: Average loss: 2.0312, Accuracy: 2345/10000 (23.45%)

    Loss and accuracy are means over the epoch's samples so far. Other numbers in the output, and
    other scalar metrics, follow under their own names. Outputs stay on the device until the bar is
    drawn, so no iteration waits for the device. A terminal or a notebook shows one bar, without
    what a narrow terminal has no room for; elsewhere, the bar's text is printed as a line, every
    30 s and after each epoch. A reader that exits (``| head``) does not end the run. Of several
    ranks only rank 0 writes, and what its own step returns: `History` has the numbers of all.

    =========================  ==========================
    Event                      Method
    =========================  ==========================
    ``STARTED``                `open`
    ``EPOCH_STARTED``          `begin_epoch`
    ``ITERATION_STARTED``      `note_rate`, once per epoch
    ``ITERATION_COMPLETED``    `update`
    ``EPOCH_COMPLETED``        `close_epoch`
    ``INTERRUPT``              `close`
    ``TERMINATE``              `close`
    ``COMPLETED``              `close`
    evaluator's ``COMPLETED``  `report`
    =========================  ==========================

    Args:
        optimizer: its rate is printed with each epoch; None: no rate.
        file: stream to write to; None: standard output.
        log_path: file to append the plain lines to.
        output_transform: turns ``engine.state.output`` into a loss or mapping, see `OutputReader`.

    Raises:
        TypeError: at the first iteration: the step's output holds no number.

    Example:
        >>> trainer = Engine(lambda engine, batch: {"loss": 2.0, "correct": 1, "count": 4})
        >>> _ = BatchLogger(log_path=None).attach(trainer)
        >>> _ = trainer.run(range(3), max_epochs=1)  # doctest: +ELLIPSIS
        EPOCH: 1
        Batch_id=2 Loss=2.00000 Accuracy=25.00%: 100%|██████████| 3/3 [00:00<00:00, ...it/s]
    """

    _state_dict_all_req_keys = ("epoch", "rate", "batches", "means")

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        file: TextIO | None = None,
        log_path: Path | str | None = None,
        output_transform: Callable[[Any], Any] = as_it_is,
    ) -> None:
        super().__init__()
        if optimizer is not None and not hasattr(optimizer, "param_groups"):
            raise TypeError(f"BatchLogger needs an optimizer, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self._read_output = OutputReader(self, output_transform)
        self._display = Display(file, None if log_path is None else Path(log_path))
        self._rate: str | None = None  # of the epoch's first iteration
        self._epoch_is_open = False
        self._reset()

    def _reset(self) -> None:
        self._means = Means(self)
        self._batches = 0
        self._epoch: int | None = None  # of the sums in _means

    def attach(
        self,
        engine: Engine,
        evaluator: Engine | Mapping[str, Engine] | None = None,
        *,
        dataset: str = "Test set",
    ) -> Self:
        """Attach to a trainer, and to the evaluators whose metrics are written.

        Args:
            engine: the trainer; or an evaluator, for a bar over its batches.
            evaluator: one evaluator, or several by the names of their data sets.
            dataset: the name of a single evaluator's data set.
        """
        if idist.get_rank() != 0:
            return self._attach(engine)
        self._attach(
            engine,
            (Events.STARTED, self.open),
            (Events.EPOCH_STARTED, self.begin_epoch),
            (Events.ITERATION_COMPLETED, self.update),
            (Events.EPOCH_COMPLETED, self.close_epoch),
            (Events.INTERRUPT, self.close),
            (Events.TERMINATE, self.close),  # COMPLETED may be skipped
            (Events.COMPLETED, self.close),
        )
        if isinstance(evaluator, Engine):
            evaluator = {dataset: evaluator}
        self._listen_to_each(evaluator or {}, self.report)
        return self

    def open(self, engine: Engine) -> None:
        """Forget the last run, unless this run resumes it."""
        self.close()  # an exception leaves the bar open
        if engine.state.iteration == 0:
            self._reset()

    def begin_epoch(self, engine: Engine) -> None:
        """Close an epoch that was cut off; then start the clock and wait for this epoch's rate."""
        if engine.state.epoch != self._epoch:
            if self._epoch is not None:
                self.close_epoch()
            self._epoch = engine.state.epoch
        self._display.start_clock()
        if self._batches == 0 and self.optimizer is not None:
            self._at_next(engine, Events.ITERATION_STARTED, self.note_rate)  # after any scheduler

    def note_rate(self, engine: Engine) -> None:
        """Note the rate of the epoch's first iteration."""
        assert self.optimizer is not None
        self._rate = repr(float(self.optimizer.param_groups[0]["lr"]))

    def update(self, engine: Engine) -> None:
        """Keep this iteration's output; redraw the bar if the interval has passed."""
        if not _is_of_an_evaluator(engine.state.output):
            self._means.add(*self._read_output(engine))
        if not self._epoch_is_open:
            if self._means.iterations:
                rate = "" if self._rate is None else f" (LR: {self._rate})"
                self._display.line(f"EPOCH: {engine.state.epoch}{rate}")
            self._display.start_bar(self._batches, engine.state.epoch_length)
            self._epoch_is_open = True
        self._batches += 1
        if self._display.is_due():
            self._display.draw(self._batches, self._numbers())

    def close_epoch(self) -> None:
        """Finish the bar at the end of an epoch."""
        self.close()
        self._reset()

    def close(self) -> None:
        """Finish the bar; keep the sums of an unfinished epoch for a resumed run."""
        if self._epoch_is_open:
            self._display.end_bar(self._batches, self._numbers())
            self._epoch_is_open = False

    def report(self, evaluator: Engine, dataset: str = "Test set") -> None:
        """Write a line with the evaluator's scalar metrics, on rank 0."""
        self.close()
        metrics = scalars(evaluator.state.metrics)
        count = metrics.pop("count", None)
        parts = []
        if "loss" in metrics:
            parts.append(f"Average loss: {metrics.pop('loss'):.4f}")
        if metrics.get("accuracy", math.inf) <= 1:  # above 1 it is not a fraction
            accuracy = metrics.pop("accuracy")
            share = f"{accuracy:.2%}"
            if count is not None:
                share = f"{round(accuracy * count)}/{count} ({share})"
            parts.append(f"Accuracy: {share}")
        parts += [f"{name}: {value:.4f}" for name, value in metrics.items()]
        self.write(f"\n{dataset}: {', '.join(parts) or 'no scalar metric'}\n")

    def write(self, text: str) -> None:
        """Write a line of your own to the stream and the log file, on rank 0."""
        if idist.get_rank() == 0:
            self._display.line(text)

    def state_dict(self) -> OrderedDict[str, Any]:
        """The sums of the unfinished epoch, as plain numbers."""
        means = self._means.state_dict()
        return OrderedDict(epoch=self._epoch, rate=self._rate, batches=self._batches, means=means)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue an unfinished epoch."""
        if "loss" in state_dict:  # written by version 0.1.0
            state_dict = _of_first_version(state_dict)
        super().load_state_dict(state_dict)
        self._epoch, self._rate = state_dict["epoch"], state_dict["rate"]
        self._batches = state_dict["batches"]
        self._means = Means(self, state_dict["means"])

    def _numbers(self) -> list[str]:
        """What stands before the bar, in the order of the notebook."""
        self._means.read()
        means = self._means.values()
        parts = [f"Batch_id={self._batches - 1}"]
        if "loss" in means:
            parts.append(f"Loss={means.pop('loss'):.5f}")
        if means.get("accuracy", math.inf) <= 1:  # above 1 it is not a fraction
            parts.append(f"Accuracy={means.pop('accuracy'):.2%}")
        return [*parts, *(f"{name}={value:.5f}" for name, value in means.items())]


def _is_of_an_evaluator(output: Any) -> bool:
    """Whether the output is predictions and labels for metrics, with no number to show."""
    if isinstance(output, Mapping):
        output = tuple(output.get(name) for name in ("y_pred", "y"))
    return (
        isinstance(output, tuple)
        and len(output) > 1
        and all(isinstance(part, Tensor) and part.ndim for part in output[:2])
        and output[0].numel() > 1
    )


def _of_first_version(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state that version 0.1.0 wrote."""
    samples, batches = state["samples"], state["batches"]
    hits = (0, 0, 0) if state["correct"] is None else (state["correct"], samples, batches)
    sums = {"loss": (state["loss"], samples)} if batches else {}
    means = {"iterations": batches, "empty": 0, "sums": sums, "hits": hits}
    return {"epoch": None, "rate": state["rate"], "batches": batches, "means": means}
