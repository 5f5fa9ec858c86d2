"""How the handlers of several processes decide together, by `ignite.distributed`."""

import time
import warnings
from collections import Counter
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist

from ultimus_ignite.handlers.support.private_names import store_of_the_group

PATIENCE = 300.0  # seconds by which one rank may get to an exchange later than another
GRACE = 1.0  # the same for a handler that can do without the others

_runs: Counter[str] = Counter()  # of this process, by the class of the handler


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


class Peers:
    """The same handler on the other ranks; to be created at each ``STARTED``.

    A handler that only one rank has would exchange numbers with whatever the others exchange next,
    a gradient perhaps, or wait for ever. So each leaves its name in the store of the group, which
    waits for nobody, and looks for the names of the others before its first exchange.

    Args:
        owner: the handler.

    Example:
        >>> Peers(owner=None).gather(0.1)
        [0.1]
    """

    def __init__(self, owner: object) -> None:
        self._name = type(owner).__name__
        self._store = None if idist.get_world_size() == 1 else store_of_the_group()
        if self._store is None:
            return
        _runs[self._name] += 1
        self._key = f"ultimus_ignite/{self._name}/{_runs[self._name]}"
        if self._store.add(self._key, 1) == idist.get_world_size():
            self._store.set(f"{self._key}/all", "")

    def are_complete(self) -> bool:
        """Whether each rank has the handler; all get the answer of the first that asked.

        Warns:
            UserWarning: one lacks it.
        """
        if self._store is None:
            return True
        key, until = f"{self._key}/all", time.monotonic() + GRACE
        while not (found := self._store.check([key])) and time.monotonic() < until:
            time.sleep(0.01)  # unlike the store's own wait, no warning of torch's if it is in vain
        verdict = self._store.compare_set(f"{self._key}/found", "", "all" if found else "some")
        if verdict == b"all":
            return True
        warnings.warn(f"{self._describe()}: its numbers are those of this rank alone", stacklevel=2)
        return False

    def gather(self, value: Any) -> list[Any]:
        """What each rank gives, in order; the own value alone if one of them lacks the handler."""
        if self._store is None or not self.are_complete():
            return [value]
        wrapped: Any = idist.all_gather({"value": value})  # else it rounds a number to float32
        return [each["value"] for each in wrapped]

    def require(self) -> None:
        """Wait until each rank has the handler.

        Raises:
            RuntimeError: one still lacks it after `PATIENCE`.
        """
        if self._store is None:
            return
        try:
            self._store.wait([f"{self._key}/all"], timedelta(seconds=PATIENCE))
        except dist.DistStoreError:
            raise RuntimeError(f"{self._describe()}: attach it on every rank") from None

    def _describe(self) -> str:
        assert self._store is not None
        having = self._store.add(self._key, 0)
        return f"{self._name} is attached on {having} of {idist.get_world_size()} ranks"


class CommonMoments:
    """Says when an interval has passed: on all ranks after the same iteration.

    No rank may go by its own clock, for another would wait for it in another iteration. So each
    moment fixes the number of iterations up to the next, by the slowest rank.

    Args:
        interval: seconds.
        owner: the handler that asks.

    Raises:
        RuntimeError: at the first moment: a rank lacks the handler.

    Example:
        >>> moments = CommonMoments(0.0, owner=None)
        >>> moments.is_due()
        True
    """

    def __init__(self, interval: float, *, owner: object) -> None:
        self.interval = interval
        self._peers = Peers(owner)
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
            self._peers.require()
            rate = self._length / max(highest(now - self._began), 1e-6)
            self._length = max(1, min(int(rate * self.interval), 2 * self._length))
            self._left = self._length
        self._began = now
        return True
