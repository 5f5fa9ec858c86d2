"""The handlers in a plain Ignite script: your own model, loader and step.

python examples/own_script.py

Stop it with Ctrl-C or kill it, then start it again: it continues where it was, with the batches of
a run without a break.
"""

import torch
from ignite.engine import Engine, Events, create_supervised_evaluator
from ignite.metrics import Accuracy, Loss
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ultimus_ignite import handlers
from ultimus_ignite.data.sampler import EndlessBatches

images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images).float() / 16, torch.tensor(labels))
train_data, test_data = torch.utils.data.random_split(
    data, [1437, 360], generator=torch.Generator().manual_seed(1)
)
test_loader = DataLoader(test_data, batch_size=64)

torch.manual_seed(1)
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
trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: evaluator.run(test_loader))

handlers.OneCycleScheduler(optimizer, max_lr=0.01).attach(trainer)
handlers.NonFiniteGuard(optimizer).attach(trainer)
handlers.BatchLogger(optimizer).attach(trainer, evaluator)
history = handlers.History(optimizer, path="own_run/history.csv").attach(trainer, evaluator)
handlers.CurveRenderer(history, path="own_run/curves.png").attach(trainer)
handlers.GracefulStop().attach(trainer)
to_save = {"trainer": trainer, "model": model, "optimizer": optimizer, "history": history}
checkpointer = handlers.Checkpointer(to_save, directory="own_run/checkpoints").attach(trainer)

checkpointer.resume()
batches = EndlessBatches(train_data, batch_size=64, seed=1, start=trainer.state.iteration)
trainer.run(DataLoader(train_data, batch_sampler=batches), max_epochs=5)
