"""The store on a machine that is killed, loses power, or has no room left."""

import errno
import io
import itertools
import os
import resource
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch

from ultimus_ignite.handlers.checkpoints.store import CheckpointStore

BLOCK = 700  # bytes a write takes at most: a checkpoint of the tests is 3 or 4 writes


class Killed(BaseException):
    """What a killed process sees: nothing catches it."""


def state(value):
    return {"weight": torch.full((64,), float(value)), "value": value}


def loaded(directory):
    newest = CheckpointStore(directory).load_newest()  # any warning would be an error here
    if newest is None:
        return None
    assert torch.equal(newest[1]["weight"], state(newest[1]["value"])["weight"])
    return newest[1]["value"]


def contents(directory):
    return {path: path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()}


@contextmanager
def intercepted(handle):
    """Give every change on disk to ``handle(operation, subject, do)``, which may ``do()`` it.

    The subject is a path, except that of a write and an fsync: an inode's number.
    """
    opened = ExitStack()  # a killed process closes nothing itself

    class File(io.FileIO):
        def __init__(self, *args):
            super().__init__(*args)
            opened.callback(self.close)

        def write(self, data):
            block = bytes(data[:BLOCK])
            inode = os.fstat(self.fileno()).st_ino
            return handle("write", (inode, block), lambda: io.FileIO.write(self, block))

    def method(name, real):
        return lambda path, *args: handle(name, (path, *args), lambda: real(path, *args))

    def open_(path, mode="r", *args, real=Path.open):
        if mode not in ("xb", "wb"):
            return real(path, mode, *args)
        return io.BufferedWriter(handle("create", (path,), lambda: File(path, mode)))

    def fsync(descriptor, real=os.fsync):
        inode = os.fstat(descriptor).st_ino
        return handle("fsync", (inode,), lambda: real(descriptor))

    with opened, pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "replace", "unlink"):
            patch.setattr(Path, name, method(name, getattr(Path, name)))
        patch.setattr(Path, "open", open_)
        patch.setattr(os, "fsync", fsync)
        yield


class Kill:
    """Kills before (even points) or after (odd points) operation number ``point // 2``."""

    def __init__(self, point):
        self.left = point + 1
        self.dead = False

    def __call__(self, operation, subject, do):
        self._live()
        result = do()
        self._live()
        return result

    def _live(self):
        self.left -= 1
        self.dead = self.dead or self.left == 0
        if self.dead:  # a dead process does not clean up either
            raise Killed


# What was saved before, as (iteration, value), and the save under test. Three saves keep two.
SCENARIOS = {
    "first": ([], (1, 1)),
    "second": ([(1, 1)], (2, 2)),
    "same iteration, the only one": ([(1, 1)], (1, 9)),
    "same iteration of two": ([(1, 1), (2, 2)], (2, 9)),
    "prune": ([(1, 1), (2, 2), (3, 3), (4, 4)], (5, 5)),
}


def save(directory, iteration, value):
    CheckpointStore(directory).save(state(value), iteration=iteration, protect=[1])


@pytest.mark.parametrize(("before", "save_"), SCENARIOS.values(), ids=SCENARIOS)
def test_a_kill_at_any_point_leaves_an_old_or_a_new_checkpoint(tmp_path, before, save_):
    old = before[-1][1] if before else None
    for point in itertools.count():
        directory = tmp_path / str(point) / "checkpoints"
        for earlier in before:
            save(directory, *earlier)
        kill = Kill(point)
        try:
            with intercepted(kill):
                save(directory, *save_)
        except Killed:
            assert loaded(directory) in (old, save_[1]), f"point {point}"
            save(directory, *save_)
        assert loaded(directory) == save_[1]
        names = {path.name for path in directory.iterdir()}
        assert names == {f"{path.name}{end}" for path in CheckpointStore(directory).paths()
                         for end in ("", ".sha256")}  # fmt: skip
        if not kill.dead:
            break
    assert point > 10


def test_real_kills_at_random_moments(tmp_path):
    script = """
import itertools, os, random, signal, sys, time
import torch
from ultimus_ignite.handlers.checkpoints.store import CheckpointStore

torch.set_num_threads(1)
store, draw, newest = CheckpointStore(sys.argv[1]), random.Random(0), 0
for _ in range(10):
    saved, told = os.pipe()
    child = os.fork()
    if child == 0:
        for iteration in itertools.count(newest + 1):
            state = {"weight": torch.full((50_000,), float(iteration)), "value": iteration}
            store.save(state, iteration=iteration)
            os.write(told, b".")
            store.save(state | {"again": 1}, iteration=iteration)
    os.read(saved, 1)
    time.sleep(draw.uniform(0.0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    path, state = store.load_newest()
    assert newest < state["value"] and (state["weight"] == state["value"]).all()
    newest = state["value"]
"""
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", script]
    done = subprocess.run([*command, tmp_path / "c"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Journal:
    """Records changes on disk, and tells which trees a loss of power could leave of them.

    A file keeps what it held at its last fsync, and of later writes all, half, or zeros. A folder
    keeps its entries of its last fsync, and any subset of later changes: order is not kept.
    """

    def __init__(self, root):
        self.root = root
        self.log = []
        self.entries = {}  # path -> number of the file, None where it is gone
        self.inodes = {root.stat().st_ino: root}  # -> number of a file, path of a folder

    def __call__(self, operation, subject, do):
        result = do()
        match operation, subject:
            case "write", (inode, block):
                self.log.append(("write", self.inodes[inode], block))
            case "fsync", (inode,):
                self.log.append(("fsync", self.inodes[inode], None))
            case "create", (path,):  # numbered: the kernel gives a deleted file's inode to another
                self.inodes[os.fstat(result.fileno()).st_ino] = len(self.log)
                self._change({path: len(self.log)})
            case "mkdir", (path,):
                self.inodes[path.stat().st_ino] = path
                self._change({path: path})
            case "replace", (path, target):
                self._change({path: None, target: self.entries[path]})
            case "unlink", (path,):
                self._change({path: None})
        return result

    def _change(self, entries):
        self.entries |= entries
        self.log.append(("change", next(iter(entries)).parent, entries))

    def trees(self, length):
        """Yield every tree that the first ``length`` operations could leave, as path -> bytes."""
        durable, pending, synced, written = {}, [], {}, {}
        for kind, subject, detail in self.log[:length]:
            if kind == "write":
                written[subject] = written.get(subject, b"") + detail
            elif kind == "change":
                pending.append((subject, detail))
            elif isinstance(subject, Path):
                for _, entries in (change for change in pending if change[0] == subject):
                    durable |= entries
                pending = [change for change in pending if change[0] != subject]
            else:
                synced[subject] = written.get(subject, b"")
        for kept in itertools.product((False, True), repeat=len(pending)):
            tree = dict(durable)
            for _, entries in itertools.compress(pending, kept):
                tree |= entries
            files = {path: entry for path, entry in tree.items() if self._is_file(tree, path)}
            versions = [
                possible_contents(synced.get(number, b""), written.get(number, b""))
                for number in files.values()
            ]
            for version in itertools.product(*versions):
                yield dict(zip(files, version, strict=True))

    def _is_file(self, tree, path):
        lost = any(tree.get(folder) is None for folder in path.parents if folder > self.root)
        return isinstance(tree[path], int) and not lost


def possible_contents(synced, written):
    lost = len(written) - len(synced)
    return {synced, written, written[: len(synced) + lost // 2], synced + bytes(lost)}


def test_a_power_loss_leaves_an_old_or_a_new_checkpoint(tmp_path):
    root, copy = tmp_path / "disk", tmp_path / "after"
    root.mkdir()
    journal = Journal(root)
    allowed = [{None}]  # values that may be loaded after the first n operations
    saves = [(1, 1), (1, 2), (2, 3), (2, 4), (3, 5), (4, 6), (4, 7), (5, 8)]
    with intercepted(journal):
        for iteration, value in saves:
            save(root / "run" / "checkpoints", iteration, value)
            in_flight = allowed[-1] | {value}
            allowed += [in_flight] * (len(journal.log) - len(allowed)) + [{value}]

    seen = set()
    for length, values in enumerate(allowed):
        for tree in journal.trees(length):
            if (key := (frozenset(tree.items()), frozenset(values))) in seen:
                continue
            seen.add(key)
            for path, content in tree.items():
                target = copy / path.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
            assert loaded(copy / "run" / "checkpoints") in values, f"operation {length}"
            shutil.rmtree(copy, ignore_errors=True)
    assert contents(root) == tree  # all that happened was recorded
    assert len(seen) > 100


@pytest.mark.parametrize("operation", ["mkdir", "create", "write", "fsync", "replace"])
@pytest.mark.parametrize(("before", "save_"), SCENARIOS.values(), ids=SCENARIOS)
def test_a_full_disk_at_any_operation(tmp_path, operation, before, save_):
    for failing in itertools.count():
        directory = tmp_path / str(failing) / "checkpoints"
        for earlier in before:
            save(directory, *earlier)
        old = contents(directory)
        count = itertools.count()

        def full(name, subject, do, count=count, failing=failing):
            if name == operation and next(count) >= failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return do()

        try:
            with intercepted(full):
                save(directory, *save_)
        except OSError:
            assert not list(directory.glob("*.tmp"))
            assert loaded(directory) in (before[-1][1] if before else None, save_[1])
            if operation in ("create", "write"):
                assert contents(directory) == old
        else:
            break
    assert loaded(directory) == save_[1]


def test_a_link_in_the_way_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")

    def planted(operation, subject, do):
        if operation == "create":
            subject[0].symlink_to(victim)
        return do()

    with intercepted(planted), pytest.raises(FileExistsError):
        save(tmp_path / "checkpoints", 1, 1)
    assert victim.read_bytes() == b"precious"


def test_a_write_that_the_kernel_refuses(tmp_path):
    save(tmp_path, 1, 1)
    old = contents(tmp_path)
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "ckpt-000000001.pt").stat().st_size
    for limit in range(0, size, 97):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                save(tmp_path, 2, 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
        assert contents(tmp_path) == old


def test_a_failed_delete_is_a_warning(tmp_path):
    for iteration in (1, 2, 3):
        save(tmp_path, iteration, iteration)

    def busy(operation, subject, do):
        if operation == "unlink":
            raise PermissionError(errno.EPERM, "not permitted")
        return do()

    with intercepted(busy), pytest.warns(UserWarning, match="ckpt-000000002.*: not deleted"):
        save(tmp_path, 4, 4)
    assert loaded(tmp_path) == 4
    save(tmp_path, 5, 5)
    assert len(CheckpointStore(tmp_path).paths()) == 3
