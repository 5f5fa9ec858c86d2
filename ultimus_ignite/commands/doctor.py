"""`ultimus doctor`: check in half a minute that a run would work, and leave no file behind."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ultimus_ignite.commands.arguments import FolderArguments, parse_recipe
from ultimus_ignite.errors import UserError
from ultimus_ignite.recipe import Recipe

if TYPE_CHECKING:
    from ultimus_ignite.build import Parts

OVERFIT_STEPS = 100


@dataclass(frozen=True, kw_only=True)
class DoctorArguments(FolderArguments):
    """Check data, device, folder and recipe."""


def main(prog: str, argv: Sequence[str]) -> None:
    """Print one line per check: ``ok``, or ``FIX`` and what to do; UserError if one failed."""
    arguments = parse_recipe(DoctorArguments, prog, argv)
    recipe = arguments.recipe
    out = arguments.out or Path("runs") / arguments.recipe_name
    parts: list[Parts] = []

    def data() -> str:
        from ultimus_ignite.build import build
        from ultimus_ignite.lifecycle.provenance import describe_data

        parts.append(build(recipe))
        return f"{parts[0].device}; {describe_data(parts[0])}"

    results = [
        report("versions", versions),
        report("output folder", lambda: folder(arguments)),
        report("data and device", data),
    ]
    if parts:
        results += [
            report("disk space", lambda: disk_space(out, parts[0])),
            report("schedule", lambda: schedule(recipe, parts[0])),
            report("one epoch's end", lambda: evaluation(parts[0])),
            report("checkpoint", lambda: checkpoint(parts[0])),
            report("overfits a batch", lambda: overfits_a_batch(parts[0])),
        ]
    if failed := results.count(False):
        raise UserError(f"{failed} of {len(results)} checks failed: see the lines with FIX")


def report(name: str, check: Callable[[], str]) -> bool:
    """Print the outcome of a check; returns whether it passed."""
    try:
        print(f"ok   {name}: {check()}", flush=True)
    except Exception as error:  # any error is printed, and the next check runs
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"FIX  {name}: {reason}", flush=True)
        return False
    return True


def versions() -> str:
    """Versions that most affect a result."""
    from ultimus_ignite.machine.software import PACKAGES

    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def folder(arguments: DoctorArguments) -> str:
    """Check that the run's folder can be made and written, and that `train-cifar` would take it."""
    directory = arguments.directory
    if directory.holds_a_run and not arguments.resume:
        path = directory.path
        raise UserError(f"{path} already holds a run: give --resume, or choose another --out")
    return f"{directory.path} can be written"


def disk_space(out: Path, parts: "Parts") -> str:
    """Check for room for three checkpoints and a fourth that is being written."""
    weights = sum(p.numel() * p.element_size() for p in parts.model.parameters())
    needed, free = 4 * 3 * weights, shutil.disk_usage(_nearest(out)).free  # Adam has two moments
    if free < needed:
        raise UserError(f"{free / 1e6:.0f} MB free, {needed / 1e6:.0f} needed: free some")
    return f"{free / 1e9:.1f} GB free, {needed / 1e6:.1f} MB needed for checkpoints"


def schedule(recipe: Recipe, parts: "Parts") -> str:
    """The first, highest and last rate."""
    from ultimus_ignite.optimizers.create import create_scheduler

    steps = recipe.epochs * parts.stream.epoch_length
    if recipe.max_lr == "auto":
        return f"{steps} iterations, up to a rate that a range test will choose"
    rates = [row[0] for row in create_scheduler(recipe, parts.optimizer).simulate(steps).rates]
    return f"{steps} iterations, rate {rates[0]:.3g} to {max(rates):.3g} to {rates[-1]:.3g}"


def evaluation(parts: "Parts") -> str:
    """Run one batch through the evaluator."""
    metrics = parts.evaluator.run(parts.evaluated.batches, epoch_length=1).metrics
    images = f"{metrics['count']} images of the {parts.evaluated.title.lower()}"
    return f"untrained loss {metrics['loss']:.3f} on {images}"


def checkpoint(parts: "Parts") -> str:
    """Check that a checkpoint is loaded with the same values that were saved."""
    import torch

    from ultimus_ignite.handlers import CheckpointStore

    with tempfile.TemporaryDirectory() as temporary:
        state = parts.model.state_dict()
        path = CheckpointStore(temporary).save({"model": state}, iteration=0)
        loaded = CheckpointStore(temporary).load(path)["model"]
        if not all(torch.equal(loaded[key], value.cpu()) for key, value in state.items()):
            raise UserError("a loaded checkpoint differs from the saved state: report this")
        return f"{path.stat().st_size / 1e3:.0f} kB, loaded bit for bit"


def overfits_a_batch(parts: "Parts") -> str:
    """Check that the loss of one batch falls in repeated training on that batch."""
    rate = max(group["lr"] for group in parts.optimizer.param_groups)
    for group in parts.optimizer.param_groups:
        group["lr"] *= 1e-3 / rate
    batch = parts.stream.batch(0)
    losses = []
    for _ in range(OVERFIT_STEPS):
        parts.trainer.state.max_epochs = None
        output: Any = parts.trainer.run([batch]).output
        losses.append(float(output["loss"]))
    if not losses[-1] < losses[0]:
        raise UserError(
            f"its loss went from {losses[0]:.3f} to {losses[-1]:.3f} in {OVERFIT_STEPS} steps: "
            "check the labels, the model and the loss function"
        )
    return f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {OVERFIT_STEPS} steps at rate 0.001"


def _nearest(path: Path) -> Path:
    """The path itself or its nearest existing parent, which must be a folder."""
    path = path.absolute()
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    if not place.is_dir():
        raise UserError(f"{place} is not a folder: choose another --out")
    return place
