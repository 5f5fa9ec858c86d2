"""The batches of a run: its training stream, and the images that it is measured on."""

from typing import NamedTuple

import ignite.distributed as idist
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ultimus_ignite.data.augment import Augment, Normalize
from ultimus_ignite.data.image_data import ImageData
from ultimus_ignite.data.placement import explain_if_too_large
from ultimus_ignite.data.share import Share
from ultimus_ignite.data.stream import EvaluationBatches, TrainingStream
from ultimus_ignite.engines import predict_logits
from ultimus_ignite.recipe import Recipe

LIGHT = 64
"""Multiply-adds per pixel below which batches are made ahead, see `is_light`."""


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


def is_light(model: nn.Module, images: Tensor) -> bool:
    """Whether a model is so small that a CPU takes about as long to make a batch as to train on it.

    Such a step is a row of short operators, which a second thread hardly speeds up: it makes the
    next batch instead. Training with a batch of `UltimusNet`, 37 multiply-adds per pixel, takes
    10.2 ms with two threads on both, and 7.8 ms with one thread on each; with a small
    convolutional net, 2,170 per pixel, 113 and 153 ms.

    Args:
        model: called once.
        images: ``(B, C, H, W)``, a batch.
    """
    if images.device.type != "cpu" or torch.get_num_threads() == 1:
        return False
    with FlopCounterMode(display=False) as counter:
        predict_logits(model, images)
    return bool(counter.get_total_flops() / 2 < LIGHT * images[:, 0].numel())
