"""trainite: a project as `trainite init` writes one, with other components in its configuration.

It saves the model and the optimizer after every epoch, but has nothing that loads them into a run:
``main.py`` takes a configuration and no more, and its README does not speak of resuming. Started
again, it begins again. The learning rate is its own warm-up and decay, which no option changes.
"""

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor, nn
from torch.utils.data import Dataset
from trainite.config.base import ProjectConfig
from trainite.trainers.decoder_trainer import Trainer

from resume_peers.task import BATCH_SIZE, EPOCHS, MAX_LR, SEED, Task, create_model

current: Task


def train(task: Task) -> None:
    global current
    current = task
    loader = {"batch_size": BATCH_SIZE, "num_workers": 0}
    parts = {part: {"_target_": f"{__name__}.{part}"} for part in ("Nothing", "Model", "Digits")}
    config = {
        "preprocessor": parts["Nothing"],
        "model": parts["Model"],
        "optimizer": {"_target_": "torch.optim.Adam", "lr": MAX_LR},
        "data": {
            "train": {"dataset": parts["Digits"], "dataloader": loader | {"shuffle": True}},
            "val": {"dataset": parts["Digits"] | {"length": BATCH_SIZE}, "dataloader": loader},
        },
        "trainer": {"epochs": EPOCHS, "early_stopping_patience": None},
        "output": {"root": str(task.folder), "run_name": "digits"},
        "seed": SEED,
        "device": "cpu",
    }
    project = Trainer(ProjectConfig.model_validate(config))
    task.model, task.optimizer = project.model, project.optimizer

    def log(engine: Engine) -> None:
        task.log(engine.state.iteration, engine.state.batch["index"])

    project.trainer.add_event_handler(Events.ITERATION_STARTED, log)
    project.run()


class Nothing:
    vocab_size, pad_token_id = 10, 0


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = create_model()

    def forward(self, images: Tensor, attention_mask: Any = None) -> Tensor:
        return self.layers(images)


class Digits(Dataset[dict[str, Tensor]]):
    def __init__(self, length: int | None = None) -> None:
        self.data = torch.utils.data.Subset(current.data, range(length or len(current.data)))

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return dict(zip(("input_ids", "labels", "index"), self.data[index], strict=True))
