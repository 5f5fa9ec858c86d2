"""Export the model of a run to one file, compared with the model before it is put in place."""

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ultimus_ignite.engines import predict_logits
from ultimus_ignite.errors import one_line
from ultimus_ignite.handlers.support.files import create_folder, sync_folder, write_new_file
from ultimus_ignite.lifecycle.provenance import describe_model
from ultimus_ignite.networks.models import reason
from ultimus_ignite.results.export_formats import FORMATS
from ultimus_ignite.results.export_graph import ExportError, ExportGraph, Input
from ultimus_ignite.results.loaded_run import LoadedRun
from ultimus_ignite.results.sample_images import sample_images

TOLERANCE = 1e-5
"""Of the largest logit, or of 1 if that is more: float32 has seven digits."""
ROUNDINGS = 10
"""A file may also differ by so many times what float32 takes from the model's own logits.

Those of `classic`, up to 5.6, are off by 2e-5; onnxruntime, which adds in another order, differs
from them by 6e-5.
"""


class Export(NamedTuple):
    """A file that gave what the model gives."""

    path: Path
    images: str
    """The images that both were tried on, in words."""
    difference: float
    """Largest absolute difference of an output of the file from that of the model."""
    from_evaluation: float
    """Largest absolute difference of a probability in float32, as in the file, from that of the
    run's evaluations, which have the recipe's precision."""


def export_run(
    run: LoadedRun, path: Path | str, *, file_format: str, input: Input = "float32"
) -> Export:
    """Export the model of a run in float32, for any number of images.

    The file computes what the run's evaluations do: it is mirrored if the recipe says so. It is
    written beside its place, loaded anew, and compared with the model on real images; only then is
    it put in place. Its metadata, a JSON text, have the names of the classes and the normalisation.

    Args:
        run: loaded with ``device="cpu"``.
        path: the file; missing folders are created.
        file_format: a key of `ultimus_ignite.results.export_formats.FORMATS`.
        input: ``float32``: normalised images in, logits out. ``uint8``: raw pixels in,
            probabilities out.

    Raises:
        ExportError: the file exists, a package is missing, the model cannot be exported, or the
            file gives other numbers than the model.
        ValueError: the model is not on the CPU.
        OSError: the file cannot be written.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ultimus_ignite import Recipe, load_run, train
        >>> with TemporaryDirectory() as folder:
        ...     recipe = Recipe(data="digits", epochs=2, device="cpu")
        ...     trained = train(recipe, out=folder)  # doctest: +ELLIPSIS
        ...     run = load_run(folder, device="cpu")
        ...     export = export_run(run, f"{folder}/digits.pt2", file_format="torch-export")
        data: digits, 1437 training and 360 test images of 10 classes
        ...
        >>> export.images, export.difference < 1e-5
        ('100 test images of digits', True)
    """
    path = Path(path)
    if run.device.type != "cpu":
        raise ValueError(f'the model is on {run.device}: load_run(..., device="cpu")')
    if os.path.lexists(path):
        raise ExportError(one_line(f"{path} exists: remove it, or choose another --out"))
    if file_format == "safetensors" and input == "uint8":
        raise ExportError(
            "a safetensors file has weights and no normalisation: leave out --input uint8, "
            "or choose --format onnx or torch-export"
        )
    graph = ExportGraph(
        run.model,
        normalize=run.normalize if input == "uint8" else None,
        mirror=run.recipe.mirror,
        image_size=run.recipe.image_size,
    )
    encode, load = FORMATS[file_format]
    content = encode(graph, describe_export(run, input))
    pixels, words = sample_images(run)
    create_folder(path.absolute().parent)
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)  # left by a process killed while writing
    try:
        write_new_file(temporary, content)
        difference, from_evaluation = _compare(run, graph, pixels, lambda: load(temporary, graph))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.absolute().parent)
    return Export(path, words, difference, from_evaluation)


def describe_export(run: LoadedRun, input: Input) -> Mapping[str, Any]:
    """The metadata of an exported file: what a user of the file needs to know."""
    applied = describe_model(run.recipe, run.classes, run.normalize)
    return {**applied, "mirror": run.recipe.mirror, "input": input}


def _compare(
    run: LoadedRun,
    graph: ExportGraph,
    pixels: Tensor,
    load: Callable[[], Callable[[Tensor], Tensor]],
) -> tuple[float, float]:
    """Largest differences: file from model in its outputs, float32 from the run's evaluations.

    Args:
        run: its model says what is right.
        graph: says what the file takes and gives.
        pixels: uint8 (N, 3, S, S).
        load: makes a function of the written file.

    Raises:
        ExportError: the file cannot be used, or gives other numbers than the model.
    """
    images = run.normalize(pixels)
    logits = predict_logits(run.model, images, mirror=run.recipe.mirror)
    probabilities = logits.softmax(dim=1)
    given, right = images, logits
    if graph.normalize is not None:  # a softmax never makes a difference larger
        given, right = pixels, probabilities
    try:
        apply, counts = load(), (1, 7, len(given))
        with torch.inference_mode():
            found = torch.cat([apply(given[:count]) for count in counts])
        wanted = torch.cat([right[:count] for count in counts])
        difference = float((found - wanted).abs().max())  # NaN if a number is not finite
    except Exception as error:
        raise ExportError(f"the written file cannot be used: {reason(error)}") from error
    allowed = max(
        TOLERANCE * max(1.0, float(logits.abs().max())), ROUNDINGS * _rounding(run, images, logits)
    )
    if not difference <= allowed:
        raise ExportError(
            f"the written file gives other {graph.output_name} than the model: they differ by "
            f"{difference:.1e}, allowed are {allowed:.1e}; nothing is kept"
        )
    from_evaluation = (run.logits(images).softmax(dim=1) - probabilities).abs().max()
    return difference, float(from_evaluation)


def _rounding(run: LoadedRun, images: Tensor, logits: Tensor) -> float:
    """Largest difference of logits in float32 from those in float64; 0 if there is no float64."""
    try:
        model = copy.deepcopy(run.model).double()
        exact = predict_logits(model, images.double(), mirror=run.recipe.mirror)
    except Exception:  # a model of the user may make float32 tensors of its own
        return 0.0
    return float((exact - logits).abs().max())
