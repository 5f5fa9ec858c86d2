"""`ultimus plot-schedule`: the learning rate of every iteration, without training."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ultimus_ignite.commands.arguments import RecipeArguments, parse_recipe
from ultimus_ignite.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PlotScheduleArguments(RecipeArguments):
    """Write schedule.png and schedule.csv: the rate and momentum of every iteration of a run."""

    out: Path = Path()
    """Folder for both files."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Write both files, and print the first, the highest and the last rate."""
    arguments = parse_recipe(PlotScheduleArguments, prog, argv)

    from ultimus_ignite.build import build, create_scheduler
    from ultimus_ignite.handlers.support.figures import draw_schedule, save_figure

    parts = build(arguments.recipe)
    total_steps = arguments.recipe.epochs * parts.stream.epoch_length
    schedule = create_scheduler(arguments.recipe, parts.optimizer).simulate(total_steps)
    rates = [row[0] for row in schedule.rates]
    constant = parts.optimizer.defaults["betas"][0]  # a row is empty if momentum is not cycled
    momenta = [row[0] if row else constant for row in schedule.momenta]
    try:
        arguments.out.mkdir(parents=True, exist_ok=True)
        with (arguments.out / "schedule.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["iteration", "lr", "momentum"])
            writer.writerows(zip(range(1, total_steps + 1), rates, momenta, strict=True))
        save_figure(draw_schedule(rates, momenta), arguments.out / "schedule.png")
    except OSError as error:
        reason = f"{arguments.out} cannot be written ({error.strerror}): choose another --out"
        raise UserError(reason) from None
    peak = max(range(total_steps), key=rates.__getitem__)
    print(f"iteration 1: {rates[0]!r}")
    print(f"iteration {peak + 1}: {rates[peak]!r}, the highest")
    print(f"iteration {total_steps}: {rates[-1]!r}")
    print(arguments.out / "schedule.png")
