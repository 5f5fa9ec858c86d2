"""Claim: a run that is killed at any moment and resumed ends with the bits of an unbroken run.

    pip install -e '.[benchmarks]'
    python benchmarks/resume.py

Every peer trains the same small network with dropout on the same shuffled digits, with Adam and a
one-cycle rate, and resumes as its own documentation shows: `resume_peers`, one file per peer. Each
run is killed once with SIGKILL, at a moment drawn evenly from the seconds that an unbroken run
takes after its first epoch. Then its script is started again. A peer that is not installed is
skipped.

    resumed         runs that continued from a checkpoint and came to their end
    identical       runs among them whose final weights equal those of the unbroken run in every bit
    again           iterations that were trained a second time, because no checkpoint held them
    twice, never    samples that an epoch saw more than once, or not at all
    other rates     iterations whose learning rate differs from the unbroken run's
    damaged         kills after which the newest checkpoint could not be read
    lines           lines of the script that save and resume

"again" to "other rates" are averages per run that came to its end. Iterations that the second start
repeats count once.

Hardware, versions and results: docs/results.md.
"""

import argparse
import itertools
import os
import random
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from report import print_environment, print_table
from resume_peers import PEERS, Peer
from resume_peers.run import Run, lines_for_resume
from resume_peers.task import EPOCH_LENGTH, EPOCHS, SAMPLES
from tqdm import tqdm

COLUMNS = ["resumed", "identical", "again", "twice", "never", "other rates", "damaged", "lines"]
CHECKPOINTS = {".pt", ".tar", ".ckpt"}


@dataclass
class Outcome:
    """What a kill and a new start have come to, see the table."""

    damaged: bool
    ended: bool = False
    resumed: bool = False
    identical: bool = False
    again: int = 0
    twice: int = 0
    never: int = 0
    other_rates: int = 0
    remark: str = ""


def kill_and_resume(unbroken: Run, seed: int) -> Outcome:
    moments = random.Random(seed)
    seconds = unbroken.journal()["second"]
    for trial in itertools.count():
        run = Run(unbroken.peer, unbroken.folder.with_name(f"kill-{seed}-{trial}"))
        moment = moments.uniform(seconds[EPOCH_LENGTH], seconds[-1])
        iterations = int(np.searchsorted(seconds, moment, side="right"))
        if run.kill(iterations, moment - seconds[iterations - 1]):
            break
    outcome = Outcome(damaged=is_damaged(run.checkpoints))
    if not run.finish():
        outcome.remark = run.last_line()
        return outcome
    compare(run, unbroken, outcome)
    if not outcome.resumed:
        outcome.remark = "began again at iteration 1"
    return outcome


def is_damaged(checkpoints: Path) -> bool:
    """Whether the checkpoint that was written last cannot be read."""
    found = [path for path in checkpoints.rglob("*") if path.suffix in CHECKPOINTS]
    newest = max(found, key=lambda path: path.stat().st_mtime_ns)
    try:
        torch.load(newest, weights_only=False)
    except Exception:  # whatever goes wrong in there
        return True
    return False


def compare(run: Run, unbroken: Run, outcome: Outcome) -> None:
    """Set what a run that was killed and has ended differs in."""
    killed, rest = run.journal(0), run.journal(1)
    first = rest["iteration"][0]
    lasting = np.concatenate([killed[killed["iteration"] < first], rest])
    outcome.ended, outcome.resumed = True, bool(first > 1)
    outcome.identical = run.weights() == unbroken.weights()
    outcome.again = int((killed["iteration"] >= first).sum())
    for epoch in range(EPOCHS):
        counts = times_seen(lasting[(lasting["iteration"] - 1) // EPOCH_LENGTH == epoch])
        outcome.twice += int((counts > 1).sum())
        outcome.never += int((counts == 0).sum())
    rates = {record["iteration"]: record["rate"] for record in unbroken.journal()}
    outcome.other_rates = sum(rates.get(each["iteration"]) != each["rate"] for each in lasting)


def times_seen(records: np.ndarray) -> np.ndarray:
    """By some iterations, sample for sample."""
    samples = records["samples"]
    return np.bincount(samples[samples >= 0], minlength=SAMPLES)


def is_installed(distribution: str) -> bool:
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def train_unbroken(peer: Peer, folder: Path, pool: ThreadPoolExecutor) -> Run:
    """Train twice, to see that a peer repeats itself where nothing disturbs it."""
    runs = [Run(peer, folder / name) for name in ("unbroken", "repeated")]
    if not all(pool.map(Run.finish, runs)):
        raise SystemExit(f"{peer.name}: {runs[0].last_line()}")
    if runs[0].weights() != runs[1].weights():
        raise SystemExit(f"{peer.name}: two unbroken runs differ, so nothing can be compared")
    return runs[0]


def row(peer: Peer, outcomes: Sequence[Outcome]) -> list[str]:
    ended = [outcome for outcome in outcomes if outcome.ended]
    counts = [[each.again, each.twice, each.never, each.other_rates] for each in ended]
    return [
        peer.name,
        f"{sum(outcome.resumed for outcome in ended)} of {len(outcomes)}",
        f"{sum(outcome.resumed and outcome.identical for outcome in ended)}",
        *(f"{mean:.1f}" for mean in np.mean(counts or [[np.nan] * 4], axis=0)),
        f"{sum(outcome.damaged for outcome in outcomes)}",
        f"{lines_for_resume(peer)}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="runs a peer, each killed once")
    parser.add_argument("--peers", default="", help="only those whose name holds this text")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    arguments = parser.parse_args()
    # What is killed leaves semaphores behind; they are cleaned up.
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"

    peers = []
    for peer in PEERS:
        absent = [name for name in peer.needs if not is_installed(name)]
        if absent:
            print(f"{peer.name}: skipped, {' and '.join(absent)} not installed")
        elif arguments.peers in peer.name:
            peers.append(peer)

    with tempfile.TemporaryDirectory() as root, ThreadPoolExecutor(arguments.workers) as pool:
        unbroken = [train_unbroken(peer, Path(root, peer.name), pool) for peer in peers]
        # A kill of each peer in turn, so that a machine which slows down slows all of them.
        jobs = [(run, seed) for seed in range(arguments.kills) for run in unbroken]
        bar = partial(tqdm, total=len(jobs), desc="kills", leave=False, disable=None)
        results = list(bar(pool.map(kill_and_resume, *zip(*jobs, strict=True))))

    outcomes = {peer: results[number :: len(peers)] for number, peer in enumerate(peers)}
    print_table(["peer", *COLUMNS], [row(peer, outcomes[peer]) for peer in peers])
    for peer in peers:
        for remark in sorted({outcome.remark for outcome in outcomes[peer]} - {""}):
            print(f"\n{peer.name}: {remark}")
    print_environment(*dict.fromkeys(name for peer in peers for name in peer.needs))


if __name__ == "__main__":
    main()
