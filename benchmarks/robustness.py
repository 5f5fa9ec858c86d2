"""Claim: what goes wrong in a training costs least with these handlers.

    pip install -e '.[benchmarks]'
    OMP_NUM_THREADS=1 python benchmarks/robustness.py

Every peer trains as in ``resume.py``, with the scripts in `resume_peers`: digits, Adam, one-cycle
rate, 10 epochs of 29 iterations. Plain torch, trainite and gatle-ignite save every epoch, the
others every 10 iterations. Each question has a trouble of its own (``resume_peers/troubles.py``):

    a save that is cut off     the process is killed in the middle of its first large write after
                               iteration 118, and its script is started again
    a flipped bit              the process is killed in iteration 118, a bit in the middle of the
                               newest checkpoint is flipped, and the script is started again
    a NaN loss                 one of the 1,797 samples is NaN
    SIGTERM                    comes in iteration 123, the 7th of its epoch, and the script is
                               started again; counted are the iterations to train once more
    traces of the rate finder  what a test of 100 iterations leaves changed, and what besides one
                               whose loss function raises; the model is in eval mode
    readings of the device     of a tensor's value (``.item()``, ``float()``, ``bool()``), an
                               iteration within an epoch, beyond those of a plain loop; where a
                               bar has to be asked for, it shows two numbers. Counted on the CPU;
                               on a GPU each one waits for the device

The first answer is that of the defaults; after "with", that of an option. What is not installed is
skipped. Needs Linux. Results: docs/comparison.md.
"""

import argparse
import itertools
import logging
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lr_finder import FINDERS, ITERATIONS, START, Script, left_behind
from report import print_environment, print_table
from resume import CHECKPOINTS, is_installed
from resume_peers import Peer, troubles
from resume_peers.run import Run
from resume_peers.task import Task
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from ultimus_ignite.recipe import Recipe

TORCH = Peer("plain torch", "plain_torch:train")
IGNITE = Peer("Ignite", "ignite_stock:every_10", ("pytorch-ignite",))
LIGHTNING = Peer("Lightning", "lightning_trainer:every_10", ("lightning",))
TRAINITE = Peer("trainite", "trainite_project:train", ("trainite",))
GATLE = Peer("gatle-ignite", "gatle:train", ("gatle-ignite",))
ULTIMUS = Peer("ultimus-ignite", "ultimus:train", ("ultimus-ignite",))


@dataclass(frozen=True)
class Way:
    """A peer with its defaults, or with what changes its answer."""

    label: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # of its script
    task: type[Task] | None = None  # instead of the question's


@dataclass(frozen=True)
class Question:
    """A row of the table.

    Args:
        text: in the table.
        answer: gives the cell of a run that has not been started.
        task: the trouble.
        ways: of the peers that are not asked once, with the defaults of their scripts.
    """

    text: str
    answer: Callable[[Run], str]
    task: type[Task]
    ways: Mapping[Peer, Sequence[Way]] = field(default_factory=dict)


def after_a_cut_off(run: Run) -> str:
    die(run, signal.SIGXFSZ)
    shutil.rmtree(troubles.OTHER_DISK / run.folder.name, ignore_errors=True)
    first = start_again(run)
    if first == 1:
        return "no way to resume" if saved(run) else "no, none is left"
    return "yes" if first else "no, it is damaged"


def after_a_flipped_bit(run: Run) -> str:
    die(run, signal.SIGKILL)
    undisturbed = start_again(run)
    newest = max(saved(run), key=lambda path: path.stat().st_mtime_ns)
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 0x10
    newest.write_bytes(content)
    first = start_again(run)
    if undisturbed == 1:
        return "no way to resume"
    return "no" if first == undisturbed else "yes" if first else "noticed, but not resumed"


def after_a_nan(run: Run) -> str:
    run.finish()
    if np.isfinite(np.frombuffer(run.weights(), np.float32)).all():
        return "yes"
    return "no, it trains on" if run.journal()["iteration"][-1] == troubles.LAST else "no"


def after_sigterm(run: Run) -> str:
    run.start().join()
    lost = troubles.Terminated.at + 1 - (start_again(run) or 1)
    return f"no, {lost} iterations" if lost else "yes"


def readings(run: Run) -> str:
    floor = Run(TORCH, run.folder / "floor", run.task)
    counts = []
    for each in (run, floor):
        if not each.finish():
            raise SystemExit(f"{each.peer.name}: {each.last_line()}")
        counts.append(float((each.folder / "readings").read_text()))
    return f"{max(counts[0] - counts[1], 0):.1f}"


def die(run: Run, number: signal.Signals) -> None:
    process = run.start()
    process.join()
    if process.exitcode != -number:
        raise SystemExit(f"{run.peer.name}: not ended by {number.name}: {run.last_line()}")


def start_again(run: Run) -> int | None:
    """The iteration that its script begins with; None: it raises before."""
    again = Run(run.peer, run.folder, troubles.StartedAgain, run.options, run.attempts)
    again.start().join()
    run.attempts = again.attempts
    iterations = again.journal()["iteration"]
    return int(iterations[0]) if len(iterations) else None


def saved(run: Run) -> list[Path]:
    return [path for path in run.checkpoints.rglob("*") if path.suffix in CHECKPOINTS]


def lightning_finder(script: Script) -> None:
    import lightning as L
    from lightning.pytorch.tuner import Tuner

    class Module(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model, self.lr = script.model, START

        def training_step(self, batch: Sequence[Any]) -> Tensor:
            return script.loss_fn(self.model(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.model.parameters(), lr=self.lr)

    batches = list(itertools.islice(script, ITERATIONS))
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None, shuffle=True)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(accelerator="cpu", default_root_dir=folder, max_epochs=1, **options)
        Tuner(trainer).lr_find(Module(), loader, num_training=ITERATIONS)


def traces(peer: Peer) -> str:
    finders = {IGNITE: FINDERS["FastaiLRFinder"], ULTIMUS: FINDERS["ultimus-ignite"]}
    find = (finders | {LIGHTNING: lightning_finder}).get(peer)
    if find is None:
        return "has none"
    tests = [left_behind(find, Recipe(data="digits"), at) for at in (None, ITERATIONS // 2)]
    after, after_error = ([name for name in each if each[name] == "CHANGED"] for each in tests)
    besides = [name for name in after_error if name not in after]
    cell = ", ".join(after) or "none"
    return f"{cell}; after an error also {', '.join(besides)}" if besides else cell


N_SAVED = [Way(options={"n_saved": 1}), Way("n_saved=2", {"n_saved": 2})]
BAR = {"show_bar": True, "every": troubles.LAST}
BAR_AND_GUARD = BAR | {"guard": True}
OTHER_DISK = Way("TMPDIR on another disk", task=troubles.CutOffBetweenDisks)
CLIPPED = Way("clip_grad_norm_(error_if_nonfinite=True)", task=troubles.PoisonedAndClipped)
SAVING = Way("save_on_exception=True", {"save_on_exception": True})
STOP = Way("GracefulStop", {"graceful_stop": True})
ANOMALY = Way("detect_anomaly=True", {"detect_anomaly": True})

QUESTIONS = [
    Question(
        "a save that is cut off leaves an older valid checkpoint",
        after_a_cut_off,
        troubles.CutOff,
        {IGNITE: N_SAVED, GATLE: N_SAVED, LIGHTNING: [Way(), OTHER_DISK]},
    ),
    Question(
        "a flipped bit in the newest is noticed and an older one taken",
        after_a_flipped_bit,
        troubles.Killed,
    ),
    Question(
        "the weights stay finite when a loss is NaN",
        after_a_nan,
        troubles.Poisoned,
        {
            TORCH: [Way(), CLIPPED],
            IGNITE: [Way(), Way("TerminateOnNan", {"terminate_on_nan": True})],
            LIGHTNING: [Way(), ANOMALY],
            ULTIMUS: [Way(), Way("NonFiniteGuard", {"guard": True})],
        },
    ),
    Question(
        "SIGTERM in mid-epoch loses nothing",
        after_sigterm,
        troubles.Terminated,
        {LIGHTNING: [Way(), SAVING], ULTIMUS: [Way(), STOP]},
    ),
    Question(
        "readings of the device an iteration",
        readings,
        troubles.Counted,
        {
            TORCH: [],
            IGNITE: [Way(options=BAR), Way("TerminateOnNan", BAR | {"terminate_on_nan": True})],
            LIGHTNING: [Way(options=BAR), Way("no bar", {"every": troubles.LAST})],
            ULTIMUS: [
                Way(options=BAR),
                Way("NonFiniteGuard", BAR_AND_GUARD),
                Way("NonFiniteGuard and fused=True", BAR_AND_GUARD, troubles.CountedAndFused),
            ],
        },
    ),
]


def cell(root: Path, question: Question, peer: Peer) -> str:
    answers = []
    for way in question.ways.get(peer, [Way()]):
        folder = Path(tempfile.mkdtemp(dir=root))
        answer = question.answer(Run(peer, folder, way.task or question.task, way.options))
        answers.append(f"with {way.label}: {answer}" if way.label else answer)
    return "; ".join(answers)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    # What is killed leaves semaphores behind; they are cleaned up.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    peers = (TORCH, IGNITE, LIGHTNING, TRAINITE, GATLE, ULTIMUS)
    peers = [peer for peer in peers if all(map(is_installed, peer.needs))]
    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(arguments.workers) as pool:
        jobs = [(Path(root), question, peer) for question in QUESTIONS for peer in peers]
        answers = pool.map(cell, *zip(*jobs, strict=True))
        cells = list(tqdm(answers, total=len(jobs), desc="cells", leave=False, disable=None))
    rows = [
        [question.text, *cells[number * len(peers) :][: len(peers)]]
        for number, question in enumerate(QUESTIONS)
    ]
    warnings.simplefilter("ignore")  # Lightning's advice on workers
    rows.append(["traces of the rate finder", *map(traces, peers)])
    print_table(["", *(peer.name for peer in peers)], rows)
    print_environment(*dict.fromkeys(name for peer in peers for name in peer.needs))


if __name__ == "__main__":
    main()
