"""`--processes N`: the same command on several processes of this machine."""

import logging
import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence

from ultimus_ignite.errors import LostProcess, UserError


def launches(processes: int) -> bool:
    """Whether this process shall start others, which have then been told that they are many.

    Raises:
        UserError: torchrun has started another number of processes.
    """
    started = os.environ.get("WORLD_SIZE")
    if started is not None and processes > 1 and started != str(processes):
        raise UserError(
            f"--processes {processes}, but torchrun has started {started}: leave out --processes"
        )
    return started is None and processes > 1


def environments(processes: int) -> list[dict[str, str]]:
    """What torchrun tells each of so many processes of this machine; one is told nothing.

    Example:
        >>> environments(1), [each["RANK"] for each in environments(2)]
        ([{}], ['0', '1'])
    """
    if processes == 1:
        return [{}]
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    common = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


# As the script in bin/, Python shall not search the current folder.
_PROGRAM = """\
import sys
sys.path[:] = filter(None, sys.path)
from ultimus_ignite.cli import train_cifar
train_cifar()
"""


def launch(processes: int, argv: Sequence[str]) -> None:
    """Start `train-cifar` so many times, by torchrun's own agent, and wait for the end.

    Args:
        processes: their number, above 1.
        argv: the flags of each.

    Raises:
        SystemExit: with the exit code of the first process that failed, which has said why.
        LostProcess: the first one that failed was killed.
    """
    cores = os.cpu_count() or 1
    if processes > cores:
        warnings.warn(f"{processes} processes share {cores} cores", stacklevel=2)
    # Otherwise each process would take all cores.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="run",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, sys.executable)("-c", _PROGRAM, *argv)
    except SignalException as error:
        sys.exit(128 + error.sigval)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = signal.Signals(-failure.exitcode).name
        raise LostProcess(f"process {rank} was ended by {name}; --resume continues") from None
