"""The runs below a folder as a table, from what their folders tell; torch is not loaded."""

import csv
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from ultimus_ignite.errors import one_line
from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RunRow:
    """What the folder of a run tells; None is unknown, or not there yet."""

    name: str
    """Path below the folder that was searched; ``.`` is that folder."""
    status: str | None
    """See `RunDirectory.read_status`."""
    model: str | None
    data: str | None
    recipe: Mapping[str, Any] | None
    """All its fields."""
    epochs_done: int
    epochs: int | None
    """Of the recipe."""
    judged_by: str | None
    """``test`` or ``val``: the images that best and last accuracy were measured on."""
    best_accuracy: float | None
    """In [0, 1], as every accuracy."""
    last_accuracy: float | None
    test_accuracy: float | None
    """Of the final weights."""
    seconds: float | None
    """Spent in the epochs that are done."""
    when: datetime | None
    """The last time that the run wrote its status, its history or a checkpoint."""
    problem: str | None
    """What is missing or damaged."""


Column = Literal[
    "name", "status", "model", "data", "epochs", "best", "last", "test", "seconds", "when"
]
# The field that each column of the table shows and is sorted by.
COLUMNS: dict[Column, str] = {
    "name": "name",
    "status": "status",
    "model": "model",
    "data": "data",
    "epochs": "epochs_done",
    "best": "best_accuracy",
    "last": "last_accuracy",
    "test": "test_accuracy",
    "seconds": "seconds",
    "when": "when",
}


def find_runs(folder: Path) -> Iterator[Path]:
    """The folders of runs in and below a folder, in order; links are followed.

    A folder that several paths lead to counts once. One that cannot be read is a warning.
    """
    seen = set()
    for place, folders, files in os.walk(folder, followlinks=True, onerror=_warn):
        path = Path(place)
        identity = path.stat()
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders.sort()
        if {"status.json", "recipe.json"} & {*files} or any(path.glob("checkpoints/*.pt")):
            folders[:] = [name for name in folders if name != "checkpoints"]
            yield path


def _warn(error: OSError) -> None:
    warnings.warn(one_line(f"{error.filename} cannot be read ({error.strerror})"), stacklevel=2)


def read_row(path: Path, name: str) -> RunRow:
    """What the folder of a run tells, as far as its files can be read; nothing is changed.

    Args:
        path: the folder.
        name: what the row calls it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "status.json").write_text('{"status": "interrupted"}')
        ...     row = read_row(Path(folder), "first")
        >>> row.status, row.epochs_done, row.problem
        ('interrupted', 0, '...recipe.json cannot be read (No such file or directory)...')
    """
    directory = RunDirectory(path)
    problems: list[str] = []

    def try_to(read: Callable[[], T]) -> T | None:
        try:
            return read()
        except RunDirectoryError as error:
            problems.append(one_line(str(error)))
            return None

    facts = try_to(directory.read_status) or {}
    description = try_to(directory.read_description) or {"recipe": {}, "data": {}}
    epochs = try_to(lambda: _read_history(directory.history)) or []
    if not (epochs or problems) and facts["status"] == "finished":
        problems.append(one_line(f"{directory.history} has no epochs"))
    recipe = description["recipe"]
    columns = epochs[0].keys() if epochs else ()
    judge = next((split for split in ("test", "val") if f"{split}_accuracy" in columns), None)
    accuracies = [_number(epoch[f"{judge}_accuracy"]) for epoch in epochs if judge]
    planned = _number(recipe.get("epochs"))
    return RunRow(
        name=name,
        status=_text(facts.get("status")),
        model=_text(recipe.get("model")),
        data=_text(description["data"].get("name")) or _text(facts.get("data")),
        recipe=recipe or None,
        epochs_done=len(epochs),
        epochs=None if planned is None else int(planned),
        judged_by=judge,
        best_accuracy=max((value for value in accuracies if value is not None), default=None),
        last_accuracy=accuracies[-1] if accuracies else None,
        test_accuracy=_number(facts.get("test_accuracy")),
        seconds=sum((_number(epoch["seconds"]) or 0.0 for epoch in epochs), start=0.0),
        when=_last_write(directory.status, directory.history, directory.checkpoints),
        problem="; ".join(problems) or None,
    )


def _read_history(path: Path) -> list[dict[str, float | None]]:
    """The rows of a ``history.csv``; none if it is missing, as before the first epoch."""
    # handlers.support.history_csv is not imported, because the package of the handlers loads torch.
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = [
                {column: float(value) if value else None for column, value in row.items()}
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise RunDirectoryError(f"{path}: not a history ({error})") from None
    if rows and not {"epoch", "seconds"} <= rows[0].keys():
        raise RunDirectoryError(f"{path}: not a history (it has no epoch or no seconds)")
    return rows


def _number(value: object) -> float | None:
    """A finite number, or None for anything else: a damaged file may hold it."""
    if isinstance(value, int | float) and abs(value) < 1e300:  # False for NaN
        return value
    return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _last_write(*paths: Path) -> datetime | None:
    times = [path.stat().st_mtime for path in paths if path.exists()]
    return datetime.fromtimestamp(max(times)).astimezone() if times else None


def sort_rows(rows: Iterable[RunRow], column: Column) -> list[RunRow]:
    """Rows in the order of a column: texts from A to Z, the highest number or latest time first.

    Rows that lack the value come last.
    """
    field = COLUMNS[column]
    known = [row for row in rows if getattr(row, field) is not None]
    unknown = [row for row in rows if getattr(row, field) is None]
    is_text = any(isinstance(getattr(row, field), str) for row in known)
    return sorted(known, key=lambda row: getattr(row, field), reverse=not is_text) + unknown


def format_table(rows: Sequence[RunRow]) -> str:
    """The table, then one line per problem.

    An accuracy of validation images is marked as such.
    """
    lines: list[list[str]] = [[*COLUMNS], *map(_cells, rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    return "\n".join([*table, *(f"{row.name}: {row.problem}" for row in rows if row.problem)])


def _cells(row: RunRow) -> list[str]:
    """The texts of a row, one per column."""
    mark = " (val)" if row.judged_by == "val" else ""
    cells = [
        row.name,
        row.status,
        row.model,
        row.data,
        f"{row.epochs_done}/{'?' if row.epochs is None else row.epochs}",
        None if row.best_accuracy is None else f"{row.best_accuracy:.2%}{mark}",
        None if row.last_accuracy is None else f"{row.last_accuracy:.2%}{mark}",
        None if row.test_accuracy is None else f"{row.test_accuracy:.2%}",
        None if row.seconds is None else f"{row.seconds:.0f}",
        None if row.when is None else f"{row.when:%Y-%m-%d %H:%M}",
    ]
    return ["-" if cell is None else one_line(cell) for cell in cells]
