"""``history.csv``: one row per epoch, one column per measured number."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from ultimus_ignite.handlers.support.files import replace_file

Row = dict[str, float | None]
BEGINNING, END = ("epoch", "iteration", "lr"), ("seconds",)  # all other columns are results
_NUMBER = {"epoch": int, "iteration": int}  # the others are floats


def columns(*splits: str) -> tuple[str, ...]:
    """The standard columns of ``history.csv``; columns for other numbers follow them.

    Args:
        splits: prefixes of the loss and accuracy columns.

    Example:
        >>> ",".join(columns("train"))
        'epoch,iteration,lr,train_loss,train_accuracy,seconds'
    """
    results = (f"{split}_{measure}" for split in splits for measure in ("loss", "accuracy"))
    return (*BEGINNING, *results, *END)


def to_csv(rows: Sequence[Row]) -> str:
    """The content of a ``history.csv`` with these rows."""
    header = dict.fromkeys(column for row in rows for column in row)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)  # floats are written with repr, None as an empty field
    return text.getvalue()


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Replace the file's content with these rows.

    Raises:
        OSError: the write failed; the file keeps its old rows.
    """
    replace_file(path, to_csv(rows).encode())


def read_csv(path: Path) -> list[Row]:
    """The rows of a ``history.csv``.

    Raises:
        ValueError: the file is not a history.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {*BEGINNING, *END} <= set(reader.fieldnames or ()):
            required = ", ".join((*BEGINNING, *END))
            raise ValueError(f"{path} is not a history: its first line must name {required}")
        return [
            {key: _NUMBER.get(key, float)(value) if value else None for key, value in row.items()}
            for row in reader
        ]


def rows_until(iteration: int, path: Path) -> list[Row]:
    """The rows of the epochs that end at or before an iteration; none if there is no history."""
    try:
        rows = read_csv(path)
    except (OSError, ValueError, TypeError, csv.Error):  # missing, damaged, or of another kind
        return []
    return [row for row in rows if row["epoch"] and 0 < (row["iteration"] or 0) <= iteration]
