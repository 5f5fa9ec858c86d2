"""What each part of `tokens` or of `large` adds.

    python benchmarks/ablation.py --data folder:DIR [--recipe tokens] [--epochs 3] [--seeds 1,2,3]
                                  [--variants 'without attention']

Trains the recipe with one part taken away or replaced, from the same seeds, on nine tenths of the
training images; the held-out tenth judges, the test set decides nothing. Mean accuracy on the
held-out images in percent and, with its 95 % interval (Student's t), the mean difference to the
whole recipe from the same seed; parameters, multiply-adds an image and seconds a run.

Results: docs/experiments.md.
"""

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from report import print_environment, print_table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ultimus_ignite.commands.repeat import half_interval
from ultimus_ignite.modules import MODELS, UltimusTokenNet, UltimusTokenNetLarge
from ultimus_ignite.modules.ultimus_token_net import (
    GatedPool,
    RepeatedConvolution,
    TokenAttention,
)
from ultimus_ignite.recipe import RECIPES, Recipe
from ultimus_ignite.training import train


class Nothing(nn.Module):
    """What is left of a residual branch that is taken away."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


Create = Callable[..., nn.Module]


def changed(create: Create, change: Callable[[nn.Module], None]) -> Create:
    """The model with a change to each of its modules."""

    def create_and_change(num_classes: int = 10) -> nn.Module:
        model = create(num_classes=num_classes)
        for module in [*model.modules()]:
            change(module)
        return model

    return create_and_change


def remove_attention(module: nn.Module) -> None:
    if isinstance(module, TokenAttention):
        module.block = Nothing()


def apply_once(module: nn.Module) -> None:
    if isinstance(module, RepeatedConvolution):
        del module.inner_norms[1:], module.outer_norms[1:]


def pool_by_the_mean(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, GatedPool):
            size = child.size
            setattr(module, name, nn.AvgPool2d(2) if size is None else nn.AdaptiveAvgPool2d(size))


def remove_inner_norm(module: nn.Module) -> None:
    if isinstance(module, RepeatedConvolution):
        for time in range(len(module.inner_norms)):
            module.inner_norms[time] = nn.Identity()


def replace_silu(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.SiLU):
            setattr(module, name, nn.ReLU())


def start_at_random(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        module.reset_parameters()


@dataclass(frozen=True)
class Variant:
    """What is trained instead."""

    recipe: Recipe
    model: Create


def tokens_variants(base: Recipe) -> dict[str, Variant]:
    """The whole recipe first, then one change each."""
    whole = UltimusTokenNet
    return {
        "the whole recipe": Variant(base, whole),
        "without attention": Variant(base, changed(whole, remove_attention)),
        "each convolution once": Variant(base, changed(whole, apply_once)),
        "the mean for the gated pooling": Variant(base, changed(whole, pool_by_the_mean)),
        "without the norm between the halves": Variant(base, changed(whole, remove_inner_norm)),
        "ReLU for SiLU": Variant(base, changed(whole, replace_silu)),
        "without the mirror image": Variant(replace(base, mirror=False), whole),
        "without weight decay": Variant(replace(base, weight_decay=0.0), whole),
        "batches of 256, rate 0.03": Variant(replace(base, batch_size=256, max_lr=0.03), whole),
    }


def large_variants(base: Recipe) -> dict[str, Variant]:
    """The whole recipe first, then one change each."""
    whole = UltimusTokenNetLarge
    return {
        "the whole recipe": Variant(base, whole),
        "without attention": Variant(base, changed(whole, remove_attention)),
        "random kernels to start from": Variant(base, changed(whole, start_at_random)),
        "without label smoothing": Variant(replace(base, label_smoothing=0.0), whole),
        "without weight decay": Variant(replace(base, weight_decay=0.0), whole),
        "without the mirror image": Variant(replace(base, mirror=False), whole),
    }


VARIANTS = {"tokens": tokens_variants, "large": large_variants}


def accuracy(variant: Variant, seed: int) -> tuple[float, float]:
    """Held-out accuracy in percent after the last epoch, and seconds."""
    MODELS[variant.recipe.model] = variant.model
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        history = train(replace(variant.recipe, seed=seed), out=folder).history
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
    parser.add_argument("--recipe", choices=VARIANTS, default="tokens")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--variants", help="besides the whole recipe; default: all, comma between")
    arguments = parser.parse_args()
    base = replace(
        RECIPES[arguments.recipe],
        data=arguments.data,
        data_dir=arguments.data_dir,
        epochs=arguments.epochs,
        val_fraction=0.1,
    )
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    variants = VARIANTS[arguments.recipe](base)
    if arguments.variants is not None:
        chosen = ["the whole recipe", *arguments.variants.split(",")]
        variants = {name: variants[name] for name in chosen}
    rows: list[list[str]] = []
    whole: tuple[float, ...] = ()
    for name, variant in tqdm(variants.items(), leave=False, disable=None):
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
        tqdm.write(" | ".join(rows[-1]), file=sys.stderr)  # an hour's work is not to be lost
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
