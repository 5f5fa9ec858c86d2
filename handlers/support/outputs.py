"""Reads named numbers from an engine's output and metrics."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

Reading = tuple[dict[str, Any], int | None]  # named numbers and 0-d tensors; samples, if known


def as_it_is(output: Any) -> Any:
    """The default ``output_transform`` of the handlers: the identity."""
    return output


class OutputReader:
    """Reads a step's output without waiting for the device.

    ================================  =============================================
    Output                            Names
    ================================  =============================================
    a number or a one-element tensor  ``loss``
    a mapping                         its keys; values of other types are skipped
    a named tuple of numbers          its fields
    a tuple or list of numbers        ``output_0``, ``output_1``, ...
    ================================  =============================================

    In a mapping, ``count`` is the number of samples, ``correct`` the number of correct predictions,
    and any other number a mean over the samples. Tensors are copied, as a later step may overwrite
    them: a captured CUDA graph always does. Handlers of one engine read each output only once.

    Args:
        owner: the handler, named in errors.
        transform: applied to ``engine.state.output`` first.

    Raises:
        TypeError: from a call: the output has no number, or a count that is not a whole number;
            from `loss`: there are several numbers, and none is called ``loss``.

    Example:
        >>> output = {"loss": 2.3, "correct": 7, "count": 64, "logits": torch.zeros(64, 10)}
        >>> OutputReader(owner=None).read(output)
        ({'loss': 2.3, 'correct': 7}, 64)
    """

    def __init__(self, owner: object, transform: Callable[[Any], Any] = as_it_is) -> None:
        self._owner = type(owner).__name__
        self._transform = transform
        self._skipped: set[Any] = set()  # keys whose first value was not a number
        self._has_read = False

    def __call__(self, engine: Engine) -> Reading:
        if self._transform is not as_it_is:
            return self.read(self._transform(engine.state.output))
        shared: tuple[int, Reading] | None = getattr(engine.state, "reading", None)
        if shared is None or shared[0] != engine.state.iteration:
            shared = engine.state.iteration, self.read(engine.state.output)
            engine.state.reading = shared  # type: ignore[attr-defined]
        return shared[1]

    def read(self, output: Any) -> Reading:
        """The numbers of an output; after the first one, None means a skipped batch."""
        if output is None and self._has_read:
            return {}, None
        values: dict[str, Any] = {}
        if isinstance(output, Mapping):
            for key, value in output.items():
                number = None if key in self._skipped else _number(value)
                if number is not None:
                    values[str(key)] = number
                elif value is not None:  # a None may be a number later
                    self._skipped.add(key)  # for good: the logits of one sample may be one number
        elif isinstance(output, tuple | list):
            names = getattr(output, "_fields", None) or map("output_{}".format, range(len(output)))
            numbers = [_number(value) for value in output]
            if all(number is not None for number in numbers):
                values = dict(zip(names, numbers, strict=True))
        elif (number := _number(output)) is not None:
            values = {"loss": number}
        count = values.pop("count", None)
        if count is not None and not (count >= 0 and float(count).is_integer()):
            raise TypeError(f"{self._owner}: count in output must be a whole number, got {count}")
        if not values:
            raise TypeError(
                f"{self._owner} finds no number in the step's output, {_describe(output)}: return "
                f"the loss or a mapping with it, or give {self._owner}(output_transform=...)"
            )
        self._has_read = True
        return values, None if count is None else int(count)

    def loss(self, values: Mapping[str, Any]) -> Any:
        """The number called ``loss``, or the only number."""
        if "loss" not in values and len(values) > 1:
            raise TypeError(
                f"{self._owner} does not know which of {', '.join(values)} is the loss: give "
                f"{self._owner}(output_transform=...)"
            )
        return values.get("loss", next(iter(values.values())))


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

    def read(self) -> dict[str, list[float]]:
        """Transfer all unread numbers from the device at once; returns them by name, in order."""
        unread, self._unread = self._unread, defaultdict(list)
        numbers = _transfer({name: [value for value, _ in pairs] for name, pairs in unread.items()})
        for name, column in numbers.items():
            counts = [count for _, count in unread[name]]
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


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are a single number, as Python numbers.

    Example:
        >>> scalars({"nll": torch.tensor([0.5]), "f1": np.float64(0.25), "matrix": torch.eye(2)})
        {'nll': 0.5, 'f1': 0.25}
    """
    return {
        name: float(number) if isinstance(number, Tensor) else number
        for name, value in metrics.items()
        if (number := _number(value)) is not None
    }


def _number(value: Any) -> Any:
    """A number as a Python number, a one-element tensor as a 0-d copy; None for all else."""
    if isinstance(value, Tensor):
        if value.numel() != 1 or value.is_complex():
            return None
        value = value.detach().clone() if value.requires_grad else value.clone()
        return value.reshape(()) if value.ndim else value
    if type(value) in (float, int):
        return value
    if isinstance(value, np.ndarray | np.generic) and value.size == 1:
        value = value.item()
    return float(value) if isinstance(value, Real) else None


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


def _describe(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {kind} with {', '.join(map(repr, output)) or 'no key'}"
    if isinstance(output, tuple | list):
        return f"a {kind} of ({', '.join(type(item).__name__ for item in output)})"
    return "None" if output is None else f"a {kind}"
