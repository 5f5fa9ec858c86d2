"""The commands `train-cifar` and `ultimus`: which module does the work, and how it ends."""

import contextlib
import gc
import importlib
import logging
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from ultimus_ignite.allocator import keep_freed_memory
from ultimus_ignite.errors import ExitCode, UserError

SUBCOMMANDS = {
    "train": "the same as train-cifar",
    "summary": "the layers of a recipe's model, their output shapes and parameters",
    "plot": "redraw the curves of a run from its history.csv",
    "plot-schedule": "draw the learning rate of every iteration before anything is trained",
    "find-lr": "a range test: which learning rates suit a recipe",
    "doctor": "check data, device, folder and recipe in half a minute",
    "repeat": "train from several seeds: mean, deviation and 95 % interval of the accuracy",
    "verify-resume": "kill a short run at random moments and show that it ends bit-identical",
}


def train_cifar() -> NoReturn:
    """Entry point of ``train-cifar``."""
    sys.exit(call(lambda prog, argv: dispatch(prog, "train", argv), "train-cifar", sys.argv[1:]))


def ultimus() -> NoReturn:
    """Entry point of ``ultimus SUBCOMMAND``."""
    sys.exit(call(choose, "ultimus", sys.argv[1:]))


def choose(prog: str, argv: Sequence[str]) -> None:
    """Hand the arguments to the subcommand that the first of them names.

    Raises:
        UserError: there is no such subcommand.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        rows = [f"  {name:16}{purpose}" for name, purpose in SUBCOMMANDS.items()]
        print("\n".join([f"usage: {prog} SUBCOMMAND [flags, or --help]\n", *rows]))
        return
    if name not in SUBCOMMANDS:
        raise UserError(f"no subcommand {name!r}: expected one of {', '.join(SUBCOMMANDS)}")
    dispatch(f"{prog} {name}", name, rest)


def dispatch(prog: str, name: str, argv: Sequence[str]) -> None:
    """Run one subcommand; only its own module is loaded."""
    module = importlib.import_module(f"ultimus_ignite.commands.{name.replace('-', '_')}")
    module.main(prog, argv)


def call(command: Callable[[str, Sequence[str]], None], prog: str, argv: Sequence[str]) -> int:
    """Run a command and turn how it ended into an exit code and at most one line.

    Args:
        command: called with its name and its arguments.
        prog: its name in messages.
        argv: its arguments; ``--debug`` among them asks for tracebacks.
    """
    prepare_process()
    try:
        command(prog, argv)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return ExitCode.INTERNAL
        if is_out_of_memory(error):
            error = UserError(f"out of memory: lower --batch-size; what is saved stands ({error})")
        code = getattr(error, "exit_code", None)
        if code is None and not isinstance(error, OSError):  # a bug; a full disk is not
            raise
        with contextlib.suppress(OSError):
            if "--debug" in argv and type(error) is not UserError:  # found by a command's own check
                traceback.print_exception(error)
            print(f"{prog}: {' '.join(str(error).split())}", file=sys.stderr)
        return ExitCode.INTERNAL if code is None else int(code)
    finally:
        with contextlib.suppress(AttributeError, OSError, ValueError):  # closed, or no reader
            sys.stdout.flush()
        if _reader_has_left():  # or Python complains when it flushes once more at exit
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return ExitCode.DONE


def prepare_process() -> None:
    """Settings of the whole process, which a command may change and a library may not."""
    keep_freed_memory()
    # torch's modules are no garbage: searching them again and again takes a second of the start.
    # Training makes few objects that need collecting.
    gc.set_threshold(100_000)
    # Before and after training, SIGTERM ends the process in as good an order as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(ExitCode.TERMINATED))
    # Silence Ignite's log of the exception: we print our own line.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not allocate; on the CPU it has no exception of its own for that."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def _reader_has_left() -> bool:
    """Whether the standard output is a pipe that nobody reads any more, as behind ``head``."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
