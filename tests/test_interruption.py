"""Runs in processes of their own that are stopped, killed, or fail: reliability, from outside."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import Command, call
from tensorboard_reader import times_written

from ultimus_ignite.run_directory import RunDirectory

BIN = Path(__file__).parents[1] / "bin"
FLAGS = ["--data", "digits", "--batch-size", "128", "--epochs", "7", "--device", "cpu"]


def start(out, *flags):
    return Command("train-cifar", *FLAGS, *flags, "--out", out)


def finish(out, *flags):
    answer = start(out, *flags).finish()
    assert answer.returncode == 0, answer.stderr
    return answer


def status(out):
    return json.loads((out / "status.json").read_text())["status"]


def history(out):
    """The rows without their seconds."""
    return [line.rsplit(",", 1)[0] for line in (out / "history.csv").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    out = tmp_path_factory.mktemp("straight") / "run"
    finish(out)
    return out


def assert_same(out, straight):
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert history(out) == history(straight)
    written = times_written(out)
    assert {step for _, step in written} == {*range(1, len(history(out)))}
    assert set(written.values()) == {1}


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=["SIGTERM", "SIGINT", "SIGHUP"],
)
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_signal_saves_says_so_and_the_resumed_run_is_the_unbroken_one(
    tmp_path, straight, number, code, epoch
):
    out = tmp_path / "run"
    process = start(out)
    process.wait_for(f"EPOCH: {epoch} ")
    process.send_signal(number)
    answer = process.finish()
    assert answer.returncode == code, answer.stderr
    assert re.fullmatch(rf"train-cifar: ended by {number.name}, .*--resume.*\n", answer.stderr)
    assert status(out) == "interrupted"
    assert (out / "curves.png").exists()
    assert list((out / "checkpoints").glob("*.pt"))
    finish(out, "--resume")
    assert status(out) == "finished"
    assert_same(out, straight)


def test_two_signals_end_at_once(tmp_path):
    out = tmp_path / "run"
    process = start(out, "--epochs", "1000")
    process.wait_for("EPOCH: 2 ")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    assert process.finish().returncode in (130, 143)
    assert status(out) == "interrupted"


def test_killed_anywhere_the_status_and_the_checkpoints_stand(tmp_path, straight):
    out = tmp_path / "run"
    process = start(out, "--checkpoint-every", "4")
    process.wait_for("EPOCH: 3 ")
    process.kill()
    assert status(out) == "running"
    assert RunDirectory(out).read_status()["status"] == "interrupted (killed)"
    answer = finish(out, "--resume", "--checkpoint-every", "4")
    assert "The run before was killed" in answer.stdout
    assert_same(out, straight)


def test_resume_starts_anew_where_nothing_is(tmp_path, straight):
    finish(tmp_path / "run", "--resume")
    assert_same(tmp_path / "run", straight)


def test_what_does_not_touch_the_training_changes_nothing(tmp_path, straight):
    finish(tmp_path / "run", "--checkpoint-every", "3")
    assert_same(tmp_path / "run", straight)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied", "sidecar gone"])
def test_a_damaged_checkpoint_is_named_and_the_older_one_goes_on(tmp_path, straight, damage):
    out = tmp_path / "run"
    process = start(out)
    process.wait_for("EPOCH: 5 ")
    process.kill()
    newest = max((out / "checkpoints").glob("*.pt"))
    data = newest.read_bytes()
    if damage == "truncated":
        newest.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        newest.write_bytes(data[:5000] + bytes([data[5000] ^ 16]) + data[5001:])
    elif damage == "emptied":
        newest.write_bytes(b"")
    else:
        newest.with_name(newest.name + ".sha256").unlink()
    process = start(out, "--resume")
    answer = process.finish()
    assert answer.returncode == 0, answer.stderr
    assert newest.name in answer.stderr
    assert "Traceback" not in answer.stderr
    assert_same(out, straight)


def test_no_valid_checkpoint_is_exit_3_never_a_new_start(tmp_path):
    out = tmp_path / "run"
    process = start(out)
    process.wait_for("EPOCH: 4 ")
    process.kill()
    for path in (out / "checkpoints").glob("*.pt"):
        path.write_bytes(b"nothing")
    before = (out / "history.csv").read_bytes()
    process = start(out, "--resume")
    answer = process.finish()
    assert answer.returncode == 3
    assert "none of its" in answer.stderr.splitlines()[-1]
    assert answer.stdout == ""
    assert (out / "history.csv").read_bytes() == before


def test_a_loss_that_explodes_is_exit_4_with_the_last_good_state_kept(tmp_path):
    out = tmp_path / "run"
    process = start(out, "--max-lr", "1e30", "--checkpoint-every", "1")
    answer = process.finish()
    assert answer.returncode == 4, answer.stderr
    assert re.fullmatch(r"train-cifar: the loss .* at iteration \d+, rate \S+: .*\n", answer.stderr)
    assert status(out) == "non-finite"
    for path in (out / "checkpoints").glob("*.pt"):
        state = torch.load(path, weights_only=True)
        assert all(torch.isfinite(value).all() for value in state["model"].values())


def test_a_second_process_in_one_folder_is_refused(tmp_path):
    out = tmp_path / "run"
    first = start(out, "--epochs", "1000")
    first.wait_for("EPOCH: 1 ")
    try:
        for flags in ((), ("--resume",)):
            answer = start(out, *flags).finish()
            assert answer.returncode == 2
            assert answer.stderr.count("\n") == 1
            assert "still going" in answer.stderr
    finally:
        first.kill()


def test_of_many_started_at_once_exactly_one_writes(tmp_path, straight):
    out = tmp_path / "run"
    answers = [process.finish() for process in [start(out) for _ in range(5)]]
    assert sorted(answer.returncode for answer in answers) == [0, 2, 2, 2, 2]
    assert_same(out, straight)


@pytest.mark.parametrize(
    "script", ['"$@" | head -n 1', '"$@" >&- 2>&-'], ids=["| head", "closed streams"]
)
def test_nobody_listening_does_not_end_the_run(tmp_path, straight, script):
    out = tmp_path / "run"
    command = [sys.executable, BIN / "train-cifar", *FLAGS, "--out", out]
    answer = subprocess.run(
        ["bash", "-o", "pipefail", "-c", script, "bash", *map(str, command)],
        capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    assert (answer.returncode, answer.stderr) == (0, "")
    assert_same(out, straight)


def test_umask_is_honoured(tmp_path):
    out, script = tmp_path / "run", tmp_path / "script.py"
    script.write_text(
        "import os; from ultimus_ignite import cli; os.umask(0o077); cli.train_cifar()"
    )
    answer = call("python", script, *FLAGS, "--epochs", "1", "--out", out)
    assert answer.returncode == 0, answer.stderr
    modes = {path.stat().st_mode & 0o777 for path in out.rglob("*") if path.is_file()}
    assert modes == {0o600}


IN_A_TERMINAL = """
import fcntl, runpy, signal, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that SIGHUP comes when the other end is closed
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[1]))
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@contextlib.contextmanager
def in_a_terminal(out, sighup):
    """A run in a session of its own with a terminal, and the terminal's other end."""
    here, there = os.openpty()
    command = [sys.executable, "-c", IN_A_TERMINAL, sighup, BIN / "train-cifar", *FLAGS]
    process = subprocess.Popen(
        [*command, "--out", out], stdin=there, stdout=there, stderr=there, start_new_session=True,
        env=os.environ | {"PYTHONUNBUFFERED": ""},
    )  # fmt: skip
    os.close(there)
    with process, os.fdopen(here, encoding="utf-8", errors="replace") as terminal:
        yield process, terminal
        process.kill()


def close_after(terminal, text):
    while text not in terminal.readline():
        pass
    terminal.close()


def test_a_closed_terminal_ends_the_run_in_good_order(tmp_path, straight):
    out = tmp_path / "run"
    with in_a_terminal(out, "SIG_DFL") as (process, terminal):
        close_after(terminal, "EPOCH: 2 ")
        assert process.wait() == 129
    assert status(out) == "interrupted"
    assert list((out / "checkpoints").glob("*.pt"))
    finish(out, "--resume")
    assert_same(out, straight)


def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path, straight):
    out = tmp_path / "run"
    with in_a_terminal(out, "SIG_IGN") as (process, terminal):
        close_after(terminal, "EPOCH: 2 ")
        assert process.wait() == 0
    assert status(out) == "finished"
    assert_same(out, straight)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("attempt", range(20))
def test_twenty_signals_of_twenty(tmp_path, straight, attempt, number):
    rng = random.Random(f"{attempt} {number}")
    out = tmp_path / "run"
    process = start(out)
    process.wait_for("EPOCH: 1 ")
    time.sleep(rng.uniform(0, 1.0))
    with contextlib.suppress(ProcessLookupError):  # it may have ended by then
        process.send_signal(number)
    code = process.finish().returncode
    assert (code, status(out)) in [(0, "finished"), (128 + number, "interrupted")]
    finish(out, "--resume")
    assert status(out) == "finished"
    assert_same(out, straight)
