"""Claim: 2.5 GB of pixels are decoded, trained on, killed and resumed in 1.2 GB of memory.

    pip install -e .
    sudo env PATH="$PATH" python benchmarks/larger_than_memory.py --data DIR --work DIR

Out of the small images in ``--data DIR/train/<class>/*.jpg`` and ``test`` it makes 200,000 training
and 2,000 test images of 64x64 pixels: enlarged parts, at random places. Then, in a memory cgroup
(version 1) whose limit counts all processes and their page cache:

- a run is killed with SIGKILL when half of the images are decoded, and started again;
- it is killed when it has trained half of an epoch, and resumed;
- an unbroken run is trained with the limit and one without, from a cold page cache, and the three
  final weights are compared.

The time to the first iteration is for `start_up.py`. Hardware, versions and results:
docs/results.md.
"""

import argparse
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from report import print_environment, print_table

LIMIT = 1200 * 10**6  # bytes
COUNT, SIZE, BATCH = 200_000, 64, 256
CGROUP = Path("/sys/fs/cgroup/memory/ultimus-benchmark")


def make_images(source: Path, target: Path, count: int) -> None:
    """Write ``count`` training and a hundredth as many test images: parts of others, enlarged."""
    generator = np.random.default_rng(0)
    for split, number in (("train", count), ("test", count // 100)):
        paths = sorted((source / split).glob("*/*.jpg"))
        for path in paths:
            (target / split / path.parent.name).mkdir(parents=True, exist_ok=True)
        places = generator.permutation(number) * len(paths) // number
        for index, path in enumerate(paths[place] for place in places):
            left, upper = generator.integers(0, 8, 2).tolist()
            with Image.open(path) as image:
                box = (left, upper, left + 24, upper + 24)
                part = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box)
            part.save(target / split / path.parent.name / f"{index:07}.jpg", quality=90)


class Limited:
    """A memory cgroup. What is in it counts with its page cache; the highest count is kept."""

    def __enter__(self) -> "Limited":
        CGROUP.mkdir()
        (CGROUP / "memory.limit_in_bytes").write_text(str(LIMIT))
        return self

    def __exit__(self, *error: object) -> None:
        CGROUP.rmdir()

    def enter(self) -> None:
        """Move this process into it."""
        (CGROUP / "cgroup.procs").write_text(str(os.getpid()))

    def anonymous(self) -> int:
        """Bytes of all processes that are not pages of files."""
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        return int(stat["total_rss"])

    def take_peak(self) -> int:
        """The most bytes since the last call."""
        file = CGROUP / "memory.max_usage_in_bytes"
        peak = int(file.read_text())
        file.write_text("0")
        return peak


def train(
    name: str, work: Path, group: Limited | None, kill_when: Callable[[], bool] = lambda: False
) -> list[str]:
    """Train for an epoch in ``work/name``, or until it is killed; returns a row of the table."""
    command = ["train-cifar", "--data", f"folder:{work / 'images'}", "--data-dir", str(work)]
    command += ["--out", str(work / name), "--resume", "--recipe", "classic", "--epochs", "1"]
    command += ["--image-size", str(SIZE), "--batch-size", str(BATCH), "--device", "cpu"]
    command += ["--checkpoint-every", "50"]
    anonymous, started = 0, time.perf_counter()
    with (work / f"{name}.log").open("a") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, preexec_fn=group.enter if group else None
        )
        while process.poll() is None:
            if group:
                anonymous = max(anonymous, group.anonymous())
            if kill_when():
                process.kill()
            time.sleep(0.1)
    if process.returncode not in (0, -signal.SIGKILL):
        raise SystemExit(f"exit code {process.returncode}: see {log.name}")
    how = "killed" if process.returncode else "to the end"
    seconds = f"{time.perf_counter() - started:.0f}"
    memory = (
        [f"{size / 1e6:,.0f}" for size in (group.take_peak(), anonymous)] if group else ["", ""]
    )
    return [name, how, seconds, *memory]


def count_decoded(work: Path) -> int:
    """How many images would not be decoded again."""
    marks = [np.fromfile(path, np.uint64) for path in work.glob("cache/*/*.marks")]
    return sum(int(each.reshape(-1, 4).any(axis=1).sum()) for each in marks)


def iteration_of(run: Path) -> int:
    """The iteration of a run's newest checkpoint."""
    names = [path.stem for path in run.glob("checkpoints/*.pt")]
    return max((int(name.rpartition("-")[2]) for name in names), default=0)


def seconds_of_epoch(run: Path) -> float:
    """The time of the first epoch, its evaluation included."""
    names, values = (line.split(",") for line in (run / "history.csv").read_text().splitlines())
    return float(dict(zip(names, values, strict=True))["seconds"])


def forget_pages(work: Path) -> None:
    """Drop the pixels from the page cache: none is to be read for free."""
    for path in work.glob("cache/*/*.pixels"):
        with path.open() as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of small JPEGs")
    parser.add_argument("--work", type=Path, required=True, help="empty folder for 6 GB")
    arguments = parser.parse_args()
    work = arguments.work.absolute()
    if not (work / "images").exists():
        make_images(arguments.data, work / "images", COUNT)
    half = (COUNT + COUNT // 100) // 2
    num_iterations = -(-COUNT // BATCH)
    rows = []
    with Limited() as group:
        rows.append(train("killed", work, group, lambda: count_decoded(work) >= half))
        print(f"{count_decoded(work):,} images were decoded when the first run was killed")
        last = work / "killed"
        rows.append(train("killed", work, group, lambda: iteration_of(last) >= num_iterations / 2))
        print(f"it was resumed from iteration {iteration_of(last)} of {num_iterations}")
        rows.append(train("killed", work, group))
        forget_pages(work)
        rows.append(train("limited", work, group))
    forget_pages(work)
    rows.append(train("unlimited", work, None))
    for row in rows[2:]:
        seconds = seconds_of_epoch(work / row[0]) if row[0] != "killed" else 0.0
        row.append(f"{1000 * seconds / num_iterations:.0f}" if seconds else "")
        weights = (work / row[0] / "model.safetensors").read_bytes()
        row.append(hashlib.sha256(weights).hexdigest()[:12])
    header = [
        "run",
        "went on",
        "s",
        "MB with page cache",
        "MB without",
        "ms an iteration",
        "weights",
    ]
    print_table(header, [row + [""] * (len(header) - len(row)) for row in rows])
    print_environment("Pillow", "ultimus-ignite")


if __name__ == "__main__":
    main()
