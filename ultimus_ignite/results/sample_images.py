"""Real images to try a model on, for the folder of a run that may stand alone.

N: number of images. S: side of the images.
"""

import contextlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ultimus_ignite.data.image_folder import read_layout
from ultimus_ignite.data.pixels import UnreadableError, read_pixels, to_square
from ultimus_ignite.errors import DataError
from ultimus_ignite.results.loaded_run import LoadedRun

COUNT = 100


def sample_images(run: LoadedRun) -> tuple[Tensor, str]:
    """Some test images of the run's data where those are, else parts of scikit-learn's photos.

    Nothing is downloaded, and of a folder only these images are read.

    Returns:
        uint8 (N, 3, S, S) with N of at most `COUNT`, and what they are in words.
    """
    name, size = run.description["data"]["name"], run.recipe.image_size
    if name.startswith("folder:"):
        images = _of_folder(Path(name.removeprefix("folder:")), size)
    else:
        images = [_resize(pixels, size) for pixels in _of_named(name, run.recipe.data_dir)]
    words = f"test images of {name}"
    if not images:
        images = [_resize(pixels, size) for pixels in _of_photos()]
        words = f"parts of scikit-learn's photos, because the images of {name} are not here"
    return torch.from_numpy(np.stack(images)), f"{len(images)} {words}"


def _of_folder(root: Path, size: int) -> list[NDArray[np.uint8]]:
    """Images of all classes, (3, S, S); none if the folder is not there any more."""
    try:
        splits = read_layout(root)[0].splits
    except DataError:
        return []
    paths = [path for paths in splits.get("test", splits.get("val", {})).values() for path in paths]
    images = []
    for path in paths[:: max(1, len(paths) // COUNT)][:COUNT]:
        with contextlib.suppress(UnreadableError):
            images.append(read_pixels(path, size))
    return images


def _of_named(name: str, data_dir: str) -> list[NDArray[np.uint8]]:
    """Images of a named data set, (H, W, 3); none if it is not there."""
    if name == "digits":
        from ultimus_ignite.data.digits import load_digits

        images, _ = load_digits().splits["test"]
        return list(images[:COUNT].permute(0, 2, 3, 1).numpy())
    if name in ("cifar10", "cifar100"):
        from torchvision.datasets import CIFAR10, CIFAR100

        dataset = {"cifar10": CIFAR10, "cifar100": CIFAR100}[name]
        with contextlib.suppress(RuntimeError, OSError):  # missing or damaged
            return list(dataset(Path(data_dir).expanduser(), train=False).data[:COUNT])
    return []


def _of_photos() -> list[NDArray[np.uint8]]:
    """Parts of two photos, a temple and a flower, (85, 64, 3)."""
    from sklearn.datasets import load_sample_images

    return [
        photo[top : top + 85, left : left + 64]
        for photo in load_sample_images().images  # (427, 640, 3)
        for top in range(0, 425, 85)
        for left in range(0, 640, 64)
    ]


def _resize(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """(H, W, 3) -> (3, S, S)."""
    return to_square(Image.fromarray(pixels), size)
