"""The general checkpoint of PyTorch's tutorial, with the schedule's state beside the optimizer's.

https://docs.pytorch.org/tutorials/beginner/saving_loading_models.html: one file, the number of the
epoch in it. Of batches and random states the tutorial says nothing.
"""

import torch

from resume_peers.task import EPOCH_LENGTH, EPOCHS, Task


def train(task: Task) -> None:
    loader, schedule, first_epoch = task.loader(), task.one_cycle(), 0
    path = task.folder / "checkpoint.tar"  # resume
    if path.exists():  # resume
        checkpoint = torch.load(path, weights_only=True)  # resume
        task.model.load_state_dict(checkpoint["model_state_dict"])  # resume
        task.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])  # resume
        schedule.load_state_dict(checkpoint["schedule_state_dict"])  # resume
        first_epoch = checkpoint["epoch"] + 1  # resume

    for epoch in range(first_epoch, EPOCHS):
        for index, batch in enumerate(loader):
            task.log(epoch * EPOCH_LENGTH + index + 1, batch[2])
            task.step(batch)
            schedule.step()
        state = {"epoch": epoch}  # resume
        state["model_state_dict"] = task.model.state_dict()  # resume
        state["optimizer_state_dict"] = task.optimizer.state_dict()  # resume
        state["schedule_state_dict"] = schedule.state_dict()  # resume
        torch.save(state, path)  # resume
