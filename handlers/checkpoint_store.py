"""Checkpoints on disk that outlive a kill, a power loss, a full disk and a flipped bit.

A checkpoint is ``ckpt-000002352.pt`` with its digest beside it in ``ckpt-000002352.pt.sha256``, in
the format that ``sha256sum --check`` reads. It counts only where the two agree. A comment in the
digest's file says which checkpoint of which run it is: iterations repeat, serial numbers do not.
"""

import hashlib
import math
import os
import re
import stat
import warnings
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ultimus_ignite.handlers.checkpoint_format import decode, encode

_NAME = re.compile(r"ckpt-[0-9]{9,}\.pt")
_MOMENT = re.compile(
    rf"(?P<digest>[0-9a-f]{{64}})  (?P<name>{_NAME.pattern})\n"
    r"(?:# run (?P<run>[0-9a-z-]+) serial (?P<serial>[0-9]+) check (?P<check>[0-9a-f]{8})\n)?"
)
_NO_RUN = "-"


class Moment(NamedTuple):
    """What stands beside a checkpoint: its digest, its run, and its place in the run's order."""

    digest: str
    run: str = _NO_RUN
    serial: int = 0  # one more with every save into the folder; 0 of version 0.1.0

    @property
    def check(self) -> str:
        """Tells of a flipped bit in the comment."""
        return f"{zlib.crc32(f'{self.digest} {self.run} {self.serial}'.encode()):08x}"

    def text(self, name: str) -> str:
        """The lines of the file beside ``name``."""
        comment = f"# run {self.run} serial {self.serial} check {self.check}"
        return f"{self.digest}  {name}\n{comment}\n"


class CheckpointError(Exception):
    """A checkpoint was refused: one line that names the file, the reason and what to do."""


class CheckpointStore:
    """Keeps the newest checkpoints of a run, at least one of them valid at any moment.

    `save` makes each file durable under a temporary name, then moves it into place, and
    deletes old checkpoints last. The digest moves first, so that a new ``.pt`` never stands without
    one; while a checkpoint is replaced, its ``.sha256`` names both the old bytes and the new.

    The order of write, fsync, rename and fsync of the folder follows Pillai et al., "All File
    Systems Are Not Created Equal", OSDI 2014. POSIX only, and one writer at a time.

    Args:
        directory: folder of the checkpoints, created by the first `save`.
        keep: how many of the newest checkpoints survive a `save`, at least 2.

    Attributes:
        run: whose checkpoints are written, and deleted when they are old; letters and digits.

    Raises:
        ValueError: if `keep` is less than 2: one copy would leave none valid during a save.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = CheckpointStore(folder)
        ...     _ = store.save({"weight": torch.arange(3)}, iteration=98)
        ...     path, state = store.load_newest()
        >>> path.name, state
        ('ckpt-000000098.pt', {'weight': tensor([0, 1, 2])})
    """

    def __init__(self, directory: Path | str, *, keep: int = 2) -> None:
        if keep < 2:
            raise ValueError(f"keep must be at least 2, got {keep}")
        self.directory = Path(directory)
        self.run: str | None = None
        self._keep = keep

    def save(
        self, state: Mapping[str, Any], *, iteration: int, protect: Collection[int] = ()
    ) -> Path:
        """Write `state`, durable on return, then delete what is neither new nor protected.

        Args:
            state: tensors and plain Python values in dicts, lists and tuples; see
                `ultimus_ignite.handlers.checkpoint_format.plain`.
            iteration: number of finished iterations; names the file.
            protect: iterations of checkpoints to keep however old, such as the best.

        Returns:
            The path of the checkpoint.

        Raises:
            CheckpointError: if `state` holds what could not be loaded again, or another run's
                checkpoint is in the way; nothing is written.
            OSError: if it cannot be written. All older checkpoints are kept.
            ValueError: if `iteration` is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration must not be negative, got {iteration}")
        path = self.path(iteration)
        try:
            data = encode(dict(state))
        except ValueError as error:
            raise CheckpointError(f"{path}: not saved: {error}") from error

        _create_folder(self.directory)
        self._sweep()
        moments = self._moments()
        if path in moments and moments[path].run not in (self.run or _NO_RUN, _NO_RUN):
            raise CheckpointError(f"{path} is another run's: give each run a directory of its own")
        serial = 1 + max((moment.serial for moment in moments.values()), default=0)
        moment = Moment(hashlib.sha256(data).hexdigest(), self.run or _NO_RUN, serial)
        try:
            self._replace(path, data, moment)
        finally:
            self._sweep()
        self._prune(protect)
        return path

    def load(self, path: Path | str) -> dict[str, Any]:
        """Read a checkpoint, tensors on the CPU, without trusting a byte of it.

        Args:
            path: a ``.pt`` file with its ``.sha256`` beside it, neither of them a symbolic link.

        Returns:
            The state given to `save`.

        Raises:
            CheckpointError: if the file is missing, damaged, no checkpoint, or holds anything but
                what `save` accepts.
        """
        path = Path(path)
        try:
            # Two copies are alive at the end of a load: the bytes and the tensors.
            data = _read(path, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
            digest = hashlib.sha256(data).hexdigest()
            if digest not in [moment.digest for moment in _read_moments(path)]:
                raise ValueError(f"its sha256 is not the one in {_sidecar(path).name}")
            return decode(data)
        except Exception as error:  # whatever goes wrong in there, the file is to blame
            reason = str(error) or type(error).__name__
            advice = "restore it from a copy, or delete it to resume from an older one"
            raise CheckpointError(f"{path}: refused: {reason}; {advice}") from error

    def path(self, iteration: int) -> Path:
        """Where the checkpoint of an iteration lies."""
        return self.directory / f"ckpt-{iteration:09d}.pt"

    def paths(self) -> list[Path]:
        """Return the checkpoints in the folder, valid or not, the one written last first.

        First come those that do not say when, as their ``.sha256`` is damaged or gone; last those
        without one that are older than the others: a power loss can keep half of a deletion.
        """
        try:
            found = [path for path in self.directory.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:  # a folder that cannot be read is an error, not an empty one
            return []
        moments = {path: _moment(path) for path in found}
        furthest = max((_iteration(path) for path in found if moments[path]), default=-1)

        def order(path: Path) -> tuple[float, int]:
            moment, iteration = moments[path], _iteration(path)
            if moment is not None:
                return moment.serial, iteration
            is_leftover = not _sidecar(path).exists() and iteration <= furthest
            return (-1 if is_leftover else math.inf), iteration

        return sorted(found, key=order, reverse=True)

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Load the newest valid checkpoint, with a warning for each newer one that is not.

        Returns:
            Its path and its state, or None where there is no checkpoint at all.

        Raises:
            CheckpointError: if there are checkpoints and none is valid.
        """
        paths = self.paths()
        for path in paths:
            try:
                return path, self.load(path)
            except CheckpointError as error:
                warnings.warn(str(error), stacklevel=2)
        if paths:
            raise CheckpointError(
                f"{self.directory}: none of its {len(paths)} checkpoints is valid; "
                "restore one from a copy, or delete the folder to start from scratch"
            )
        return None

    def _moments(self) -> dict[Path, Moment]:
        """The checkpoints whose place in the order is known, the newest first."""
        moments = {path: _moment(path) for path in self.paths()}
        return {path: moment for path, moment in moments.items() if moment is not None}

    def _replace(self, path: Path, data: bytes, moment: Moment) -> None:
        sidecar = _sidecar(path)
        text = moment.text(path.name).encode()
        try:
            _read_moments(path)
            replaced = _read(sidecar, limit=4096)
        except (OSError, ValueError):  # nothing to replace, or nothing that could be loaded
            replaced = b""
        moves = [(sidecar, text + replaced), (path, data)]
        if replaced:
            moves.append((sidecar, text))

        # All is on the disk before anything moves: a full disk is met here, and changes nothing.
        for step, (target, content) in enumerate(moves):
            _write(_temporary(target, step), content)
        for step, (target, _) in enumerate(moves):
            _temporary(target, step).replace(target)
            _sync(self.directory)  # else a power loss could keep a later move without this one

    def _prune(self, protect: Collection[int]) -> None:
        mine = (self.run or _NO_RUN, _NO_RUN)
        own = [path for path, moment in self._moments().items() if moment.run in mine]
        for path in own[self._keep :]:
            if _iteration(path) not in protect:
                _delete(path)
                _delete(_sidecar(path))

    def _sweep(self) -> None:
        """Delete what an interrupted save or prune leaves: temporaries, and digests of no file."""
        for temporary in self.directory.glob("ckpt-*.tmp"):
            _delete(temporary)
        for sidecar in self.directory.glob("ckpt-*.pt.sha256"):
            if not sidecar.with_suffix("").exists():
                _delete(sidecar)


def _iteration(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt-"))


def _sidecar(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _temporary(path: Path, step: int) -> Path:
    return path.with_name(f"{path.name}.{step}.tmp")


def _create_folder(folder: Path) -> None:
    if not folder.is_dir():
        _create_folder(folder.parent)
        folder.mkdir()
        _sync(folder.parent)


def _write(path: Path, content: bytes) -> None:
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:  # litter is no reason to end a run
        warnings.warn(f"{path}: not deleted: {error.strerror}", stacklevel=2)


def _read(path: Path, limit: int) -> bytes:
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
        raise ValueError("it is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"{path.name} has {status.st_size} bytes, {limit} at most are read")
    with path.open("rb") as file:
        return file.read(status.st_size)


def _read_moments(path: Path) -> list[Moment]:
    """What the file beside a checkpoint says; of two bytes while one is being replaced."""
    text = _read(_sidecar(path), limit=4096).decode("ascii")
    found = list(_MOMENT.finditer(text))
    moments = [
        Moment(match["digest"], match["run"] or _NO_RUN, int(match["serial"] or 0))
        for match in found
    ]
    is_sound = all(
        match["name"] == path.name and match["check"] in (None, moment.check)
        for match, moment in zip(found, moments, strict=True)
    )
    if not text or text != "".join(match[0] for match in found) or not is_sound:
        raise ValueError(f"{_sidecar(path).name} is damaged")
    return moments


def _moment(path: Path) -> Moment | None:
    """Which checkpoint of which run it is, None where nothing says so."""
    try:
        moments = _read_moments(path)
        if len(moments) > 1:  # a save was cut off between its two moves
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            moments = [moment for moment in moments if moment.digest == digest]
        return moments[0]
    except (OSError, ValueError, IndexError):
        return None
