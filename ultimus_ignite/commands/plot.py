"""`ultimus plot RUN`: redraw the curves of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ultimus_ignite.commands.arguments import Arguments, parse
from ultimus_ignite.errors import UserError
from ultimus_ignite.run_directory import RunDirectory, title_of


@dataclass(frozen=True, kw_only=True)
class PlotArguments(Arguments):
    """Redraw curves.png of a run from its history.csv."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Redraw the curves and print the path of the picture."""
    directory = RunDirectory(parse(PlotArguments, prog, argv).run)
    if not directory.history.is_file():
        raise UserError(f"{directory.history} not found: no run in {directory.path}")

    from ultimus_ignite.handlers.support.figures import draw_curves, save_figure
    from ultimus_ignite.handlers.support.history_csv import read_csv

    try:
        rows = read_csv(directory.history)
    except ValueError as error:
        raise UserError(str(error)) from None
    save_figure(draw_curves(rows, title=title_of(directory.read_description())), directory.curves)
    print(directory.curves)
