"""Situation: a small classifier, and an evaluator for each of two sets."""

from types import SimpleNamespace

import torch
from ignite.engine import Events, create_supervised_evaluator, create_supervised_trainer
from ignite.metrics import Accuracy, Loss
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

EPOCHS = 3


def digits(count=600):
    """The first digits for training, the next 300 for validation; images are (1, 8, 8)."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images).float().reshape(-1, 1, 8, 8) / 16
    data = TensorDataset(images, torch.tensor(labels))
    held_out = range(count, count + 300)
    return tuple(torch.utils.data.Subset(data, part) for part in (range(count), held_out))


def build():
    torch.manual_seed(1)
    train, val = digits()
    order = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.5)
    loss_fn = nn.CrossEntropyLoss()
    trainer = create_supervised_trainer(model, optimizer, loss_fn)
    evaluators = {}
    for name in ("train", "val"):
        metrics = {"accuracy": Accuracy(), "nll": Loss(loss_fn)}
        evaluators[name] = create_supervised_evaluator(model, metrics)
    outputs = []  # of every iteration, for the tests
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: outputs.append(trainer.state.output)
    )
    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        trainer=trainer,
        evaluators=evaluators,
        train_loader=DataLoader(train, batch_size=64, shuffle=True, generator=order),
        loaders={"train": DataLoader(train, batch_size=300), "val": DataLoader(val, 300)},
        outputs=outputs,
    )
