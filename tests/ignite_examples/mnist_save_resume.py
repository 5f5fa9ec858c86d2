"""Situation: a crash in the middle of an epoch, dropout in the model, and a resume."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from torch import nn

from ignite_examples.mnist import digits

EPOCHS = 3
EVERY = 4
MAX_LR = 0.3
BATCH_SIZE = 64


def build(crash_at=None, engine_class=Engine):
    torch.manual_seed(1)
    data, _ = digits()
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(engine, batch):
        x, y = batch
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss.item()

    trainer = engine_class(step)
    if crash_at is not None:

        @trainer.on(Events.ITERATION_STARTED(once=crash_at))
        def crash():
            raise RuntimeError("the machine is gone")

    return SimpleNamespace(model=model, optimizer=optimizer, trainer=trainer, data=data)
