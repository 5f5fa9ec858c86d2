"""`ultimus report RUN [RUN ...]`: one HTML page about runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from ultimus_ignite.commands.arguments import Arguments, expand, parse, writable
from ultimus_ignite.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ReportArguments(Arguments):
    """Write one HTML page about runs: results, curves, mistakes, attention, recipe, environment.

    It opens without a network. What needs the images of a run is left out, and said, where they are
    not there. An older page of the same name is replaced.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of runs."""
    out: Path = Path("report.html")
    """The page."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Write the page and print its path."""
    arguments = parse(ReportArguments, prog, argv)
    if not arguments.runs:
        raise UserError("give the folder of at least one run")
    runs, out = [expand(run) for run in arguments.runs], expand(arguments.out)
    if out.is_dir():
        raise UserError(f"{out} is a folder: give --out a file, such as {out / 'report.html'}")
    writable(out.parent)

    from ultimus_ignite.results.report.page import write_report

    try:
        write_report(runs, out)
    except OSError as error:
        reason = f"{out} cannot be written ({error.strerror})"
        raise UserError(f"{reason}: choose another --out") from None
    print(out)
