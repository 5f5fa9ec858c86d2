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
    """Check the flags and the run directory before torch is loaded; then train."""
    arguments = parse_recipe(TrainArguments, prog, argv)
    directory = arguments.directory
    with directory.open(resume=arguments.resume):
        pass
    if load := describe_load():
        print(f"{prog}: {load}", file=sys.stderr)
    from ultimus_ignite.training import train

    train(
        arguments.recipe,
        out=directory.path,
        resume=arguments.resume,
        extend_epochs=arguments.extend_epochs,
    )
