"""The numbers of a long run, one per iteration, in a few megabytes."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

LIMIT = 2**17
"""Numbers that are kept at most, 1 MB in a checkpoint.

All of ten million iterations would be 80 MB that every checkpoint writes again.
"""


class Thinned:
    """A growing series, of which every n-th number is kept: the first, the (n + 1)-th and so on.

    n is 1 until there are more than ``limit`` numbers, and then doubles whenever there are.

    Args:
        limit: numbers that are kept at most.
        state: a `state_dict` to continue from, or a tensor with all numbers.

    Attributes:
        values: those that are kept.
        every: n.

    Example:
        >>> series = Thinned(limit=4)
        >>> series.extend(range(9))
        >>> series.values, series.every
        ([0, 4, 8], 4)
    """

    def __init__(self, *, limit: int = LIMIT, state: Any = None) -> None:
        self.limit = limit
        self.values: list[float] = []
        self.every, self._count = 1, 0
        if isinstance(state, Mapping):
            self.values = state["values"].tolist()
            self.every, self._count = state["every"], state["count"]
        elif state is not None:  # of an earlier version
            self.extend(state.tolist())

    def extend(self, numbers: Iterable[float]) -> None:
        """Add the next numbers."""
        for number in numbers:
            if self._count % self.every == 0:
                self.values.append(number)
            self._count += 1
            if len(self.values) > self.limit:
                del self.values[1::2]
                self.every *= 2

    def state_dict(self) -> dict[str, Any]:
        """All of it, the values as float64."""
        values = torch.tensor(self.values, dtype=torch.float64)
        return {"values": values, "every": self.every, "count": self._count}
