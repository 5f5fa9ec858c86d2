"""Claim: what `--precision` and `--compile` change in an iteration of a recipe, on this device.

    python benchmarks/precision.py --data folder:DIR [--recipe large]

Milliseconds an iteration (batch, augmentation, step), and the loss after the same iterations of
the same seed. On a CPU without bfloat16 instructions float32 is the fastest; the flags are for
GPUs. The limit is arithmetic: what a product of two matrices of 2048 x 2048 reaches in the same
precision. A step takes three times the multiply-adds of the forward pass.

Median of interleaved rounds. Hardware, versions and results: docs/results.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from report import medians, print_environment, print_table
from torch.utils.flop_counter import FlopCounterMode

from ultimus_ignite.build import Parts, build
from ultimus_ignite.machine.allocator import keep_freed_memory
from ultimus_ignite.machine.devices import autocast_dtype
from ultimus_ignite.recipe import RECIPES

MAX_LR = 1e-3
VARIANTS: dict[str, dict[str, object]] = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "float32, compiled": {"precision": "float32", "compile": True},
}


def timed(parts: Parts, iterations: int) -> Callable[[], float]:
    """Seconds of so many more iterations, each time it is called."""

    def run() -> float:
        start = time.perf_counter()
        done = parts.trainer.state.iteration
        parts.trainer.state.max_epochs = None
        parts.trainer.run(parts.stream.starting_at(done), max_epochs=1, epoch_length=iterations)
        losses[id(parts)] = float(parts.trainer.state.output["loss"])  # waits for the device
        return time.perf_counter() - start

    return run


losses: dict[int, float] = {}


def training_flops(parts: Parts) -> int:
    """Floating-point operations of the products in a step: forward, and both gradients."""
    images = parts.stream.batch(0).images
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        parts.model(images)
    return 3 * counter.get_total_flops()


def peak(parts: Parts, size: int = 2048) -> float:
    """Floating-point operations a second of a product of matrices in the recipe's precision."""
    dtype = autocast_dtype(parts.recipe) or torch.float32
    a = torch.randn(size, size, device=parts.device, dtype=dtype)
    (a @ a).sum().item()  # warm
    start = time.perf_counter()
    (a @ a).sum().item()  # waits for the device
    return 2 * size**3 / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", default="~/.cache/ultimus-ignite")
    parser.add_argument("--recipe", choices=RECIPES, default="classic")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=[*VARIANTS])
    parser.add_argument("--iterations", type=int, default=20, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    recipe = replace(RECIPES[arguments.recipe], data=arguments.data, data_dir=arguments.data_dir)
    built = {name: build(replace(recipe, **VARIANTS[name])) for name in arguments.variants}
    for parts in built.values():
        highest = max(group["lr"] for group in parts.optimizer.param_groups)
        for group in parts.optimizer.param_groups:
            group["lr"] *= MAX_LR / highest
    seconds = medians(
        {name: timed(parts, arguments.iterations) for name, parts in built.items()},
        rounds=arguments.rounds,
    )
    peaks = {
        name: statistics.median(peak(parts) for _ in range(9)) for name, parts in built.items()
    }
    rows = [
        [
            name,
            f"{1e3 * value / arguments.iterations:.1f}",
            f"{value / next(iter(seconds.values())):.2f}",
            f"{losses[id(built[name])]:.4f}",
            f"{arguments.iterations * training_flops(built[name]) / value / peaks[name]:.0%}",
        ]
        for name, value in seconds.items()
    ]
    print_table(["", "ms/iteration", "to the first", "last loss", "share of the arithmetic"], rows)
    print_environment()


if __name__ == "__main__":
    main()
