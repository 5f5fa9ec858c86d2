"""How far a long loop is: a bar in a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import suppress
from types import TracebackType

from tqdm import tqdm
from typing_extensions import Self

_LINE_INTERVAL = 30.0  # seconds


class Progress:
    """Counts what is done, on standard error.

    In a terminal it is a bar, which disappears at the end. Elsewhere it is a line every 30 s, with
    the number per second and the time left; what takes less time prints nothing.

    Args:
        total: how many there are to do.
        action: what is done, such as ``decoding``.
        unit: what is counted, in the plural.
    """

    def __init__(self, total: int, action: str, unit: str) -> None:
        self._total, self._action, self._unit = total, action, unit
        self._done = 0

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._due = self._started + _LINE_INTERVAL
        self._bar = tqdm(
            total=self._total,
            desc=self._action,
            unit=f" {self._unit}",
            leave=False,
            disable=not _is_terminal(),
            file=sys.stderr,
        )
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.close()

    def update(self) -> None:
        """One more is done."""
        self._done += 1
        self._bar.update()
        if self._bar.disable and time.monotonic() >= self._due:
            self._due += _LINE_INTERVAL
            with suppress(OSError, ValueError):  # a closed pipe must not end the work
                print(self._line(), file=sys.stderr, flush=True)

    def _line(self) -> str:
        rate = self._done / (time.monotonic() - self._started)
        left = tqdm.format_interval((self._total - self._done) / rate)
        done = f"{self._done:,} of {self._total:,} {self._unit}"
        return f"{self._action}: {done}, {rate:,.1f} per second, {left} left"


def _is_terminal() -> bool:
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False
