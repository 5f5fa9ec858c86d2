"""`train-cifar`: one run, from a recipe and flags."""

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ultimus_ignite.commands.arguments import RunArguments, parse_recipe
from ultimus_ignite.cores import describe_load
from ultimus_ignite.distributed.launch import launch, launches
from ultimus_ignite.errors import LostProcess
from ultimus_ignite.recipe import check_ranges


@dataclass(frozen=True, kw_only=True)
class TrainArguments(RunArguments):
    """Train an image classifier; every field of the recipe is a flag."""

    processes: int = 1
    """Processes that train one model together, each on its share of every batch."""
    process_timeout: float = 300.0
    """Seconds after which a process that waits for another gives up."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(prog: str, argv: Sequence[str]) -> None:
    """Check the flags and the run directory before torch is loaded; then train."""
    arguments = parse_recipe(TrainArguments, prog, argv)
    directory = arguments.directory
    if "WORLD_SIZE" not in os.environ:  # else the others would wait for a process that ends here
        with directory.open(resume=arguments.resume):
            pass
    if directory.is_writer and (load := describe_load()):
        print(f"{prog}: {load}", file=sys.stderr)
    if launches(arguments.processes):
        launch(arguments.processes, argv)
        return
    from ultimus_ignite.training import train

    try:
        train(
            arguments.recipe,
            out=directory.path,
            resume=arguments.resume,
            extend_epochs=arguments.extend_epochs,
            process_timeout=arguments.process_timeout,
        )
    except LostProcess:  # torchrun now ends those that are left, as this one does by itself
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
