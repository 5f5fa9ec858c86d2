"""`ultimus repeat`: train a recipe from several seeds, and print how much the results differ."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ultimus_ignite.commands.arguments import RunArguments, parse_recipe, writable
from ultimus_ignite.errors import UserError
from ultimus_ignite.recipe import RECIPES, Recipe
from ultimus_ignite.run_directory import RunDirectory


@dataclass(frozen=True, kw_only=True)
class RepeatArguments(RunArguments):
    """Train once per seed, each in OUT/seed-N, and print mean, deviation and 95 % interval.

    With --resume, finished seeds are kept and an interrupted one is continued.
    """

    out: Path | None = None
    """Folder of the runs; runs/RECIPE-repeat if not given."""
    seeds: str = "1,2,3,4,5"
    """Seeds, separated by commas; --seed is refused."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Run the seeds one after the other and print the table."""
    arguments = parse_recipe(RepeatArguments, prog, argv)
    if arguments.recipe.seed != RECIPES[arguments.recipe_name].seed:
        raise UserError(f"--seed {arguments.recipe.seed} has no effect: give --seeds")
    seeds = parse_seeds(arguments.seeds)
    out = writable(arguments.out or Path("runs") / f"{arguments.recipe_name}-repeat")
    directories = {seed: RunDirectory(out / f"seed-{seed}") for seed in seeds}
    for directory in directories.values():  # a seed that cannot run is refused at once
        with directory.open(resume=arguments.resume):
            pass

    from ultimus_ignite.training import train

    accuracies = {}
    for seed, directory in directories.items():
        print(f"seed {seed}", flush=True)
        train(
            replace(arguments.recipe, seed=seed),
            out=directory.path,
            resume=arguments.resume,
            extend_epochs=arguments.extend_epochs,
        )
        status = directory.read_status()
        split = "test" if "test_accuracy" in status else "val"
        accuracies[seed] = float(status[f"{split}_accuracy"])
    print(table(accuracies, split))


def parse_seeds(text: str) -> list[int]:
    """The seeds of a text such as ``1,2,3``: different whole numbers of at least 0.

    Example:
        >>> parse_seeds("1,2, 30")
        [1, 2, 30]
    """
    seeds = [part.strip() for part in text.split(",")]
    if not all(seed.isdecimal() for seed in seeds) or len(set(map(int, seeds))) < len(seeds):
        raise UserError(f"--seeds must be different whole numbers such as 1,2,3, got {text!r}")
    return [Recipe(seed=int(seed)).seed for seed in seeds]


def half_interval(values: Sequence[float]) -> float:
    """Half the 95 % interval of the mean, by Student's t, because the deviation is an estimate.

    Example:
        >>> round(half_interval([80.0, 81.0, 82.0]), 2)  # 4.30 x 1 / sqrt(3)
        2.48
    """
    from scipy.stats import t

    quantile = t.ppf(0.975, len(values) - 1)
    return float(quantile * statistics.stdev(values) / len(values) ** 0.5)


def table(accuracies: Mapping[int, float], split: str = "test") -> str:
    """One line per seed, then mean, standard deviation of a run, and 95 % interval of the mean.

    Example:
        >>> print(table({1: 0.80, 2: 0.81, 3: 0.82}))
          seed  test accuracy
             1        80.00 %
             2        81.00 %
             3        82.00 %
        mean 81.00 %, standard deviation 1.00 %, 95 % interval of the mean 78.52 to 83.48 %
    """
    rows = [f"{seed:6}  {100 * accuracy:11.2f} %" for seed, accuracy in accuracies.items()]
    values = [100 * accuracy for accuracy in accuracies.values()]
    mean = statistics.mean(values)
    summary = f"mean {mean:.2f} %"
    if len(values) > 1:
        half = half_interval(values)
        summary += f", standard deviation {statistics.stdev(values):.2f} %"
        summary += f", 95 % interval of the mean {mean - half:.2f} to {mean + half:.2f} %"
    return "\n".join([f"  seed  {split:>4} accuracy", *rows, summary])
