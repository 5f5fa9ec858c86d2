"""The commands `train-cifar` and `ultimus`, and how they end."""

import argparse
import contextlib
import gc
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ultimus_ignite.recipe import RECIPES, Recipe, RecipeError
from ultimus_ignite.run_directory import Interrupted, RunDirectoryError

Arguments = TypeVar("Arguments")


class ExitCode(IntEnum):
    """What scripts may rely on."""

    DONE = 0
    INTERNAL = 1
    BAD_INPUT = 2
    CHECKPOINT_REFUSED = 3
    NON_FINITE = 4
    INTERRUPTED = 130  # 128 + SIGINT
    TERMINATED = 143  # 128 + SIGTERM


class UserError(Exception):
    """A mistake on the command line; one line that says what is wrong and what would do."""


def train_cifar() -> NoReturn:
    """Entry point of ``train-cifar``."""
    from ultimus_ignite.commands import train

    sys.exit(call(train.main, "train-cifar", sys.argv[1:]))


def ultimus() -> NoReturn:
    """Entry point of ``ultimus SUBCOMMAND``."""
    from ultimus_ignite import commands

    sys.exit(call(commands.main, "ultimus", sys.argv[1:]))


def call(command: Callable[[str, Sequence[str]], None], prog: str, argv: Sequence[str]) -> int:
    """Run a command and turn how it ended into an exit code and at most one line.

    Args:
        command: called with its name and its arguments.
        prog: its name in messages.
        argv: its arguments; ``--debug`` among them asks for tracebacks.
    """
    # torch's modules are no garbage: looking through them again and again takes a second of the
    # start. Training makes few objects that need collecting.
    gc.set_threshold(100_000)
    # Before and after training, SIGTERM ends the process in as good an order as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    # Ignite logs what it raises again: the one line below says it better.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)
    try:
        command(prog, argv)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return ExitCode.INTERNAL
        if is_out_of_memory(error):
            error = UserError(f"out of memory: lower --batch-size; what is saved stands ({error})")
        code = exit_code(error)
        is_bug = code == ExitCode.INTERNAL and not isinstance(error, OSError)  # a full disk is none
        if is_bug or "--debug" in argv:
            raise
        message = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            print(f"{prog}: {message}", file=sys.stderr)
        return code
    finally:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or no reader
            sys.stdout.flush()
        if _reader_has_left():  # or Python complains when it flushes once more at exit
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return ExitCode.DONE


def _reader_has_left() -> bool:
    """Whether the standard output is a pipe that nobody reads any more, as behind ``head``."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def exit_code(error: Exception) -> ExitCode:
    """The exit code that an exception stands for."""
    if isinstance(error, UserError | RecipeError | RunDirectoryError):
        return ExitCode.BAD_INPUT
    if isinstance(error, Interrupted):
        return ExitCode(128 + error.signal)
    from ultimus_ignite.data.sources import DataError  # imports torch: only once something failed
    from ultimus_ignite.handlers import CheckpointError, LRFinderError, NonFiniteError

    if isinstance(error, DataError | LRFinderError):
        return ExitCode.BAD_INPUT
    if isinstance(error, CheckpointError):
        return ExitCode.CHECKPOINT_REFUSED
    if isinstance(error, NonFiniteError):
        return ExitCode.NON_FINITE
    return ExitCode.INTERNAL


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not allocate; on the CPU it has no exception of its own for that."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def recipe_of(argv: Sequence[str]) -> Recipe:
    """The recipe that ``--recipe`` names: it is read first, its fields are the other defaults."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--recipe", default="classic", nargs="?")
    name = parser.parse_known_args([*argv])[0].recipe
    return RECIPES.get(name, Recipe())  # an unknown name is for `parse` to complain about


def parse(arguments: type[Arguments], prog: str, argv: Sequence[str], default: Any = None) -> Any:
    """Flags from a dataclass by tyro, with its boxed complaints as one line.

    Raises:
        UserError: an argument is unknown, missing or malformed.
    """
    import tyro

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(arguments, prog=prog, args=list(argv), default=default)
    except SystemExit as end:
        if end.code != ExitCode.BAD_INPUT:
            raise
    rows = [row.strip("│ ") for row in complaint.getvalue().splitlines()[1:]]
    message = rows[: next((i for i, row in enumerate(rows) if not row.strip("─╰╯")), None)]
    raise UserError(f"{' '.join(message)} ({prog} --help lists all flags)")
