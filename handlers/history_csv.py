"""``history.csv``: a row an epoch, a column a number."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, float | None]
_NUMBER = {"epoch": int, "iteration": int}  # the others are floats


def columns(evaluated: str = "test") -> tuple[str, ...]:
    """The columns of ``history.csv``; other numbers, by their own names, come after them."""
    measured = ("train_loss", "train_accuracy", f"{evaluated}_loss", f"{evaluated}_accuracy")
    return ("epoch", "iteration", "lr", *measured, "seconds")


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows so that a reader, or a kill, meets the old file or the new one."""
    header = dict.fromkeys(column for row in rows for column in row)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, header, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)  # floats are written with repr, None as nothing
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_csv(path: Path) -> list[Row]:
    """The rows of a ``history.csv``.

    Raises:
        ValueError: the file is not a history.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if not {"epoch", "iteration", "lr", "seconds"} <= set(reader.fieldnames or ()):
            raise ValueError(
                f"{path} is not a history: its first line should be {','.join(columns('test'))}"
            )
        return [
            {key: _NUMBER.get(key, float)(value) if value else None for key, value in row.items()}
            for row in reader
        ]
