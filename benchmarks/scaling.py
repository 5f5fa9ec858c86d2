"""Claim: two processes compute what one computes, faster; what they exchange for it.

    python benchmarks/scaling.py --data folder:DIR [--recipes classic tokens] [--processes 1 2]

Each process has one thread. Every row trains 50 iterations of the same recipe and seed with the
same global batches. ``difference`` is the largest of a weight to that of the first row, relative to
the largest weight of its tensor, in float32 and with the whole model in float64. An exchange is a
call of gloo in one iteration, as torch's profiler counts them. Hardware and results:
docs/results.md.
"""

import argparse
import os
import socket
import statistics
import tempfile
import time
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is loaded; the processes inherit it

import ignite.distributed as idist
import torch
from ignite.engine import Events
from report import print_environment, print_table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ultimus_ignite.build import build
from ultimus_ignite.networks.models import create_model
from ultimus_ignite.optimizers.create import create_scheduler
from ultimus_ignite.recipe import RECIPES, Recipe

ITERATIONS = 50


class InFloat64(nn.Module):
    """A model whose layers compute in float64."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.double()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images.double())
        return logits


def train(rank: int, recipe: Recipe, in_float64: bool, out: str) -> None:
    """Train on this process; rank 0 writes the weights and what was measured."""
    model = InFloat64(create_model(recipe, num_classes=10)) if in_float64 else None
    parts = build(recipe, model=model)
    trainer, seconds, weights = parts.trainer, [], {}
    create_scheduler(recipe, parts.optimizer).attach(trainer)
    profiler = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    @trainer.on(Events.ITERATION_STARTED)
    def begin() -> None:
        if trainer.state.iteration > ITERATIONS:
            profiler.start()
        seconds.append(-time.perf_counter())

    @trainer.on(Events.ITERATION_COMPLETED)
    def end() -> None:
        seconds[-1] += time.perf_counter()
        if trainer.state.iteration == ITERATIONS:
            weights.update({k: v.clone() for k, v in parts.model.state_dict().items()})
        elif trainer.state.iteration > ITERATIONS:
            profiler.stop()
            trainer.terminate()

    length = parts.stream.epoch_length
    trainer.run(parts.stream.starting_at(0), max_epochs=recipe.epochs, epoch_length=length)
    sent = [e.input_shapes[0] for e in profiler.events() if e.name == "gloo:all_reduce"]
    if rank == 0:
        torch.save((weights, statistics.median(seconds[10:ITERATIONS]), sent), out)


def measure(processes: int, *arguments: Any) -> Any:
    """Train on so many processes."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder, "measured"))
        if processes == 1:
            train(0, *arguments, out)
        else:
            options = {"nproc_per_node": processes, "master_port": port}
            with idist.Parallel(backend="gloo", **options) as parallel:
                parallel.run(train, *arguments, out)
        return torch.load(out)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    return max(
        float((a[key] - b[key]).abs().max() / a[key].abs().max().clamp_min(1e-30))
        for key in a
        if a[key].is_floating_point()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", default="~/.cache/ultimus-ignite")
    parser.add_argument("--recipes", choices=RECIPES, nargs="+", default=["classic", "tokens"])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows = []
    for name in arguments.recipes:
        places = {"data": arguments.data, "data_dir": arguments.data_dir, "device": "cpu"}
        recipe = replace(RECIPES[name], precision="float32", **places)
        first: Any = None
        for processes in arguments.processes:
            weights, seconds, sent = measure(processes, recipe, False)
            exact, *_ = measure(processes, recipe, True)
            first = first or (weights, exact, seconds)
            rows.append(
                [
                    f"{name}, {processes}",
                    f"{recipe.batch_size / seconds:,.0f}",
                    f"{first[2] / seconds * arguments.processes[0] / processes:.0%}",
                    str(len(sent)),
                    f"{sum(4 * prod(shape) for shape in sent) / 1024:.1f}",
                    f"{difference(first[0], weights):.1e}",
                    f"{difference(first[1], exact):.1e}",
                ]
            )
            print(*rows[-1], flush=True)
    header = ["recipe, processes", "images a second", "efficiency", "exchanges", "KiB"]
    print_table([*header, "difference", "in float64"], rows)
    print_environment()


if __name__ == "__main__":
    main()
