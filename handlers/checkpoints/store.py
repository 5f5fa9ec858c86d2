"""Checkpoints on disk that survive a kill, a power loss, a full disk and a flipped bit.

A checkpoint is ``ckpt-000002352.pt`` and its digest ``ckpt-000002352.pt.sha256``, in the format of
``sha256sum --check``. It is valid only if the two agree.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Collection, Mapping
from itertools import zip_longest
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
from ultimus_ignite.handlers.support.files import create_folder, sync_folder, write_new_file


class CheckpointError(Exception):
    """A checkpoint was refused: the message names the file, the reason and what to do."""

    exit_code = 3  # exit status of a command that raises it


class CheckpointStore:
    """Keeps the newest checkpoints of a run, at least one of them valid at any moment.

    `save` makes each file durable under a temporary name, then moves it into place. Last, it
    deletes old checkpoints. The digest moves before its ``.pt``, so that no ``.pt`` lacks one.
    While a checkpoint is being replaced, its ``.sha256`` has the digests of the old and new bytes.

    The order of write, fsync, rename and fsync of the folder follows Pillai et al., "All File
    Systems Are Not Created Equal", OSDI 2014. POSIX only, and one writer at a time.

    Args:
        directory: folder of the checkpoints, created by the first `save`.
        keep: number of newest checkpoints that a `save` keeps, at least 2.

    Attributes:
        run: name of the current run, of letters and digits; `save` deletes no other run's files.

    Raises:
        ValueError: `keep` is less than 2: one copy would leave no valid checkpoint during a save.

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
        """Write `state`, durable on return, then delete old checkpoints.

        Args:
            state: tensors and plain Python values in dicts, lists and tuples; see
                `ultimus_ignite.handlers.checkpoints.format.plain`.
            iteration: number of finished iterations; names the file.
            protect: iterations of old checkpoints to keep, such as the best one.

        Returns:
            The path of the checkpoint.

        Raises:
            CheckpointError: `state` has a value that could not be loaded again, or another run
                has written a checkpoint of this iteration; nothing is written.
            OSError: it cannot be written; all older checkpoints are kept.
            ValueError: `iteration` is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration must not be negative, got {iteration}")
        path = self.path(iteration)
        try:
            data = encode(dict(state))
        except ValueError as error:
            raise CheckpointError(f"{path}: not saved: {error}") from error

        create_folder(self.directory)
        self._sweep()
        runs = (self.run or NO_RUN, NO_RUN)
        moments = {old: moment for old, moment in self._moments().items() if moment}
        if path in moments and moments[path].run not in runs:
            raise CheckpointError(f"{path} is another run's: give each run its own directory")
        serial = 1 + max((moment.serial for moment in moments.values()), default=0)
        try:
            self._replace(path, data, Moment(hashlib.sha256(data).hexdigest(), runs[0], serial))
        finally:
            self._sweep()
        older = [old for old, moment in moments.items() if moment.run in runs and old != path]
        for old in older[self._keep - 1 :]:
            if _iteration(old) not in protect:
                _delete(old)
                _delete(sidecar_of(old))
        return path

    def load(self, path: Path | str) -> dict[str, Any]:
        """Read a checkpoint, tensors on the CPU, without trusting a byte of it.

        Args:
            path: a ``.pt`` file with its ``.sha256`` beside it, neither of them a symbolic link.

        Returns:
            The state given to `save`.

        Raises:
            CheckpointError: the file is missing, damaged, not a checkpoint, or has a value that
                `save` would refuse.
        """
        try:
            return self._load(Path(path))
        except CheckpointError as error:
            advice = "restore it from a copy, or delete it to resume from an older one"
            raise CheckpointError(f"{error}; {advice}") from error

    def _load(self, path: Path) -> dict[str, Any]:
        try:
            # At most half the memory: a load ends with two copies, the bytes and the tensors.
            data = read_regular(path, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
            digest = hashlib.sha256(data).hexdigest()
            if digest not in [moment.digest for moment in read_moments(path)]:
                raise ValueError(f"its sha256 is not the one in {sidecar_of(path).name}")
            return decode(data)
        except Exception as error:  # of any kind: a damaged file can cause all of them
            reason = str(error) or type(error).__name__
            raise CheckpointError(f"{path}: refused: {reason}") from error

    def path(self, iteration: int) -> Path:
        """The path of an iteration's checkpoint."""
        return self.directory / f"ckpt-{iteration:09d}.pt"

    def paths(self) -> list[Path]:
        """The checkpoints in the folder, valid or not, the last written first.

        A checkpoint with a damaged or missing ``.sha256`` may be the newest, and comes first. But
        one without ``.sha256`` comes last if a valid ``.sha256`` has a later iteration: a power
        loss can undo half of a deletion.
        """
        return list(self._moments())

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """Load the newest valid checkpoint, with a warning for each newer one that is not valid.

        Returns:
            Its path and state, or None if the folder has no checkpoint.

        Raises:
            CheckpointError: there are checkpoints, but none is valid.
        """
        paths = self.paths()
        for path, older in zip_longest(paths, paths[1:]):
            try:
                return path, self._load(path)
            except CheckpointError as error:
                tried = f"; {older.name} is tried instead" if older else ""
                warnings.warn(f"{error}{tried}", stacklevel=2)
        if paths:
            raise CheckpointError(
                f"{self.directory}: none of its {len(paths)} checkpoints is valid; "
                "restore one from a copy, or delete the folder to start from scratch"
            )
        return None

    def _moments(self) -> dict[Path, Moment | None]:
        """The checkpoints and their moments, in the order of `paths`."""
        try:
            found = [path for path in self.directory.iterdir() if NAME.fullmatch(path.name)]
        except FileNotFoundError:  # an unreadable folder is an error, not an empty one
            return {}
        moments = {path: read_moment(path) for path in found}
        furthest = max((_iteration(path) for path in found if moments[path]), default=-1)

        def order(path: Path) -> tuple[float, int]:
            moment, iteration = moments[path], _iteration(path)
            if moment is not None:
                return moment.serial, iteration
            is_leftover = not sidecar_of(path).exists() and iteration <= furthest
            return (-1 if is_leftover else math.inf), iteration

        return {path: moments[path] for path in sorted(found, key=order, reverse=True)}

    def _replace(self, path: Path, data: bytes, moment: Moment) -> None:
        sidecar, text = sidecar_of(path), moment.text(path.name)
        try:
            replaced = "".join(old.text(path.name) for old in read_moments(path))
        except (OSError, ValueError):  # no checkpoint to replace, or none that could be loaded
            replaced = ""
        moves = [(sidecar, (text + replaced).encode()), (path, data)]
        if replaced:
            moves.append((sidecar, text.encode()))

        # All files are written before the first one moves: if the disk is full, nothing changes.
        temporaries = [t.with_name(f"{t.name}.{step}.tmp") for step, (t, _) in enumerate(moves)]
        for temporary, (_, content) in zip(temporaries, moves, strict=True):
            write_new_file(temporary, content)
        for temporary, (target, _) in zip(temporaries, moves, strict=True):
            temporary.replace(target)
            sync_folder(self.directory)  # else a power loss could undo this move, not the next one

    def _sweep(self) -> None:
        """Delete what a killed save or prune left: temporary files and digests without a file."""
        for temporary in self.directory.glob("ckpt-*.tmp"):
            _delete(temporary)
        for sidecar in self.directory.glob("ckpt-*.pt.sha256"):
            if not sidecar.with_suffix("").exists():
                _delete(sidecar)


def _iteration(path: Path) -> int:
    return int(path.stem.removeprefix("ckpt-"))


def _delete(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:  # a file that stays is no reason to end the run
        warnings.warn(f"{path}: not deleted: {error.strerror}", stacklevel=2)
