"""The folder of a run as a model that can be applied, without the data that it was trained on.

B: images of a batch. S: side of the images. C: number of classes.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from os.path import lexists
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from ultimus_ignite.data.augment import Normalize
from ultimus_ignite.data.pixels import to_square
from ultimus_ignite.engines import predict_logits
from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers.support.history_csv import Row, read_csv
from ultimus_ignite.machine.devices import autocast_dtype, select_device
from ultimus_ignite.networks.models import create_model
from ultimus_ignite.networks.weights_file import load_weights
from ultimus_ignite.recipe import Recipe, RecipeError
from ultimus_ignite.run_directory import RunDirectory, RunDirectoryError


class Predictions(NamedTuple):
    """What a model says of B images."""

    classes: list[str]
    """The most probable class of each image."""
    probabilities: Tensor
    """float32 (B, C), in the order of the run's classes; each row sums to one."""


@dataclass(frozen=True, kw_only=True)
class LoadedRun:
    """A run that has ended, ready to be applied.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ultimus_ignite import load_run, train
        >>> with TemporaryDirectory() as folder:
        ...     trained = train(
        ...         Recipe(data="digits", epochs=2, device="cpu"), out=folder
        ...     )  # doctest: +ELLIPSIS
        ...     run = load_run(folder)
        data: digits, 1437 training and 360 test images of 10 classes
        ...
        >>> run.preprocess(Image.new("RGB", (200, 100))).shape
        torch.Size([3, 32, 32])
        >>> run.predict([Image.new("RGB", (200, 100))]).probabilities.shape
        torch.Size([1, 10])
    """

    directory: RunDirectory
    description: Mapping[str, Any]
    """The content of ``recipe.json``."""
    recipe: Recipe
    model: nn.Module
    """In eval mode: (B, 3, S, S) normalised, as from `preprocess`, to logits (B, C)."""
    device: torch.device
    """The one that the model is on."""
    classes: tuple[str, ...]
    """Names of the classes; logit i is that of ``classes[i]``."""
    normalize: Normalize
    """From uint8 pixels to what the model takes."""

    @property
    def history(self) -> list[Row]:
        """The rows of ``history.csv``; empty if it is missing.

        Raises:
            RunDirectoryError: it is damaged.
        """
        path = self.directory.history
        try:
            return read_csv(path)
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError, csv.Error) as error:
            raise RunDirectoryError(
                one_line(f"{path}: not a history ({error}); train-cifar --resume writes it again")
            ) from None

    def preprocess(self, image: Image.Image) -> Tensor:
        """An image of any size and mode as the model takes it, float32 (3, S, S)."""
        pixels = torch.from_numpy(to_square(image, self.recipe.image_size).copy())
        return self.normalize(pixels.unsqueeze(0)).squeeze(0)

    def logits(self, images: Tensor) -> Tensor:
        """As the evaluations of the run: with its precision, and mirrored if its recipe says so.

        Args:
            images: (B, 3, S, S), normalised.

        Returns:
            float32 (B, C), on the device of the model.
        """
        return predict_logits(
            self.model,
            images.to(self.device),
            autocast_dtype=autocast_dtype(self.recipe),
            mirror=self.recipe.mirror,
        )

    def predict(self, images: Tensor | Iterable[Image.Image]) -> Predictions:
        """The classes of images.

        Args:
            images: float32 (B, 3, S, S) from `preprocess`, or images of any size and mode.
        """
        if not isinstance(images, Tensor):
            images = torch.stack([self.preprocess(image) for image in images])
        probabilities = self.logits(images).softmax(dim=1).cpu()
        names = [self.classes[index] for index in probabilities.argmax(dim=1).tolist()]
        return Predictions(names, probabilities)


def load_run(
    path: Path | str, *, model: nn.Module | None = None, device: str = "auto"
) -> LoadedRun:
    """Load the model of a run that has ended; the data that it was trained on are not needed.

    Args:
        path: the folder of the run.
        model: the network that was given to `train`, with any weights; needed if it cannot be made
            from its name and arguments in ``recipe.json``.
        device: see `ultimus_ignite.machine.devices.select_device`.

    Raises:
        RunDirectoryError: the folder holds no run, or lacks what is needed.
        RecipeError: the model cannot be made.
        WeightsError: the weights are not those of the model.
        ValueError: there is no such device.
    """
    directory = RunDirectory(path)
    if not directory.holds_a_run and not lexists(directory.description):
        raise RunDirectoryError(one_line(f"{directory.description} not found: no run in {path}"))
    description = directory.read_description()
    recipe = _read_recipe(directory, description)
    classes, normalize = _read_data(directory, description)
    if not lexists(directory.model):
        raise RunDirectoryError(_explain_missing_weights(directory))
    if model is None:
        try:
            model = create_model(recipe, num_classes=len(classes))
        except RecipeError as error:
            advice = "start where its file lies, or in Python use load_run(path, model=...)"
            raise RecipeError(f"{error}; {advice}") from error
    load_weights(model, directory.model)
    chosen = select_device(device)
    return LoadedRun(
        directory=directory,
        description=description,
        recipe=recipe,
        model=model.to(chosen).eval(),
        device=chosen,
        classes=classes,
        normalize=normalize,
    )


def _read_recipe(directory: RunDirectory, description: Mapping[str, Any]) -> Recipe:
    """The recipe of a run of any version: what an older one lacks are the defaults."""
    known = {field.name for field in fields(Recipe)}
    content = description["recipe"]
    if unknown := sorted(content.keys() - known):
        raise RunDirectoryError(
            one_line(f"{directory.description}: unknown field {unknown[0]}: of a newer version?")
        )
    try:
        return Recipe(**content)
    except (RecipeError, TypeError) as error:  # TypeError: a text is compared with a number
        raise RunDirectoryError(one_line(f"{directory.description}: damaged: {error}")) from None


def _read_data(
    directory: RunDirectory, description: Mapping[str, Any]
) -> tuple[tuple[str, ...], Normalize]:
    """Names of the classes, and the normalisation."""
    data = description["data"]
    if missing := [key for key in ("class_names", "mean", "std") if key not in data]:
        raise RunDirectoryError(
            f"{directory.description} lacks {', '.join(missing)}: it was written by an older "
            "version; train-cifar --resume with its data adds them"
        )
    names, mean, std = data["class_names"], data["mean"], data["std"]
    is_right = isinstance(names, list) and all(isinstance(name, str) for name in names)
    for values in (mean, std):
        is_right &= isinstance(values, list) and len(values) == 3
        is_right = is_right and all(isinstance(v, float | int) and 0 <= v <= 1 for v in values)
    if not is_right:
        raise RunDirectoryError(
            f"{directory.description}: damaged: class_names must be texts, mean and std three "
            "numbers from 0 to 1; train-cifar --resume writes it again"
        )
    return tuple(names), Normalize(tuple(mean), tuple(std))


def _explain_missing_weights(directory: RunDirectory) -> str:
    status = directory.read_status()["status"]
    remedy = {
        "running": "wait for its end",
        "finished": "train-cifar --resume writes it again",
        "non-finite": "train with a lower --max-lr, in another folder",
    }.get(status, "train-cifar --resume brings it to its end")
    return f"{directory.path} has no model.safetensors: the run is {status}: {remedy}"
