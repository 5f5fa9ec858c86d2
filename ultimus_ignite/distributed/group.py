"""How processes meet and agree; on one process all of this does nothing."""

import contextlib
import os
import socket
import warnings
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import ignite.distributed as idist
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from ultimus_ignite.errors import LostProcess, UserError, one_line
from ultimus_ignite.networks.models import reason
from ultimus_ignite.run_directory import RunDirectory

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process that it starts."""


@contextlib.contextmanager
def joined(device: str, *, timeout: float) -> Iterator[None]:
    """The processes that torchrun has started, as a group; nothing if it has not.

    Args:
        device: where they compute; ``auto`` is a GPU each if there are any.
        timeout: seconds after which a process that waits for another gives up.

    Raises:
        UserError: the environment tells half of what is needed, a process has no GPU for itself, or
            the others do not come.
        LostProcess: within the block, another process does not answer.
    """
    known = [name for name in VARIABLES if name in os.environ]
    if not known or os.environ.get("WORLD_SIZE") == "1" or idist.get_world_size() > 1:
        yield
        return
    if missing := [name for name in VARIABLES if name not in known]:
        raise UserError(
            f"{known[0]} is set in the environment, but not {', '.join(missing)}: start the "
            f"processes with torchrun, or unset {known[0]}"
        )
    try:
        _initialize(_backend(device), timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise UserError(one_line(f"the processes do not meet at {where}: {error}")) from error
    here = {"machine": socket.gethostname()}
    processes = _gather(here | {"pid": os.getpid()})
    try:
        with warnings.catch_warnings():
            # DDP copies such gradients: a 1x1 kernel in channels-last order is the same in memory.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
            yield
    except RuntimeError as error:
        if not _is_of_the_group(error):
            raise
        neighbours = [each["pid"] for each in processes if here.items() <= each.items()]
        raise LostProcess(
            one_line(
                f"process {idist.get_rank()} waited for another that has ended or hangs: "
                f"--resume continues ({reason(error)})"
            ),
            silent=[pid for pid in neighbours if pid != os.getpid() and "Timed out" in str(error)],
        ) from error
    finally:
        idist.finalize()


def _backend(device: str) -> str:
    """The one for the devices of the processes; each process of a machine takes a GPU of its own.

    Raises:
        UserError: the device is that of one process, or there are too few GPUs.
    """
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return "gloo"
    if device not in ("auto", "cuda"):
        raise UserError(f"device: several processes take cpu, cuda or auto, got {device}")
    number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if number >= count:
        raise UserError(
            f"device: process {number} of this machine has no GPU, of which there are {count}: "
            "start fewer, or give --device cpu"
        )
    return "nccl"


def _initialize(backend: str, timeout: timedelta) -> None:
    """As `idist.initialize`, but with a place of its own for each restart of torchrun.

    torchrun keeps one store for all of them. A process that looks for the address of another that
    has not written it yet would find the address of the one that was killed.
    """
    store, rank, size = next(rendezvous("env://", timeout=timeout))
    attempt = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=size, timeout=timeout)
    idist.sync()


def _is_of_the_group(error: RuntimeError) -> bool:
    """Whether an exchange failed; of gloo only the message tells."""
    return isinstance(error, dist.DistError) or "gloo" in str(error).lower()


@contextlib.contextmanager
def all_or_none() -> Iterator[None]:
    """If the block ends in a `UserError` on one process, it does on all; it must exchange nothing.

    Raises:
        UserError: the error of this process, or else that of the first that has one.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    if idist.get_world_size() > 1:
        messages = _gather({"message": str(failure or "")})
        failed = [(rank, each["message"]) for rank, each in enumerate(messages) if each["message"]]
        if failed and failure is None:
            rank, message = failed[0]
            failure = UserError(f"process {rank}: {message}")
    if failure is not None:
        raise failure


@contextlib.contextmanager
def open_directory(directory: RunDirectory, *, resume: bool) -> Iterator[RunDirectory]:
    """`RunDirectory.open`; what the first process cannot open, none can."""
    with contextlib.ExitStack() as stack:
        with all_or_none():
            stack.enter_context(directory.open(resume=resume))
        yield directory


def refuse_differences(facts: Mapping[str, Any]) -> None:
    """Refuse processes that are not about to compute the same.

    Args:
        facts: what must be the same on all of them, as JSON can hold it.

    Raises:
        UserError: on every process, with the first difference.
    """
    if idist.get_world_size() == 1:
        return
    first, *others = _gather(dict(facts))
    for rank, other in enumerate(others, start=1):
        for name in {**first, **other}:
            here, there = first.get(name), other.get(name)
            if here != there:
                raise UserError(
                    one_line(f"process 0 and {rank} differ: {name}: {here!r} and {there!r}")
                )


def _gather(value: dict[str, Any]) -> list[dict[str, Any]]:
    """The values of all ranks, in order."""
    gathered: Any = idist.all_gather(value)
    return list(gathered)
