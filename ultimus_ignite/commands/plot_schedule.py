"""`ultimus plot-schedule`: the learning rate of every iteration, without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ultimus_ignite.commands.arguments import RecipeArguments, parse_recipe, writable
from ultimus_ignite.errors import UserError


@dataclass(frozen=True, kw_only=True)
class PlotScheduleArguments(RecipeArguments):
    """Write schedule.png and schedule.csv: the rate and momentum of every iteration of a run."""

    out: Path = Path()
    """Folder for both files."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Write both files, and print the first, the highest and the last rate."""
    arguments = parse_recipe(PlotScheduleArguments, prog, argv)
    if arguments.recipe.max_lr == "auto":
        raise UserError("--max-lr auto needs a training run: give one of ultimus find-lr's rates")
    out = writable(arguments.out)

    from ultimus_ignite.build import build
    from ultimus_ignite.handlers.support.figures import draw_schedule, save_figure
    from ultimus_ignite.handlers.support.history_csv import write_csv
    from ultimus_ignite.lifecycle.provenance import describe_data
    from ultimus_ignite.optimizers.create import create_scheduler

    parts = build(arguments.recipe)
    print(describe_data(parts), flush=True)
    total_steps = arguments.recipe.epochs * parts.stream.epoch_length
    schedule = create_scheduler(arguments.recipe, parts.optimizer).simulate(total_steps)
    rates = [row[0] for row in schedule.rates]
    first = parts.optimizer.param_groups[0]
    constant = first.get("momentum", first["betas"][0])  # a row is empty if it is not cycled
    momenta = [row[0] if row else constant for row in schedule.momenta]
    try:
        rows = [
            {"iteration": i, "lr": rate, "momentum": momentum}
            for i, (rate, momentum) in enumerate(zip(rates, momenta, strict=True), start=1)
        ]
        write_csv(rows, out / "schedule.csv")
        save_figure(draw_schedule(rates, momenta), out / "schedule.png")
    except OSError as error:
        reason = f"{out} cannot be written ({error.strerror}): choose another --out"
        raise UserError(reason) from None
    peak = max(range(total_steps), key=rates.__getitem__)
    print(f"iteration 1: {rates[0]!r}")
    print(f"iteration {peak + 1}: {rates[peak]!r}, the highest")
    print(f"iteration {total_steps}: {rates[-1]!r}")
    print(out / "schedule.png")
