"""Which images one of several processes computes."""

from typing import NamedTuple


class Share(NamedTuple):
    """The share of one rank; together the shares of all ranks have every image exactly once.

    Example:
        >>> [list(range(5))[Share(rank, 2).of_batch(5)] for rank in range(2)]
        [[0, 1], [2, 3, 4]]
        >>> [list(range(5))[Share(rank, 2).of_set(0, 5)] for rank in range(2)]
        [[0, 2, 4], [1, 3]]
    """

    rank: int = 0
    ranks: int = 1

    def of_batch(self, count: int) -> slice:
        """Neighbouring images of a batch; none if it has fewer images than there are ranks."""
        return slice(self.rank * count // self.ranks, (self.rank + 1) * count // self.ranks)

    def of_set(self, start: int, stop: int) -> slice:
        """Images at equal distances, so that the shares of images sorted by class are alike."""
        return slice(start + self.rank, stop, self.ranks)


WHOLE = Share()
"""Of the only process."""
