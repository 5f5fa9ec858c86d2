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


def _git_revision() -> str | None:
    """Revision of this source tree; None if it is not a git checkout."""
    command = ["git", "rev-parse", "HEAD"]
    folder = Path(__file__).parent
    try:
        output = subprocess.check_output(command, cwd=folder, stderr=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.strip()
