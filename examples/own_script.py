"""The handlers in a plain Ignite script: your own model, loader and step.

python examples/own_script.py
"""

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Accuracy, Loss
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ultimus_ignite.handlers import BatchLogger, CurveRenderer, History, OneCycleScheduler

images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
train_data, test_data = torch.utils.data.random_split(data, [1437, 360])
train_loader = DataLoader(train_data, batch_size=64, shuffle=True)
test_loader = DataLoader(test_data, batch_size=64)

model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.Adam(model.parameters())
loss_fn = nn.CrossEntropyLoss()


def update(engine, batch):
    x, y = batch
    optimizer.zero_grad()
    logits = model(x)
    loss = loss_fn(logits, y)
    loss.backward()
    optimizer.step()
    return {"loss": loss, "correct": (logits.argmax(1) == y).sum(), "count": len(y)}


trainer = Engine(update)
evaluator = create_supervised_evaluator(
    model, metrics={"loss": Loss(loss_fn), "accuracy": Accuracy()}
)

OneCycleScheduler(optimizer, max_lr=0.01).attach(trainer)
BatchLogger(optimizer).attach(trainer, evaluator)
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(test_loader))
history = History(optimizer).attach(trainer, evaluator)
CurveRenderer(history, path="curves.png").attach(trainer)

trainer.run(train_loader, max_epochs=5)
