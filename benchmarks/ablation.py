"""Claim: each part of `tokens` earns its place.

    python benchmarks/ablation.py --data folder:DIR [--epochs 3] [--seeds 1,2,3] [--only NAME ...]

Trains the recipe with one part taken away or replaced, from the same seeds, on nine tenths of the
training images; the held-out tenth judges, the test set decides nothing. Mean accuracy on the
held-out images in percent and, with its 95 % interval (Student's t), the mean difference to the
whole recipe from the same seed; parameters, multiply-adds an image and seconds a run.

Results: docs/models.md.
"""

import argparse
import contextlib
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from report import print_environment, print_table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ultimus_ignite import build
from ultimus_ignite.commands.repeat import half_interval
from ultimus_ignite.modules import UltimusTokenNet
from ultimus_ignite.recipe import RECIPES, Recipe
from ultimus_ignite.run import run
from ultimus_ignite.run_directory import RunDirectory


class Nothing(nn.Module):
    """What is left of a residual branch that is taken away."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


def without_attention(num_classes: int = 10) -> nn.Module:
    """The model whose stages are convolutions alone."""
    model = UltimusTokenNet(num_classes=num_classes)
    for attention in model.stages[1::2]:
        attention.block = Nothing()
    return model


def without_convolutions(num_classes: int = 10) -> nn.Module:
    """The model whose stages are attention alone."""
    model = UltimusTokenNet(num_classes=num_classes)
    for residual in model.stages[0::2]:
        residual.inner = Nothing()
    return model


def with_relu(num_classes: int = 10) -> nn.Module:
    """The model with the activation of most convolutional networks."""
    model = UltimusTokenNet(num_classes=num_classes)
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.SiLU):
                setattr(module, name, nn.ReLU())
    return model


@dataclass(frozen=True)
class Variant:
    """What is trained instead."""

    recipe: Recipe
    model: Callable[..., nn.Module] = UltimusTokenNet


def variants(base: Recipe) -> dict[str, Variant]:
    """The whole recipe first, then one change each."""
    return {
        "the whole recipe": Variant(base),
        "without attention": Variant(base, without_attention),
        "without the stages' convolutions": Variant(base, without_convolutions),
        "ReLU for SiLU": Variant(base, with_relu),
        "half the rate": Variant(replace(base, max_lr=base.max_lr / 2)),
        "with cutout": Variant(replace(base, cutout=0.5)),
    }


def accuracy(variant: Variant, seed: int) -> tuple[float, float]:
    """Held-out accuracy in percent after the last epoch, and seconds."""
    build.MODELS["UltimusTokenNet"] = variant.model
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        RunDirectory(folder).open() as directory,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        history = run(replace(variant.recipe, seed=seed), directory)
    return 100 * history.rows[-1]["val_accuracy"], time.perf_counter() - start


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    text = f"{statistics.mean(values):+.2f}"
    if len(values) == 1:
        return text
    return f"{text} ± {half_interval(values):.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--data-dir", default=Recipe().data_dir)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument(
        "--only", nargs="*", help="variants besides the whole recipe; all when left out"
    )
    arguments = parser.parse_args()
    base = replace(
        RECIPES["tokens"],
        data=arguments.data,
        data_dir=arguments.data_dir,
        epochs=arguments.epochs,
        val_fraction=0.1,
    )
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    rows: list[list[str]] = []
    whole: tuple[float, ...] = ()
    for name, variant in tqdm(variants(base).items(), leave=False, disable=None):
        if rows and arguments.only and name not in arguments.only:
            continue
        accuracies, seconds = zip(*(accuracy(variant, seed) for seed in seeds), strict=True)
        whole = whole or accuracies
        differences = [a - b for a, b in zip(accuracies, whole, strict=True)]
        model = variant.model()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, 32, 32))
        rows.append(
            [
                name,
                f"{statistics.mean(accuracies):.2f}",
                interval(differences) if rows else "",
                f"{sum(p.numel() for p in model.parameters()):,}",
                f"{counter.get_total_flops() / 2e6:.2f}",
                f"{statistics.mean(seconds):.0f}",
            ]
        )
    header = [
        "",
        "held-out accuracy, %",
        "difference",
        "parameters",
        "million multiply-adds",
        "seconds",
    ]
    print_table(header, rows)
    print_environment("pytorch-ignite")


if __name__ == "__main__":
    main()
