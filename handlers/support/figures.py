"""All figures of the library, in the only file that imports matplotlib.

The import takes 0.4 s and waits until the first figure, as only the end of a run needs one.
"""

import io
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ultimus_ignite.handlers.support.files import replace_file
from ultimus_ignite.handlers.support.history_csv import BEGINNING, END, Row
from ultimus_ignite.handlers.support.lr_curve import LRCurve, write_lr_curves

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LINES = ("-", "--", "-.", ":")  # of the runs in one panel: colour alone does not tell them apart
SPLITS = {"train": "Training", "test": "Test", "val": "Validation"}


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, its size in inches, that needs no screen."""
    # Not from pyplot, whose figures are global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    """Write a PNG.

    Raises:
        OSError: the write failed; the file keeps its old picture.
    """
    png = io.BytesIO()
    # The bytes of `savefig`, which draws twice.
    figure.canvas.print_png(png)  # type: ignore[attr-defined]
    replace_file(path, png.getvalue())


def to_svg(figure: "Figure", name: str) -> str:
    """The figure as an ``<svg>`` element for an HTML page whose colours it takes.

    Text and axes have the colour of the text around, line i has ``var(--line-i)``, and the ground
    of a legend ``var(--page)``.

    Args:
        figure: as drawn by this module.
        name: read aloud instead of the picture.
    """
    from xml.sax.saxutils import quoteattr

    import matplotlib

    file = io.StringIO()
    # Equal figures give equal files; text stays text.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub("<metadata>.*?</metadata>|<title>.*?</title>", "", svg, flags=re.DOTALL)
    svg = re.sub('<g id="[^"]*">', "<g>", svg)  # the same in each figure of the page
    svg = svg.replace("#000000", "currentColor").replace("#ffffff", "var(--page, #ffffff)")
    for number, colour in enumerate(matplotlib.color_sequences["tab10"]):
        code = matplotlib.colors.to_hex(colour)
        svg = svg.replace(code, f"var(--line-{number}, {code})")
    return f"<svg role='img' aria-label={quoteattr(name)}{svg[svg.index('<svg') + 4 :]}"


def pixels(figure: "Figure") -> NDArray[np.uint8]:
    """The drawn figure, uint8 (H, W, 3)."""
    return np.asarray(figure.canvas.buffer_rgba())[..., :3]  # type: ignore[attr-defined]


def draw_curves(
    rows: Sequence[Row], rates: Sequence[float] = (), every: int = 1, *, title: str = ""
) -> "Figure":
    """Loss, accuracy and other measured numbers over the epochs, with the learning rate below.

    Args:
        rows: one dict per epoch, as in ``history.csv``.
        rates: learning rate of every iteration; default: of the first iteration of each epoch.
        every: number of iterations from one of the rates to the next.
        title: title of the figure.

    Example:
        >>> row = dict(epoch=1, iteration=3, lr=0.1, train_loss=1.0, train_accuracy=0.5,
        ...            test_loss=None, test_accuracy=None, seconds=1.0)
        >>> [axes.get_title(loc="left") for axes in draw_curves([row]).axes][:2]
        ['Training loss', 'Test loss']
    """
    panels = _panels(rows)
    height = math.ceil(len(panels) / 2)  # two panels per row
    figure = new_figure(9, 2 + 3 * height)
    figure.suptitle(title)
    grid = figure.add_gridspec(height + 1, 2, height_ratios=(*[1] * height, 0.6))
    epochs = _numbers(rows, "epoch")
    for index, (column, name) in enumerate(panels.items()):
        axes = figure.add_subplot(grid[divmod(index, 2)])
        axes.set_title(name, loc="left")
        _draw_panel(axes, epochs, _numbers(rows, column), column.endswith("accuracy"))
    axes = figure.add_subplot(grid[height, :])
    if rates:
        _draw_line(axes, "Learning rate", rates, every=every)
    else:
        _draw_line(axes, "Learning rate", _numbers(rows, "lr"), "epoch")
    return figure


def draw_panels(runs: Sequence[Sequence[Row]]) -> dict[str, "Figure"]:
    """The panels of `draw_curves` as figures of their own, each with one line per run.

    Args:
        runs: of each run its rows, as in ``history.csv``; run i has the i-th colour.

    Returns:
        The figures by their titles.

    Example:
        >>> rows = [dict(epoch=1, iteration=3, lr=0.1, train_loss=1.0, seconds=1.0)]
        >>> list(draw_panels([rows, rows]))
        ['Training loss', 'Learning rate']
    """
    names = {column: name for rows in runs for column, name in _panels(rows).items()}
    figures = {}
    for column, name in (names | {"lr": "Learning rate"}).items():
        figure = new_figure(4.2, 2.6)
        axes = figure.add_subplot()
        for number, rows in enumerate(runs):
            values = _numbers(rows, column)
            if not all(map(math.isnan, values)):
                line = {"color": f"C{number % 10}", "linestyle": LINES[number % len(LINES)]}
                epochs = _numbers(rows, "epoch")
                _draw_panel(axes, epochs, values, column.endswith("accuracy"), **line)
        if axes.lines:
            axes.set_title("", loc="right")  # the last value, of which there is one per run
            figures[name] = figure
    return figures


def draw_schedule(rates: Sequence[float], momenta: Sequence[float]) -> "Figure":
    """The learning rate and the momentum of every iteration.

    Example:
        >>> [axes.get_title(loc="left") for axes in draw_schedule([0.1, 0.2], [0.9, 0.9]).axes]
        ['Learning rate', 'Momentum']
    """
    figure = new_figure(9, 3)
    left, right = figure.subplots(1, 2)
    _draw_line(left, "Learning rate", rates)
    _draw_line(right, "Momentum", momenta)
    return figure


def draw_lr_curves(curves: Sequence[LRCurve], *, title: str = "") -> "Figure":
    """Loss against learning rate, with a line at each rule's rate and at the diverging rate.

    Args:
        curves: one per repeat.
        title: title of the figure.
    """
    figure = new_figure(9, 5)
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
    high = max(max(curve.smoothed[: curve.lowest + 1]) for curve in curves)
    if low < high:  # the descent gets half the height: an exploding loss would flatten it
        axes.set_ylim(low, 2 * high - low)
    axes.legend()
    return figure


def save_lr_curves(curves: Sequence[LRCurve], folder: Path | str, *, title: str = "") -> None:
    """Write ``lr_finder.png`` and ``lr_finder.csv``.

    Args:
        curves: one per repeat.
        folder: created if it is missing.
        title: title of the figure.

    Raises:
        OSError: a file could not be written.
    """
    folder = Path(folder)
    save_figure(draw_lr_curves(curves, title=title), folder / "lr_finder.png")
    write_lr_curves(curves, folder / "lr_finder.csv")


def draw_confusion(confusion: NDArray[np.int64], classes: Sequence[str]) -> "Figure":
    """How many images of each class are taken for which; the colour is the share of the row.

    Args:
        confusion: (C, C), the true classes in rows and the predicted ones in columns.
        classes: C names; more than 50 are not written, nor the numbers of more than 25 classes.

    Example:
        >>> figure = draw_confusion(np.array([[3, 1], [0, 4]]), ["cat", "dog"])
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['3', '1', '0', '4']
    """
    size = min(max(3 + 0.45 * len(classes), 5), 14)
    figure = new_figure(size, size)
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class")
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= 50:
        places = range(len(classes))
        axes.set_xticks(places, classes, rotation=90, parse_math=False)  # $ is a letter in a name
        axes.set_yticks(places, classes, parse_math=False)
    if len(classes) <= 25:
        for (row, column), count in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
    return figure


def format_rates(rates: Iterable[float | None]) -> str:
    """The range of the rates that several repeats gave, as text.

    Example:
        >>> format_rates([0.02, None, 0.01]), format_rates([0.02]), format_rates([None])
        ('0.01 to 0.02', '0.02', 'none')
    """
    found = [rate for rate in rates if rate is not None]
    if not found:
        return "none"
    low, high = f"{min(found):.4g}", f"{max(found):.4g}"
    return low if low == high else f"{low} to {high}"


def _panels(rows: Sequence[Row]) -> dict[str, str]:
    """The columns to draw, with their titles."""
    evaluated = "val" if rows and "val_loss" in rows[0] else "test"
    usual = {
        f"{split}_{measure}": f"{SPLITS[split]} {measure}"
        for measure in ("loss", "accuracy")
        for split in ("train", evaluated)
    }
    known = {*usual, *BEGINNING, *END}
    others = {c: c.replace("_", " ") for row in rows for c in row if c not in known}
    if not others:
        return usual
    measured = [c for c in usual if any(row.get(c) is not None for row in rows)]
    return {c: usual[c] for c in measured} | others


def _draw_panel(
    axes: "Axes", epochs: list[float], values: list[float], is_accuracy: bool, **line: Any
) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    points = [point for point in zip(epochs, values, strict=True) if not math.isnan(point[1])]
    if points:
        at, measured = zip(*points, strict=True)
        is_share = is_accuracy and 0 <= min(measured) <= max(measured) <= 1
        axes.plot(at, measured, marker=".", **line)
        axes.set_title(f"{measured[-1]:.2%}" if is_share else f"{measured[-1]:.4f}", loc="right")
        if is_share:
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")
    axes.grid(alpha=0.3)


def _draw_line(
    axes: "Axes", title: str, values: Sequence[float], unit: str = "iteration", every: int = 1
) -> None:
    axes.set_title(title, loc="left")
    at = range(1, 1 + every * len(values), every)
    axes.plot(at, values, marker="." if unit == "epoch" else "")
    axes.set_xlabel(unit)
    axes.grid(alpha=0.3)


def _numbers(rows: Sequence[Row], column: str) -> list[float]:
    values = (row.get(column) for row in rows)
    return [math.nan if value is None else value for value in values]
