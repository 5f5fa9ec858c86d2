"""The labelled images that a run is evaluated on: its own, or those of other data."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from ultimus_ignite.data.image_data import DataError, ImageData
from ultimus_ignite.data.rows import Images
from ultimus_ignite.data.sources import load
from ultimus_ignite.errors import one_line
from ultimus_ignite.results.loaded_run import LoadedRun

_NAMED = 5  # classes that an error names


class LabelledImages(NamedTuple):
    """N images that a model was not trained on, as far as their source tells."""

    images: Images
    """uint8 (N, 3, S, S), of the run's size."""
    labels: Tensor
    """int64 (N,), positions in the run's classes."""
    source: str
    """What they are, such as ``digits, 360 test images of 10 classes``."""
    notes: tuple[str, ...]
    """What was passed over or left out, one line each."""


def load_labelled_images(
    run: LoadedRun,
    data: str | None,
    *,
    data_dir: str | None,
    skip_unreadable: bool,
) -> LabelledImages:
    """The test images of a data set; the validation images if it has no test set.

    All images of other data than the run's are taken if they are not divided, as in
    ``DIR/<class>/*``.

    Args:
        run: whose classes and image size count.
        data: see `ultimus_ignite.data.sources.load`; None: the data of the run.
        data_dir: folder for downloads and decoded images; None: that of the run.
        skip_unreadable: leave out files that are not readable images, as the run may do, too.

    Raises:
        DataError: the data are missing or malformed, or have classes that the run does not have.
    """
    recipe, trained = run.recipe, run.description["data"]
    loaded = load(
        data or trained["name"],
        data_dir or recipe.data_dir,
        image_size=recipe.image_size,
        skip_unreadable=skip_unreadable or recipe.skip_unreadable,
    )
    is_same = loaded.sha256 == trained.get("sha256")
    is_own = is_same or loaded.name == trained["name"]
    if is_own and not is_same:
        warnings.warn(f"{loaded.name} has changed since the run was trained on it", stacklevel=2)
    split, (images, labels) = _choose(loaded, is_own=is_own)
    counted = f"{len(labels)} {split}images of {len(loaded.classes)} classes"
    source = one_line(f"{loaded.name}, {counted}")
    # A class without images is no news: the scores of each class stand beside their number.
    notes = tuple(note for note in loaded.notes if not note.startswith("warning: "))
    return LabelledImages(images, _match(loaded, run.classes)[labels], source, notes)


def _choose(data: ImageData, *, is_own: bool) -> tuple[str, tuple[Images, Tensor]]:
    """What an image is called, and the images with their labels in the data."""
    if data.held_out and not is_own:
        images, labels = zip(*data.splits.values(), strict=True)
        return "", (torch.cat([part[:] for part in images]), torch.cat(labels))
    if "test" in data.splits:
        return "test ", data.splits["test"]
    return "validation ", data.splits["val"]


def _match(data: ImageData, classes: tuple[str, ...]) -> Tensor:
    """For each class of the data its position in the run's classes, by its name."""
    if unknown := [name for name in data.classes if name not in classes]:
        more = ", ..." if len(unknown) > _NAMED else ""
        named = f"{', '.join(unknown[:_NAMED])}{more}"
        known = f"{', '.join(classes[:_NAMED])}{', ...' if len(classes) > _NAMED else ''}"
        raise DataError(
            f"{data.name}: the run has no class {named}; its {len(classes)} classes are {known}"
        )
    return torch.tensor([classes.index(name) for name in data.classes])
