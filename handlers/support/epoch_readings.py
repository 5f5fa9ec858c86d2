"""What the steps of an unfinished epoch have returned."""

import copy
from collections.abc import Mapping
from typing import Any

import ignite.distributed as idist

from ultimus_ignite.handlers.support.means import Gather, Means


class EpochReadings:
    """The means, the losses and the first rate of an epoch.

    Args:
        owner: the handler, named in errors.
        state: a `state_dict` to continue from.

    Attributes:
        means: over the epoch's samples.
        losses: of its iterations, as far as they have been read.
        first_rate: of its first iteration.

    Example:
        >>> readings = EpochReadings(owner=None)
        >>> readings.add({"loss": 3.0}, 4, rate=0.1)
        >>> readings.add({"loss": 1.0}, 4, rate=0.2)
        >>> readings.read()
        >>> readings.means.values(), readings.losses, readings.first_rate
        ({'loss': 2.0}, [3.0, 1.0], 0.1)
    """

    def __init__(self, owner: object, state: Mapping[str, Any] | None = None) -> None:
        self.means = Means(owner, state["means"] if state else None)
        self.losses: list[float] = list(state["losses"]) if state else []
        self.first_rate: float = state.get("rate", 0.0) if state else 0.0

    @property
    def iterations(self) -> int:
        return self.means.iterations

    def add(self, values: dict[str, Any], count: int | None, *, rate: float) -> None:
        """Add an iteration's reading, which stays on the device, and its rate."""
        if not self.iterations:
            self.first_rate = rate
        self.means.add(values, count)

    def read(self, gather: Gather = lambda own: [own]) -> None:
        """Read what is still on the device.

        Args:
            gather: ``own -> those of each rank``, to read the numbers of all ranks.
        """
        numbers = self.means.read(gather)
        if "loss" in numbers or len(numbers) == 1:
            self.losses += numbers.get("loss", next(iter(numbers.values())))

    def state_dict(self) -> dict[str, Any]:
        """As plain numbers. Of several ranks any may ask; then nothing is read for good."""
        readings = self if idist.get_world_size() == 1 else copy.deepcopy(self)
        readings.read()
        return {
            "means": readings.means.state_dict(),
            "losses": list(readings.losses),
            "rate": readings.first_rate,
        }
