"""The seed's log: a line with the rate, a bar over the batches, a line for the test set."""

import contextlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import ignite.distributed as idist
from ignite.base.mixins import Serializable
from ignite.engine import Engine, Events
from torch.optim import Optimizer
from tqdm.auto import tqdm
from typing_extensions import Self

from ultimus_ignite.handlers.outputs import read_output, read_outputs

BAR_INTERVAL = 0.1  # seconds between two redraws of a bar: tqdm's own mininterval
LINE_INTERVAL = 30.0  # seconds between two plain lines where there is no terminal


class BatchLogger(Serializable):
    """Logs training batch by batch, in the seed's words::

        EPOCH: 1 (LR: 1.856635533445111e-05)
        Batch_id=97 Loss=2.62711 Accuracy=15.57%: 100%|██████████| 98/98 [00:20<00:00,  4.84it/s]

        Test set: Average loss: 2.0312, Accuracy: 2345/10000 (23.45%)

    Loss and accuracy are means over the samples of the epoch so far. The outputs stay on the
    device until the bar is drawn, so that no iteration waits for the device. In a terminal
    or a notebook there is one bar; elsewhere the bar's text is a plain line, every 30 s and at the
    end of each epoch. Only rank 0 writes. A reader that goes away (``| head``) does not end
    the run.

    =======================  ==============
    Event                    Method
    =======================  ==============
    ``STARTED``              `open`
    ``ITERATION_COMPLETED``  `update`
    ``EPOCH_COMPLETED``      `close_epoch`
    ``COMPLETED``            `close`
    evaluator's ``COMPLETED``  `report`
    =======================  ==============

    Args:
        optimizer: where the epoch's rate is read from; the first line leaves it out when None.
        file: stream to write to; the standard output when None.
        log_path: file to which the plain lines are also appended.
        output_transform: turns ``engine.state.output`` into a mapping with ``loss`` (mean over the
            batch) and, where known, ``correct`` and ``count``; a bare loss will do.

    Example:
        >>> trainer = Engine(lambda engine, batch: {"loss": 2.0, "correct": 1, "count": 4})
        >>> _ = BatchLogger(log_path=None).attach(trainer)
        >>> _ = trainer.run(range(3), max_epochs=1)  # doctest: +ELLIPSIS
        EPOCH: 1
        Batch_id=2 Loss=2.00000 Accuracy=25.00%: 100%|██████████| 3/3 [00:00<00:00, ...it/s]
    """

    _loss: float  # sum over the samples that were read
    _correct: Any  # a sum, too; None where it is not known
    _samples: int
    _batches: int
    _unread: list[tuple[Any, Any, int]]  # (loss, correct, count) since the last reading
    _epoch_is_open: bool
    _state_dict_all_req_keys = ("rate", "loss", "correct", "samples", "batches")

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        *,
        file: TextIO | None = None,
        log_path: Path | str | None = None,
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self.optimizer = optimizer
        self.output_transform = output_transform
        self._display = _Display(file, None if log_path is None else Path(log_path))
        self._rate: str | None = None  # of the epoch's first iteration
        self._reset()

    def attach(
        self, engine: Engine, evaluator: Engine | None = None, *, dataset: str = "Test set"
    ) -> Self:
        """Attach to a trainer and, for the line on a dataset, to the evaluator that measures it."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self.open)
            engine.add_event_handler(Events.ITERATION_COMPLETED, self.update)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.close_epoch)
            engine.add_event_handler(Events.COMPLETED, self.close)
            if evaluator is not None:
                evaluator.add_event_handler(Events.COMPLETED, self.report, dataset)
        return self

    def open(self, engine: Engine) -> None:
        """Forget the last run, unless this one goes on with it."""
        if engine.state.iteration == 0:
            self._reset()

    def update(self, engine: Engine) -> None:
        """Keep this iteration's output; read and draw when the last drawing is old enough."""
        if not self._epoch_is_open:
            self._open_epoch(engine)
        self._unread.append(read_output(self.output_transform(engine.state.output)))
        self._batches += 1
        if self._display.is_due():
            self._display.draw(self._batches, self._description())

    def close_epoch(self) -> None:
        """Leave the bar as it stands at the end of the epoch."""
        self.close()
        self._reset()

    def close(self) -> None:
        """End the bar; an epoch that is cut off keeps its sums, for a resumed run."""
        if self._epoch_is_open:
            self._display.end_bar(self._batches, self._description())
            self._epoch_is_open = False

    def report(self, evaluator: Engine, dataset: str = "Test set") -> None:
        """Write the dataset's line from the metrics ``loss``, ``accuracy`` and ``count``."""
        self.close()
        metrics = evaluator.state.metrics
        parts = []
        if "loss" in metrics:
            parts.append(f"Average loss: {metrics['loss']:.4f}")
        if "accuracy" in metrics:
            accuracy = f"{metrics['accuracy']:.2%}"
            if "count" in metrics:
                correct = round(metrics["accuracy"] * metrics["count"])
                accuracy = f"{correct}/{metrics['count']} ({accuracy})"
            parts.append(f"Accuracy: {accuracy}")
        self._display.line(f"\n{dataset}: {', '.join(parts)}\n")

    def write(self, text: str) -> None:
        """Write a line of one's own, to the same places."""
        self._display.line(text)

    def state_dict(self) -> OrderedDict[str, Any]:
        """The sums of the unfinished epoch, as plain numbers."""
        self._read()
        return OrderedDict(
            rate=self._rate,
            loss=self._loss,
            correct=self._correct,
            samples=self._samples,
            batches=self._batches,
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on with an epoch that was cut off."""
        super().load_state_dict(state_dict)
        self._rate, self._loss, self._correct, self._samples, self._batches = (
            state_dict[key] for key in self._state_dict_all_req_keys
        )

    def _reset(self) -> None:
        self._loss = self._correct = 0.0
        self._samples = self._batches = 0
        self._unread = []
        self._epoch_is_open = False

    def _open_epoch(self, engine: Engine) -> None:
        if self._batches == 0 and self.optimizer is not None:
            self._rate = repr(float(self.optimizer.param_groups[0]["lr"]))
        rate = "" if self._rate is None else f" (LR: {self._rate})"
        self._display.line(f"EPOCH: {engine.state.epoch}{rate}")
        self._display.start_bar(self._batches, engine.state.epoch_length)
        self._epoch_is_open = True

    def _read(self) -> None:
        losses, correct, counts = read_outputs(self._unread)
        # One after the other: the sum must not depend on when it was read.
        for loss, count in zip(losses, counts, strict=True):
            self._loss += loss * count
        if self._unread:
            self._correct = self._correct + sum(correct) if correct else None
        self._samples += sum(counts)
        self._unread = []

    def _description(self) -> str:
        self._read()
        text = f"Batch_id={self._batches - 1} Loss={self._loss / self._samples:.5f}"
        if self._correct is None:
            return text
        return f"{text} Accuracy={self._correct / self._samples:.2%}"


class _Display:
    """One bar in a terminal or notebook, plain lines elsewhere, and a copy of the lines on disk."""

    def __init__(self, file: TextIO | None, log_path: Path | None) -> None:
        self._file = file
        self._log_path = log_path
        self._bar: Any = None
        self._total: Any = None  # batches of the epoch, None where it is not known

    @property
    def file(self) -> TextIO | None:
        return self._file or sys.stdout  # None where the process was started without one

    def line(self, text: str) -> None:
        self._print(text)
        self._append(text)

    def start_bar(self, done: int, total: int | None) -> None:
        self._done, self._total = done, total
        self._started = time.monotonic()
        if _shows_bars(self.file):
            self._bar = tqdm(total=total, initial=done, file=self.file)
        self._interval = LINE_INTERVAL if self._bar is None else BAR_INTERVAL
        self._due = self._started + self._interval

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def draw(self, batches: int, description: str) -> None:
        if self._bar is None:
            self._print(self._meter(batches, description))
        else:
            self._bar.n = batches
            self._bar.set_description_str(description)  # redraws
        self._due = time.monotonic() + self._interval

    def end_bar(self, batches: int, description: str) -> None:
        text = self._meter(batches, description)
        if self._bar is None:
            self._print(text)
        else:
            self.draw(batches, description)
            self._bar.close()
            self._bar = None
        self._append(text)

    def _meter(self, batches: int, description: str) -> str:
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        meter: str = tqdm.format_meter(
            batches,
            self._total,
            time.monotonic() - self._started,
            initial=self._done,
            prefix=description,
            ascii=not encoding.lower().startswith("utf"),
        )
        return meter

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe must not end the training
            print(text, file=self.file, flush=True)

    def _append(self, text: str) -> None:
        if self._log_path is not None:
            # Nor must a full disk: what is written here stands in the history too.
            with contextlib.suppress(OSError), self._log_path.open("a", encoding="utf-8") as log:
                print(text, file=log)


def _shows_bars(file: TextIO | None) -> bool:
    if "ipykernel.zmqshell" in sys.modules:
        return True  # a notebook draws a widget
    try:
        return file is not None and file.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False
