"""Processes that decode images for this one.

They are plain interpreters which read file names and write pixels. They load neither torch nor the
user's main module and share no lock with this process, so that they start quickly and from
anywhere: a notebook, a thread, a daemon. They end with this process, because their input ends.

S: side of the images.
"""

import os
import pickle
import subprocess
import sys
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from ultimus_ignite.data.pixels import UnreadableError, read_pixels

Decoded = NDArray[np.uint8] | UnreadableError
"""The pixels of one file, uint8 (3, S, S), or why it is not a readable image."""

_Process = subprocess.Popen[bytes]

_SCRIPT = """
import signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the parent
size, sys.path[:] = int(sys.argv[1]), sys.argv[2:]
from ultimus_ignite.data.decoder_processes import serve
serve(size)
"""


def decode_here(paths: Sequence[str], size: int) -> list[Decoded]:
    """Decode files in this process, without Pillow's warnings about odd but readable ones."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [_decode(path, size) for path in paths]


def decode_in_processes(
    paths: Sequence[str], size: int, processes: int, chunk: int
) -> Generator[tuple[int, Decoded], None, None]:
    """Decode files in other processes.

    A process that dies is not replaced; what it had at hand is given to another, and decoded in
    this process if none is left. Closing the iterator ends the processes.

    Args:
        paths: files.
        size: S, in pixels.
        processes: how many are started.
        chunk: how many files are sent at a time; Ctrl-C waits for none of them.

    Yields:
        The position of each file in ``paths``, in any order, and what was decoded.
    """
    starts = range(0, len(paths), chunk)
    todo = deque(range(start, min(start + chunk, len(paths))) for start in starts)
    working: dict[int, tuple[_Process, range]] = {}  # by the descriptor of each one's output
    with ExitStack() as stack:
        idle: list[_Process] = []
        for _ in range(min(processes, len(todo))):
            with suppress(OSError):  # it cannot be started
                idle.append(stack.enter_context(_start(size)))
        while idle or working:
            while idle and todo:
                process, part = idle.pop(), todo.popleft()
                with suppress(OSError):  # it has died, as reading from it will tell
                    _send(process.stdin, paths[part.start : part.stop])
                working[_output(process).fileno()] = process, part
            if not working:
                break
            for descriptor in cast(list[int], wait(working)):
                process, part = working.pop(descriptor)
                try:
                    decoded: list[Decoded] = pickle.load(_output(process))
                except (EOFError, OSError, pickle.UnpicklingError):
                    todo.append(part)
                    continue
                idle.append(process)
                yield from zip(part, decoded, strict=True)
    for part in todo:
        yield from zip(part, decode_here(paths[part.start : part.stop], size), strict=True)


def serve(size: int) -> None:
    """Answer lists of paths on standard input with what is decoded, until the input ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library may print is not an answer
    with suppress(EOFError, BrokenPipeError):
        while True:
            _send(output, decode_here(pickle.load(sys.stdin.buffer), size))


def _decode(path: str, size: int) -> Decoded:
    try:
        return read_pixels(path, size)
    except UnreadableError as error:
        return error


def _output(process: _Process) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _send(pipe: IO[bytes] | None, message: Any) -> None:
    assert pipe is not None
    pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
    pipe.flush()


@contextmanager
def _start(size: int) -> Iterator[_Process]:
    """Start one process, and end it on leaving."""
    process = subprocess.Popen(
        [sys.executable or "", "-c", _SCRIPT, str(size), *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()  # closes the pipes and waits
