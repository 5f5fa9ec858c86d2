"""Ignite engines, handlers and models for training image classifiers.

The handlers in `ultimus_ignite.handlers` attach to any Ignite Engine, `ultimus_ignite.modules` are
plain torch modules, `train` wires both into one training run, and `load_run` applies its model.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ultimus_ignite.recipe import Recipe

if TYPE_CHECKING:
    from ultimus_ignite.data.image_data import ImageData
    from ultimus_ignite.results.loaded_run import load_run
    from ultimus_ignite.training import train

__all__ = ["ImageData", "Recipe", "load_run", "train"]

# Loaded on first use, because they load torch, which `train-cifar --help` must not do.
_HOMES = {
    "ImageData": "ultimus_ignite.data.image_data",
    "load_run": "ultimus_ignite.results.loaded_run",
    "train": "ultimus_ignite.training",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
