"""What is needed to repeat a run."""

import importlib.metadata
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ultimus_ignite.build import Parts
from ultimus_ignite.recipe import Recipe

PACKAGES = ("torch", "torchvision", "pytorch-ignite", "ultimus-ignite")


def describe(recipe: Recipe, parts: Parts) -> dict[str, Any]:
    """Recipe, data, device, versions and source revision, for ``recipe.json``."""
    device = parts.device
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "recipe": asdict(recipe),
        "data": {"name": parts.data.name, "sha256": parts.data.sha256},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **versions},
        "git_revision": _git_revision(),
    }


def describe_data(recipe: Recipe, parts: Parts) -> str:
    """The data that is really used, in one line; a line in capitals before it if not CIFAR-10.

    Example:
        >>> from ultimus_ignite.build import build
        >>> recipe = Recipe(data="digits", device="cpu")
        >>> describe_data(recipe, build(recipe))
        'data: digits, 1437 training and 360 test images of 10 classes'
    """
    data = parts.data
    training = f"{len(parts.stream.labels)} training"
    if parts.holds_out:
        training += f", {len(parts.evaluated.batches.labels)} validation"
    counts = f"{training} and {len(data.test_images)} test images of {len(data.classes)} classes"
    line = f"data: {data.name}, {counts}"
    if recipe.data == "auto" and data.name == "digits":
        line = (
            f"CIFAR-10 IS NOT IN {recipe.data_dir} AND CANNOT BE DOWNLOADED: "
            f"USING HANDWRITTEN DIGITS INSTEAD (--data cifar10 says why)\n{line}"
        )
    return line


def _git_revision() -> str | None:
    """Revision of this source tree; None if it is not a git checkout."""
    command = ["git", "rev-parse", "HEAD"]
    folder = Path(__file__).parent
    try:
        output = subprocess.check_output(command, cwd=folder, stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.strip()
