import csv
import math
import os
import sys
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from ultimus_ignite.handlers import LRCurve
from ultimus_ignite.handlers.support.figures import (
    draw_confusion,
    draw_curves,
    draw_lr_curves,
    draw_panels,
    format_rates,
    save_figure,
    save_lr_curves,
    to_svg,
)
from ultimus_ignite.handlers.support.lr_curve import write_lr_curves

RATES = np.geomspace(1e-6, 10.0, 141).tolist()  # 20 a decade


def row(epoch, **values):
    return {
        "epoch": epoch, "iteration": 3 * epoch, "lr": 0.1 / epoch, "seconds": 1.0,
        "train_loss": 2.0 / epoch, "train_accuracy": 0.1 * epoch,
        "test_loss": 2.5 / epoch, "test_accuracy": 0.12 * epoch, **values,
    }  # fmt: skip


def curve(losses):
    made = LRCurve()
    for rate, loss in zip(RATES, losses, strict=False):
        made.add(rate, float(loss))
    return made


def bowl(centre, count=141):
    return [2.0 + 0.1 * math.log10(rate / centre) ** 2 for rate in RATES[:count]]


FALLING = [3.0 - (i / 100) ** 2 for i in range(100)]  # faster and faster


def test_each_panel_draws_its_column():
    rows = [row(1), row(2), row(3)]
    axes = draw_curves(rows, [0.1, 0.2]).axes
    columns = ("train_loss", "test_loss", "train_accuracy", "test_accuracy")
    for panel, column in zip(axes[:4], columns, strict=True):
        assert panel.lines[0].get_xdata().tolist() == [1, 2, 3]
        assert panel.lines[0].get_ydata().tolist() == [r[column] for r in rows]
    assert axes[4].lines[0].get_xydata().tolist() == [[1, 0.1], [2, 0.2]]
    assert axes[0].get_position().x0 == axes[2].get_position().x0  # train loss over train accuracy


def test_without_rates_each_epochs_first_is_drawn():
    (line,) = draw_curves([row(1), row(2)]).axes[4].lines
    assert line.get_xydata().tolist() == [[1, 0.1], [2, 0.05]]


def test_a_column_that_was_not_measured_says_so():
    axes = draw_curves([row(1, test_loss=None)]).axes[1]
    assert not axes.lines
    (text,) = axes.texts
    assert text.get_text() == "not measured"
    assert text.get_transform() == axes.transAxes
    assert text.get_position() == (0.5, 0.5)  # the middle


def test_validation_has_panels_of_its_own():
    rows = [
        {name.replace("test_", "val_"): value for name, value in row(epoch).items()}
        for epoch in (1, 2)
    ]
    axes = draw_curves(rows).axes
    assert [panel.get_title(loc="left") for panel in axes[:4]] == [
        "Training loss", "Validation loss", "Training accuracy", "Validation accuracy",
    ]  # fmt: skip
    assert axes[3].lines[0].get_ydata().tolist() == [0.12, 0.24]


def test_the_picture_shows_losses_means_and_every_rule():
    made = curve([*bowl(1e-3, 120), math.nan])
    axes = draw_lr_curves([made], title="a test").axes[0]
    assert (axes.get_title(), axes.get_xscale()) == ("a test", "log")
    raw, mean = axes.lines[:2]
    assert raw.get_xdata().tolist() == mean.get_xdata().tolist() == made.rates
    assert raw.get_ydata().tolist() == made.losses
    assert mean.get_ydata().tolist() == made.smoothed
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    marks = {**made.suggestions(), "diverged": RATES[120]}
    assert texts == [f"{name}: {format_rates([rate])}" for name, rate in marks.items()]
    places = [line.get_xdata()[0] for line in axes.lines[2:] if len(line.get_xdata()) == 2]
    assert places == [rate for rate in marks.values() if rate is not None]


def test_an_explosion_does_not_flatten_the_picture():
    made = curve([*bowl(1e-3, 100), 40.0])
    assert made.losses[-1] == 40.0
    low, high = draw_lr_curves([made]).axes[0].get_ylim()
    assert low == min(made.losses)
    assert max(bowl(1e-3, 100)) < high < 10


def test_repeats_share_a_picture_and_a_table(tmp_path):
    curves = [curve(bowl(1e-3)), curve([*FALLING, math.nan])]
    save_lr_curves(curves, tmp_path / "new" / "folder", title="two")
    folder = tmp_path / "new" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == ["lr_finder.csv", "lr_finder.png"]
    with Image.open(folder / "lr_finder.png") as picture:
        assert picture.size == (1080, 600)
        assert len(picture.convert("L").getcolors()) > 10  # not blank
    with (folder / "lr_finder.csv").open() as file:
        rows = list(csv.DictReader(file))
    for number, made in enumerate(curves, start=1):
        own = [row for row in rows if row["repeat"] == str(number)]
        assert [int(row["iteration"]) for row in own] == list(range(1, len(made.rates) + 1))
        for column, values in (
            ("lr", made.rates), ("loss", made.losses), ("smoothed_loss", made.smoothed)
        ):  # fmt: skip
            assert [float(row[column]) for row in own] == values


def test_a_confusion_matrix_shows_names_and_counts_in_their_places():
    confusion = np.array([[5, 1, 0], [2, 3, 4], [0, 0, 0]])  # none is of the last class
    axes = draw_confusion(confusion, ["cat", "$\\frac$", "<b>"]).axes[0]
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["cat", "$\\frac$", "<b>"]
    shown = {(text.get_position()[::-1]): text.get_text() for text in axes.texts}
    assert shown == {place: str(count) for place, count in np.ndenumerate(confusion)}
    shares = [[5 / 6, 1 / 6, 0], [2 / 9, 3 / 9, 4 / 9], [0, 0, 0]]
    np.testing.assert_allclose(axes.images[0].get_array(), shares)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted class", "true class")


@pytest.mark.parametrize(("count", "names", "numbers"), [(1, 1, 1), (26, 26, 0), (100, 0, 0)])
def test_many_classes_leave_no_room_for_names(tmp_path, count, names, numbers):
    classes = [f"$\\frac {number}$" for number in range(count)]  # as mathematics it is an error
    figure = draw_confusion(np.eye(count, dtype=np.int64), classes)
    save_figure(figure, tmp_path / "confusion.png")
    axes = figure.axes[0]
    shown = [label.get_text() for label in axes.get_xticklabels()]
    assert len(set(shown) & set(classes)) == names
    assert len(axes.texts) == numbers


def test_a_write_that_fails_leaves_the_old_files(tmp_path, monkeypatch):
    save_lr_curves([curve(bowl(1e-3))], tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", lambda number: 1 / 0)
    made = curve(bowl(1e-2))
    with pytest.raises(ZeroDivisionError):
        save_figure(draw_lr_curves([made]), tmp_path / "lr_finder.png")
    with pytest.raises(ZeroDivisionError):
        write_lr_curves([made], tmp_path / "lr_finder.csv")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_pyplot_is_never_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    draw_lr_curves([curve(bowl(1e-3))])
    assert "matplotlib.pyplot" not in sys.modules


def test_the_panels_of_several_runs_have_a_line_for_each_that_measured():
    rows = [row(1), row(2)]
    runs = [rows, [row(1, f1=0.5)], [{k: v for k, v in row(1).items() if "test" not in k}]]
    figures = draw_panels(runs)
    drawn = {title: [line.get_ydata().tolist() for line in figure.axes[0].lines]
             for title, figure in figures.items()}  # fmt: skip
    assert drawn["Test loss"] == [[r["test_loss"] for r in run] for run in runs[:2]]
    assert drawn["Learning rate"] == [[r["lr"] for r in run] for run in runs]
    assert drawn["f1"] == [[0.5]]
    styles = {(line.get_color(), line.get_linestyle())
              for line in figures["Training loss"].axes[0].lines}  # fmt: skip
    assert len(styles) == 3


def test_an_svg_takes_the_colours_of_its_page():
    name = "a <b> 'c' \"d\" & e"
    svg = to_svg(draw_panels([[row(1), row(2)]])["Test loss"], name)
    root = ElementTree.fromstring(svg)
    assert root.get("aria-label") == name
    assert "epoch" in ["".join(text.itertext()) for text in root.iter() if "text" in text.tag]
    assert "#000000" not in svg
    assert "stroke: var(--line-0, #1f77b4)" in svg
    assert "http" not in svg.replace("http://www.w3.org/", "")  # names of its own format
