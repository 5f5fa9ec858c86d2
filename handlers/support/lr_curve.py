"""The losses of a learning rate range test, and the rates that three rules read from them."""

import csv
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ultimus_ignite.handlers.support.history_csv import Row, write_csv

MEMORY = 0.95  # decay of the running mean of the loss: about the last 20 iterations
DIVERGED = 4.0  # multiple of the best smoothed loss
COLUMNS = ("repeat", "iteration", "lr", "loss", "smoothed_loss")


@dataclass
class LRCurve:
    """Loss against learning rate, and the rates that three rules read from it.

    Every rule reads the smoothed loss: the exponential moving mean with Adam's bias correction, so
    that the first losses are not overweighted. A rule whose answer is the first or last tested
    rate returns None, as the true answer may lie outside the tested range.

    Attributes:
        rates: rate of each step, rising.
        losses: loss of each step.
        smoothed: running mean of the losses.
        diverged_at: rate of the step whose loss was not finite, or raised the running mean above
            4 times its best; None if the test reached its end.

    Example:
        >>> curve = LRCurve()
        >>> for exponent in range(-8, 3):
        ...     curve.add(10.0**exponent, loss=2.0 - 1.0 / (1.0 + (exponent + 3) ** 2))
        >>> curve.suggestions()
        {'minimum': 0.01, 'steepest': 0.0001, 'valley': 1e-06}
        >>> curve.add(1000.0, loss=float("nan"))
        >>> curve.diverged_at
        1000.0
    """

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    diverged_at: float | None = None

    def add(self, rate: float, loss: float) -> None:
        """Add the next step; a diverged loss only sets ``diverged_at``."""
        last, best = (self.smoothed[-1], min(self.smoothed)) if self.smoothed else (loss, loss)
        weights = (1 - MEMORY ** (len(self.losses) + 1)) / (1 - MEMORY)  # 1 + 0.95 + 0.95^2 + ...
        smoothed = last + (loss - last) / weights
        # With a best loss below 0, no multiple of it is worse.
        if not math.isfinite(loss) or 0 < DIVERGED * best < smoothed:
            self.diverged_at = rate
        else:
            self.rates.append(rate)
            self.losses.append(loss)
            self.smoothed.append(smoothed)

    def suggestions(self) -> dict[str, float | None]:
        """The rate that each rule gives, or None."""
        return {"minimum": self.minimum(), "steepest": self.steepest(), "valley": self.valley()}

    @property
    def lowest(self) -> int:
        """Index of the lowest smoothed loss."""
        return int(np.argmin(self.smoothed))

    def minimum(self) -> float | None:
        """Rate at the lowest smoothed loss; None if it is the first or the last rate."""
        return self._inside(self.lowest)

    def steepest(self) -> float | None:
        """Rate where the smoothed loss falls fastest against log(rate), before its minimum.

        The first tenth of the steps counts as one: the mean of so few losses is still noisy.
        """
        count = len(self.rates)
        if count < 3:
            return None
        points = [0, *range(max(1, count // 10), count)]
        losses, logs = np.array(self.smoothed)[points], np.log(self.rates)[points]
        slopes = np.gradient(losses, logs)[: losses.argmin() + 1]
        return self._inside(points[slopes.argmin()])

    def valley(self) -> float | None:
        """Rate halfway down the longest descent; fastai's default rule.

        Take the longest decreasing subsequence of the smoothed loss. The answer is the middle of
        the second third of its length, counted back from its end. By ESRI; published as
        ``fastai.callback.schedule.valley``, https://docs.fast.ai/callback.schedule.html.
        """
        lasts: list[float] = []  # lasts[k]: the highest last loss of a descent of k + 1, negated
        length = end = 0
        for index, loss in enumerate(self.smoothed):
            place = bisect_left(lasts, -loss)
            lasts[place : place + 1] = [-loss]
            if place + 1 > length:
                length, end = place + 1, index
        # Rounded as in fastai, so that both give the same rate for the same losses.
        return self._inside(end - length + length // 3 + length // 6) if length > 2 else None

    def _inside(self, index: int) -> float | None:
        return self.rates[index] if 0 < index < len(self.rates) - 1 else None


def write_lr_curves(curves: Sequence[LRCurve], path: Path) -> None:
    """Write a CSV file with one row per step; ``curves`` has one curve per repeat."""
    rows: list[Row] = []
    for repeat, curve in enumerate(curves, start=1):
        for i, step in enumerate(zip(curve.rates, curve.losses, curve.smoothed, strict=True)):
            rows.append(dict(zip(COLUMNS, (repeat, i + 1, *step), strict=True)))
    write_csv(rows, path)


def read_lr_curves(path: Path) -> list[LRCurve]:
    """The curves of a file that `write_lr_curves` wrote; it does not tell where a test diverged.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file.

    Example:
        >>> import tempfile
        >>> curve = LRCurve()
        >>> curve.add(0.1, loss=2.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_lr_curves([curve, curve], Path(folder) / "lr_finder.csv")
        ...     read_lr_curves(Path(folder) / "lr_finder.csv") == [curve, curve]
        True
    """
    curves: dict[str, LRCurve] = {}
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if set(reader.fieldnames or ()) != set(COLUMNS):
            raise ValueError(f"{path} is not a range test: expected the columns {COLUMNS}")
        for row in reader:
            curve = curves.setdefault(row["repeat"], LRCurve())
            curve.rates.append(float(row["lr"]))
            curve.losses.append(float(row["loss"]))
            curve.smoothed.append(float(row["smoothed_loss"]))
    return list(curves.values())
