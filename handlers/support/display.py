"""The output of `BatchLogger`: a bar or plain lines, and a log file."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from tqdm.auto import tqdm

BAR_INTERVAL = 0.1  # seconds between two redraws of a bar: tqdm's own mininterval
LINE_INTERVAL = 30.0  # seconds between two plain lines if there is no terminal
# What follows the numbers in a bar, the widest first; None: tqdm's own, with a bar of any width.
_TIMES = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]"
_FORMATS = (None, _TIMES, "{desc}: {n_fmt}/{total_fmt}", "{desc}")
_BAR_CELLS = 10  # of a bar whose width is not limited


class Display:
    """A bar in a terminal or notebook, plain lines elsewhere, and a copy of the lines on disk."""

    def __init__(self, file: TextIO | None, log_path: Path | None) -> None:
        self._file = file
        self._log_path = log_path
        self._bar: Any = None
        self._total: Any = None  # batches of the epoch, None if unknown

    @property
    def file(self) -> TextIO | None:
        return self._file or sys.stdout  # None if the process has no standard output

    def line(self, text: str) -> None:
        if self._bar is None:
            self._print(text)
        else:  # prints above the bar and redraws it
            self._bar.write(text, file=self.file)
        self._append(text)

    def start_clock(self) -> None:
        """The next batches are counted from now on; a bar starts only with the first result."""
        self._started = time.monotonic()

    def start_bar(self, done: int, total: int | None) -> None:
        self._done, self._total = done, total
        if _shows_bars(self.file):
            follows_width = not _is_notebook()
            self._bar = tqdm(total=total, initial=done, file=self.file, dynamic_ncols=follows_width)
            self._bar.start_t -= time.monotonic() - self._started
        self._interval = LINE_INTERVAL if self._bar is None else BAR_INTERVAL
        self._due = time.monotonic() + self._interval

    def is_due(self) -> bool:
        return time.monotonic() >= self._due

    def draw(self, batches: int, numbers: Sequence[str]) -> None:
        if self._bar is None:
            self._print(self._meter(batches, " ".join(numbers)))
        else:
            self._bar.n = batches
            self._bar.bar_format, description = self._fit(numbers)
            self._bar.set_description_str(description)  # redraws
        self._due = time.monotonic() + self._interval

    def end_bar(self, batches: int, numbers: Sequence[str]) -> None:
        text = self._meter(batches, " ".join(numbers))
        if self._bar is None:
            self._print(text)
        else:
            self.draw(batches, numbers)
            self._bar.close()
            self._bar = None
        self._append(text)
        self.start_clock()  # the epoch may go on after an evaluation

    def _fit(self, numbers: Sequence[str]) -> tuple[str | None, str]:
        """The format and the description that the terminal is wide enough for.

        The bar is left out first, then the times, the count, the batch's number and the last
        numbers; no number is cut.
        """
        fields = self._bar.format_dict
        width = fields.pop("ncols") or math.inf  # None if unknown
        fewer = (numbers[1:end] for end in range(len(numbers), 1, -1))
        choices = [(form, numbers) for form in _FORMATS] + [("{desc}", some) for some in fewer]
        for form, some in choices:
            description = " ".join(some)
            fields |= {"bar_format": form, "prefix": description}
            spare = _BAR_CELLS - 1 if form is None and self._total else 0
            if len(tqdm.format_meter(**fields)) - spare <= width:
                break
        return form, description

    def _meter(self, batches: int, description: str) -> str:
        encoding = getattr(self.file, "encoding", None) or "utf-8"
        return tqdm.format_meter(
            batches,
            self._total,
            time.monotonic() - self._started,
            initial=self._done,
            prefix=description,
            ascii=not encoding.lower().startswith("utf"),
        )

    def _print(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):  # a closed pipe must not end the training
            print(text, file=self.file, flush=True)

    def _append(self, text: str) -> None:
        if self._log_path is not None:
            # A full disk must not end the training either: the history has the same numbers.
            with contextlib.suppress(OSError):
                self._log_path.parent.mkdir(parents=True, exist_ok=True)
                with self._log_path.open("a", encoding="utf-8") as log:
                    print(text, file=log)


def _is_notebook() -> bool:
    return "ipykernel.zmqshell" in sys.modules  # tqdm draws a widget


def _shows_bars(file: TextIO | None) -> bool:
    if _is_notebook():
        return True
    try:
        return file is not None and file.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False
