"""Claim: durable checkpoints cost a `classic` run about 1 % of its time.

    python benchmarks/checkpoint_cost.py

Milliseconds a save of `classic`'s state (model, Adam, history of a whole run), with everything
the store does: serialise, check, hash, write, fsync, rename, fsync the folder, prune; and next to
it torch.save alone, which promises nothing. The share is of `classic`'s 24 saves in its training.

Median of rounds. Hardware, versions and results: docs/results.md.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from report import medians, print_environment, print_table

from ultimus_ignite.handlers import CheckpointStore
from ultimus_ignite.modules import UltimusNet


def classic_state() -> dict[str, object]:
    """What a `classic` run saves after its last epoch."""
    model = UltimusNet()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    F.cross_entropy(model(torch.rand(8, 3, 32, 32)), torch.arange(8)).backward()
    optimizer.step()
    rows = [{"epoch": i, "lr": 0.1, "train_loss": 2.0, "seconds": 1.5} for i in range(24)]
    history = {
        "rows": rows,
        "rates": torch.rand(2352).double(),
        "losses": torch.rand(2352).double(),
    }
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "history": history}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--training-seconds", type=float, default=45.0, help="of a classic run")
    arguments = parser.parse_args()
    state, iteration = classic_state(), 0
    with tempfile.TemporaryDirectory(dir=".") as folder:  # a disk, where /tmp may be memory
        store = CheckpointStore(Path(folder, "checkpoints"))

        def durable() -> float:
            nonlocal iteration
            iteration += 98
            start = time.perf_counter()
            store.save(state, iteration=iteration)
            return time.perf_counter() - start

        def bare() -> float:
            start = time.perf_counter()
            torch.save(state, Path(folder, "bare.pt"))
            return time.perf_counter() - start

        def load() -> float:
            start = time.perf_counter()
            store.load_newest()
            return time.perf_counter() - start

        seconds = medians(
            {"this project, save": durable, "this project, load": load, "torch.save": bare},
            rounds=arguments.rounds,
        )
    share = 24 * seconds["this project, save"] / arguments.training_seconds
    print_table(["", "ms"], [[name, f"{1e3 * value:.1f}"] for name, value in seconds.items()])
    print(f"\n24 saves: {share:.1%} of a training of {arguments.training_seconds:.0f} s")
    print_environment()


if __name__ == "__main__":
    main()
