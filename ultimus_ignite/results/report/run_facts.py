"""What the folder of a run tells without its model and its data, as far as it is whole."""

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers.support.history_csv import Row, read_csv
from ultimus_ignite.handlers.support.lr_curve import LRCurve, read_lr_curves
from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError

Part = TypeVar("Part")
_REGULAR = re.compile(r"\s*$|Batch_id=|(Test|Validation) set: Average")
_EPOCH = re.compile(r"EPOCH: (\d+) ")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """The files of a run as they were read; what could not be read is said in ``problems``."""

    name: str
    directory: RunDirectory
    description: Mapping[str, Any]
    """The content of ``recipe.json``; empty if it cannot be read."""
    status: Mapping[str, Any]
    """The content of ``status.json``; empty if it cannot be read."""
    rows: Sequence[Row]
    """The rows of ``history.csv``."""
    range_test: Sequence[LRCurve]
    """The curves of ``lr_finder.csv``; empty if there was no range test."""
    remarks: Sequence[str]
    """What the log says beside the usual lines of every epoch."""
    problems: Sequence[str]


def read_facts(path: Path, name: str) -> RunFacts:
    """Read the folder of a run, in whatever state it is; nothing in it is changed.

    Raises:
        RunDirectoryError: the folder does not exist, or has no file of a run.

    Example:
        >>> read_facts(Path("nowhere"), "first")
        Traceback (most recent call last):
            ...
        ultimus_ignite.run_directory.RunDirectoryError: nowhere: no run here: give the folder of \
a run, which holds recipe.json and status.json
    """
    directory = RunDirectory(path)
    if not (directory.holds_a_run or directory.description.exists() or directory.history.exists()):
        raise RunDirectoryError(
            f"{directory.path}: no run here: give the folder of a run, which holds recipe.json and "
            "status.json"
        )
    problems: list[str] = []

    def attempt(path: Path, read: Callable[[], Part], default: Part) -> Part:
        try:
            return read()
        except RunDirectoryError as error:  # names the file itself
            problems.append(str(error))
        except (OSError, ValueError, TypeError, csv.Error) as error:
            reason = getattr(error, "strerror", None) or error
            problems.append(one_line(f"{path} cannot be read ({reason})"))
        return default

    history, range_test, log = directory.history, directory.path / "lr_finder.csv", directory.log
    tested = range_test.exists()
    return RunFacts(
        name=name,
        directory=directory,
        description=attempt(directory.description, directory.read_description, {}),
        status=attempt(directory.status, directory.read_status, {}),
        rows=attempt(history, lambda: read_csv(history), []),
        range_test=attempt(range_test, lambda: read_lr_curves(range_test), []) if tested else [],
        remarks=attempt(log, lambda: find_remarks(log.read_text(encoding="utf-8")), []),
        problems=problems,
    )


def find_remarks(log: str) -> list[str]:
    """The lines of a log but for those of every epoch; each resumption begins with its data.

    Example:
        >>> find_remarks("data: digits\\nEPOCH: 1 (LR: 0.1)\\nBatch_id=2\\ndata: digits")
        ['Before epoch 1: data: digits', 'Epoch 1: resumed: data: digits']
    """
    remarks, where, starts = [], "Before epoch 1", 0
    for line in log.splitlines():
        if epoch := _EPOCH.match(line):
            where = f"Epoch {epoch[1]}"
        elif not _REGULAR.match(line):
            starts += line.startswith("data: ")
            resumed = "resumed: " if line.startswith("data: ") and starts > 1 else ""
            remarks.append(one_line(f"{where}: {resumed}{line}"))
    return remarks
