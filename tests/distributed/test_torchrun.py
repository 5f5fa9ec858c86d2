"""`torchrun`: a killed process is replaced; processes that meet over a network of their own."""

import csv
import json
import os
import signal
import subprocess
import sys
import uuid
from contextlib import ExitStack
from pathlib import Path

import pytest

from ultimus_ignite.distributed.launch import environments

pytestmark = pytest.mark.slow
BIN = Path(__file__).parents[2] / "bin" / "train-cifar"
FLAGS = ["--data", "digits", "--device", "cpu", "--epochs", "20", "--checkpoint-every", "1"]
QUIET = {**os.environ, "OMP_NUM_THREADS": "1"}


def epochs(folder):
    with (folder / "history.csv").open() as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def test_a_killed_process_is_replaced(tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node", "2", "--max-restarts", "3", "--monitor-interval", "0.1"]
    run = subprocess.Popen(
        [*torchrun, BIN, *FLAGS, "--resume", "--out", tmp_path / "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=QUIET,
    )  # fmt: skip
    for epoch in (5, 10, 15):
        for line in run.stdout:
            if f"EPOCH: {epoch} " in line:
                break
        workers = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True)
        os.kill(int(workers.stdout.split()[1]), signal.SIGKILL)
    assert run.communicate()[0].count("Test set") >= 5
    assert run.returncode == 0
    assert epochs(tmp_path / "run") == list(range(1, 21))
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"


def ip(*words):
    return subprocess.run(["ip", *words], capture_output=True, text=True)


@pytest.fixture
def machines():
    """Two network namespaces, by name, whose only way to each other is a cable."""
    names = [f"ultimus-{uuid.uuid4().hex[:6]}" for _ in range(2)]
    with ExitStack() as stack:
        for name in names:
            made = ip("netns", "add", name)
            if made.returncode:
                pytest.skip(f"no network namespace can be made: {made.stderr.strip()}")
            stack.callback(ip, "netns", "del", name)
        a, b = names
        assert not ip(
            *f"link add eth0 netns {a} type veth peer name eth0 netns {b}".split()
        ).returncode
        for number, name in enumerate(names, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield names


def test_three_processes_on_two_machines(machines, tmp_path):
    def start(*more):
        started = []
        for each, machine in zip(environments(3), [machines[0], *machines], strict=True):
            each |= {"MASTER_ADDR": "10.77.0.1", "GLOO_SOCKET_IFNAME": "eth0"}
            command = ["ip", "netns", "exec", machine, sys.executable, BIN, *FLAGS, *more]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen(command, env=QUIET | each, **pipes))
        return started

    first = start("--out", tmp_path / "run")
    for line in first[0].stdout:
        if "EPOCH: 5 " in line:
            break
    first[2].kill()  # on the other machine
    assert all(process.communicate() and process.returncode for process in first)
    again = start("--out", tmp_path / "run", "--resume")
    outputs = [process.communicate() for process in again]
    assert [process.returncode for process in again] == [0, 0, 0], outputs
    assert "EPOCH: 1 " not in outputs[0][0]
    assert epochs(tmp_path / "run") == list(range(1, 21))
