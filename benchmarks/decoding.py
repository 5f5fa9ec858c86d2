"""Claim: photos are decoded 7 to 11 times as fast as one by one, and 60,000 small images no slower.

    pip install -e '.[benchmarks]'
    python benchmarks/decoding.py --data DIR --photos 200

Images a second from files to uint8 (N, 3, 32, 32), the whole call, on all cores: all JPEGs below
DIR, and photos of 12 megapixels, made from the two photos of scikit-learn: parts of them enlarged,
with and without the noise of a camera (50 files, read over and over). "One by one" is Pillow's
`open`, `convert` and `resize` in a loop. `ImageFolder` is torchvision's, with `Resize` and
`PILToTensor`, in a `DataLoader` with two workers.

Median of interleaved rounds. Hardware, versions and results: docs/results.md.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image
from report import medians, print_environment, print_table

from ultimus_ignite.data.decoding import decode

SIZE = 32


def make_photos(folder: Path, count: int, noise: float) -> list[Path]:
    """Parts of real photos as JPEGs, 4000x3000, with noise of that many levels."""
    from sklearn.datasets import load_sample_images

    generator = np.random.default_rng(0)
    paths = []
    for index in range(count):
        photo = Image.fromarray(load_sample_images().images[index % 2])
        left, upper = generator.integers(0, 200), generator.integers(0, 100)
        part = photo.crop((left, upper, left + 400, upper + 300))
        pixels = np.asarray(part.resize((4000, 3000), Image.Resampling.BICUBIC))
        grain = generator.standard_normal((3000, 4000, 1), dtype=np.float32) * noise
        paths.append(folder / f"{noise}-{index:02}.jpg")
        Image.fromarray((pixels + grain).clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def one_by_one(paths: Sequence[Path]) -> None:
    images = np.empty((len(paths), SIZE, SIZE, 3), dtype=np.uint8)
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            resized = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR)
        images[index] = np.asarray(resized)


def image_folder(paths: Sequence[Path]) -> None:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    class Listed(ImageFolder):  # type: ignore[misc]
        """These files, in place of those that it finds."""

        def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
            return ["any"], {"any": 0}

        @staticmethod
        def make_dataset(*args: Any, **kwargs: Any) -> list[tuple[str, int]]:
            return [(str(path), 0) for path in paths]

    dataset = Listed(paths[0].parent, v2.Compose([v2.Resize((SIZE, SIZE)), v2.PILToTensor()]))
    for _ in DataLoader(dataset, batch_size=256, num_workers=2):
        pass


def ultimus(paths: Sequence[Path]) -> None:
    images = np.empty((len(paths), 3, SIZE, SIZE), dtype=np.uint8)
    decode(paths, SIZE, images.__setitem__)


CONTESTANTS: dict[str, Callable[[Sequence[Path]], None]] = {
    "one by one": one_by_one,
    "ImageFolder, two workers": image_folder,
    "ultimus-ignite": ultimus,
}


def images_per_second(read: Callable[[Sequence[Path]], None], paths: Sequence[Path]) -> float:
    start = time.perf_counter()
    read(paths)
    return len(paths) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of small JPEGs")
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()

    with TemporaryDirectory() as folder:
        sets = {"small": sorted(arguments.data.rglob("*.jpg"))}
        for name, noise in (("photos", 0), ("noisy photos", 4)):
            files = make_photos(Path(folder), 50, noise)
            sets[name] = [files[index % len(files)] for index in range(arguments.photos)]
        rates = {
            name: medians(
                {key: partial(images_per_second, read, paths) for key, read in CONTESTANTS.items()},
                rounds=arguments.rounds,
            )
            for name, paths in sets.items()
        }
    print_table(
        ["images/s", *(f"{len(paths):,} {name}" for name, paths in sets.items())],
        [[name, *(f"{rates[key][name]:,.1f}" for key in sets)] for name in CONTESTANTS],
    )
    print_environment("torchvision", "Pillow", "ultimus-ignite")


if __name__ == "__main__":
    main()
