"""Situation: a rate for every iteration, the best epoch by validation accuracy, a resume."""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch.utils.data import DataLoader

from ignite_examples.mnist import digits

EPOCHS = 4
MAX_LR = 0.3


def create_train_step(model, optimizer):
    def step(engine, batch):
        x, y = batch
        model.train()
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        optimizer.step()
        return {"loss": loss.item(), "correct": (logits.argmax(1) == y).sum(), "count": len(y)}

    return step


def build(crash_at=None):
    torch.manual_seed(1)
    train, val = digits()
    order = torch.Generator()
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    trainer = Engine(create_train_step(model, optimizer))
    # The order of an epoch is that of its number, so that a resumed one has it, too.
    trainer.add_event_handler(
        Events.EPOCH_STARTED, lambda: order.manual_seed(trainer.state.epoch) and None
    )
    outputs, scores, weights = [], [], []  # of iterations and of epochs, for the tests
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: outputs.append(trainer.state.output)
    )
    metrics = {"accuracy": Accuracy(), "loss": Loss(F.cross_entropy)}
    evaluator = create_supervised_evaluator(model, metrics)

    @evaluator.on(Events.COMPLETED)
    def keep():
        scores.append(evaluator.state.metrics["accuracy"])
        weights.append({name: value.clone() for name, value in model.state_dict().items()})

    if crash_at is not None:

        @trainer.on(Events.ITERATION_STARTED(once=crash_at))
        def crash():
            raise RuntimeError("the machine is gone")

    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        trainer=trainer,
        evaluator=evaluator,
        train_loader=DataLoader(train, batch_size=64, shuffle=True, generator=order),
        val_loader=DataLoader(val, batch_size=300),
        outputs=outputs,
        scores=scores,
        weights=weights,
    )
