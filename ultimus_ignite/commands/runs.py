"""`ultimus runs [DIR]`: a table of the runs below a folder."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import tyro

from ultimus_ignite.commands.arguments import Arguments, Flag, expand, parse
from ultimus_ignite.errors import UserError
from ultimus_ignite.results.run_table import (
    Column,
    find_runs,
    format_table,
    read_row,
    sort_rows,
)


@dataclass(frozen=True, kw_only=True)
class RunsArguments(Arguments):
    """Print a table of the runs in and below a folder."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Where to look."""
    sort: Column = "name"
    """A column: texts from A to Z, the highest number or the latest time first."""
    json: Flag = False
    """Print a list of objects instead."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Print the table, or one line if there is no run."""
    arguments = parse(RunsArguments, prog, argv)
    folder = expand(arguments.folder)
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: give the one that holds the runs")
    found = [read_row(path, str(path.relative_to(folder))) for path in find_runs(folder)]
    rows = sort_rows(found, arguments.sort)
    if arguments.json:
        text = json.dumps([asdict(row) for row in rows], default=datetime.isoformat)
        # A damaged file may hold NaN, which is not JSON.
        print(json.dumps(json.loads(text, parse_constant=lambda _: None), indent=2))
    else:
        print(format_table(rows) if rows else f"no run in {folder}")
