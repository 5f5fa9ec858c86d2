"""What every peer trains: a small network with dropout, on real handwritten digits."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

SAMPLES, BATCH_SIZE, EPOCHS, SEED, MAX_LR = 1797, 64, 10, 1, 0.003
EPOCH_LENGTH = -(-SAMPLES // BATCH_SIZE)  # 29 iterations; the last has 5 samples
EVERY = 10  # iterations to a checkpoint, so that almost all of them lie within an epoch

RECORD = np.dtype(
    [("iteration", "i4"), ("rate", "f8"), ("second", "f8"), ("samples", "i2", BATCH_SIZE)]
)


class Task:
    """Made anew each time a script starts, from the same seed.

    Args:
        folder: where the script may keep its checkpoints.
        journal: file that gets a `RECORD` an iteration.
    """

    def __init__(self, folder: Path, journal: Path) -> None:
        torch.manual_seed(SEED)
        self.folder = folder
        self.data = digits()
        self.model = create_model()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=MAX_LR)
        self._journal = journal.open("ab", buffering=0)

    def loader(self, **options: Any) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=BATCH_SIZE, shuffle=True, **options)

    def one_cycle(self) -> OneCycleLR:
        return OneCycleLR(self.optimizer, max_lr=MAX_LR, total_steps=EPOCHS * EPOCH_LENGTH)

    def step(self, batch: list[Tensor]) -> Tensor:
        self.model.train()
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def log(self, iteration: int, samples: Tensor) -> None:
        """Write down, before a kill can come between, what this iteration is made of."""
        record = np.zeros((), RECORD)
        record["iteration"] = iteration
        record["rate"] = self.optimizer.param_groups[0]["lr"]
        record["second"] = time.monotonic()
        record["samples"] = np.pad(samples, (0, BATCH_SIZE - len(samples)), constant_values=-1)
        self._journal.write(record.tobytes())


def digits() -> TensorDataset:
    """Images, labels, and the number of each sample."""
    images, labels = load_digits(return_X_y=True)
    return TensorDataset(
        torch.tensor(images).float() / 16, torch.tensor(labels), torch.arange(SAMPLES)
    )


def create_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(64, 256),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(256, 256),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(256, 10),
    )
