"""Claim: seconds and memory grow no faster than the images, classes, pixels, epochs or batches do.

    python benchmarks/growth.py [--picture docs/growth.png]

Each row is a run of `classic` in a process of its own, with one thing larger than in the row
before, on images of random bytes: 10,000 to train and 1,000 to test on, 10 classes, 32 pixels, one
epoch, batches of 512. Seconds are of `train`, without the import of torch: what is prepared,
trained, evaluated, saved and drawn. Memory is the most that the process had, less what it had when
its images were made. Runs of several epochs have 512 images to train and 64 to test on.

The power is that of the growth from the row before: 1 is linear. Hardware and results:
docs/results.md.
"""

import argparse
import contextlib
import io
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from report import print_environment, print_table
from tqdm import tqdm

USUAL = {"images": 10_000, "classes": 10, "pixels": 32, "epochs": 1, "batch": 512}
AXES = {
    "images": (1_000, 10_000, 100_000, 1_000_000),
    "classes": (2, 10, 100, 1_000),
    "pixels": (32, 64, 128),
    "epochs": (10, 100, 1_000),
    "batch": (64, 512, 4_096),
}


def one_run(images: int, classes: int, pixels: int, epochs: int, batch: int) -> None:
    """Print seconds and megabytes of one run, as JSON."""
    import torch

    from ultimus_ignite import ImageData, Recipe, train
    from ultimus_ignite.machine.allocator import keep_freed_memory

    keep_freed_memory()
    if epochs > 1:
        images = 512
    names = tuple(f"{number:04}" for number in range(classes))

    def draw(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (count, 3, pixels, pixels)
        return torch.randint(256, shape, dtype=torch.uint8), torch.arange(count) % classes

    split = draw(images), draw(64 if epochs > 1 else 1_000)
    data = ImageData.measure("random bytes", names, *split)
    recipe = Recipe(epochs=epochs, batch_size=batch, max_lr=1e-4, device="cpu")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(recipe, out=folder, data=data)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "memory": memory / 1024, "folder": size / 1e6}))


def measured(**sizes: int) -> dict[str, float]:
    """What `one_run` says of itself, in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(sizes)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode:
        raise SystemExit(child.stderr)
    figures: dict[str, float] = json.loads(child.stdout.splitlines()[-1])
    return figures


def power(sizes: tuple[int, int], values: tuple[float, float]) -> str:
    """p of ``value ~ size ** p``, between two rows."""
    return f"{math.log(values[1] / values[0]) / math.log(sizes[1] / sizes[0]):.2f}"


def draw(results: dict[str, dict[int, dict[str, float]]], path: str) -> None:
    """Seconds over each size, on logarithmic axes, beside a line of power 1."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    from ultimus_ignite.handlers.support.figures import new_figure, save_figure

    figure = new_figure(11, 2.6)
    for number, (axis, rows) in enumerate(results.items(), start=1):
        sizes, seconds = [*rows], [row["seconds"] for row in rows.values()]
        axes = figure.add_subplot(1, len(results), number)
        axes.loglog(sizes, seconds, marker=".")
        linear = [seconds[-1] * size / sizes[-1] for size in sizes]
        axes.loglog(sizes, linear, linestyle=":", color="0.6")
        axes.set_title(axis, loc="left")
        axes.set_ylim(0.3, 100)
        axes.grid(alpha=0.3)
        axes.set_xticks(sizes)
        axes.xaxis.set_major_formatter(EngFormatter(places=0, sep=""))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    figure.axes[0].set_ylabel("seconds")
    save_figure(figure, Path(path))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one_run(**json.loads(arguments.one))
        return
    results: dict[str, dict[int, dict[str, float]]] = {}
    for axis, sizes in tqdm(AXES.items(), leave=False, disable=None):
        results[axis] = {size: measured(**{**USUAL, axis: size}) for size in sizes}
    table = []
    for axis, rows in results.items():
        previous = 0
        for size, row in rows.items():
            growth = ""
            if previous:
                seconds = rows[previous]["seconds"], row["seconds"]
                growth = power((previous, size), seconds)
            previous = size
            name = f"{size:,} {axis}"
            seconds_text, memory = f"{row['seconds']:.1f}", f"{row['memory']:.0f}"
            table.append([name, seconds_text, growth, memory, f"{row['folder']:.1f}"])
    print_table(["", "seconds", "power", "memory, MB", "folder, MB"], table)
    print_environment("pytorch-ignite")
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
