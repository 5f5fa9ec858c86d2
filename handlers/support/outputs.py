"""What the handlers read from an engine's output and metrics: numbers, under their own names."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from torch import Tensor

Reading = tuple[dict[str, Any], int | None]
"""Numbers and 0-d tensors by name, and the number of samples where it is known."""


def as_it_is(output: Any) -> Any:
    """The handlers' ``output_transform`` where none is given."""
    return output


class OutputReader:
    """Reads a step's output without waiting for the device, and says what it cannot take.

    ======================================  ===============================================
    Output                                  Names
    ======================================  ===============================================
    a number or a one-element tensor        ``loss``
    a mapping                               its keys; what is no number is passed over
    a named tuple of numbers                its fields
    a tuple or list of numbers              ``output_0``, ``output_1``, ...
    ======================================  ===============================================

    In a mapping, ``count`` is the number of samples that the others are means over, and ``correct``
    beside it the number of right predictions.

    The tensors are copied, as a step may fill the same ones again: a captured CUDA graph always
    does. Handlers of one engine share the reading of an iteration.

    Args:
        owner: the handler, named in errors.
        transform: applied to ``engine.state.output`` first.

    Raises:
        TypeError: when called: there is no number in the output.

    Example:
        >>> output = {"loss": 2.3, "correct": 7, "count": 64, "logits": torch.zeros(64, 10)}
        >>> engine = Engine(lambda engine, batch: output)
        >>> _ = engine.run([0])
        >>> OutputReader(owner=None)(engine)
        ({'loss': 2.3, 'correct': 7}, 64)
    """

    def __init__(self, owner: object, transform: Callable[[Any], Any] = as_it_is) -> None:
        self._owner = type(owner).__name__
        self._transform = transform
        self._passed_over: set[str] = set()  # no numbers when first seen
        self._has_read = False

    def __call__(self, engine: Engine) -> Reading:
        state = engine.state
        if self._transform is not as_it_is:
            return self.read(self._transform(state.output))
        shared: tuple[int, Reading] | None = getattr(state, "reading", None)
        if shared is None or shared[0] != state.iteration:
            shared = state.iteration, self.read(state.output)
            state.reading = shared  # type: ignore[attr-defined]
        return shared[1]

    def read(self, output: Any) -> Reading:
        """The numbers of an output; none where a later iteration gives None: a batch skipped."""
        if output is None and self._has_read:
            return {}, None
        if isinstance(output, Mapping):
            values = self._of_mapping(output)
        elif isinstance(output, tuple | list):
            names = getattr(output, "_fields", None) or map("output_{}".format, range(len(output)))
            values = {name: _number(value) for name, value in zip(names, output, strict=True)}
            if any(value is None for value in values.values()):
                values = {}
        else:
            value = _number(output)
            values = {} if value is None else {"loss": value}
        count = values.pop("count", None)
        if count is not None and not (count >= 0 and count == int(count)):
            raise TypeError(
                f"{self._owner}: count in the step's output must be a whole number, got {count}"
            )
        if not values:
            raise TypeError(
                f"{self._owner} finds no number in the step's output, {_describe(output)}: return "
                "the loss or a mapping with it from the step, or give "
                f"{self._owner}(output_transform=...)"
            )
        self._has_read = True
        return values, None if count is None else int(count)

    def loss(self, values: Mapping[str, Any]) -> Any:
        """Of the numbers read, the one called ``loss``, or the only one.

        Raises:
            TypeError: there are several, and none has that name.
        """
        if "loss" not in values and len(values) > 1:
            raise TypeError(
                f"{self._owner} does not know which of {', '.join(values)} is the loss: give "
                f"{self._owner}(output_transform=...)"
            )
        return values.get("loss", next(iter(values.values())))

    def _of_mapping(self, output: Mapping[Any, Any]) -> dict[str, Any]:
        values = {}
        for key, value in output.items():
            if key in self._passed_over:
                continue
            number = _number(value)
            if number is not None:
                values[key if type(key) is str else str(key)] = number
            elif value is not None:  # which may be a number later
                self._passed_over.add(key)  # for good: a batch of one makes numbers of its logits
        return values


class Means:
    """Means over the samples of an epoch, from readings that stay on the device until `read`.

    Each is weighted by its count, by 1 where no count is known. ``accuracy`` is the share of
    correct predictions, where every iteration knows both numbers.

    Args:
        owner: the handler, named in errors.
        state: of `state_dict`, to go on from.

    Raises:
        ValueError: from `read`: more predictions are right than there are.

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
        self._sums: dict[str, tuple[float, int]] = dict(state["sums"]) if state else {}
        self._hits: tuple[float, int, int] = tuple(state["hits"]) if state else (0, 0, 0)
        self._empty: int = state["empty"] if state else 0  # iterations without a number
        self._unread: list[Reading] = []

    def add(self, values: dict[str, Any], count: int | None) -> None:
        """Take an iteration's reading."""
        self._unread.append((values, count))
        self.iterations += 1
        self._empty += not values

    def read(self) -> dict[str, list[float]]:
        """Transfer what is unread from the device, all at once; its numbers by name, in order."""
        columns: dict[str, list[Any]] = defaultdict(list)
        counts: dict[str, list[int | None]] = defaultdict(list)
        for values, count in self._unread:
            for name, value in values.items():
                columns[name].append(value)
                counts[name].append(count)
        self._unread = []
        numbers = dict(zip(columns, _transfer(list(columns.values())), strict=True))
        for name, column in numbers.items():
            if name == "correct" and None not in counts[name]:
                self._add_hits(column, counts[name])
                continue
            total, weight = self._sums.get(name, (0.0, 0))
            # One after the other: the sum must not depend on when it was read.
            for value, count in zip(column, counts[name], strict=True):
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
        """The means of what has been read."""
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
    """The metrics that are one number, as Python's own; matrices, curves and texts are left out.

    Example:
        >>> scalars({"nll": torch.tensor([0.5]), "f1": np.float64(0.25), "matrix": torch.eye(2)})
        {'nll': 0.5, 'f1': 0.25}
    """
    numbers = {name: _number(value) for name, value in metrics.items()}
    return {
        name: float(value.item()) if isinstance(value, Tensor) else value
        for name, value in numbers.items()
        if value is not None
    }


def _number(value: Any) -> Any:
    """A Python number or a copy of a tensor with one, 0-d; None for what is neither."""
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


def _transfer(columns: Sequence[Sequence[Any]]) -> list[list[float]]:
    """Numbers and 0-d tensors as plain numbers; all tensors of a device in one transfer."""
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for column in columns:
        tensors: dict[torch.device, list[Tensor]] = defaultdict(list)
        for value in column:
            if isinstance(value, Tensor):
                tensors[value.device].append(value)
        # A column is stacked alone, as tensors of one dtype are four times faster to stack.
        for device, same in tensors.items():
            by_device[device].append(torch.stack(same))
    read = {}
    for device, stacks in by_device.items():
        # float16 could not hold a count of 2,049, nor float32 one of 2^24 + 1; mps has no float64.
        widest = torch.float32 if device.type == "mps" else torch.float64
        stacks.append(torch.empty(0, dtype=widest, device=device))
        read[device] = iter(torch.cat(stacks).tolist())
    return [
        [next(read[value.device]) if isinstance(value, Tensor) else value for value in column]
        for column in columns
    ]


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} with {', '.join(map(repr, output)) or 'no key'}"
    if isinstance(output, tuple | list):
        kinds = ", ".join(type(item).__name__ for item in output)
        return f"a {type(output).__name__} of ({kinds})"
    return repr(output) if output is None else f"a {type(output).__name__}"
