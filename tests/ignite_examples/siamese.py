"""Situation: pairs of images, one logit each, and an evaluator of one's own."""

from types import SimpleNamespace

import torch
from ignite.engine import Engine, Events
from ignite.metrics import Accuracy, Loss
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ignite_examples.mnist import digits

EPOCHS = 3
MAX_LR = 1.0


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, first, second):
        return self.head(torch.cat([self.trunk(first), self.trunk(second)], dim=1))


def pairs(data, seed):
    """Half of the pairs show the same digit."""
    images, labels = next(iter(DataLoader(data, batch_size=len(data))))
    draws = torch.Generator().manual_seed(seed)
    second = torch.empty_like(labels)
    for i, label in enumerate(labels):
        candidates = torch.nonzero((labels == label) == (i % 2 == 0)).flatten()
        second[i] = candidates[torch.randint(len(candidates), (), generator=draws)]
    return TensorDataset(images, images[second], (labels == labels[second]).float().unsqueeze(1))


def build():
    torch.manual_seed(1)
    train, test = digits()
    model = Siamese()
    optimizer = torch.optim.Adadelta(model.parameters())
    loss_fn = nn.BCEWithLogitsLoss()

    def step(engine, batch):
        first, second, is_same = batch
        model.train()
        optimizer.zero_grad()
        loss = loss_fn(model(first, second), is_same)
        loss.backward()
        optimizer.step()
        return loss

    @torch.no_grad()
    def judge(engine, batch):
        first, second, is_same = batch
        model.eval()
        return model(first, second), is_same

    trainer, evaluator = Engine(step), Engine(judge)
    Accuracy(lambda output: ((output[0] > 0).float(), output[1])).attach(evaluator, "accuracy")
    Loss(loss_fn).attach(evaluator, "loss")
    outputs = []  # of every iteration, for the tests
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda: outputs.append(trainer.state.output.item())
    )
    return SimpleNamespace(
        model=model,
        optimizer=optimizer,
        trainer=trainer,
        evaluator=evaluator,
        train_loader=DataLoader(pairs(train, 1), batch_size=64, shuffle=True),
        test_loader=DataLoader(pairs(test, 2), batch_size=100),
        outputs=outputs,
    )
