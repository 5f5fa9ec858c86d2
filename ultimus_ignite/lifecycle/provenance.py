"""What is needed to repeat a run."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from ultimus_ignite.build import Parts
from ultimus_ignite.data.augment import Normalize
from ultimus_ignite.errors import one_line
from ultimus_ignite.machine.software import describe_software
from ultimus_ignite.recipe import Recipe


def describe(parts: Parts) -> dict[str, Any]:
    """Recipe, data, device, versions and source revision, for ``recipe.json``."""
    data, device, normalize = parts.data, parts.device, parts.stream.augment.normalize
    return {
        "recipe": asdict(parts.recipe),
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "classes": len(data.classes),
            "class_names": data.classes,
            "mean": normalize.mean,
            "std": normalize.std,
            **data.counts,
            "held_out": data.held_out,
            "notes": data.notes,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        **describe_software(),
    }


def describe_model(recipe: Recipe, classes: Sequence[str], normalize: Normalize) -> dict[str, Any]:
    """What is needed to apply a model to a picture, for the metadata of a file of its weights."""
    return {
        "model": recipe.model,
        "model_args": recipe.model_args,
        "image_size": recipe.image_size,
        "class_names": classes,
        "mean": normalize.mean,
        "std": normalize.std,
    }


def describe_data(parts: Parts) -> str:
    """The data that are really used, in one line; other lines say what a user should know of them
    and of the model.

    Example:
        >>> from ultimus_ignite.build import build
        >>> from ultimus_ignite.recipe import Recipe
        >>> describe_data(build(Recipe(data="digits", device="cpu")))
        'data: digits, 1437 training and 360 test images of 10 classes'
    """
    recipe, data = parts.recipe, parts.data
    counts = [f"{len(parts.stream.labels)} training"]
    if parts.validates:
        counts.append(f"{len(parts.evaluated.batches.labels)} validation")
    if parts.test:
        counts.append(f"{len(parts.test.batches.labels)} test")
    images = f"{', '.join(counts[:-1])} and {counts[-1]} images of {len(data.classes)} classes"
    lines = [one_line("; ".join(filter(None, [f"data: {data.name}, {images}", data.held_out])))]
    if recipe.data == "auto" and data.name == "digits":
        lines.insert(
            0,
            f"CIFAR-10 IS NOT IN {recipe.data_dir} AND CANNOT BE DOWNLOADED: "
            "USING HANDWRITTEN DIGITS INSTEAD (--data cifar10 says why)",
        )
    return "\n".join([*lines, *data.notes, *parts.notes])
