"""`train-cifar`: one run, from a recipe and flags."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ultimus_ignite.cli import parse, recipe_of
from ultimus_ignite.recipe import Recipe, RecipeName
from ultimus_ignite.run_directory import RunDirectory


@dataclass(frozen=True)
class TrainArguments:
    """Train an image classifier; every field of the recipe is a flag.

    Exit codes: 0 done, 1 internal, 2 bad flag, data or path, 3 checkpoint refused,
    4 non-finite loss, 130 interrupted, 143 terminated.
    """

    flags: tyro.conf.OmitArgPrefixes[Recipe]
    recipe: RecipeName = "classic"
    """Named recipe that the other flags start from."""
    out: Path | None = None
    """Folder of the run; runs/RECIPE when left out."""
    resume: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Go on with the run in --out; start anew where there is none."""
    extend_epochs: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Resume with another --epochs than the run was begun with."""
    debug: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the traceback of an error."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Parse, open the run directory, and only then load torch and train."""
    arguments = parse_arguments(prog, argv)
    with RunDirectory(out_of(arguments)).open(resume=arguments.resume) as directory:
        from ultimus_ignite.run import run

        run(arguments.flags, directory, extend_epochs=arguments.extend_epochs)


def parse_arguments(prog: str, argv: Sequence[str]) -> TrainArguments:
    """The flags of ``train-cifar``."""
    arguments: TrainArguments = parse(TrainArguments, prog, argv, TrainArguments(recipe_of(argv)))
    return arguments


def out_of(arguments: TrainArguments) -> Path:
    """The folder of the run."""
    return arguments.out or Path("runs") / arguments.recipe
