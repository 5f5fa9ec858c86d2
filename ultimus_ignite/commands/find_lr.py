"""`ultimus find-lr`: the learning rates that suit a recipe, by a range test."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import tyro

from ultimus_ignite.commands.arguments import RecipeArguments, parse_recipe, writable
from ultimus_ignite.errors import UserError
from ultimus_ignite.recipe import RangeTest, check_ranges


@dataclass(frozen=True, kw_only=True)
class FindLRArguments(RecipeArguments):
    """Train for a few iterations at rising rates, and print the --max-lr that each rule suggests.

    A rule that finds no answer between the two rates prints "none".
    """

    rates: tyro.conf.OmitArgPrefixes[RangeTest] = field(default_factory=RangeTest)
    repeats: int = 1
    """Number of tests; each takes the next seed."""
    out: Path | None = None
    """Folder for lr_finder.png and lr_finder.csv; runs/RECIPE if not given."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(prog: str, argv: Sequence[str]) -> None:
    """Run the tests, print the rate of each rule, and draw the curves."""
    arguments = parse_recipe(FindLRArguments, prog, argv)
    out = writable(arguments.out or Path("runs") / arguments.recipe_name)

    from ultimus_ignite.build import build
    from ultimus_ignite.handlers.support.figures import format_rates, save_lr_curves
    from ultimus_ignite.lifecycle.provenance import describe_data
    from ultimus_ignite.lifecycle.range_test import range_test

    curves = []
    for repeat in range(arguments.repeats):
        recipe = replace(arguments.recipe, seed=arguments.recipe.seed + repeat)
        parts = build(recipe)
        if repeat == 0:
            print(describe_data(parts), flush=True)
        curves.append(range_test(parts, arguments.rates))
        answers = curves[-1].suggestions()
        line = "  ".join(f"{rule} {format_rates([rate])}" for rule, rate in answers.items())
        print(f"seed {recipe.seed}:  {line}", flush=True)
    if arguments.repeats > 1:
        for rule in answers:
            print(f"{rule}: {format_rates(curve.suggestions()[rule] for curve in curves)}")

    try:
        save_lr_curves(curves, out, title=f"{recipe.model} on {parts.data.name}")
    except OSError as error:
        reason = f"{out} cannot be written ({error.strerror}): choose another --out"
        raise UserError(reason) from None
    print(out / "lr_finder.png")
