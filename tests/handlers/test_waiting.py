"""How often the handlers wait for the device: on a GPU each reading of a tensor is such a wait."""

import io

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ultimus_ignite import handlers
from ultimus_ignite.engines import create_trainer
from ultimus_ignite.handlers import non_finite_guard
from ultimus_ignite.handlers.support import display

EPOCHS, EPOCH_LENGTH = 2, 100


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Readings(TorchDispatchMode):
    """Counts what turns a tensor into a Python number; `tolist` does so without an operator."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist
        monkeypatch.setattr(torch.Tensor, "tolist", lambda x: (self.note(), tolist(x))[1])

    def note(self):
        self.count += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.note()
        return func(*args, **(kwargs or {}))


@pytest.fixture
def stack(tmp_path, monkeypatch):
    """A trainer with every handler that looks at iterations, and the list of its bar's redraws.

    The Checkpointer is left out: a save reads all that it saves.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    trainer = create_trainer(model, optimizer, device="cpu", seed=1)
    handlers.OneCycleScheduler(optimizer, max_lr=0.01).attach(trainer)
    handlers.NonFiniteGuard(optimizer).attach(trainer)
    handlers.BatchLogger(optimizer, file=Terminal()).attach(trainer)
    handlers.History(optimizer, path=tmp_path / "history.csv").attach(trainer)
    monkeypatch.setattr(non_finite_guard, "CHECK_INTERVAL", 1e9)
    redraws = []
    draw = display.Display.draw
    monkeypatch.setattr(
        display.Display, "draw", lambda *args: (redraws.append(args), draw(*args))[1]
    )
    return trainer, redraws


def run(trainer, monkeypatch):
    batches = [(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))] * EPOCH_LENGTH
    readings = Readings(monkeypatch)
    with readings:
        trainer.run(batches, max_epochs=EPOCHS)
    return readings.count


def test_between_two_redraws_nothing_is_read(stack, monkeypatch):
    trainer, redraws = stack
    monkeypatch.setattr(display, "BAR_INTERVAL", 1e9)
    count = run(trainer, monkeypatch)
    assert len(redraws) == EPOCHS  # the finished bar of each
    # A redraw is one reading; so is the history of an epoch, and the guard's look before a save.
    assert count == len(redraws) + 2 * EPOCHS


def test_a_redraw_is_one_reading(stack, monkeypatch):
    trainer, redraws = stack
    monkeypatch.setattr(display, "BAR_INTERVAL", 0.0)
    count = run(trainer, monkeypatch)
    assert len(redraws) == EPOCHS * (EPOCH_LENGTH + 1)
    # The finished bar shows what the last iteration's did: nothing is left to read.
    assert count == len(redraws) + EPOCHS
