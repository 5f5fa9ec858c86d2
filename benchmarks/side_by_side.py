"""Claim: several runs on one machine do not stop each other.

    python benchmarks/side_by_side.py --data folder:DIR

Seconds per epoch of 1, 2, 4 and 8 runs of `classic` at once: with the command's spin count, with
one thread each, and with libgomp's own spin count. Median over the runs and their epochs, the
first left out.

Hardware, versions and results: docs/results.md.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from report import print_environment, print_table

COMMAND = Path(__file__).parents[1] / "bin" / "train-cifar"
SETTINGS = {
    "as the command sets it": {},
    "and OMP_NUM_THREADS=1": {"OMP_NUM_THREADS": "1"},
    "libgomp's own spin count": {"GOMP_SPINCOUNT": "300000"},
}


def seconds_per_epoch(runs: int, flags: list[str], environment: Mapping[str, str]) -> float:
    """Train several times at once."""
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder, str(number)) for number in range(runs)]
        processes = [
            subprocess.Popen(
                [sys.executable, COMMAND, *flags, "--out", out],
                env={**os.environ, **environment},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # which says that the machine is busy
            )
            for out in outs
        ]
        if any(process.wait() for process in processes):
            raise SystemExit("a run failed")
        return median(seconds for out in outs for seconds in _later_epochs(out / "history.csv"))


def _later_epochs(path: Path) -> list[float]:
    with path.open() as file:
        return [float(row["seconds"]) for row in csv.DictReader(file)][1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--data-dir", default="~/.cache/ultimus-ignite")
    parser.add_argument("--recipe", default="classic")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--runs", type=int, nargs="+", default=[1, 2, 4, 8])
    arguments = parser.parse_args()
    flags = ["--data", arguments.data, "--data-dir", arguments.data_dir]
    flags += ["--recipe", arguments.recipe, "--epochs", str(arguments.epochs)]
    rows = [
        [name] + [f"{seconds_per_epoch(runs, flags, setting):.1f}" for runs in arguments.runs]
        for name, setting in SETTINGS.items()
    ]
    print_table(["runs at once", *map(str, arguments.runs)], rows)
    print_environment()


if __name__ == "__main__":
    main()
