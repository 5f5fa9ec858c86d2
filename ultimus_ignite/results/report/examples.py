"""What the page shows of the data of a run: mistakes, augmented samples, one image a class.

B: images of a batch. S: side of the images.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ultimus_ignite.batches import Split, create_batches
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.rows import select
from ultimus_ignite.data.sources import load
from ultimus_ignite.data.stream import TrainingStream
from ultimus_ignite.errors import DataError, one_line
from ultimus_ignite.recipe import Recipe
from ultimus_ignite.results.evaluation import Evaluation
from ultimus_ignite.results.report.pictures import photo

CONFUSIONS = 20
MISTAKES = 12
SAMPLES = 16
EXAMPLES = 4


class Sample(NamedTuple):
    """One image with what is to be said of it."""

    picture: str
    """As a data URI."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class RunData:
    """The images that a run was trained and measured on."""

    classes: tuple[str, ...]
    stream: TrainingStream
    measured: Split
    """The test set; the validation set if there is none."""


def load_data(recipe: Recipe, source: str, sha256: str) -> RunData:
    """The data of a run.

    Args:
        recipe: of the run.
        source: the data set that the run really used, never ``auto``.
        sha256: of its data.

    Raises:
        DataError: the data are missing, or are not those of the run any more.
    """
    data = load(
        source,
        recipe.data_dir,
        image_size=recipe.image_size,
        skip_unreadable=recipe.skip_unreadable,
    )
    if data.sha256 != sha256:
        raise DataError(f"{data.name}: the images are not those that the run was trained on")
    return _batches(recipe, data)


def _batches(recipe: Recipe, data: ImageData) -> RunData:
    sized = replace(recipe, **recipe.sizes())
    stream, test, evaluated = create_batches(sized, data, torch.device("cpu"))
    return RunData(classes=data.classes, stream=stream, measured=test or evaluated)


def worst_mistakes(data: RunData, evaluation: Evaluation) -> list[Sample]:
    """The images whose wrong class was the most probable one, by that probability."""
    probabilities, predicted = evaluation.probabilities.max(dim=1)
    wrong = (predicted != evaluation.labels).nonzero().flatten()
    worst = wrong[probabilities[wrong].argsort(descending=True, stable=True)][:MISTAKES]
    images = select(data.measured.batches.images, worst)
    return [
        Sample(
            photo(image),
            one_line(
                f"{data.classes[evaluation.labels[row]]}, predicted as "
                f"{data.classes[predicted[row]]}: {probabilities[row]:.1%}"
            ),
        )
        for image, row in zip(images, worst.tolist(), strict=True)
    ]


def frequent_confusions(evaluation: Evaluation) -> list[tuple[str, str, int]]:
    """True class, predicted class and number of images of the most frequent mistakes."""
    names = list(evaluation.per_class)
    counts = evaluation.confusion.clone().fill_diagonal_(0)
    pairs = counts.flatten().argsort(descending=True, stable=True)[:CONFUSIONS].tolist()
    cells = [divmod(pair, len(names)) for pair in pairs]
    return [(names[i], names[j], int(counts[i, j])) for i, j in cells if counts[i, j]]


def augmented_samples(data: RunData) -> list[Sample]:
    """The first images of the first training batch, exactly as the model was given them."""
    batch = data.stream.batch(0)
    normalize = data.stream.augment.normalize
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (normalize.mean, normalize.std))
    pixels = ((batch.images[:SAMPLES] * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
    return [
        Sample(photo(image), one_line(data.classes[label]))
        for image, label in zip(pixels, batch.labels.tolist(), strict=False)
    ]


def examples(data: RunData) -> tuple[Tensor, list[Sample]]:
    """The first measured image of each of the first classes: uint8 (B, 3, S, S), and to show."""
    labels = data.measured.batches.labels
    present = sorted(set(labels.tolist()))[:EXAMPLES]
    rows = torch.tensor([int((labels == label).nonzero()[0]) for label in present])
    images = select(data.measured.batches.images, rows)
    names = [one_line(data.classes[label]) for label in present]
    return images, [Sample(photo(i), name) for i, name in zip(images, names, strict=True)]
