"""`ultimus plot RUN`: redraw the curves of a run."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import isfile
from pathlib import Path

import tyro

from ultimus_ignite.commands.arguments import Arguments, expand, parse
from ultimus_ignite.errors import UserError
from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError, title_of


@dataclass(frozen=True, kw_only=True)
class PlotArguments(Arguments):
    """Redraw curves.png of a run from its history.csv."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Redraw the curves and print the path of the picture."""
    directory = RunDirectory(expand(parse(PlotArguments, prog, argv).run))
    if not isfile(directory.history):  # noqa: PTH113 (False also for a name that is too long)
        raise UserError(f"{directory.history} not found: no run in {directory.path}")

    from ultimus_ignite.handlers.support.figures import draw_curves, save_figure
    from ultimus_ignite.handlers.support.history_csv import read_csv

    try:
        rows = read_csv(directory.history)
    except (ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{directory.history}: not a history ({error})") from None
    try:
        title = title_of(directory.read_description())
    except RunDirectoryError:  # the curves do not need it
        title = directory.path.name
    try:
        save_figure(draw_curves(rows, title=title), directory.curves)
    except OSError as error:
        reason = f"{directory.curves} cannot be written ({error.strerror})"
        raise UserError(f"{reason}: copy the run to where it can") from None
    print(directory.curves)
