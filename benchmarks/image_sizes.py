"""Claim: what larger images cost and what they give, on real photos.

    python benchmarks/image_sizes.py --data folder:DIR [--epochs 10] [--seeds 1]

Each network is trained on the same photos at each size, with the same number of epochs and images
per batch. Seconds are of one epoch of training without its evaluation: the median iteration of
five, times the iterations of an epoch. `--epochs 0` measures them alone.

The rates were not tuned: those of the recipes, times the square root of the ratio of the batches;
resnet18 has 0.003, and a weight decay of 0.05. Hardware, versions and results: docs/results.md.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from dataclasses import replace

from report import print_environment, print_table

from ultimus_ignite import Recipe, train
from ultimus_ignite.build import build
from ultimus_ignite.machine.allocator import keep_freed_memory
from ultimus_ignite.recipe import RECIPES

NETWORKS = {
    "tokens": replace(RECIPES["tokens"], batch_size=64, max_lr=0.015),
    "large": replace(RECIPES["large"], optimizer="adamw", batch_size=64, max_lr=0.0035),
    "resnet18": Recipe(
        model="torchvision.models:resnet18",
        batch_size=64,
        max_lr=0.003,
        weight_decay=0.05,
        cutout=0.0,
    ),
}
ITERATIONS = 6  # the first is not measured


def seconds_per_epoch(recipe: Recipe) -> float:
    """The median iteration, times the iterations of an epoch."""
    parts = build(replace(recipe, epochs=20))
    parts.optimizer.param_groups[0]["lr"] = 1e-4
    seconds = []
    for iteration in range(ITERATIONS):
        start = time.perf_counter()
        parts.trainer.state.max_epochs = None
        parts.trainer.run(parts.stream.starting_at(iteration), max_epochs=1, epoch_length=1)
        float(parts.trainer.state.output["loss"])  # waits for the device
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:]) * parts.stream.epoch_length


def accuracy(recipe: Recipe) -> float:
    """Test accuracy after the last epoch, in percent."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        rows = train(recipe, out=folder).history.rows
    return 100 * rows[-1]["test_accuracy"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", default="~/.cache/ultimus-ignite")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64, 96, 128, 224])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    arguments = parser.parse_args()
    keep_freed_memory()
    rows = []
    for size in arguments.sizes:
        for name in arguments.networks:
            recipe = replace(
                NETWORKS[name],
                data=arguments.data,
                data_dir=arguments.data_dir,
                image_size=size,
                epochs=max(1, arguments.epochs),
            )
            seconds = seconds_per_epoch(recipe)
            seeds = arguments.seeds if arguments.epochs else []
            accuracies = [accuracy(replace(recipe, seed=seed)) for seed in seeds]
            cells = [f"{value:.2f} %" for value in accuracies]
            rows.append([f"{name}, {size} pixels", f"{seconds:.1f}", *cells])
            print(*rows[-1], flush=True)
    seeds = [f"seed {seed}" for seed in arguments.seeds] if arguments.epochs else []
    print_table(["network, size", "seconds an epoch", *seeds], rows)
    print_environment("torchvision")


if __name__ == "__main__":
    main()
