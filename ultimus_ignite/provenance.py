"""What it takes to repeat a run."""

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
    return {
        "recipe": asdict(recipe),
        "data": {"name": parts.data.name, "sha256": parts.data.sha256},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "git_revision": _git_revision(),
    }


def _git_revision() -> str | None:
    """Revision of this source tree, None where it is not a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
