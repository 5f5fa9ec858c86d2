"""`train-cifar`: one run, from a recipe and flags."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ultimus_ignite.commands.arguments import RunArguments, parse_recipe
from ultimus_ignite.cores import describe_load


@dataclass(frozen=True, kw_only=True)
class TrainArguments(RunArguments):
    """Train an image classifier; every field of the recipe is a flag."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Parse the flags and lock the run directory before torch is loaded; then train."""
    arguments = parse_recipe(TrainArguments, prog, argv)
    with arguments.directory.open(resume=arguments.resume) as directory:
        if load := describe_load():
            print(f"{prog}: {load}", file=sys.stderr)
        from ultimus_ignite.run import run

        run(arguments.recipe, directory, extend_epochs=arguments.extend_epochs)
