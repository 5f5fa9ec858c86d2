"""Claim: `train-cifar` is tens of times faster per training iteration than the notebook's loop.

    pip install -e '.[benchmarks]'
    python benchmarks/notebook_loop.py --data cifar10 [--epochs 24] [any other flag of train-cifar]

The loop of the original notebook is rebuilt as it was published: albumentations, image by image, in
one worker; the convolutions before the pooling; torch's OneCycleLR; a bar that is redrawn every
iteration after two `.item()`. Its iterations are timed in the middle of a run, without start-up and
evaluation.

Ours is the whole command: start-up, data from its cache, all epochs with an evaluation after each,
checkpoints, history and curves, over the number of its training iterations. `history.csv` tells
which part of it is training and evaluation. The recipe is `classic`, which leaves the
notebook's grey out; `--grey 0.5` brings it back. The step alone, on batches that lie in memory, is
the limit: nothing that trains this model with this step can be faster.

Median of interleaved rounds. Hardware, versions and results: docs/results.md.
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.nn.functional as F
from augmentation import albumentations_transform
from report import SilentTerminal, print_environment, print_table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm import tqdm

from ultimus_ignite.build import build
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.sources import load
from ultimus_ignite.handlers.support.history_csv import read_csv
from ultimus_ignite.machine.allocator import keep_freed_memory
from ultimus_ignite.modules import UltimusNet
from ultimus_ignite.recipe import Recipe

WARM_UP = 2  # iterations: the worker starts, and fills its queue


class NotebookDataset(Dataset[tuple[Tensor, int]]):
    """Training images, augmented one by one by albumentations."""

    def __init__(self, data: ImageData) -> None:
        self.images = data.train_images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.train_labels.tolist()
        self.transform = albumentations_transform(data.mean, data.std)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def notebook_loop(data: ImageData, iterations: int) -> float:
    """Milliseconds an iteration of the notebook's training loop."""
    recipe, total = Recipe(), WARM_UP + iterations
    dataset = NotebookDataset(data)
    # With replacement: as many full batches as are timed, however small the data.
    sampler = RandomSampler(dataset, replacement=True, num_samples=total * recipe.batch_size)
    loader = DataLoader(dataset, recipe.batch_size, sampler=sampler, num_workers=1)
    model = UltimusNet(num_classes=len(data.classes), pool_first=False)
    optimizer = torch.optim.Adam(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=recipe.max_lr,
        total_steps=total,
        pct_start=recipe.pct_start,
        anneal_strategy=recipe.anneal_strategy,
        cycle_momentum=False,
        div_factor=recipe.div_factor,
        final_div_factor=recipe.final_div_factor,
    )

    correct = processed = 0
    bar = tqdm(loader, file=SilentTerminal())
    for batch_id, (images, labels) in enumerate(bar):
        if batch_id == WARM_UP:
            start = time.perf_counter()
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        schedule.step()
        correct += (logits.argmax(dim=1) == labels).sum().item()
        processed += len(labels)
        bar.set_description(
            f"Batch_id={batch_id} Loss={loss.item():.5f} Accuracy={100 * correct / processed:.2f}%"
        )
    return (time.perf_counter() - start) / iterations * 1e3


class CommandTime(NamedTuple):
    """Milliseconds per training iteration of one run of the command."""

    whole: float
    epochs: float  # training and evaluation, as history.csv has them


def train_cifar(flags: Sequence[str]) -> CommandTime:
    """Run the command in a process and a folder of its own."""
    command = Path(__file__).resolve().parents[1] / "bin" / "train-cifar"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, command, *flags, "--out", out], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - start
        rows = read_csv(out / "history.csv")
    scale = 1e3 / rows[-1]["iteration"]
    return CommandTime(seconds * scale, sum(row["seconds"] for row in rows) * scale)


def step_alone(data: ImageData, iterations: int = 200) -> float:
    """Milliseconds an iteration of our trainer, on eight batches that are made before."""
    parts = build(Recipe(max_lr=1e-3), data=data)
    batches = [parts.stream.batch(number) for number in range(8)]
    parts.trainer.run(batches, max_epochs=1)  # cold caches
    start = time.perf_counter()
    parts.trainer.run(itertools.cycle(batches), max_epochs=1, epoch_length=iterations)
    return (time.perf_counter() - start) / iterations * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="digits", help="as train-cifar has it")
    parser.add_argument("--data-dir", default=Recipe().data_dir)
    parser.add_argument("--iterations", type=int, default=20, help="of the notebook's loop")
    parser.add_argument("--rounds", type=int, default=3)
    arguments, flags = parser.parse_known_args()
    keep_freed_memory()  # as the command does

    data = load(arguments.data, arguments.data_dir)  # which also fills the cache for the command
    flags = ["--data", arguments.data, "--data-dir", arguments.data_dir, *flags]
    theirs, ours, steps = [], [], []
    for _ in tqdm(range(arguments.rounds), desc="rounds", leave=False, disable=None):
        theirs.append(notebook_loop(data, arguments.iterations))
        ours.append(train_cifar(flags))
        steps.append(step_alone(data))

    whole, epochs = map(median, zip(*ours, strict=True))
    times = {
        "notebook's loop, training alone": median(theirs),
        "train-cifar, the whole command": whole,
        "- of which training and evaluation": epochs,
        "- of which start-up, checkpoints, curves": whole - epochs,
        "the step alone, the limit": median(steps),
    }
    print_table(
        [f"{data.name}, {len(data.train_images):,} training images", "ms an iteration", "ratio"],
        [[name, f"{time:.2f}", f"{time / whole:.2f}"] for name, time in times.items()],
    )
    print_environment("albumentations", "pytorch-ignite", "ultimus-ignite")


if __name__ == "__main__":
    main()
