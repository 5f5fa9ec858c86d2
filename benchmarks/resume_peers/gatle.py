"""gatle-ignite: ``cfg.resume = True`` goes on from the newest ``latest_epoch*``.

https://ryaniswong.com/gatle-ignite/steps/checkpoints/. It saves at the end of every epoch; there is
no option to save more often. A configuration names modules, here all this one.
"""

from typing import Any

import torch
from gatle_ignite import BaseTrainer, base_config
from ignite.engine import Events
from ignite.handlers import LRScheduler
from torch import Tensor, nn

from resume_peers.task import EPOCHS, SEED, Task

current: Task


def train(task: Task, n_saved: int = 2) -> None:
    global current
    current = task
    cfg = base_config()
    cfg.name, cfg.save_dir, cfg.seed = "digits", str(task.folder), SEED
    cfg.main_runner = cfg.model_name = cfg.train_ds_name = cfg.criterion_name = __name__
    cfg.optimizer_name = cfg.lr_scheduler = __name__
    cfg.max_epochs, cfg.amp_dtype = EPOCHS, "fp32"
    cfg.n_saved = n_saved  # resume
    cfg.resume = True  # resume
    Trainer(0, cfg).fit()


class Trainer(BaseTrainer):
    def prep_batch(self, batch: list[Tensor], split: str = "train", **kwargs: Any) -> Any:
        current.log(self.engines["trainer"].state.iteration, batch[2])
        return {"model_input": {"x": batch[0]}, "targets": batch[1]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = current.model

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Loss(nn.CrossEntropyLoss):
    def forward(self, logits: Tensor, batch: Any, iteration: int | None = None) -> Any:
        return super().forward(logits, batch["targets"]), {}


def get_ds(params: Any, transform: Any = None) -> Any:
    return current.loader(), {"length": len(current.data)}


def get_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return current.optimizer


def get_scheduler(*_: Any) -> Any:
    return LRScheduler(current.one_cycle()), "trainer", Events.ITERATION_STARTED
