"""The model card: ``README.md`` of a run's folder, with the metadata that a model hub reads."""

import json
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers.support.files import replace_file
from ultimus_ignite.results.interval import wilson_interval
from ultimus_ignite.run_directory import RunDirectory

ON_THE_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100"}
"""Data sets of this project and their names on https://huggingface.co/datasets."""
# Names of splits in a sentence.
_SPLITS = {"test": "test", "val": "validation"}
# What Markdown or HTML may take for markup; an underscore within a word is none.
_MARKUP = re.compile(r"[&<>\\`*\[\]|~#$]|(?<!\w)_|_(?!\w)")


def write_card(directory: RunDirectory) -> None:
    """Write the card of a finished run, unless there is one: a user may have edited it.

    If this fails (a full disk), it only warns.
    """
    if os.path.lexists(directory.card):
        return
    try:
        replace_file(directory.card, model_card(directory).encode())
    except OSError as error:
        warnings.warn(f"{directory.card}: no model card: {error.strerror}", stacklevel=2)


def model_card(directory: RunDirectory) -> str:
    """The text of the card, from ``recipe.json`` and ``status.json`` of a finished run.

    The licence is left for the user to add.

    Raises:
        RunDirectoryError: one of the files is missing or damaged.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ultimus_ignite import Recipe, train
        >>> with TemporaryDirectory() as folder:
        ...     run = train(
        ...         Recipe(data="digits", epochs=2, device="cpu"), out=Path(folder) / "first"
        ...     )  # doctest: +ELLIPSIS
        ...     card = model_card(run.directory)
        data: digits, 1437 training and 360 test images of 10 classes
        ...
        >>> print(card)  # doctest: +ELLIPSIS
        ---
        library_name: ultimus-ignite
        ...
        # first
        <BLANKLINE>
        UltimusNet, a classifier of images into 10 classes, trained on digits.
        ...
    """
    description, status = directory.read_description(), directory.read_status()
    name = directory.path.resolve().name
    return f"{_front_matter(name, description, status)}\n{_body(name, description, status)}"


def _front_matter(name: str, description: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """The metadata, in YAML: https://huggingface.co/docs/hub/model-cards."""
    data = description["data"]["name"]
    split, accuracy = _result(status)
    on_hub = f"datasets: [{ON_THE_HUB[data]}]\n" if data in ON_THE_HUB else ""
    kind = ON_THE_HUB.get(data, "imagefolder" if data.startswith("folder:") else data)
    return f"""\
---
library_name: ultimus-ignite
pipeline_tag: image-classification
tags: [image-classification, pytorch, ultimus-ignite]
{on_hub}metrics: [accuracy]
model-index:
  - name: {_quoted(name)}
    results:
      - task:
          type: image-classification
        dataset:
          type: {_quoted(kind)}
          name: {_quoted(_public_name(data))}
          split: {_SPLITS[split]}
        metrics:
          - type: accuracy
            value: {accuracy}
---
"""


def _body(name: str, description: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """What a reader should know, in Markdown."""
    recipe, data = description["recipe"], description["data"]
    side, classes = recipe["image_size"], data["class_names"]
    # Where the data and the caches were is of no use to others.
    fields = {key: value for key, value in recipe.items() if key not in ("data", "data_dir")}
    versions = {**description["versions"], "device": description["device"]}
    return f"""\
# {_plain(name)}

{_plain(recipe["model"])}, a classifier of images into {len(classes)} classes, trained on \
{_plain(_public_name(data["name"]))}.

**{_describe_result(data, status)}**

## How to use it

In this folder, with ultimus-ignite installed:

```python
from PIL import Image
from ultimus_ignite import load_run

run = load_run(".")
run.predict([Image.open("picture.jpg")]).classes
```
{_OWN_NETWORK if ":" in recipe["model"] else ""}
It takes pictures of any size and mode. They become RGB squares of {side} x {side} pixels with \
values from 0 to 1, normalised by mean {_numbers(data["mean"])} and standard deviation \
{_numbers(data["std"])}.

## Classes

{_table("Logit", "Class", enumerate(classes))}

## How it was trained

{_describe_images(data, recipe["val_fraction"])}

{_table("Field of the recipe", "Value", fields.items())}

{_table("Trained with", "Version", versions.items())}
"""


_OWN_NETWORK = """
If this network cannot be imported there, make one and give it: `load_run(".", model=network)`.
"""


def _result(status: Mapping[str, Any]) -> tuple[str, float]:
    """The split that the final weights were measured on, and the accuracy."""
    split = "test" if "test_accuracy" in status else "val"
    return split, status[f"{split}_accuracy"]


def _describe_result(data: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    split, accuracy = _result(status)
    count = data[split]
    if not count:  # held out of the training images, and not counted by recipe.json
        return f"Accuracy {accuracy:.2%} on {_SPLITS[split]} images."
    low, high = wilson_interval(round(accuracy * count), count)
    return (
        f"Accuracy {accuracy:.2%} on {count:,} {_SPLITS[split]} images "
        f"(95 % interval {low:.2%} to {high:.2%}, by Wilson's method)."
    )


def _describe_images(data: Mapping[str, Any], val_fraction: float) -> str:
    held_out = f", of which {val_fraction:.1%} judged the epochs" if val_fraction else ""
    others = [f"; {data[key]:,} {split} images" for key, split in _SPLITS.items() if data[key]]
    return f"{data['train']:,} training images{held_out}{''.join(others)}."


def _public_name(data: str) -> str:
    """The name of the data, without the path of a folder."""
    place = data.removeprefix("folder:")
    return data if place == data else Path(place).resolve().name or "images"


def _quoted(text: str) -> str:
    """A text as a scalar of YAML, which takes the strings of JSON if all is printable."""
    return json.dumps(one_line(text), ensure_ascii=False)


def _plain(value: object) -> str:
    """A value as text of Markdown that stands there as it is."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", one_line(str(value)))


def _numbers(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


def _table(left: str, right: str, rows: Iterable[tuple[object, object]]) -> str:
    lines = [f"| {_plain(key)} | {_plain(value)} |" for key, value in rows]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *lines])
