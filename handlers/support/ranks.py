"""How the handlers of several processes decide together, by `ignite.distributed`."""

import time

import ignite.distributed as idist
import torch


def highest(value: float) -> float:
    """The highest value of all ranks; each of them must call this."""
    reduced = idist.all_reduce(torch.tensor(value, dtype=torch.float64), op="MAX")
    assert isinstance(reduced, torch.Tensor)
    return float(reduced)


def of_first_rank(value: float) -> float:
    """The value of rank 0; each rank must call this."""
    sent = idist.broadcast(torch.tensor(value, dtype=torch.float64), src=0)
    assert isinstance(sent, torch.Tensor)
    return float(sent)


class CommonMoments:
    """Says when an interval has passed: on all ranks after the same iteration.

    No rank may go by its own clock, for another would wait for it in another iteration. So each
    moment fixes the number of iterations up to the next, by the slowest rank.

    Args:
        interval: seconds.

    Example:
        >>> moments = CommonMoments(0.0)
        >>> moments.is_due()
        True
    """

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.is_alone = idist.get_world_size() == 1
        self._began = time.monotonic()
        self._length = self._left = 1  # iterations up to the next moment

    def is_due(self) -> bool:
        """Whether this iteration is a moment; to be asked once after each."""
        now = time.monotonic()
        if self.is_alone:
            if now - self._began < self.interval:
                return False
        else:
            self._left -= 1
            if self._left:
                return False
            rate = self._length / max(highest(now - self._began), 1e-6)
            self._length = max(1, min(int(rate * self.interval), 2 * self._length))
            self._left = self._length
        self._began = now
        return True
