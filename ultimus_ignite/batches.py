"""The batches of a run: its training stream, and the images that it is measured on."""

from typing import NamedTuple

import ignite.distributed as idist
import torch

from ultimus_ignite.data.augment import Augment, Normalize
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.placement import explain_if_too_large
from ultimus_ignite.data.share import Share
from ultimus_ignite.data.stream import EvaluationBatches, TrainingStream
from ultimus_ignite.recipe import Recipe


class Split(NamedTuple):
    """Images that a model is evaluated on."""

    name: str
    """``test`` or ``val``, the prefix of its columns in ``history.csv``."""
    title: str
    """``Test set`` or ``Validation set``, its name in the log."""
    batches: EvaluationBatches


def create_batches(
    recipe: Recipe, data: ImageData, device: torch.device
) -> tuple[TrainingStream, Split | None, Split]:
    """Training batches, the test set if there is one, and the images that judge the epochs.

    All images are moved to the device once, as uint8. If they are too many for a GPU, they stay in
    host memory, and the stream has a note that says so; the batches are the same.

    Raises:
        DataError: there are too few images for ``val_fraction``, or a validation set already.
    """
    if recipe.val_fraction:
        data = data.hold_out(recipe.val_fraction, recipe.seed)
    note = explain_if_too_large((images for images, _ in data.splits.values()), device)
    home = torch.device("cpu") if note else device
    share = Share(idist.get_rank(), idist.get_world_size())
    normalize = Normalize(data.mean, data.std)
    augment = Augment(
        normalize,
        flip=recipe.flip,
        cutout=recipe.cutout,
        grey=recipe.grey,
        **recipe.sizes(),
    )
    stream = TrainingStream(
        data.train_images.to(home),
        data.train_labels.to(home),
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        augment=augment,
        device=device,
        share=share,
        note=note,
    )

    titles = {"val": "Validation set", "test": "Test set"}
    splits = {}
    for name, (images, labels) in data.splits.items():
        if name in titles:
            batches = EvaluationBatches(
                images.to(home),
                labels.to(home),
                batch_size=recipe.batch_size,
                normalize=normalize,
                device=device,
                share=share,
            )
            splits[name] = Split(name, titles[name], batches)
    test = splits.get("test")
    return stream, test, splits.get("val") or splits["test"]
