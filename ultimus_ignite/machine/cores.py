"""How a run shares the cores of the machine with other programs."""

import os
from pathlib import Path

LOADAVG = Path("/proc/loadavg")
"""Processes that ran or waited for a core: means of 1, 5 and 15 minutes, and how many do now."""

# libgomp, the OpenMP library of torch on Linux, reads these when torch is loaded.
_WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
_SPINS = "1000"  # tens of microseconds; libgomp's own 300,000 are milliseconds


def give_way() -> None:
    """Let torch's idle threads sleep soon, unless the user's environment says how they wait.

    Call it before torch is loaded. Between two operators the threads of a step wait for work. By
    default they spin for milliseconds without leaving their core; if another run needs that core,
    the steps of both wait for the operating system to take it away: ``benchmarks/side_by_side.py``.
    The computed bits stay the same.

    Source: https://gcc.gnu.org/onlinedocs/libgomp/GOMP_005fSPINCOUNT.html.
    """
    if not any(name in os.environ for name in _WAITING):
        os.environ["GOMP_SPINCOUNT"] = _SPINS


def describe_load() -> str | None:
    """One line if other programs keep the cores busy; None if not, or where there is no Linux.

    It is also None if the user has chosen the number of threads: the line would advise that.
    """
    if "OMP_NUM_THREADS" in os.environ:
        return None
    try:
        average, _, _, running, _ = LOADAVG.read_text().split()
    except OSError:
        return None
    cores = os.cpu_count() or 1
    others = int(running.partition("/")[0]) - 1  # at this moment, without this process
    if float(average) < cores or others < cores / 2:  # the average may be of a run that is over
        return None
    return (
        f"the machine is busy (load {average} on {cores} cores), so training takes longer; "
        "if other runs are the reason, start each with OMP_NUM_THREADS=1"
    )
