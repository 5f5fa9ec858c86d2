"""`ultimus verify-resume`: show that a run that is killed and resumed ends as an unbroken one."""

import contextlib
import hashlib
import io
import itertools
import logging
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from ultimus_ignite.commands.arguments import RecipeArguments, parse_recipe
from ultimus_ignite.distributed.launch import environments
from ultimus_ignite.errors import ExitCode, LostProcess, UserError
from ultimus_ignite.machine.allocator import keep_freed_memory
from ultimus_ignite.recipe import Recipe, check_ranges
from ultimus_ignite.run_directory import RunDirectory

# 2 s of imports that wait until a run needs them.
LOADED_LATER = ["torch._dynamo", "matplotlib.backends.backend_agg", "tensorboardX"]
LOADED_LATER += ["sklearn.datasets", "sklearn.model_selection"]


@dataclass(frozen=True, kw_only=True)
class VerifyArguments(RecipeArguments):
    """Train once without a break, and once with kill -9 and a resume at random moments.

    Exit code 0 if weights, optimizer state and history are bit-identical, except for the seconds.
    """

    kills: int = 3
    """Number of times that the second run is killed."""
    processes: int = 1
    """Processes that train together; of several a random one is killed."""

    def __post_init__(self) -> None:
        check_ranges(self)


def main(prog: str, argv: Sequence[str]) -> None:
    """Train both runs and compare their final states."""
    arguments = parse_recipe(VerifyArguments, prog, argv, epochs=6, checkpoint_every=5)
    recipe, count = arguments.recipe, arguments.processes

    from ultimus_ignite.build import build
    from ultimus_ignite.lifecycle.provenance import describe_data

    print(describe_data(build(recipe)), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        straight, killed = Path(folder, "straight"), Path(folder, "killed")
        seconds = _train_straight(recipe, straight, count)
        print(f"straight through: {seconds:.1f} s of training", flush=True)
        # The mean sum of the waits is kills / (kills + 1) of the training, so near its end.
        longest_wait = 2 * seconds / (arguments.kills + 1)
        for _ in range(arguments.kills):
            _kill(recipe, killed, count, random.uniform(0, longest_wait))
        _train_straight(recipe, killed, count)
        report(straight, killed)


def report(straight: Path, killed: Path) -> None:
    """Print equal digests of two finished runs, or raise a UserError with the first difference."""
    states = [_final_state(path) for path in (straight, killed)]
    if len(set(map(digest, states))) > 1:
        pairs = itertools.zip_longest(*map(leaves, states))
        a, b = next((pair for pair in pairs if pair[0] != pair[1]), ("a NaN", "another"))
        raise UserError(f"NOT bit-identical: {a} in the straight run, {b} in the killed one")
    for name in ("model", "optimizer", "history"):
        a, b = (digest(state[name]) for state in states)
        print(f"{name:10} bit-identical, sha256 {a} = {b}")


def digest(state: Any) -> str:
    """The sha256 of a nested state, of the bytes of its tensors.

    Example:
        >>> digest({"rates": [0.1]}) == digest({"rates": [0.1]}), digest([0.0]) == digest([-0.0])
        (True, False)
    """
    import torch

    hashed = hashlib.sha256()

    def add(part: Any) -> None:
        if isinstance(part, Mapping):
            hashed.update(f"{list(part)!r}".encode())
            part = list(part.values())
        if isinstance(part, list | tuple):
            hashed.update(f"{len(part)} parts".encode())
            for inner in part:
                add(inner)
        elif isinstance(part, torch.Tensor):
            hashed.update(f"{part.dtype} {tuple(part.shape)}".encode())
            hashed.update(part.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            hashed.update(f"{part!r},".encode())

    add(state)
    return hashed.hexdigest()


def leaves(state: Any, path: str = "") -> Iterator[str]:
    """One line per number of a nested state, with its path; different floats differ in the text.

    Example:
        >>> list(leaves({"rates": [0.1, float("nan")], "iteration": 98}))
        ['.rates[0] = 0.1', '.rates[1] = nan', '.iteration = 98']
    """
    if isinstance(state, Mapping):
        for key, value in state.items():
            yield from leaves(value, f"{path}.{key}")
    elif isinstance(state, list | tuple):
        for i, value in enumerate(state):
            yield from leaves(value, f"{path}[{i}]")
    elif hasattr(state, "tolist") and state.dim():
        yield from leaves(state.tolist(), path)
    else:
        yield f"{path} = {state!r}"


def _final_state(path: Path) -> dict[str, Any]:
    """The last checkpoint, without the seconds and the run's own name."""
    from ultimus_ignite.handlers import CheckpointStore

    newest = CheckpointStore(RunDirectory(path).checkpoints).load_newest()
    if newest is None:
        raise UserError(f"{path} holds no checkpoint")
    state = newest[1]
    for row in state["history"]["rows"]:
        del row["seconds"]
    del state["history"]["seconds"], state["run"]
    return state


def _train_straight(recipe: Recipe, out: Path, count: int) -> float:
    """Run to the end; returns the seconds from the first iteration on."""
    processes = _start(recipe, out, count)
    begin = time.monotonic()
    for process in processes:
        process.join()
    # Negative if a signal ended it.
    if code := next((process.exitcode for process in processes if process.exitcode), 0):
        raise UserError(f"the run in {out} ended with exit code {code}")
    return time.monotonic() - begin


def _kill(recipe: Recipe, out: Path, count: int, wait: float) -> None:
    """Start or resume the run, and kill it ``wait`` seconds after there is a checkpoint."""
    processes = _start(recipe, out, count)
    victim = random.choice(processes)
    checkpoints = RunDirectory(out).checkpoints
    while victim.is_alive() and not any(checkpoints.glob("*.pt")):
        time.sleep(0.01)  # a run without one would begin anew, which shows nothing
    victim.join(wait)
    victim.kill()
    for process in processes:
        process.join()
    newest = max(checkpoints.glob("*.pt"), default=None)
    print(f"killed after {wait:.2f} s, newest: {newest and newest.name}", flush=True)


def _start(recipe: Recipe, out: Path, count: int) -> list[BaseProcess]:
    """Start so many processes, and wait until they train, or have ended."""
    # The fork server has loaded what a run needs, so the kills fall into the training.
    context = multiprocessing.get_context("forkserver")
    # Silence the warning about the semaphores that TensorBoard's queue leaves when it is killed.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    context.set_forkserver_preload(["ultimus_ignite.training", *LOADED_LATER])
    processes = [
        context.Process(target=_train, args=(recipe, out, environment))
        for environment in environments(count)
    ]
    for process in processes:
        process.start()
    directory, first = RunDirectory(out), processes[0]
    while first.is_alive():
        if directory.status.exists() and directory.read_status()["pid"] == first.pid:
            break
        time.sleep(0.01)
    return [*processes]


def _train(recipe: Recipe, out: Path, environment: Mapping[str, str]) -> None:
    from ultimus_ignite.training import train

    os.environ.update(environment)
    keep_freed_memory()
    logging.getLogger("ignite").setLevel(logging.CRITICAL)  # it says that another was killed
    with contextlib.redirect_stdout(io.StringIO()):
        try:
            train(recipe, out=out, resume=True, process_timeout=60)
        except LostProcess:  # another one was killed
            sys.exit(ExitCode.INTERNAL)
