"""Checkpoints on disk that outlive a kill, a power loss, a full disk and a flipped bit.

A checkpoint is ``ckpt-000002352.pt`` with its digest beside it in ``ckpt-000002352.pt.sha256``, in
the format that ``sha256sum --check`` reads. It counts only where the two agree.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ultimus_ignite.handlers.checkpoints.format import decode, encode
from ultimus_ignite.handlers.checkpoints.sidecar import (
    NAME,
    NO_RUN,
    Moment,
    read_moment,
    read_moments,
    read_regular,
    sidecar_of,
)
from ultimus_ignite.handlers.support.files import write_new_file


class CheckpointError(Exception):
    """A checkpoint was refused: the message names the file, the reason and what to do."""

    exit_code = 3  # of a command that ends in it


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
                `ultimus_ignite.handlers.checkpoints.format.plain`.
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
        if path in moments and moments[path].run not in (self.run or NO_RUN, NO_RUN):
            raise CheckpointError(f"{path} is another run's: give each run a directory of its own")
        serial = 1 + max((moment.serial for moment in moments.values()), default=0)
        moment = Moment(hashlib.sha256(data).hexdigest(), self.run or NO_RUN, serial)
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
            data = read_regular(path, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
            digest = hashlib.sha256(data).hexdigest()
            if digest not in [moment.digest for moment in read_moments(path)]:
                raise ValueError(f"its sha256 is not the one in {sidecar_of(path).name}")
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
            found = [path for path in self.directory.iterdir() if NAME.fullmatch(path.name)]
        except FileNotFoundError:  # a folder that cannot be read is an error, not an empty one
            return []
        moments = {path: read_moment(path) for path in found}
        furthest = max((_iteration(path) for path in found if moments[path]), default=-1)

        def order(path: Path) -> tuple[float, int]:
            moment, iteration = moments[path], _iteration(path)
            if moment is not None:
                return moment.serial, iteration
            is_leftover = not sidecar_of(path).exists() and iteration <= furthest
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
        moments = {path: read_moment(path) for path in self.paths()}
        return {path: moment for path, moment in moments.items() if moment is not None}

    def _replace(self, path: Path, data: bytes, moment: Moment) -> None:
        sidecar = sidecar_of(path)
        text = moment.text(path.name).encode()
        try:
            read_moments(path)
            replaced = read_regular(sidecar, limit=4096)
        except (OSError, ValueError):  # nothing to replace, or nothing that could be loaded
            replaced = b""
        moves = [(sidecar, text + replaced), (path, data)]
        if replaced:
            moves.append((sidecar, text))

        # All is on the disk before anything moves: a full disk is met here, and changes nothing.
        for step, (target, content) in enumerate(moves):
            write_new_file(_temporary(target, step), content)
        for step, (target, _) in enumerate(moves):
            _temporary(target, step).replace(target)
            _sync(self.directory)  # else a power loss could keep a later move without this one

    def _prune(self, protect: Collection[int]) -> None:
        mine = (self.run or NO_RUN, NO_RUN)
        own = [path for path, moment in self._moments().items() if moment.run in mine]
        for path in own[self._keep :]:
            if _iteration(path) not in protect:
                _delete(path)
                _delete(sidecar_of(path))

    def _sweep(self) -> None:
        """Delete what an interrupted save or prune leaves: temporaries, and digests of no file."""
        for temporary in self.directory.glob("ckpt-*.tmp"):
            _delete(temporary)
        for sidecar in self.directory.glob("ckpt-*.pt.sha256"):
            if not sidecar.with_suffix("").exists():
                _delete(sidecar)


def _iteration(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt-"))


def _temporary(path: Path, step: int) -> Path:
    return path.with_name(f"{path.name}.{step}.tmp")


def _create_folder(folder: Path) -> None:
    if not folder.is_dir():
        _create_folder(folder.parent)
        folder.mkdir()
        _sync(folder.parent)


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
