"""Means over the samples of an epoch, from what the steps return."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

Columns = dict[str, list[tuple[float, int | None]]]  # by name: a number and its samples, in order
Gather = Callable[[Columns], list[Columns]]


class Means:
    """Means over the samples of an epoch, from readings that stay on the device until `read`.

    Each iteration has the weight of its count, or 1 if its count is unknown. ``accuracy`` is
    ``correct / count`` over all iterations with numbers, if each has both.

    Args:
        owner: the handler, named in errors.
        state: a `state_dict` to continue from.

    Raises:
        ValueError: from `read`: ``correct`` is larger than its count.

    Example:
        >>> means = Means(owner=None)
        >>> means.add({"loss": torch.tensor(1.0), "correct": torch.tensor(3)}, 4)
        >>> means.add({"loss": torch.tensor(4.0), "correct": torch.tensor(1)}, 2)
        >>> _ = means.read()
        >>> means.values()
        {'loss': 2.0, 'accuracy': 0.6666666666666666}
    """

    def __init__(self, owner: object, state: Mapping[str, Any] | None = None) -> None:
        self._owner = type(owner).__name__
        self.iterations: int = state["iterations"] if state else 0
        self._empty: int = state["empty"] if state else 0  # iterations without a number
        self._sums: dict[str, tuple[float, int]] = dict(state["sums"]) if state else {}
        self._hits: tuple[float, int, int] = tuple(state["hits"]) if state else (0, 0, 0)
        self._unread: dict[str, list[tuple[Any, Any]]] = defaultdict(list)  # numbers and counts

    def add(self, values: dict[str, Any], count: int | None) -> None:
        """Add an iteration's reading."""
        for name, value in values.items():
            self._unread[name].append((value, count))
        self.iterations += 1
        self._empty += not values

    def read(self, gather: Gather = lambda own: [own]) -> dict[str, list[float]]:
        """Transfer all unread numbers from the device at once; returns them by name, in order.

        Args:
            gather: ``own -> those of each rank``, to read the numbers of all ranks.
        """
        unread, self._unread = self._unread, defaultdict(list)
        own = _transfer({name: [value for value, _ in pairs] for name, pairs in unread.items()})
        counted = {
            name: [*zip(column, (count for _, count in unread[name]), strict=True)]
            for name, column in own.items()
        }
        numbers: dict[str, list[float]] = {}
        for name, pairs in _merge(gather(counted)).items():
            column, counts = ([*each] for each in zip(*pairs, strict=True))
            numbers[name] = column
            if name == "correct" and None not in counts:
                self._add_hits(column, counts)
                continue
            total, weight = self._sums.get(name, (0.0, 0))
            # One after the other, so that the rounded sum does not depend on the times of reading.
            for value, count in zip(column, counts, strict=True):
                count = 1 if count is None else count
                total += value * count
                weight += count
            self._sums[name] = total, weight
        return numbers

    def _add_hits(self, column: list[float], counts: list[Any]) -> None:
        for correct, count in zip(column, counts, strict=True):
            if correct > count:
                raise ValueError(
                    f"{self._owner}: the step's output says that {correct:g} predictions of "
                    f"{count} are correct: count must be the number of predictions"
                )
        hits, of, iterations = self._hits
        self._hits = hits + sum(column), of + sum(counts), iterations + len(column)

    def values(self) -> dict[str, float]:
        """The means of all numbers read so far."""
        means = {name: total / weight for name, (total, weight) in self._sums.items() if weight}
        correct, of, iterations = self._hits
        if iterations == self.iterations - self._empty and of:
            means["accuracy"] = correct / of
        return means

    def state_dict(self) -> dict[str, Any]:
        """The sums, as plain numbers."""
        self.read()
        return {
            "iterations": self.iterations,
            "empty": self._empty,
            "sums": dict(self._sums),
            "hits": self._hits,
        }


def _merge(ranks: list[Columns]) -> Columns:
    """The numbers of all ranks' samples, iteration by iteration.

    If they are the same on all ranks, the step has merged them already.
    """
    first = ranks[0]
    if all(columns == first for columns in ranks):
        return first
    names = dict.fromkeys(name for columns in ranks for name in columns)
    return {
        name: [
            _merge_one(name, [reading for reading in readings if reading is not None])
            for readings in zip_longest(*(columns.get(name, []) for columns in ranks))
        ]
        for name in names
    }


def _merge_one(name: str, readings: list[tuple[float, int | None]]) -> tuple[float, int | None]:
    known = [(value, count) for value, count in readings if count is not None]
    if len(known) < len(readings):  # each rank has the same weight
        return math.fsum(value for value, _ in readings) / len(readings), None
    total = sum(count for _, count in known)
    if name == "correct":
        return math.fsum(value for value, _ in known), total
    some = [(value, count) for value, count in known if count]  # without samples it may be NaN
    return math.fsum(value * count for value, count in some) / (total or 1), total


def _transfer(columns: Mapping[str, list[Any]]) -> dict[str, list[float]]:
    """Numbers and 0-d tensors as Python numbers; one transfer per device."""
    stacks: dict[torch.device, list[Tensor]] = defaultdict(list)
    for column in columns.values():
        tensors = [value for value in column if isinstance(value, Tensor)]
        for device in {tensor.device for tensor in tensors}:
            # Each column by itself, as tensors of the same dtype are four times faster to stack.
            stack = torch.stack([tensor for tensor in tensors if tensor.device == device])
            # float16 cannot hold a count of 2,049, nor float32 2^24 + 1; mps has no float64.
            widest = torch.float32 if device.type == "mps" else torch.float64
            stacks[device].append(stack.to(widest))
    read = {device: iter(torch.cat(parts).tolist()) for device, parts in stacks.items()}
    return {
        name: [next(read[v.device]) if isinstance(v, Tensor) else v for v in column]
        for name, column in columns.items()
    }
