"""What befalls a script in ``robustness.py``: each trouble is the `Task` that it is called with."""

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from report import SilentTerminal
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.utils._python_dispatch import TorchDispatchMode

from resume_peers.task import EPOCH_LENGTH, EPOCHS, MAX_LR, Task

LAST = EPOCHS * EPOCH_LENGTH
OTHER_DISK = Path("/dev/shm")


class Disturbed(Task):
    """Something happens while iteration ``at`` is trained."""

    at = 118  # two iterations after the end of an epoch, two before a multiple of ten

    def log(self, iteration: int, samples: Tensor) -> None:
        super().log(iteration, samples)
        if iteration == self.at:
            self.disturb()

    def disturb(self) -> None:
        raise NotImplementedError


class CutOff(Disturbed):
    """From here on the process is killed in the middle of its first large write."""

    def disturb(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, resource.RLIM_INFINITY))


class CutOffBetweenDisks(CutOff):
    """It is killed while ``last.ckpt`` is moved here from a temporary folder on another disk."""

    def disturb(self) -> None:
        temporary = OTHER_DISK / self.folder.parent.name
        temporary.mkdir()
        tempfile.tempdir = str(temporary)
        sys.addaudithook(self.hear)

    def hear(self, event: str, arguments: Sequence[Any]) -> None:
        if event == "shutil.copyfile" and str(arguments[1]).endswith("last.ckpt"):
            super().disturb()


class Killed(Disturbed):
    """The process is killed."""

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Terminated(Disturbed):
    """The process gets SIGTERM."""

    at = 123

    def disturb(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


class StartedAgain(Task):
    """Ends at its first iteration: that is all one wants to know."""

    def log(self, iteration: int, samples: Tensor) -> None:
        super().log(iteration, samples)
        os._exit(0)


class Poisoned(Task):
    """One of its samples is NaN."""

    def __init__(self, folder: Path, journal: Path) -> None:
        super().__init__(folder, journal)
        self.data.tensors[0][1234] = float("nan")


class PoisonedAndClipped(Poisoned):
    """Its gradients are clipped just before the optimizer's step."""

    def __init__(self, folder: Path, journal: Path) -> None:
        super().__init__(folder, journal)
        self.optimizer.register_step_pre_hook(self.clip)

    def clip(self, *_: Any) -> None:
        clip_grad_norm_(self.model.parameters(), 1e9, error_if_nonfinite=True)


class Readings(TorchDispatchMode):
    """Counts how often a tensor's value is read."""

    count = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


class Counted(Task):
    """Writes down its readings from iteration to iteration of an epoch, on average.

    What comes between two epochs, such as the seeds of a loader, is left out. There is a terminal,
    so that bars are drawn.
    """

    def __init__(self, folder: Path, journal: Path) -> None:
        super().__init__(folder, journal)
        sys.stdout = sys.stderr = SilentTerminal()
        self.readings, self.total = Readings(), 0
        self.readings.__enter__()  # for the rest of the process

    def log(self, iteration: int, samples: Tensor) -> None:
        super().log(iteration, samples)
        if iteration % EPOCH_LENGTH != 1:  # not an epoch's first
            self.total += self.readings.count
        self.readings.count = 0
        if iteration == LAST:
            mean = self.total / (LAST - EPOCHS)
            self.folder.with_name("readings").write_text(f"{mean}")


class CountedAndFused(Counted):
    """Has a fused optimizer."""

    def __init__(self, folder: Path, journal: Path) -> None:
        super().__init__(folder, journal)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=MAX_LR, fused=True)
