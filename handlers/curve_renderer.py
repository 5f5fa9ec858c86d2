"""The curves of a run, drawn at its end."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from typing_extensions import Self

from ultimus_ignite.handlers.attachable import Attachable
from ultimus_ignite.handlers.history import History
from ultimus_ignite.handlers.history_csv import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NO_RESULTS = ("epoch", "iteration", "lr", "seconds")
SETS = {"train": "Training", "test": "Test", "val": "Validation"}


class CurveRenderer(Attachable):
    """Draws a `History` at the end of a run, also of one that is interrupted.

    A picture that cannot be drawn or written is a warning, never the end of a run.

    =============  ==========================
    Event          Method
    =============  ==========================
    ``TERMINATE``  `render_without_completed`
    ``COMPLETED``  `render`
    =============  ==========================

    ``COMPLETED`` also follows ``terminate()``.

    Args:
        history: what is drawn.
        path: the PNG to write.
        title: stands above the panels.
        writer: a tensorboardX ``SummaryWriter`` that gets the same picture, under ``curves``.

    Example:
        >>> import tempfile, torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> trainer = Engine(lambda engine, batch: 1.0 / engine.state.iteration)
        >>> history = History(optimizer).attach(trainer)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = CurveRenderer(history, path=Path(folder) / "curves.png").attach(trainer)
        ...     _ = trainer.run(range(5), max_epochs=3)
        ...     [path.name for path in Path(folder).iterdir()]
        ['curves.png']
    """

    def __init__(
        self, history: History, *, path: Path | str, title: str = "", writer: Any = None
    ) -> None:
        super().__init__()
        self.history = history
        self.path = Path(path)
        self.title = title
        self.writer = writer

    def attach(self, engine: Engine) -> Self:
        """Attach to a trainer."""
        return self._attach(
            engine,
            (Events.STARTED, self._go_last),  # after an evaluation at the end of the run
            (Events.TERMINATE, self.render_without_completed),
            (Events.COMPLETED, self.render),
        )

    def render_without_completed(self, engine: Engine) -> None:
        """Draw where ``terminate(skip_completed=True)`` ends the run."""
        if engine.should_terminate == "skip_completed":
            self.render()

    def render(self) -> None:
        """Draw what the history holds, on rank 0."""
        if idist.get_rank() != 0:
            return
        try:
            figure = draw_curves(self.history.rows, self.history.rates, title=self.title)
            save_figure(figure, self.path)
            if self.writer is not None:
                import numpy as np

                pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]
                epoch = len(self.history.rows)
                self.writer.add_image("curves", pixels, epoch, dataformats="HWC")
        except Exception as error:  # whatever it is, the trained model is worth more
            warnings.warn(f"could not draw {self.path}: {error}", stacklevel=2)


def draw_curves(rows: Sequence[Row], rates: Sequence[float] = (), *, title: str = "") -> "Figure":
    """Loss and accuracy over the epochs, what else was measured, and the learning rate below.

    Args:
        rows: one dict an epoch, as in ``history.csv``.
        rates: learning rate of every iteration; where there is none, each epoch's first is drawn.
        title: stands above the panels.

    Example:
        >>> row = dict(epoch=1, iteration=3, lr=0.1, train_loss=1.0, train_accuracy=0.5,
        ...            test_loss=None, test_accuracy=None, seconds=1.0)
        >>> [axes.get_title(loc="left") for axes in draw_curves([row]).axes][:2]
        ['Training loss', 'Test loss']
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    panels = _panels(rows)
    height = math.ceil(len(panels) / 2)  # in rows of two
    figure = new_figure(9, 2 + 3 * height)
    figure.suptitle(title)
    grid = figure.add_gridspec(height + 1, 2, height_ratios=(*[1] * height, 0.6))
    epochs = _numbers(rows, "epoch")
    for index, (column, name) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[divmod(index, 2)])
        axes.set_title(name, loc="left")
        measured = [value for value in _numbers(rows, column) if not math.isnan(value)]
        if measured:
            last = measured[-1]
            is_share = column.endswith("accuracy") and 0 <= min(measured) <= max(measured) <= 1
            axes.plot(epochs, _numbers(rows, column), marker=".")
            axes.set_title(f"{last:.2%}" if is_share else f"{last:.4f}", loc="right")
            if is_share:
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))
        else:
            axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
    axes = figure.add_subplot(grid[height, :])
    if rates:
        _draw_rates(axes, rates)
    else:
        _draw_rates(axes, _numbers(rows, "lr"), "epoch")
    return figure


def _panels(rows: Sequence[Row]) -> dict[str, str]:
    """The columns to draw, with their titles: loss and accuracy of both sets, or what there is."""
    evaluated = "val" if rows and "val_loss" in rows[0] else "test"
    classic = {
        f"{split}_{measure}": f"{SETS[split]} {measure}"
        for measure in ("loss", "accuracy")
        for split in ("train", evaluated)
    }
    others = dict.fromkeys(c for row in rows for c in row if c not in {*classic, *NO_RESULTS})
    if not others:
        return classic
    measured = [c for c in classic if any(row.get(c) is not None for row in rows)]
    return {c: classic[c] for c in measured} | {c: c.replace("_", " ") for c in others}


def draw_schedule(rates: Sequence[float], momenta: Sequence[float]) -> "Figure":
    """The learning rate and the momentum of every iteration.

    Example:
        >>> [axes.get_title(loc="left") for axes in draw_schedule([0.1, 0.2], [0.9, 0.9]).axes]
        ['Learning rate', 'Momentum']
    """
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    _draw_rates(left, rates)
    right.set_title("Momentum", loc="left")
    right.plot(range(1, len(momenta) + 1), momenta)
    right.set_xlabel("iteration")
    right.grid(alpha=0.3)
    return figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, that knows how to draw itself."""
    # Imported here: 0.4 s that only the end of a run needs. Never pyplot: its figures are global.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_rates(axes: "Axes", rates: Sequence[float], unit: str = "iteration") -> None:
    axes.set_title("Learning rate", loc="left")
    axes.plot(range(1, len(rates) + 1), rates, marker="." if unit == "epoch" else "")
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3)


def _numbers(rows: Sequence[Row], column: str) -> list[float]:
    values = (row.get(column) for row in rows)
    return [math.nan if value is None else value for value in values]


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG so that a reader meets the old picture or the new one, never half of one."""
    temporary = path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(temporary, format="png")
    temporary.replace(path)
