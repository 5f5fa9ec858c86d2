"""Claim: the range test finds the notebook's rate, and alone among its kind leaves no trace.

    pip install -e '.[benchmarks]'
    python benchmarks/lr_finder.py --data folder:DIR

Ignite's `FastaiLRFinder`, torch-lr-finder and `LRFinder` make the test that gave the notebook its
0.0186: 0.004 to 0.04 in 100 iterations of the classic recipe, with the same weights and batches.
The minimum is that of each one's own smoothed losses, the steepest rate what it suggests itself.
"Rates as used": each rate that stands beside a loss is the one the optimizer had in that step.

What is left behind is looked at on the same model with a BatchNorm and a dropout before it, in eval
mode as an evaluation leaves it: after a test, and after one whose loss function raises in iteration
50. Each finder is called as its own documentation shows.

Seconds are medians of interleaved rounds. On 60,000 CIFAR-10 images (JPEG-recompressed), seed 1:

    FastaiLRFinder    minimum 0.03484   steepest 0.006054   rates as used   0 of 100   2.64 s
    torch-lr-finder   minimum 0.02956   steepest 0.005047   rates as used 100 of 100   2.40 s
    ultimus-ignite    minimum 0.01692   steepest none       rates as used 100 of 100   2.83 s

2 cores of AMD EPYC shared with other jobs, OMP_NUM_THREADS=1; Python 3.11.7, torch 2.14.1,
pytorch-ignite 0.5.5, torch-lr-finder 0.2.2. The loss is flat within its noise between 0.01 and 0.03
and falls fastest at 0.004, the edge. Seeds 1 to 5 have their minimum at 0.0165 to 0.0263.
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import random
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from ignite.engine import Events
from ignite.handlers import FastaiLRFinder
from matplotlib.figure import Figure
from report import medians, print_environment, print_table
from torch import Tensor, nn

from ultimus_ignite.build import build
from ultimus_ignite.data.stream import Batch
from ultimus_ignite.engines import create_trainer
from ultimus_ignite.handlers.lr_finder import LRFinder
from ultimus_ignite.optimizers.create import create_optimizer
from ultimus_ignite.recipe import RangeTest, Recipe

START, END, ITERATIONS = astuple(RangeTest())


class Script:
    """What a user has when a finder is called.

    Args:
        recipe: what it is made from.
        front: modules that are put before the recipe's model, which then is in eval mode.
        fail_at: call of the loss function that raises.
    """

    def __init__(self, recipe: Recipe, *front: nn.Module, fail_at: int | None = None) -> None:
        parts = build(recipe)
        self.stream = parts.stream
        self.model = parts.model
        if front:
            self.model = nn.Sequential(*front, parts.model).to(parts.device).eval()
        self.optimizer = create_optimizer(self.model)
        self.fail_at, self._calls = fail_at, itertools.count(1)
        self.trainer = create_trainer(self.model, self.optimizer, self.loss_fn, device=parts.device)
        self.trainer.logger.disabled = True
        self.trainer.add_event_handler(Events.ITERATION_STARTED, self.note_handler)
        self.handlers_called = 0
        self.rates_used: list[float] = []

    def __iter__(self) -> Iterator[Batch]:
        return self.stream.starting_at(0)

    def loss_fn(self, logits: Tensor, labels: Tensor) -> Tensor:
        if next(self._calls) == self.fail_at:
            raise ZeroDivisionError
        self.rates_used.append(float(self.optimizer.param_groups[0]["lr"]))
        return F.cross_entropy(logits, labels)

    def note_handler(self) -> None:
        self.handlers_called += 1

    def traces(self) -> dict[str, str]:
        """A digest of each thing that a finder might leave changed."""
        state = self.trainer.state
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in self.optimizer.param_groups
        ]
        generators = [torch.get_rng_state(), random.getstate(), np.random.get_state()]  # noqa: NPY002
        return {
            "weights": digest(list(self.model.parameters())),
            "buffers": digest(list(self.model.buffers())),
            "gradients": digest([parameter.grad for parameter in self.model.parameters()]),
            "optimizer's state and rates": digest([*self.optimizer.state.values(), groups]),
            "random state": digest(generators),
            "train or eval mode": digest([module.training for module in self.model.modules()]),
            "trainer's state": digest([state.iteration, state.epoch, state.max_epochs]),
            "trainer's handlers called": digest(self.handlers_called),
        }


@dataclass
class Found:
    """What a finder says."""

    rates: list[float]
    smoothed: list[float]
    steepest: float | None

    @property
    def minimum(self) -> float:
        return self.rates[int(np.argmin(self.smoothed))]


def ultimus(script: Script) -> Found:
    finder = LRFinder(
        script.model, script.optimizer, start_lr=START, end_lr=END, iterations=ITERATIONS
    )
    curve = finder.run(script.trainer, script)
    return Found(curve.rates, curve.smoothed, curve.steepest())


def ignite(script: Script) -> Found:
    finder = FastaiLRFinder()
    with finder.attach(
        script.trainer,
        to_save={"model": script.model, "optimizer": script.optimizer},
        output_transform=lambda output: output["loss"].item(),
        num_iter=ITERATIONS,
        start_lr=START,
        end_lr=END,
    ) as trainer:
        trainer.run(script, epoch_length=ITERATIONS)
    results = finder.get_results()
    return Found(results["lr"], results["loss"], finder.lr_suggestion())


def torch_lr_finder(script: Script) -> Found:
    from torch_lr_finder import LRFinder as TorchLRFinder
    from torch_lr_finder import TrainDataLoaderIter

    finder = TorchLRFinder(script.model, script.optimizer, script.loss_fn)
    batches = TrainDataLoaderIter(script)
    finder.range_test(batches, start_lr=START, end_lr=END, num_iter=ITERATIONS)
    _, steepest = finder.plot(ax=Figure().add_subplot())
    finder.reset()
    return Found(finder.history["lr"], finder.history["loss"], steepest)


FINDERS = {
    "FastaiLRFinder": ignite,
    "torch-lr-finder": torch_lr_finder,
    "ultimus-ignite": ultimus,
}


def digest(value: Any) -> str:
    """Of nested values, tensors by their bits."""
    return hashlib.sha256(repr(plain(value)).encode()).hexdigest()


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, Tensor | np.ndarray) else value


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the progress bars and warnings of the others."""
    nowhere = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(nowhere):
            yield


def seconds(find: Callable[[Script], Found], recipe: Recipe) -> float:
    script = Script(recipe)
    with quietly():
        start = time.perf_counter()
        find(script)
        return time.perf_counter() - start


def suggestions(find: Callable[[Script], Found], recipe: Recipe) -> list[str]:
    script = Script(recipe)
    with quietly():
        found = find(script)
    steepest = "none" if found.steepest is None else f"{found.steepest:.4g}"
    pairs = list(zip(found.rates, script.rates_used, strict=False))
    as_used = sum(np.isclose(recorded, used) for recorded, used in pairs)
    return [f"{found.minimum:.4g}", steepest, f"{as_used} of {len(pairs)}"]


def left_behind(
    find: Callable[[Script], Found], recipe: Recipe, fail_at: int | None = None
) -> dict[str, str]:
    """For each trace, whether the finder leaves it."""
    script = Script(recipe, nn.BatchNorm2d(3), nn.Dropout(0.1), fail_at=fail_at)
    before = script.traces()
    with quietly(), contextlib.suppress(ZeroDivisionError):
        find(script)
    after = script.traces()
    return {name: "as before" if before[name] == after[name] else "CHANGED" for name in before}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="as for train-cifar")
    parser.add_argument("--data-dir", default=Recipe().data_dir, help="as for train-cifar")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    recipe = Recipe(data=arguments.data, data_dir=arguments.data_dir)

    times = medians(
        {name: partial(seconds, find, recipe) for name, find in FINDERS.items()},
        rounds=arguments.rounds,
    )
    print_table(
        ["range test", "minimum", "steepest", "rates as used", "seconds"],
        [[n, *suggestions(find, recipe), f"{times[n]:.2f}"] for n, find in FINDERS.items()],
    )
    for title, fail_at in (("after a test", None), ("after an error", ITERATIONS // 2)):
        columns = [left_behind(find, recipe, fail_at) for find in FINDERS.values()]
        print()
        print_table([title, *FINDERS], [[name, *(c[name] for c in columns)] for name in columns[0]])
    print_environment("pytorch-ignite", "torch-lr-finder", "ultimus-ignite")


if __name__ == "__main__":
    main()
