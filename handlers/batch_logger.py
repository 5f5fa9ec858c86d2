"""The seed's log: a line with the rate, a bar over the batches, a line for the test set."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

import ignite.distributed as idist
from ignite.base.mixins import Serializable
from ignite.engine import Engine, Events
from torch.optim import Optimizer
from typing_extensions import Self

from ultimus_ignite.handlers.display import Display
from ultimus_ignite.handlers.outputs import read_output, read_outputs


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
    _correct: Any  # a sum, too; None once an iteration of the epoch does not know it
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
        self._display = Display(file, None if log_path is None else Path(log_path))
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
        if self._unread and self._correct is not None:
            self._correct = self._correct + sum(correct) if correct else None
        self._samples += sum(counts)
        self._unread = []

    def _description(self) -> str:
        self._read()
        text = f"Batch_id={self._batches - 1} Loss={self._loss / self._samples:.5f}"
        if self._correct is None:
            return text
        return f"{text} Accuracy={self._correct / self._samples:.2%}"
