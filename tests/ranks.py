"""Functions and commands on several ranks: processes that meet as torchrun's do."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from processes import PRELOADED, Command, blank_curves

from ultimus_ignite.distributed.launch import environments
from ultimus_ignite.handlers import curve_renderer

PATIENCE = timedelta(seconds=60)
# pytest calls a test module tests.X, by which a child process finds the function to call.
sys.path.append(str(Path(__file__).parents[1]))


def start_ranks(count: int, name: str, *arguments: Any, cwd: Any) -> list[Command]:
    """A command on each rank."""
    return [Command(name, *arguments, cwd=cwd, **each) for each in environments(count)]


def on_ranks(count: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call a function of a test module on each rank; returns the results by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    started = []
    for environment in environments(count):
        result, child_result = context.Pipe(False)
        process = context.Process(
            target=_call, args=(environment, function, arguments, child_result)
        )
        process.start()
        child_result.close()
        started.append((process, result))
    results = []
    for process, result in started:
        try:
            results.append(result.recv())
        except EOFError:
            raise AssertionError("a rank failed, see its traceback") from None
        finally:
            process.join()
    return results


def _call(
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
    result: Connection,
) -> None:
    os.environ.update(environment)
    curve_renderer.draw_curves = blank_curves
    idist.initialize("gloo", timeout=PATIENCE)
    result.send(function(*arguments))
    idist.barrier()  # no rank leaves while another still exchanges
    idist.finalize()
