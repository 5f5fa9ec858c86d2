"""Checkpoints on disk that outlive a kill, a power loss, a full disk and a flipped bit.

A checkpoint is ``ckpt-000002352.pt`` with its digest beside it in ``ckpt-000002352.pt.sha256``, in
the format that ``sha256sum --check`` reads. It counts only where the two agree.
"""

import hashlib
import io
import os
import pickletools
import re
import stat
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch

_NAME = re.compile(r"ckpt-[0-9]{9,}\.pt")

_STORAGES = {
    torch.float64: "DoubleStorage",
    torch.float32: "FloatStorage",
    torch.float16: "HalfStorage",
    torch.bfloat16: "BFloat16Storage",
    torch.int64: "LongStorage",
    torch.int32: "IntStorage",
    torch.int16: "ShortStorage",
    torch.int8: "CharStorage",
    torch.uint8: "ByteStorage",
    torch.bool: "BoolStorage",
}

# All that the pickle of a plain state names. `weights_only` allows more, some of which allocates as
# much as it is told to: `bytearray(10**11)`, `torch.Tensor(10**11)`.
_GLOBALS = {
    "collections OrderedDict",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {storage}" for storage in _STORAGES.values()),
}


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

    Raises:
        ValueError: if `keep` is less than 2: a single copy is none while it is being replaced.

    Example:
        >>> import tempfile
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
        self._directory = Path(directory)
        self._keep = keep

    def save(
        self, state: Mapping[str, Any], *, iteration: int, protect: Collection[int] = ()
    ) -> Path:
        """Write `state`, durable on return, then delete what is neither new nor protected.

        Checkpoints of later iterations, from which a run went back, are left alone.

        Args:
            state: finite, dense tensors and plain Python values in dicts, lists and tuples.
            iteration: number of finished iterations; names the file.
            protect: iterations of checkpoints to keep however old, such as the best.

        Returns:
            The path of the checkpoint.

        Raises:
            CheckpointError: if `state` holds NaN, infinity or what could not be loaded again;
                nothing is written.
            OSError: if it cannot be written. All older checkpoints are kept.
            ValueError: if `iteration` is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration must not be negative, got {iteration}")
        path = self._directory / f"ckpt-{iteration:09d}.pt"
        try:
            _check_values(dict(state))
        except ValueError as error:
            raise CheckpointError(f"{path}: not saved: {error}") from error
        buffer = io.BytesIO()  # by path, torch would write the file's name into the bytes
        torch.save(dict(state), buffer)

        _create_folder(self._directory)
        self._sweep()
        try:
            self._replace(path, buffer.getvalue())
        finally:
            self._sweep()
        self._prune(iteration, protect)
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
            if hashlib.sha256(data).hexdigest().encode() not in _read_digests(path).split():
                raise ValueError(f"its sha256 is not the one in {_sidecar(path).name}")
            return _decode(data)
        except Exception as error:  # whatever goes wrong in there, the file is to blame
            reason = str(error) or type(error).__name__
            advice = "restore it from a copy, or delete it to resume from an older one"
            raise CheckpointError(f"{path}: refused: {reason}; {advice}") from error

    def paths(self) -> list[Path]:
        """Return the checkpoints in the folder, valid or not, the highest iteration first."""
        try:
            found = [path for path in self._directory.iterdir() if _NAME.fullmatch(path.name)]
        except FileNotFoundError:  # a folder that cannot be read is an error, not an empty one
            return []
        return sorted(found, key=_iteration, reverse=True)

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
                f"{self._directory}: none of its {len(paths)} checkpoints is valid; "
                "restore one from a copy, or delete the folder to start from scratch"
            )
        return None

    def _replace(self, path: Path, data: bytes) -> None:
        sidecar = _sidecar(path)
        digest = f"{hashlib.sha256(data).hexdigest()}  {path.name}\n".encode()
        try:
            replaced = _read_digests(path)
        except (OSError, ValueError):  # nothing to replace, or nothing that could be loaded
            replaced = b""
        moves = [(sidecar, digest + replaced), (path, data)]
        if replaced:
            moves.append((sidecar, digest))

        # All is on the disk before anything moves: a full disk is met here, and changes nothing.
        for step, (target, content) in enumerate(moves):
            _write(_temporary(target, step), content)
        for step, (target, _) in enumerate(moves):
            _temporary(target, step).replace(target)
            _sync(self._directory)  # else a power loss could keep a later move without this one

    def _prune(self, iteration: int, protect: Collection[int]) -> None:
        past = [path for path in self.paths() if _iteration(path) <= iteration]
        for path in past[self._keep :]:
            if _iteration(path) not in protect:
                _delete(path)
                _delete(_sidecar(path))

    def _sweep(self) -> None:
        """Delete what an interrupted save or prune leaves: temporaries, and digests of no file."""
        for temporary in self._directory.glob("ckpt-*.tmp"):
            _delete(temporary)
        for sidecar in self._directory.glob("ckpt-*.pt.sha256"):
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


def _read_digests(path: Path) -> bytes:
    return _read(_sidecar(path), limit=4096)


def _decode(data: bytes) -> dict[str, Any]:
    """Turn the bytes of a checkpoint into its state; any exception means that they are none."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = {entry.filename.lower() for entry in entries}  # torch takes DATA.PKL for data.pkl
        sound = (
            len(names) == len(entries)
            and all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            and sum(entry.file_size for entry in entries) <= len(data)
            and archive.testzip() is None
        )
        if not sound:
            raise ValueError("it is no archive that torch.save wrote")
        _check_globals(archive.read("archive/data.pkl"))
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # whose text advises weights_only=False: not ours to pass on
        raise ValueError(f"torch.load failed ({type(error).__name__})") from error
    if type(state) is not dict:
        raise ValueError(f"it holds a {type(state).__name__} instead of a dict")
    _check_values(state)
    return state


def _check_globals(pickle: bytes) -> None:
    # The other opcodes that import (INST, STACK_GLOBAL, EXT1 ...) are unknown to torch's unpickler.
    operations = pickletools.genops(pickle)
    found = {str(argument) for opcode, argument, _ in operations if opcode.name == "GLOBAL"}
    if foreign := found - _GLOBALS:
        raise ValueError(f"it names {', '.join(map(repr, sorted(foreign)))}")


def _check_values(state: dict[str, Any]) -> None:
    """Raise a ValueError that names the key of a value which no checkpoint may hold."""
    todo: list[tuple[str, Any]] = [("state", state)]
    seen: set[int] = set()  # a list may hold itself, or another one 2**40 times over
    while todo:
        key, value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            _check_tensor(key, value)
        elif type(value) in (dict, OrderedDict):
            todo.extend((f"a key of {key}", name) for name in value)
            todo.extend((f"{key}[{name!r}]", item) for name, item in value.items())
        elif type(value) in (list, tuple):
            todo.extend((f"{key}[{index}]", item) for index, item in enumerate(value))
        elif type(value) not in (str, int, float, bool, type(None)):
            raise ValueError(f"{key} is a {type(value).__name__}; keep tensors and plain values")


def _check_tensor(key: str, tensor: torch.Tensor) -> None:
    # Subclasses, attributes and other layouts are pickled by functions outside _GLOBALS.
    bare = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not vars(tensor)
    dense = tensor.layout is torch.strided and not tensor.is_meta and tensor.dtype in _STORAGES
    if not (bare and dense):
        raise ValueError(f"{key} is no plain dense tensor of numbers; convert it first")
    # An expanded view claims any size at no cost, until an operation allocates it.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise ValueError(f"{key} is larger than its storage; clone() it first")
    # min and max are NaN where any element is; unlike isfinite(), they need no memory.
    if tensor.is_floating_point() and tensor.numel() > 0:
        smallest, largest = torch.aminmax(tensor)
        if not (smallest.isfinite() and largest.isfinite()):
            raise ValueError(f"{key} holds NaN or infinity")
