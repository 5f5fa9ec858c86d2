"""A peer's script in processes of its own, which may be killed and started again."""

import gc
import importlib
import inspect
import multiprocessing
import os
import signal
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch

from resume_peers import Peer
from resume_peers.task import RECORD, Task

# A process begins with these imported, so that the seconds are those of the training.
PRELOADED = ["torch._dynamo", "sklearn.datasets", "ultimus_ignite.engines", "ignite.handlers"]
PRELOADED += ["lightning.pytorch", "torchdata.stateful_dataloader", "gatle_ignite"]


@dataclass
class Run:
    """One run of a peer in a folder of its own, however many attempts it takes.

    Args:
        peer: what trains.
        folder: for its checkpoints, and for what `path` names.
        task: what its script is called with.
        options: of its script.
    """

    peer: Peer
    folder: Path
    task: type[Task] = Task
    options: dict[str, Any] = field(default_factory=dict)
    attempts: int = 0

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def start(self) -> BaseProcess:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        process = context.Process(target=attempt, args=(self, self.attempts))
        process.start()
        self.attempts += 1
        return process

    def finish(self) -> bool:
        """Start the script and let it come to its end; whether it does."""
        process = self.start()
        process.join()
        return process.exitcode == 0

    def kill(self, iterations: int, delay: float) -> bool:
        """Start the script, and kill it so many seconds after so many iterations.

        Returns:
            False where it was faster, and has come to its end.
        """
        process, journal = self.start(), self.path("journal")
        size = iterations * RECORD.itemsize
        while process.is_alive() and not (journal.exists() and journal.stat().st_size >= size):
            time.sleep(0.001)
        time.sleep(delay)
        process.kill()
        process.join()
        return process.exitcode == -signal.SIGKILL

    def path(self, kind: str, number: int = -1) -> Path:
        """A file that an attempt leaves: its journal, its output, or its weights."""
        return self.folder / f"{kind}-{range(self.attempts)[number]}"

    def journal(self, number: int = -1) -> np.ndarray:
        return np.fromfile(self.path("journal", number), RECORD)

    def weights(self) -> bytes:
        return self.path("weights").read_bytes()

    def last_line(self) -> str:
        """Of what the last attempt printed: the error, where it raised one."""
        return self.path("output").read_text().strip().splitlines()[-1]


def attempt(run: Run, number: int) -> None:
    """What a process does: the script once, from its first line."""
    run.checkpoints.mkdir(parents=True, exist_ok=True)
    with (run.folder / f"output-{number}").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    # As in a process of the user's: workers are started as the platform does by default, and the
    # garbage is only that of the script.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    gc.freeze()
    torch.set_num_threads(1)

    task = run.task(run.checkpoints, run.folder / f"journal-{number}")
    try:
        script_of(run.peer)[1](task, **run.options)
    finally:
        weights = [parameter.detach().numpy().tobytes() for parameter in task.model.parameters()]
        (run.folder / f"weights-{number}").write_bytes(b"".join(weights))


def script_of(peer: Peer) -> tuple[ModuleType, FunctionType]:
    module, function = peer.script.split(":")
    script = importlib.import_module(f"resume_peers.{module}")
    return script, getattr(script, function)


def lines_for_resume(peer: Peer) -> int:
    """Lines of its script that say that they are there for saving and resuming."""
    functions = called_in(*script_of(peer))
    return sum(inspect.getsource(function).count("# resume\n") for function in functions)


def called_in(module: ModuleType, function: FunctionType) -> set[FunctionType]:
    """A function and those of its module that it calls."""
    found = {function}
    for name in function.__code__.co_names:
        other = vars(module).get(name)
        if isinstance(other, FunctionType) and other.__module__ == module.__name__:
            found |= called_in(module, other)
    return found
