"""Claim: what `--precision` and `--compile` change in a `classic` iteration, on this device.

    python benchmarks/precision.py --data folder:DIR

Milliseconds an iteration (batch, augmentation, step), and the loss after the same iterations of
the same seed. On a CPU without bfloat16 instructions float32 is the fastest; the flags are for
GPUs.

Median of interleaved rounds. Hardware, versions and results: docs/results.md.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

from report import medians, print_environment, print_table

from ultimus_ignite.build import Parts, build
from ultimus_ignite.machine.allocator import keep_freed_memory
from ultimus_ignite.recipe import RECIPES

VARIANTS: dict[str, dict[str, object]] = {
    "float32": {},
    "bfloat16": {"precision": "bfloat16"},
    "float16": {"precision": "float16"},
    "float32, compiled": {"compile": True},
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", default="~/.cache/ultimus-ignite")
    parser.add_argument("--iterations", type=int, default=20, help="in a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    keep_freed_memory()
    recipe = replace(
        RECIPES["classic"], data=arguments.data, data_dir=arguments.data_dir, max_lr=1e-3
    )
    built = {name: build(replace(recipe, **changes)) for name, changes in VARIANTS.items()}
    seconds = medians(
        {name: timed(parts, arguments.iterations) for name, parts in built.items()},
        rounds=arguments.rounds,
    )
    rows = [
        [
            name,
            f"{1e3 * value / arguments.iterations:.1f}",
            f"{value / seconds['float32']:.2f}",
            f"{losses[id(built[name])]:.4f}",
        ]
        for name, value in seconds.items()
    ]
    print_table(["", "ms/iteration", "to float32", "last loss"], rows)
    print_environment()


if __name__ == "__main__":
    main()
