"""What a run does about other programs on the same cores."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ultimus_ignite.machine import cores

# Loads torch's OpenMP library alone, which then reports its settings.
REPORT = """
import ctypes, sys
from ultimus_ignite.machine.cores import give_way
give_way()
ctypes.CDLL(sys.argv[1])
"""


def openmp_library():
    """The path of libgomp in the torch that is installed; None if it has another library."""
    [package] = importlib.util.find_spec("torch").submodule_search_locations
    folders = (Path(package, "lib"), Path(package).with_name("torch.libs"))
    return next((path for folder in folders for path in folder.glob("libgomp*")), None)


@pytest.mark.skipif(openmp_library() is None, reason="torch has another OpenMP library")
@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "GOMP_SPINCOUNT = '1000'"),
        ({"GOMP_SPINCOUNT": "77"}, "GOMP_SPINCOUNT = '77'"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "GOMP_SPINCOUNT = '0'"),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_otherwise(environment, expected):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    inherited = {key: value for key, value in os.environ.items() if key not in names}
    answer = subprocess.run(
        [sys.executable, "-c", REPORT, openmp_library()], stderr=subprocess.PIPE, text=True,
        env={**inherited, "OMP_DISPLAY_ENV": "VERBOSE", **environment},
    )  # fmt: skip
    assert expected in answer.stderr


@pytest.mark.parametrize(
    ("load", "running", "is_busy"),
    [(0.0, 1, False), (3.99, 9, False), (4.0, 3, True), (40.0, 9, True), (40.0, 2, False)],
)
def test_a_busy_machine_is_named(monkeypatch, tmp_path, load, running, is_busy):
    loadavg = tmp_path / "loadavg"
    loadavg.write_text(f"{load:.2f} 0.50 0.25 {running}/321 4711\n")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cores, "LOADAVG", loadavg)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    line = cores.describe_load()
    assert (line is not None) == is_busy
    assert line is None or f"load {load:.2f} on 4 cores" in line
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores.describe_load() is None


def test_a_system_without_the_file_is_not_called_busy(monkeypatch, tmp_path):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(cores, "LOADAVG", tmp_path / "loadavg")
    assert cores.describe_load() is None
