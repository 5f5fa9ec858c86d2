"""Claim: the first iteration of `train-cifar` on cached data is done 4 s after the command.

    pip install -e .
    python benchmarks/start_up.py --data folder:DIR [any other flag of train-cifar]

Each round is a process of its own that does what the command does, up to its first iteration: the
same modules in the order in which it meets them, then `run`. The images come from the cache that an
unmeasured first round has filled.

Seconds, medians. Hardware, versions and results: docs/results.md.
"""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from statistics import median

from tqdm import tqdm

ROUNDS = 5


def first_iteration(started: float, argv: Sequence[str]) -> None:
    """Print what the time since ``started`` went into, as JSON, and leave."""
    marks = {"Python": time.time() - started}

    def mark(name: str) -> None:
        marks[name] = time.time() - started - sum(marks.values())

    from ultimus_ignite.commands.arguments import parse_recipe
    from ultimus_ignite.commands.train import TrainArguments

    recipe = parse_recipe(TrainArguments, "train-cifar", argv).recipe
    mark("flags")
    import torch  # noqa: F401

    mark("import torch")
    import ignite.engine
    import ignite.handlers

    mark("import Ignite")
    from ultimus_ignite import training as run_module

    mark("import the rest")

    def finish() -> None:
        mark("the first iteration")
        raise SystemExit

    def build_and_mark(recipe, **options):  # type: ignore[no-untyped-def]
        parts = build(recipe, **options)
        mark("images, model, engines")
        parts.trainer.add_event_handler(ignite.engine.Events.STARTED, mark, "folder, log, events")
        parts.trainer.add_event_handler(ignite.engine.Events.ITERATION_COMPLETED, finish)
        return parts

    build, run_module.build = run_module.build, build_and_mark
    with (
        contextlib.suppress(SystemExit),
        tempfile.TemporaryDirectory() as folder,
    ):
        run_module.train(recipe, out=folder)
    print(json.dumps(marks))


def main() -> None:
    if sys.argv[1:2] == ["--started"]:
        from ultimus_ignite.cli import call

        started = float(sys.argv[2])
        sys.exit(call(lambda _, argv: first_iteration(started, argv), "", sys.argv[3:]))
    rounds = []
    for _ in tqdm(range(ROUNDS + 1), desc="rounds", leave=False, disable=None):
        command = [sys.executable, __file__, "--started", repr(time.time()), *sys.argv[1:]]
        child = subprocess.run(command, capture_output=True, text=True)
        if child.returncode:
            raise SystemExit(child.stderr)
        rounds.append(json.loads(child.stdout.splitlines()[-1]))

    from report import print_environment, print_table

    rows = [[name, f"{median(r[name] for r in rounds[1:]):.2f}"] for name in rounds[0]]
    rows.append(["all", f"{median(sum(r.values()) for r in rounds[1:]):.2f}"])
    print_table(["to the first iteration", "s"], rows)
    print_environment("pytorch-ignite", "ultimus-ignite")


if __name__ == "__main__":
    main()
