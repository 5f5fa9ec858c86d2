"""Commands and scripts in processes of their own, forked from one that has torch loaded.

Real processes, real signals and real exit codes; only the 4 s of imports are shared.
"""

import multiprocessing
import os
import re
import runpy
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ultimus_ignite import cli
from ultimus_ignite.commands.verify_resume import LOADED_LATER
from ultimus_ignite.handlers import curve_renderer
from ultimus_ignite.handlers.support.figures import new_figure

PRELOADED = ["processes", "ultimus_ignite.training", *LOADED_LATER]


@dataclass
class Answer:
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Command:
    """A started command; like `subprocess.Popen` as far as the tests need it.

    Args:
        name: one of the project's commands, or python, whose first argument is a script.
    """

    def __init__(self, name: str, *arguments: Any, cwd: Any = None, **environment: str) -> None:
        context = multiprocessing.get_context("forkserver")
        os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # a killed run leaves semaphores
        context.set_forkserver_preload(PRELOADED)
        (out, child_out), (err, child_err) = context.Pipe(False), context.Pipe(False)
        argv = [str(argument) for argument in arguments]
        self.process = context.Process(
            target=_main,
            args=(name, argv, str(cwd or Path.cwd()), environment, child_out, child_err),
        )
        self.process.start()
        child_out.close()
        child_err.close()
        self.stdout, self.stderr = (
            os.fdopen(os.dup(pipe.fileno()), encoding="utf-8") for pipe in (out, err)
        )

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait_for(self, text: str) -> None:
        """Read its output up to the first line that holds ``text``."""
        for line in self.stdout:
            if text in line:
                return
        raise AssertionError(f"no {text!r} in the output; {self.stderr.read()}")

    def finish(self) -> Answer:
        """Wait for its end. What it writes fits into the pipes' buffers."""
        with self.stdout, self.stderr:
            stdout, stderr = self.stdout.read(), self.stderr.read()
        self.process.join()
        assert self.process.exitcode is not None
        stdout = re.sub(r"\[Gloo\] Rank .*\n", "", stdout)  # said by torch 2.10 itself
        return Answer(self.process.exitcode, stdout, stderr)

    def kill(self) -> Answer:
        self.process.kill()
        return self.finish()


def call(name: str, *arguments: Any, cwd: Any = None, **environment: str) -> Answer:
    """Run a command to its end."""
    return Command(name, *arguments, cwd=cwd, **environment).finish()


def blank_curves(*rows: Any, title: str) -> Any:
    """In place of a run's curves, which take half a second, as long as a small run."""
    return new_figure(9, 8)


def _main(
    name: str,
    argv: Sequence[str],
    cwd: str,
    environment: dict[str, str],
    out: Connection,
    err: Connection,
) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    os.chdir(cwd)
    os.environ.update(environment)
    curve_renderer.draw_curves = blank_curves
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # else as ignored as where pytest was started
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = [name, *argv]
    if name == "python":
        sys.argv = sys.argv[1:]
        warnings.simplefilter("error", UserWarning)
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        cli.train_cifar() if name == "train-cifar" else cli.ultimus()
