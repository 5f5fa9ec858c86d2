"""The curve of a range test: what each rule reads from it, its picture and its numbers."""

import csv
import math
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from ultimus_ignite.handlers.curve_renderer import save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEMORY = 0.95  # of the running mean of the loss: about the last 20 iterations
DIVERGED = 4.0  # times the best smoothed loss
COLUMNS = ("repeat", "iteration", "lr", "loss", "smoothed_loss")


@dataclass
class LRCurve:
    """Loss against learning rate, and the rates that three rules read from it.

    Every rule reads the smoothed loss: the exponential moving mean, divided by the sum of its
    weights as in Adam, so that the first losses count no more than their share. A rule that finds
    its answer at an edge of what was tested has none: the true place lies beyond.

    Attributes:
        rates: rate of each step, rising.
        losses: loss of each step.
        smoothed: running mean of the losses.
        diverged_at: rate of the step whose loss was not finite, or brought the running mean above
            4 times its best; None where the test went to its end.

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
        """Take one step up; a loss that has diverged is not kept."""
        last, best = (self.smoothed[-1], min(self.smoothed)) if self.smoothed else (loss, loss)
        weights = (1 - MEMORY ** (len(self.losses) + 1)) / (1 - MEMORY)  # 1 + 0.95 + 0.95^2 + ...
        smoothed = last + (loss - last) / weights
        # A best loss below 0 has no multiple that would be worse.
        if not math.isfinite(loss) or 0 < DIVERGED * best < smoothed:
            self.diverged_at = rate
        else:
            self.rates.append(rate)
            self.losses.append(loss)
            self.smoothed.append(smoothed)

    def suggestions(self) -> dict[str, float | None]:
        """The rate that each rule gives, None where it gives none."""
        return {"minimum": self.minimum(), "steepest": self.steepest(), "valley": self.valley()}

    def minimum(self) -> float | None:
        """Rate at the lowest smoothed loss.

        None where the loss never fell, or was still falling at the last rate.
        """
        return self._inside(_lowest(self.smoothed))

    def steepest(self) -> float | None:
        """Rate at which the smoothed loss falls fastest, per factor of the rate, on its way down.

        The first tenth counts as one step: the mean of so few losses is still rough.
        """
        count = len(self.rates)
        if count < 3:
            return None
        points = [0, *range(max(1, count // 10), count)]
        losses, logs = np.array(self.smoothed)[points], np.log(self.rates)[points]
        slopes = np.gradient(losses, logs)[: _lowest(losses) + 1]
        return self._inside(points[_lowest(slopes)])

    def valley(self) -> float | None:
        """Rate halfway down the longest descent; fastai's default rule.

        The longest decreasing subsequence of the smoothed loss, then the middle of the second
        third of its length, counted back from its end. By ESRI; published as
        ``fastai.callback.schedule.valley``, https://docs.fast.ai/callback.schedule.html.
        """
        lasts: list[float] = []  # lasts[k]: highest loss, negated, that ends a descent of k + 1
        length = end = 0
        for index, loss in enumerate(self.smoothed):
            place = bisect_left(lasts, -loss)
            lasts[place : place + 1] = [-loss]
            if place + 1 > length:
                length, end = place + 1, index
        # Rounded as published, so that both give the same rate on the same losses.
        return self._inside(end - length + length // 3 + length // 6) if length > 2 else None

    def _inside(self, index: int) -> float | None:
        return self.rates[index] if 0 < index < len(self.rates) - 1 else None


def save_lr_curves(curves: Sequence[LRCurve], folder: Path | str, *, title: str = "") -> None:
    """Write ``lr_finder.png`` and ``lr_finder.csv``, each whole or not at all.

    Args:
        curves: one a repeat.
        folder: made where needed.
        title: stands above the picture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(draw_lr_curves(curves, title=title), folder / "lr_finder.png")
    temporary = folder / "lr_finder.csv.tmp"
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for repeat, curve in enumerate(curves, start=1):
            for i, row in enumerate(zip(curve.rates, curve.losses, curve.smoothed, strict=True)):
                writer.writerow((repeat, i + 1, *row))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "lr_finder.csv")


def draw_lr_curves(curves: Sequence[LRCurve], *, title: str = "") -> "Figure":
    """The losses over the rate, with a line at each rule's rate and where the loss diverged.

    Args:
        curves: one a repeat.
        title: stands above the picture.
    """
    # Imported here, as for the curves of a run. Never pyplot: its figures are global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xscale="log", xlabel="learning rate", ylabel="loss", title=title)
    axes.grid(alpha=0.3)
    for curve in curves:
        axes.plot(curve.rates, curve.losses, color="0.7", linewidth=0.8)
        axes.plot(curve.rates, curve.smoothed, color="black")
    marks = [{**curve.suggestions(), "diverged": curve.diverged_at} for curve in curves]
    for number, name in enumerate(marks[0]):
        rates = [mark[name] for mark in marks]
        axes.plot([], [], color=f"C{number}", label=f"{name}: {format_rates(rates)}")
        for rate in rates:
            if rate is not None:
                axes.axvline(rate, color=f"C{number}")
    low = min(min(curve.losses) for curve in curves)
    high = max(max(curve.smoothed[: _lowest(curve.smoothed) + 1]) for curve in curves)
    if low < high:  # half the height for the way down, which an explosion would flatten
        axes.set_ylim(low, 2 * high - low)
    axes.legend()
    return figure


def format_rates(rates: Iterable[float | None]) -> str:
    """What several repeats gave, as text.

    Example:
        >>> format_rates([0.02, None, 0.01]), format_rates([0.02]), format_rates([None])
        ('0.01 to 0.02', '0.02', 'none')
    """
    found = [rate for rate in rates if rate is not None]
    if not found:
        return "none"
    low, high = f"{min(found):.4g}", f"{max(found):.4g}"
    return low if low == high else f"{low} to {high}"


def _lowest(values: ArrayLike) -> int:
    return int(np.argmin(values))
