"""The folder of one run: its paths, its lock, and a status that is always true."""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, Literal, TextIO

from ultimus_ignite.errors import UserError

Status = Literal["running", "finished", "interrupted", "failed", "non-finite"]


class RunDirectoryError(UserError):
    """The folder cannot be used for the run; the message says why and what to do."""


class RunDirectory:
    """Paths of one run, used by one process at a time.

    Of several processes of one run, the first locks and writes; the others only read.

    Args:
        path: the folder; `open` makes it, with its parents.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     directory = RunDirectory(Path(folder) / "first")
        ...     with directory.open(), directory.running({"data": {"name": "digits"}}, {}) as facts:
        ...         facts["test_accuracy"] = 0.5
        ...     status = directory.read_status()
        >>> status["status"], status["data"], status["test_accuracy"]
        ('finished', 'digits', 0.5)
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).expanduser()
        self.card = self.path / "README.md"
        self.checkpoints = self.path / "checkpoints"
        self.curves = self.path / "curves.png"
        self.history = self.path / "history.csv"
        self.log = self.path / "log.txt"
        self.model = self.path / "model.safetensors"
        self.description = self.path / "recipe.json"
        self.status = self.path / "status.json"
        self._lock = self.path / ".lock"
        self.is_writer = os.environ.get("RANK", "0") == "0"  # set by torchrun and Ignite

    @property
    def holds_a_run(self) -> bool:
        """Whether a run has begun here."""
        return self.status.exists() or self.checkpoints.exists()

    @property
    def has_checkpoints(self) -> bool:
        """Whether a run has saved a state here."""
        return any(self.checkpoints.glob("*.pt"))

    @contextlib.contextmanager
    def open(self, *, resume: bool = False) -> Iterator["RunDirectory"]:
        """Make the folder and lock it; at the end, remove it again if no run began in it.

        The kernel releases the lock when the process ends in any way, so the file that a
        ``kill -9`` leaves behind is harmless.

        Raises:
            RunDirectoryError: another process uses the folder, it holds a run and ``resume`` is
                False, or it cannot be written.
        """
        if not self.is_writer:
            yield self
            return
        existed = self.path.is_dir()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self._lock.open("a")
        except OSError as error:
            raise RunDirectoryError(
                f"{self.path} cannot be written ({error.strerror}): choose another --out"
            ) from None
        with lock:
            try:
                _lock(lock)
            except OSError:
                raise RunDirectoryError(
                    f"{self.path} is in use by a run that is still going: choose another --out"
                ) from None
            if self.holds_a_run and not resume:
                raise RunDirectoryError(
                    f"{self.path} already holds a run: give --resume, or choose another --out"
                )
            try:
                yield self
            finally:
                if not self.holds_a_run:
                    self._lock.unlink(missing_ok=True)
                    with contextlib.suppress(OSError):  # not empty: it holds files of the user
                        if not existed:
                            self.path.rmdir()

    @contextlib.contextmanager
    def running(
        self, description: Mapping[str, Any], failures: Mapping[type[BaseException], Status]
    ) -> Iterator[dict[str, Any]]:
        """Write ``recipe.json``, and the status at the start and at the end of the block.

        Args:
            description: recipe, data, device and versions of the run.
            failures: the status for each kind of exception; ``failed`` for any other.

        Yields:
            The facts that stand beside the status; add to them what the end should tell.
        """
        facts = {"data": description["data"]["name"]}
        status: Status = "failed"
        try:
            self._write_json(self.description, description)
            self._write_status("running", facts)
            yield facts
            status = "finished"
        except BaseException as error:
            status = next((s for kind, s in failures.items() if isinstance(error, kind)), status)
            raise
        finally:
            try:
                self._write_status(status, facts)
            except (KeyboardInterrupt, SystemExit):  # another signal came in the middle
                self._write_status(status, facts)
                raise

    def _write_status(self, status: Status, facts: Mapping[str, Any]) -> None:
        self._write_json(self.status, {"status": status, **facts, "pid": os.getpid()})

    def _write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        self.write(path, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def write(self, path: Path, content: bytes) -> None:
        """Write a file of the run in one step, if this process is the one that writes."""
        # Imported here because it loads torch, which parsing the flags of a command must not do.
        from ultimus_ignite.handlers.support.files import replace_file

        if self.is_writer:
            replace_file(path, content)

    def read_status(self) -> dict[str, Any]:
        """The content of ``status.json``, with ``interrupted (killed)`` for a run that was killed.

        A killed run leaves ``running`` behind, but its lock is free.

        Raises:
            RunDirectoryError: the file is missing or damaged.
        """
        content = _read_json(self.status, "status")
        if content["status"] == "running" and not self._is_locked():
            content["status"] = "interrupted (killed)"
        return content

    def read_description(self) -> dict[str, Any]:
        """The content of ``recipe.json``.

        Raises:
            RunDirectoryError: the file is missing or damaged.
        """
        return _read_json(self.description, "recipe.model", "recipe.seed", "data.name")

    def _is_locked(self) -> bool:
        """Whether a process has opened the folder; nothing is written to find out."""
        try:
            with self._lock.open() as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:  # the folder was copied without it
            return False
        except OSError:  # held, or not readable
            return True
        return False


def title_of(description: Mapping[str, Any]) -> str:
    """The title of a run's curves, from its ``recipe.json``."""
    recipe = description["recipe"]
    return f"{recipe['model']} on {description['data']['name']}, seed {recipe['seed']}"


def _read_json(path: Path, *fields: str) -> dict[str, Any]:
    """A JSON object that has these fields; a dot leads into an object within it."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for field in fields:
            reduce(getitem, field.split("."), content)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "damaged"
        raise RunDirectoryError(
            f"{path} cannot be read ({reason}): train-cifar --resume writes it again"
        ) from None
    return content


def _lock(file: TextIO) -> None:
    """Lock a file; a process that only looks whether it is locked does not count.

    Raises:
        BlockingIOError: another process has locked it.
    """
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(file, fcntl.LOCK_UN)
