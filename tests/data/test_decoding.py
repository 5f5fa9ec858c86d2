"""Many files at once: in any number of processes, from anywhere, whatever the files hold."""

import hashlib
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.pictures import blocks
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ultimus_ignite.data import decoder_processes, decoding, progress
from ultimus_ignite.data.decoder_processes import decode_here, decode_in_processes
from ultimus_ignite.data.image_data import DataError
from ultimus_ignite.data.pixels import UnreadableError


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """20 small images, one of them with a name that is no UTF-8."""
    names = [*(f"{index:02}.png" for index in range(19)), os.fsdecode(b"\xff\n.png")]
    for seed, name in enumerate(names):
        Image.fromarray(blocks(seed, alpha="any")).save(tmp_path / name)
    return [str(tmp_path / name) for name in names]


def decode(paths: Sequence[str | Path], **options: bool) -> tuple[Any, Any]:
    """The images, in the order of their paths, and which paths are images."""
    images = np.empty((len(paths), 3, 32, 32), dtype=np.uint8)
    kept = decoding.decode(paths, 32, images.__setitem__, **options)
    return images[kept], kept


def expected(files: list[str]) -> Any:
    return np.stack([pixels for pixels in decode_here(files, 32)])  # type: ignore[arg-type]


@pytest.fixture
def in_parallel(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[bytes]]:
    """Two processes from the first file on; returns those that were started."""
    started: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def record(*args: Any, **kwargs: Any) -> subprocess.Popen[bytes]:
        started.append(popen(*args, **kwargs))
        return started[-1]

    monkeypatch.setattr(decoding, "_ALONE", 1e-9)
    monkeypatch.setattr(decoding, "_count_cores", lambda: 2)
    monkeypatch.setattr(decoder_processes.subprocess, "Popen", record)
    return started


def assert_ended(processes: list[subprocess.Popen[bytes]]) -> None:
    assert processes
    for process in processes:
        assert process.returncode is not None
        assert not Path(f"/proc/{process.pid}").exists()


# Processes


def test_two_processes_give_what_one_gives(
    files: list[str], in_parallel: list[subprocess.Popen[bytes]]
) -> None:
    images, kept = decode(files)
    assert len(in_parallel) == 2
    assert (images == expected(files)).all()
    assert kept.all()
    assert_ended(in_parallel)


def test_the_first_files_are_decoded_here_and_the_others_follow(
    files: list[str], in_parallel: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "_ALONE", 7.5)
    monkeypatch.setattr(decoding.time, "monotonic", Clock())
    assert (decode(files)[0] == expected(files)).all()
    assert in_parallel


def test_few_files_start_no_process(files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(decoding, "_ALONE", 1e9)
    monkeypatch.setattr(decoder_processes.subprocess, "Popen", refuse)
    assert (decode(files)[0] == expected(files)).all()


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_each_file_comes_once(files: list[str], chunk: int) -> None:
    found = dict(decode_in_processes(files, 32, 3, chunk))
    assert sorted(found) == list(range(20))
    assert all((found[i] == pixels).all() for i, pixels in enumerate(expected(files)))


@pytest.mark.parametrize("python", ["/nonexistent", "/bin/false", "/bin/cat", ""])
def test_where_no_process_can_help_this_one_decodes(
    files: list[str], monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    monkeypatch.setattr(sys, "executable", python)
    found = dict(decode_in_processes(files, 32, 2, 4))
    assert sorted(found) == list(range(20))
    assert all((found[i] == pixels).all() for i, pixels in enumerate(expected(files)))


def test_what_a_library_prints_is_no_answer(
    files: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = "print('Hello', flush=True)\ndef register_heif_opener(): print('again', flush=True)\n"
    (tmp_path / "pillow_heif.py").write_text(library)
    expected_here = expected(files)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(decoder_processes, "decode_here", None)  # each file comes from the process
    found = dict(decode_in_processes(files, 32, 1, 4))
    assert all((found[i] == pixels).all() for i, pixels in enumerate(expected_here))


@pytest.mark.parametrize("killed", [1, 2])
def test_the_files_of_a_process_that_is_killed_are_decoded_by_others(
    files: list[str], in_parallel: list[subprocess.Popen[bytes]], killed: int
) -> None:
    with closing(decode_in_processes(files, 32, 2, 1)) as decoded:
        found = dict([next(decoded)])
        for process in in_parallel[:killed]:
            process.kill()
        for index, pixels in decoded:
            assert index not in found
            found[index] = pixels
    assert len(found) == 20
    assert all((found[i] == pixels).all() for i, pixels in enumerate(expected(files)))
    assert_ended(in_parallel)


def test_ctrl_c_in_a_terminal_is_for_the_parent_alone(
    files: list[str], in_parallel: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("the process has died: this one decodes")

    decoded = decode_in_processes(files, 32, 1, 1)
    next(decoded)
    in_parallel[0].send_signal(signal.SIGINT)
    monkeypatch.setattr(decoder_processes, "decode_here", refuse)
    assert len(list(decoded)) == 19


def test_an_exception_leaves_no_process(
    files: list[str], in_parallel: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(self: object) -> None:
        if in_parallel:
            raise KeyboardInterrupt

    monkeypatch.setattr(progress.Progress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        decode(files)
    assert_ended(in_parallel)


SCRIPT = """
import hashlib, sys, threading
from ultimus_ignite.data.decoder_processes import decode_in_processes

def work():
    found = dict(decode_in_processes(sys.argv[1:], 32, 2, 3))
    content = b"".join(found[index].tobytes() for index in range(len(found)))
    print(hashlib.sha256(content).hexdigest(), flush=True)
"""
PLACES = {
    "a script without a main guard": "work()",
    "a thread": "t = threading.Thread(target=work); t.start(); t.join()",
    "a daemon under a fork server": """
import multiprocessing
if __name__ == "__main__":
    process = multiprocessing.get_context("forkserver").Process(target=work, daemon=True)
    process.start()
    process.join()
    assert process.exitcode == 0
""",
    "a forked process": """
import os
if (child := os.fork()) == 0:
    work()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
""",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("redirect", ["</dev/null", "<&-", "<&- 2>&-"])
def test_it_works_from_anywhere(
    files: list[str], tmp_path: Path, place: str, redirect: str
) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + PLACES[place])
    command = f'exec "$0" -W error "$@" {redirect}'
    arguments = [sys.executable, str(script), *files]
    done = subprocess.run(
        ["sh", "-c", command, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hashlib.sha256(expected(files).tobytes()).hexdigest()]


INTERRUPTED = """
import sys
from ultimus_ignite.data.decoder_processes import decode_in_processes
for index, _ in decode_in_processes(sys.argv[1:], 32, 2, 1):
    print(index, flush=True)
"""


@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_ctrl_c_leaves_no_process(
    files: list[str], tmp_path: Path, send: Callable[[int, int], None]
) -> None:
    os.mkfifo(tmp_path / "pipe")  # whoever opens it waits for ever
    command = [sys.executable, "-c", INTERRUPTED, files[0], str(tmp_path / "pipe")]
    parent = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"0\n"
    # Of the helpers one now waits for the pipe, the other for work.
    send(parent.pid, signal.SIGINT)
    _, error = parent.communicate()
    assert parent.returncode == -signal.SIGINT
    assert error.count(b"Traceback") == 1
    with pytest.raises(ProcessLookupError):
        os.killpg(parent.pid, 0)


# Unreadable files


@settings(max_examples=50, deadline=None)
@given(good=st.lists(st.booleans(), min_size=1, max_size=12))
def test_all_unreadable_files_are_counted_and_five_are_named(
    tmp_path_factory: pytest.TempPathFactory, good: list[bool]
) -> None:
    folder = tmp_path_factory.mktemp("files")
    paths = [folder / f"{index}.png" for index in range(len(good))]
    for path, is_good in zip(paths, good, strict=True):
        Image.new("RGB", (4, 4)).save(path) if is_good else path.write_bytes(b"")
    bad = [path for path, is_good in zip(paths, good, strict=True) if not is_good]
    if not bad:
        assert decode(paths)[1].all()
        return
    with pytest.raises(DataError) as error:
        decode(paths)
    message = str(error.value)
    assert [path in message for path in map(str, bad)] == [i < 5 for i in range(len(bad))]
    assert message.count("an empty file") == min(5, len(bad))
    assert re.findall(r"^(\d+) files|and (\d+) more$", message) == [
        *([(str(len(bad)), "")] if len(bad) > 1 else []),
        *([("", str(len(bad) - 5))] if len(bad) > 5 else []),
    ]
    images, kept = decode(paths, skip_unreadable=True)
    assert kept.tolist() == good
    assert images.shape == (sum(good), 3, 32, 32)


def test_what_is_skipped_moves_no_other_image(files: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad").write_text("no image")
    mixed = [files[0], str(tmp_path / "bad"), *files[1:3], "/nonexistent", files[3]]
    images, kept = decode(mixed, skip_unreadable=True)
    assert kept.tolist() == [True, False, True, True, False, True]
    assert (images == expected(files[:4])).all()


def test_unreadable_files_are_found_in_other_processes_too(
    files: list[str], tmp_path: Path, in_parallel: list[subprocess.Popen[bytes]]
) -> None:
    (tmp_path / "bad").write_text("no image")
    with pytest.raises(DataError, match="bad: not a readable image: none of the known"):
        decode([*files, tmp_path / "bad"])
    assert in_parallel


def test_warnings_about_readable_files_are_silent(
    files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 - 1)  # Pillow warns up to its double
    with pytest.warns(Image.DecompressionBombWarning):
        Image.open(files[0]).close()
    assert decode(files)[1].all()


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(blocks(0)).convert("RGB").resize((8, 8)).save(buffer, image_format)
    return buffer.getvalue()


SAMPLES = [encoded(name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "TGA")]


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    sample=st.sampled_from(SAMPLES) | st.binary(max_size=200),
    flips=st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 255)), max_size=8),
    length=st.integers(0, 1000),
)
def test_whatever_a_file_holds_it_is_an_image_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory,
    sample: bytes,
    flips: list[tuple[int, int]],
    length: int,
) -> None:
    damaged = bytearray(sample[:length])
    for position, value in flips:
        if position < len(damaged):
            damaged[position] = value
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(damaged)
    (decoded,) = decode_here([str(path)], 32)
    assert isinstance(decoded, UnreadableError) or decoded.shape == (3, 32, 32)


# Progress


class Clock:
    """A clock that ticks one second whenever it is read."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> float:
        self.now += 1
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    return clock


@pytest.mark.parametrize("done", [20, 29, 100])
def test_without_a_terminal_there_is_a_line_every_30_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str], done: int
) -> None:
    with progress.Progress(1000, "decoding", "images") as shown:
        for _ in range(done):
            shown.update()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == done // 30
    if lines:
        line = r"decoding: 30 of 1,000 images, (0\.9|1\.0) per second, 16:\d\d left"
        assert re.fullmatch(line, lines[0])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    with progress.Progress(20, "decoding", "images") as shown:
        shown.update()
    assert "decoding:   0%" in terminal.getvalue()
    assert "20 [" in terminal.getvalue()


@pytest.mark.parametrize("closed", [True, False])
def test_progress_needs_no_standard_error(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    with progress.Progress(100, "decoding", "images") as shown:
        for _ in range(100):
            shown.update()
