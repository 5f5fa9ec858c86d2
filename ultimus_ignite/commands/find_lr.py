"""`ultimus find-lr`: the learning rates that suit a recipe, by a range test."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from ultimus_ignite.cli import UserError, parse, recipe_of
from ultimus_ignite.recipe import Recipe, RecipeName

if TYPE_CHECKING:
    from ultimus_ignite.handlers.lr_curve import LRCurve


@dataclass(frozen=True)
class FindLRArguments:
    """Train for a few iterations at rising rates, and say which rate each rule takes for --max-lr.

    A rule that finds no answer between the two rates says none.
    """

    flags: tyro.conf.OmitArgPrefixes[Recipe]
    recipe: RecipeName = "classic"
    """Named recipe that the other flags start from."""
    start_lr: float = 0.004
    """Rate of the first iteration."""
    end_lr: float = 0.04
    """Rate of the last iteration."""
    iterations: int = 100
    """Iterations of a test; their rates rise by equal factors."""
    repeats: int = 1
    """Number of tests, each with the next seed."""
    out: Path | None = None
    """Folder for lr_finder.png and lr_finder.csv; runs/RECIPE when left out."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the traceback of an error."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Test, print what each rule says, and draw."""
    default = FindLRArguments(recipe_of(argv))
    arguments: FindLRArguments = parse(FindLRArguments, prog, argv, default)
    if arguments.repeats < 1:
        raise UserError(f"--repeats must be at least 1, got {arguments.repeats}")

    from ultimus_ignite.build import build
    from ultimus_ignite.handlers.lr_curve import format_rates, save_lr_curves
    from ultimus_ignite.range_test import range_test

    curves: list[LRCurve] = []
    for seed in range(arguments.flags.seed, arguments.flags.seed + arguments.repeats):
        recipe = replace(arguments.flags, seed=seed)
        parts = build(recipe)
        curves.append(
            range_test(
                parts,
                start_lr=arguments.start_lr,
                end_lr=arguments.end_lr,
                iterations=arguments.iterations,
            )
        )
        answers = curves[-1].suggestions()
        line = "  ".join(f"{rule} {format_rates([rate])}" for rule, rate in answers.items())
        print(f"seed {seed}:  {line}", flush=True)
    if arguments.repeats > 1:
        for rule in answers:
            print(f"{rule}: {format_rates(curve.suggestions()[rule] for curve in curves)}")

    out = arguments.out or Path("runs") / arguments.recipe
    try:
        save_lr_curves(curves, out, title=f"{recipe.model} on {parts.data.name}")
    except OSError as error:
        reason = f"{out} cannot be written ({error.strerror}): choose another --out"
        raise UserError(reason) from None
    print(out / "lr_finder.png")
