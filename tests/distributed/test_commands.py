"""`train-cifar` on two ranks: what is said, how it ends, and what a lost rank does to the other."""

import json
import re
import signal
import socket

import pytest
import torch
from processes import Command, call
from ranks import start_ranks

from ultimus_ignite.distributed.launch import environments

SMALL = ["--data", "digits", "--device", "cpu", "--epochs", 2]


def finish(commands):
    return [command.finish() for command in commands]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder of a run on one process."""
    place = tmp_path_factory.mktemp("one")
    assert call("train-cifar", *SMALL, "--out", "run", cwd=place).returncode == 0
    return place / "run"


def without_times(log):
    return re.sub(r" \[.*?\]", "", log)


def test_only_rank_0_speaks_and_writes(one, tmp_path):
    first, second = finish(start_ranks(2, "train-cifar", *SMALL, "--out", "run", cwd=tmp_path))
    assert (first.returncode, second.returncode) == (0, 0)
    assert (first.stderr, second.stdout, second.stderr) == ("", "", "")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert without_times(log) == without_times((one / "log.txt").read_text())
    assert without_times(first.stdout) == without_times(log)
    names = [
        sorted(re.sub(r"\d{9,}", "N", str(p.relative_to(f))) for p in f.rglob("*"))
        for f in (one, tmp_path / "run")
    ]
    assert names[0] == names[1]


def test_a_finished_run_is_finished_on_every_rank(one, tmp_path):
    flags = [*SMALL, "--out", one, "--resume"]
    first, second = finish(start_ranks(2, "train-cifar", *flags, cwd=tmp_path))
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout.count("nothing left to do") == 1
    assert second.stdout == ""


def test_processes_starts_them(one, tmp_path):
    answer = call("train-cifar", *SMALL, "--processes", 2, "--out", "run", cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert without_times(answer.stdout) == without_times((one / "log.txt").read_text())


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data", "folder:nowhere"], "nowhere"),
        (["--out", "taken"], "already holds a run"),
        (["--batch-size", 1], "a batch of 1 image is too small for 2 processes"),
        (["--model", "nets:Missing"], "nets"),
        (["--device", "cuda:0"], "several processes take cpu, cuda or auto, got cuda:0"),
        pytest.param(
            ["--device", "cuda"],
            "has no GPU, of which there are 0",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_a_mistake_is_one_line_on_every_rank(tmp_path, flags, says):
    (tmp_path / "taken" / "checkpoints").mkdir(parents=True)
    flags = [*SMALL, "--out", "run", *flags]
    for answer in finish(start_ranks(2, "train-cifar", *flags, cwd=tmp_path)):
        assert (answer.returncode, answer.stdout) == (2, "")
        assert answer.stderr.count("\n") == 1
        assert says in answer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("flags", "environment", "says"),
    [
        (["--processes", 0], {}, "processes must be at least 1, got 0"),
        (["--process-timeout", -1], {}, "process_timeout must be positive"),
        ([], {"RANK": "0"}, "RANK is set in the environment, but not WORLD_SIZE"),
        (["--processes", 2], {"WORLD_SIZE": "3"}, "torchrun has started 3"),
    ],
)
def test_half_an_environment_is_one_line(tmp_path, flags, environment, says):
    answer = call("train-cifar", *SMALL, *flags, cwd=tmp_path, **environment)
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.count("\n") == 1
    assert says in answer.stderr


def test_what_one_rank_cannot_load_none_trains_on(tmp_path):
    (tmp_path / "empty").mkdir()
    commands = [
        Command("train-cifar", *SMALL, "--data", data, "--out", "run", cwd=tmp_path, **each)
        for data, each in zip(("digits", "folder:empty"), environments(2), strict=True)
    ]
    first, second = finish(commands)
    assert (first.returncode, second.returncode, first.stdout) == (2, 2, "")
    assert first.stderr.startswith(f"train-cifar: process 1: {tmp_path / 'empty'}: ")
    assert second.stderr.startswith(f"train-cifar: {tmp_path / 'empty'}: ")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("name", "values"), [("--seed", (1, 2)), ("--label-smoothing", (0.0, 0.1))]
)
def test_ranks_that_would_compute_another_thing_are_refused(tmp_path, name, values):
    commands = [
        Command("train-cifar", *SMALL, "--out", "run", name, value, cwd=tmp_path, **each)
        for value, each in zip(values, environments(2), strict=True)
    ]
    field = name[2:].replace("-", "_")
    for answer in finish(commands):
        assert (answer.returncode, answer.stdout) == (2, "")
        says = f"process 0 and 1 differ: {field}: {values[0]} and {values[1]}"
        assert says in answer.stderr
        assert answer.stderr.count("\n") == 1


def test_a_rank_that_never_comes_is_one_line(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        lone = environments(2)[1] | {"MASTER_PORT": str(nobody.getsockname()[1])}
        flags = [*SMALL, "--out", "run", "--process-timeout", 2]
        answer = call("train-cifar", *flags, cwd=tmp_path, **lone)
    assert answer.returncode == 2
    assert "the processes do not meet at 127.0.0.1" in answer.stderr.splitlines()[-1]


LONG = ["--data", "digits", "--device", "cpu", "--epochs", 3000, "--batch-size", 128]
ENDINGS = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("ending", ENDINGS)
def test_a_lost_rank_ends_the_other_and_the_run_can_be_resumed(tmp_path, rank, ending):
    flags = [*LONG, "--out", "run", "--checkpoint-every", 10, "--process-timeout", 3]
    commands = start_ranks(2, "train-cifar", *flags, cwd=tmp_path)
    commands[0].wait_for("EPOCH: 3 ")
    commands[rank].send_signal(ENDINGS[ending])
    other, lost = commands[1 - rank].finish(), commands[rank].finish()
    assert (other.returncode, lost.returncode) == (1, -signal.SIGKILL)
    line = f"process {1 - rank} waited for another that has ended or hangs: --resume continues"
    assert line in other.stderr.splitlines()[-1]
    status = json.loads((tmp_path / "run" / "status.json").read_text())["status"]
    assert status == ("failed" if rank else "running")
    resumed = start_ranks(2, "train-cifar", *flags, "--resume", cwd=tmp_path)
    resumed[0].wait_for("EPOCH: 4 ")
    for each in resumed:
        each.send_signal(signal.SIGTERM)
    assert [each.finish().returncode for each in resumed] == [143, 143]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_rank_saves_one_iteration(tmp_path, rank):
    commands = start_ranks(2, "train-cifar", *LONG, "--out", "run", cwd=tmp_path)
    commands[0].wait_for("EPOCH: 3 ")
    commands[rank].send_signal(signal.SIGTERM)
    assert [each.finish().returncode for each in commands] == [143, 143]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "interrupted"


def test_a_signal_to_the_parent_stops_all(tmp_path):
    command = Command("train-cifar", *LONG, "--processes", 2, "--out", "run", cwd=tmp_path)
    command.wait_for("EPOCH: 3 ")
    command.send_signal(signal.SIGTERM)
    assert command.finish().returncode == 143
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize("name", ["repeat", "find-lr", "doctor", "verify-resume"])
def test_the_other_commands_say_that_they_run_on_one_process(tmp_path, name):
    for answer in finish(start_ranks(2, "ultimus", name, cwd=tmp_path)):
        assert (answer.returncode, answer.stdout) == (2, "")
        assert f"{name} runs on one process" in answer.stderr
        assert answer.stderr.count("\n") == 1


def test_verify_resume_kills_one_of_two(tmp_path):
    flags = ["--data", "digits", "--processes", 2, "--kills", 1, "--epochs", 4]
    answer = call("ultimus", "verify-resume", *flags, cwd=tmp_path)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout.count("killed after") == 1
    assert answer.stdout.count("bit-identical") == 3
