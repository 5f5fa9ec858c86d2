"""What else the bits of a run depend on."""

import importlib.metadata
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "torchvision", "pytorch-ignite", "ultimus-ignite")


def describe_software() -> dict[str, Any]:
    """Threads, versions and source revision."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
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
