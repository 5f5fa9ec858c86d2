"""Reads named numbers from an engine's output and metrics."""

from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any

import numpy as np
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
        >>> import torch
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


def scalars(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that are a single number, as Python numbers.

    Example:
        >>> import torch
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


def _describe(output: Any) -> str:
    kind = type(output).__name__
    if isinstance(output, Tensor):
        return f"a tensor of shape {tuple(output.shape)}"
    if isinstance(output, Mapping):
        return f"a {kind} with {', '.join(map(repr, output)) or 'no key'}"
    if isinstance(output, tuple | list):
        return f"a {kind} of ({', '.join(type(item).__name__ for item in output)})"
    return "None" if output is None else f"a {kind}"
