"""Lightning: `ModelCheckpoint` and ``ckpt_path="last"``.

https://lightning.ai/docs/pytorch/stable/common/checkpointing_intermediate.html. In mid-epoch it
warns that the loader is not resumable and advises an end-of-epoch checkpoint, or a loader that is,
which torchdata has. The random state is not among the contents of a checkpoint; the last variant
adds it in the hooks that are there for the user's own contents.
"""

from collections.abc import Iterable
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from resume_peers.task import BATCH_SIZE, EPOCHS, EVERY, SEED, Task


class Module(L.LightningModule):
    def __init__(self, task: Task, show_bar: bool = False) -> None:
        super().__init__()
        self.task, self.model, self.show_bar = task, task.model, show_bar

    def training_step(self, batch: list[Tensor]) -> Tensor:
        self.task.log(self.global_step + 1, batch[2])
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        if self.show_bar:
            self.log_dict({"loss": loss, "perplexity": loss.exp()}, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        schedule = {"scheduler": self.task.one_cycle(), "interval": "step"}
        return {"optimizer": self.task.optimizer, "lr_scheduler": schedule}


def every_epoch(task: Task) -> None:
    saver = ModelCheckpoint(task.folder, save_last=True)  # resume
    train(Module(task), task.loader(), saver)


def every_10(
    task: Task,
    every: int = EVERY,
    save_on_exception: bool = False,
    show_bar: bool = False,
    **options: Any,
) -> None:
    saver = ModelCheckpoint(task.folder, save_last=True, every_n_train_steps=every)  # resume
    saver.save_on_exception = save_on_exception
    train(Module(task, show_bar), task.loader(), saver, enable_progress_bar=show_bar, **options)


def torchdata(task: Task, module: type[Module] = Module) -> None:
    from torchdata.stateful_dataloader import StatefulDataLoader

    loader = StatefulDataLoader(task.data, batch_size=BATCH_SIZE, shuffle=True)  # resume
    saver = ModelCheckpoint(task.folder, save_last=True, every_n_train_steps=EVERY)  # resume
    train(module(task), loader, saver)


def torchdata_and_hooks(task: Task) -> None:
    class WithRandomState(Module):
        random_state: Tensor | None = None  # resume

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # resume
            checkpoint["random_state"] = torch.get_rng_state()  # resume

        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:  # resume
            self.random_state = checkpoint["random_state"]  # resume

        def on_train_start(self) -> None:  # resume
            if self.random_state is not None:  # resume
                torch.set_rng_state(self.random_state)  # resume

    torchdata(task, WithRandomState)


def train(
    module: Module,
    loader: Iterable[Any],
    saver: ModelCheckpoint,
    enable_progress_bar: bool = False,
    **options: Any,
) -> None:
    L.seed_everything(SEED, verbose=False)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=[saver],  # resume
        logger=False,
        enable_progress_bar=enable_progress_bar,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, loader, ckpt_path="last")  # resume
