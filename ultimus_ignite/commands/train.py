"""`train-cifar`: one run, from a recipe and flags."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ultimus_ignite.commands.arguments import RunArguments, parse_recipe
from ultimus_ignite.distributed.launch import launch, launches
from ultimus_ignite.errors import LostProcess
from ultimus_ignite.machine.cores import describe_load
from ultimus_ignite.recipe import check_ranges

PATIENCE = 2.0  # seconds in which the others notice, too, that one hangs, and end


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
    except LostProcess as error:
        # torchrun now ends those that are left, as this one does by itself.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _end_hung(error.silent)
        raise


def _end_hung(processes: Sequence[int]) -> None:
    """Kill what does not end by itself; torchrun would wait for it for half a minute."""
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.kill(process, 0)  # it fails if there is no such process any more
                time.sleep(0.05)
            os.kill(process, signal.SIGKILL)
