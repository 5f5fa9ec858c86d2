"""Ends a run before its last epoch: when it gets no better, or when its time is up."""

import math
from collections.abc import Callable
from typing import Literal

from ignite.engine import Engine, Events
from typing_extensions import Self

from ultimus_ignite.handlers.history import History
from ultimus_ignite.handlers.support.attachable import Attachable
from ultimus_ignite.handlers.support.history_csv import Row
from ultimus_ignite.handlers.support.ranks import Peers, of_first_rank


class EarlyEnd(Attachable):
    """Terminates a run after an epoch, on all ranks, by the rows of a `History`.

    It has no state: a run that is resumed with its history ends where the unbroken run ends, also
    if it was killed just after the decision. Ignite's ``TimeLimit`` counts from the start of the
    process, and its ``EarlyStopping.attach`` forgets on ``STARTED`` what a resumed run has loaded.

    ===================  =======
    Event                Method
    ===================  =======
    ``STARTED``          `begin`
    ``EPOCH_COMPLETED``  `check`
    ===================  =======

    Args:
        history: attached to the same trainer, and to the evaluator whose metric is the score.
        patience: end after this many epochs in a row without a better score, at least 1.
        max_hours: hours of training, over all resumes. The run ends after the last epoch that
            fits if each takes as long as the longest so far, but not before the first.
        score_function: score of a row of the history, the higher the better; None: the accuracy
            that the evaluator measured. A row without a score is no better one.

    Raises:
        ValueError: ``patience`` or ``max_hours`` is out of range; at the end of the patience: no
            row has a score.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> trainer = Engine(lambda engine, batch: abs(engine.state.epoch - 3))
        >>> history = History(optimizer).attach(trainer)
        >>> score = lambda row: -row["train_loss"]
        >>> _ = EarlyEnd(history, patience=2, score_function=score).attach(trainer)
        >>> trainer.run(range(4), max_epochs=100).epoch
        5
    """

    def __init__(
        self,
        history: History,
        *,
        patience: int | None = None,
        max_hours: float | None = None,
        score_function: Callable[[Row], float | None] | None = None,
    ) -> None:
        super().__init__()
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be at least 1 epoch, got {patience}")
        if max_hours is not None and not max_hours > 0:
            raise ValueError(f"max_hours must be positive, got {max_hours}")
        self.history = history
        self.patience = patience
        self.max_hours = max_hours
        self.score_function = score_function or self._accuracy

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer."""
        return self._attach(
            engine,
            (Events.STARTED, self._go_last, Events.EPOCH_COMPLETED),  # after the epoch's evaluation
            (Events.STARTED, self.begin),
            (Events.EPOCH_COMPLETED, self.check),
        )

    def begin(self, engine: Engine) -> None:
        """Terminate a resumed run that was over."""
        self._peers = Peers(self)
        self.check(engine)

    def check(self, engine: Engine) -> None:
        """Terminate the run if it must end here, unless its last epoch is done."""
        if engine.state.epoch == engine.state.max_epochs or not self.history.rows:
            return
        ends = self.reason(engine.state.iteration) is not None
        self._peers.require()
        if of_first_rank(ends):  # each rank has its own clock, and all must end here or none
            engine.terminate()

    def reason(self, iteration: int) -> Literal["patience", "max_hours"] | None:
        """Why a run must end at this iteration; None: it need not, or is in mid-epoch."""
        rows = self.history.rows
        if not rows or rows[-1]["iteration"] != iteration:
            return None
        if self.patience is not None and self._epochs_since_the_best() >= self.patience:
            return "patience"
        seconds = [row["seconds"] or 0.0 for row in rows]
        if self.max_hours is not None and sum(seconds) + max(seconds) > 3600 * self.max_hours:
            return "max_hours"
        return None

    def _epochs_since_the_best(self) -> int:
        since, best = 0, -math.inf
        for row in self.history.rows:
            score = self.score_function(row)
            since += 1
            if score is not None and score > best:  # never true of NaN
                since, best = 0, score
        if best == -math.inf and since == self.patience:
            raise ValueError(
                f"EarlyEnd: no score in {since} epochs: attach History to the evaluator, or give "
                "EarlyEnd another score_function"
            )
        return since

    def _accuracy(self, row: Row) -> float | None:
        return row.get(f"{self.history.evaluated}_accuracy")
