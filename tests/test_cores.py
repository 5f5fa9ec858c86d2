"""What a run does about other programs on the same cores."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ultimus_ignite import cores

# Loads torch's OpenMP library alone, which then reports its settings.
REPORT = """
import ctypes, sys
from ultimus_ignite.cores import give_way
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


@pytest.mark.parametrize("load", [0.0, 3.9, 4.0, 40.0])
def test_a_busy_machine_is_named(monkeypatch, load):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    line = cores.describe_load()
    assert (line is not None) == (load >= 4)
    assert line is None or f"load {load} on 4 cores" in line
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert cores.describe_load() is None
