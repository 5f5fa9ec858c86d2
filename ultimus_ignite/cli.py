"""The commands `train-cifar` and `ultimus`: run a subcommand and exit with the right code."""

import contextlib
import gc
import importlib
import logging
import os
import re
import select
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import NoReturn, TextIO

from ultimus_ignite.errors import ExitCode, UserError, one_line
from ultimus_ignite.machine.allocator import keep_freed_memory
from ultimus_ignite.machine.cores import give_way

SUBCOMMANDS = {
    "train": "the same as train-cifar",
    "summary": "the layers of a recipe's model, their output shapes and parameters",
    "evaluate": "accuracy with its interval, scores of each class, confusion matrix of a run",
    "predict": "the classes of image files, by the model of a run",
    "export": "write the model of a run as one ONNX, torch.export or safetensors file",
    "plot": "redraw the curves of a run from its history.csv",
    "plot-schedule": "draw the learning rate of every iteration, without training",
    "report": "one HTML page about runs: results, curves, mistakes, attention",
    "find-lr": "a range test: which learning rates suit a recipe",
    "doctor": "check data, device, folder and recipe in half a minute",
    "repeat": "train from several seeds: mean, deviation and 95 % interval of the accuracy",
    "runs": "a table of the runs below a folder",
    "verify-resume": "kill and resume a short run, and show that its result is bit-identical",
}
ON_ONE_PROCESS = {"repeat", "find-lr", "doctor", "verify-resume"}


def train_cifar() -> NoReturn:
    """Entry point of ``train-cifar``."""
    sys.exit(call(lambda prog, argv: dispatch(prog, "train", argv), "train-cifar", sys.argv[1:]))


def ultimus() -> NoReturn:
    """Entry point of ``ultimus SUBCOMMAND``."""
    sys.exit(call(choose, "ultimus", sys.argv[1:]))


def choose(prog: str, argv: Sequence[str]) -> None:
    """Run the subcommand that the first argument names."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        rows = [f"  {name:16}{purpose}" for name, purpose in SUBCOMMANDS.items()]
        print("\n".join([f"usage: {prog} SUBCOMMAND [flags, or --help], or --version\n", *rows]))
        return
    if name not in SUBCOMMANDS:
        raise UserError(f"no subcommand {name!r}: expected one of {', '.join(SUBCOMMANDS)}")
    dispatch(f"{prog} {name}", name, rest)


def dispatch(prog: str, name: str, argv: Sequence[str]) -> None:
    """Run one subcommand; no other subcommand's module is loaded."""
    if name in ON_ONE_PROCESS and os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError(f"{name} runs on one process: start it without torchrun")
    module = importlib.import_module(f"ultimus_ignite.commands.{name.replace('-', '_')}")
    module.main(prog, argv)


def call(command: Callable[[str, Sequence[str]], None], prog: str, argv: Sequence[str]) -> int:
    """Run a command and return its exit code; an error is one line that begins with ``prog``."""
    if [*argv] == ["--version"]:
        print(f"ultimus-ignite {metadata.version('ultimus-ignite')}")
        return ExitCode.DONE
    prepare_process(prog)
    try:
        command(prog, argv)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            return ExitCode.INTERNAL
        if is_out_of_memory(error):
            error = UserError(f"out of memory: lower --batch-size; checkpoints are kept ({error})")
        code = getattr(error, "exit_code", None)
        if code is None and not isinstance(error, OSError):  # a bug, and not a full disk
            raise
        with contextlib.suppress(OSError):
            # A plain UserError comes from a command's own check, so its traceback says nothing.
            if "--debug" in argv and type(error) is not UserError:
                traceback.print_exception(error)
            print(f"{prog}: {_joined(error)}", file=sys.stderr)
        return ExitCode.INTERNAL if code is None else int(code)
    finally:
        for stream in (sys.stdout, sys.stderr):
            _flush(stream)
    return ExitCode.DONE


def prepare_process(prog: str) -> None:
    """Change settings of the whole process, which a library must not do."""
    keep_freed_memory()
    give_way()
    # Garbage collection searches torch's modules again and again, which takes 1 s of the start.
    # Training makes few objects that must be collected.
    gc.set_threshold(100_000)
    # Before and after training, these end the process as cleanly as Ctrl-C does, unless the parent
    # process has them ignored, as nohup does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    # A warning is a sentence for the user, without a line of source code.
    warnings.formatwarning = lambda message, *_: f"{prog}: warning: {_sentence(message)}\n"
    # Silence Ignite's log of the exception: we print our own line.
    logging.getLogger("ignite").setLevel(logging.CRITICAL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it may come again while the process ends
    sys.exit(128 + number)


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not allocate memory; on the CPU only the message tells."""
    return type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


def _joined(message: object) -> str:
    """The lines of a message, some of them indented, as one."""
    return one_line(" ".join(filter(None, map(str.strip, str(message).splitlines()))))


def _sentence(warning: object) -> str:
    """The text of a warning, without the line of C++ that torch adds."""
    return re.sub(r" ?\(Triggered internally at [^)]*\)", "", _joined(warning))


def _flush(stream: TextIO | None) -> None:
    """Write what is pending, or drop it: Python's own flush at exit would change the exit code."""
    with contextlib.suppress(AttributeError, ValueError):  # there is none, or it is closed
        try:
            stream.flush()  # type: ignore[union-attr]
        except OSError:  # the reader has left, the terminal was closed, the disk is full
            with Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), stream.fileno())  # type: ignore[union-attr]


def _reader_has_left() -> bool:
    """Whether standard output is a pipe whose reader has ended, such as ``head``."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):  # closed, or not a file
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
