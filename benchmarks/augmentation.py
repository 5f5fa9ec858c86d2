"""Claim: a batch is augmented tens of times faster than by the libraries made for it.

    pip install -e '.[benchmarks]'
    python benchmarks/augmentation.py

Images a second at batch 512 on all cores, from uint8 to normalised floats: reflected padding by 2
and random crop, flip (p = .5), grey (p = .5), normalisation, one 8x8 hole (p = .5). Libraries that
augment image by image do so in a `DataLoader` with one worker a core, as their users run them.
The plain pass only normalises: no augmentation can be faster, so it is the limit.

Median of interleaved rounds. Hardware, versions and results: docs/results.md.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from report import medians, print_environment, print_table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ultimus_ignite.data.augment import HOLE_VALUE, Augment, Normalize
from ultimus_ignite.recipe import Recipe

BATCH = 512
MEAN = (0.49139968, 0.48215841, 0.44653091)  # of CIFAR-10
STD = (0.24703223, 0.24348513, 0.26158784)


def torchvision_transform() -> Callable[[Tensor], Tensor]:
    """One (3, 32, 32) uint8 tensor to its augmented floats."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomCrop(32, padding=2, padding_mode="reflect"),
            v2.RandomHorizontalFlip(0.5),
            v2.RandomGrayscale(0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            # 1/16 of the area, square: 8x8
            v2.RandomErasing(0.5, scale=(1 / 16, 1 / 16), ratio=(1, 1), value=HOLE_VALUE),
        ]
    )


def albumentations_transform(
    mean: tuple[float, ...] = MEAN, std: tuple[float, ...] = STD
) -> Callable[[Any], Tensor]:
    """One (32, 32, 3) uint8 array to its augmented floats, a (3, 32, 32) tensor."""
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the network
    import albumentations as A
    import cv2

    transform = A.Compose(
        [
            A.PadIfNeeded(36, 36, border_mode=cv2.BORDER_REFLECT_101),
            A.RandomCrop(32, 32),
            A.HorizontalFlip(p=0.5),
            A.ToGray(p=0.5),
            A.Normalize(mean, std),
            A.CoarseDropout((1, 1), (8, 8), (8, 8), fill=HOLE_VALUE, p=0.5),
            A.ToTensorV2(),
        ]
    )
    return lambda image: transform(image=image)["image"]


def kornia_transform() -> Callable[[Tensor], Tensor]:
    """A batch of floats in [0, 1] to its augmented floats."""
    import kornia.augmentation as K

    return torch.nn.Sequential(
        K.RandomCrop((32, 32), padding=2, padding_mode="reflect"),
        K.RandomHorizontalFlip(p=0.5),
        K.RandomGrayscale(p=0.5),
        K.Normalize(MEAN, STD),
        K.RandomErasing(p=0.5, scale=(1 / 16, 1 / 16), ratio=(1, 1), value=HOLE_VALUE),
    )


class Augmented(Dataset[Tensor]):
    """Images through a transform, one by one."""

    def __init__(self, images: Any, transform: Callable[[Any], Tensor], repeats: int) -> None:
        self.images = images
        self.transform = transform
        self.repeats = repeats

    def __len__(self) -> int:
        return self.repeats * len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index % len(self.images)])


def through_a_loader(
    images: Any, transform: Callable[[Any], Tensor], batches: int = 8
) -> DataLoader[Tensor]:
    """Some batches an iteration, from workers that stay alive."""
    dataset = Augmented(images, transform, batches)
    workers = torch.get_num_threads()
    return DataLoader(dataset, BATCH, num_workers=workers, persistent_workers=True)


class InPlace:
    """Some batches an iteration, made in this process."""

    def __init__(self, make_batch: Callable[[], Tensor], batches: int = 50) -> None:
        self.make_batch = make_batch
        self.batches = batches

    def __iter__(self) -> Iterator[Tensor]:
        return (self.make_batch() for _ in range(self.batches))


def images_per_second(batches: Iterable[Tensor]) -> float:
    start = time.perf_counter()
    images = sum(len(batch) for batch in batches)
    return images / (time.perf_counter() - start)


def contestants() -> dict[str, Iterable[Tensor]]:
    """Each gives batches of 512 when it is iterated over."""
    images = torch.randint(0, 256, (BATCH, 3, 32, 32), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    normalize = Normalize(MEAN, STD)
    recipe = Recipe(grey=0.5)
    names = ("flip", "cutout", "grey")
    chances = {name: getattr(recipe, name) for name in names}
    augment = Augment(normalize, **chances, **recipe.sizes())
    kornia = kornia_transform()

    def ultimus(augment: Augment) -> Tensor:
        return augment(images, augment.draw(images.shape, generator))

    arrays = images.permute(0, 2, 3, 1).contiguous().numpy()
    return {
        "torchvision v2": through_a_loader(images, torchvision_transform()),
        "albumentations": through_a_loader(arrays, albumentations_transform()),
        "kornia": InPlace(lambda: kornia(images / 255)),
        "ultimus-ignite": InPlace(partial(ultimus, augment)),
        "ultimus-ignite, without grey": InPlace(partial(ultimus, replace(augment, grey=0.0))),
        "plain pass": InPlace(lambda: normalize(images)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds

    rates = medians(
        {name: partial(images_per_second, batches) for name, batches in contestants().items()},
        rounds=rounds,
    )
    ours, limit = rates["ultimus-ignite"], rates["plain pass"]
    print_table(
        ["augmentation", "images/s", "ours is faster by", "share of the limit"],
        [
            [name, f"{rate:,.0f}", f"{ours / rate:.2f}", f"{rate / limit:.1%}"]
            for name, rate in rates.items()
        ],
    )
    print_environment("torchvision", "albumentations", "kornia", "ultimus-ignite")


if __name__ == "__main__":
    main()
