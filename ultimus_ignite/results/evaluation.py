"""What the model of a run is worth on labelled images.

N: number of images. C: number of classes. S: side of the images.
"""

from dataclasses import dataclass

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EpochOutputStore
from ignite.metrics import ConfusionMatrix, Fbeta, Precision, Recall, TopKCategoricalAccuracy
from torch import Tensor

from ultimus_ignite.data.progress import Progress
from ultimus_ignite.data.rows import Images
from ultimus_ignite.data.stream import EvaluationBatches
from ultimus_ignite.engines import create_evaluator
from ultimus_ignite.machine.devices import autocast_dtype
from ultimus_ignite.results.interval import wilson_interval
from ultimus_ignite.results.loaded_run import LoadedRun

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ClassScores:
    """How one class is recognised; a share of nothing is 0."""

    precision: float
    """Share of the images predicted to be of this class that are of this class, in [0, 1]."""
    recall: float
    """Share of the images of this class that are predicted to be of this class, in [0, 1]."""
    f1: float
    """Harmonic mean of both, in [0, 1]."""
    count: int
    """Images of this class."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """What a model is worth on N labelled images."""

    accuracy: float
    """Share of the images whose class has the highest logit, in [0, 1]."""
    interval: tuple[float, float]
    """Wilson's 95 % interval of the accuracy: what other images of the same kind would give."""
    loss: float
    """Mean cross-entropy."""
    count: int
    """N."""
    per_class: dict[str, ClassScores]
    """By the name of the class, in the order of the run's classes."""
    top5: float | None
    """Share of the images whose class is among the five most probable, in [0, 1]; None unless there
    are more than ten classes."""
    calibration_error: float
    """Expected calibration error, in [0, 1], see `calibration_error`."""
    confusion: Tensor
    """int64 (C, C): how many images of the class of the row are predicted to be of the class of the
    column."""
    probabilities: Tensor
    """float32 (N, C), in the order of the images; each row sums to one."""
    labels: Tensor
    """int64 (N,), the class of each image."""


def evaluate(run: LoadedRun, images: Images, labels: Tensor) -> Evaluation:
    """Measure the model of a run, as the evaluations of the run do.

    Batches, normalisation, precision and mirror are those of the run, so that its own test images
    give the loss and the accuracy of its log to the last digit, on the same device. A model that
    was compiled for training is not compiled here, which may change the last digits.

    Args:
        run: the run.
        images: uint8 (N, 3, S, S), N > 0.
        labels: int64 (N,), positions in ``run.classes``.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from ultimus_ignite import Recipe, load_run, train
        >>> from ultimus_ignite.data.sources import load
        >>> with TemporaryDirectory() as folder:
        ...     recipe = Recipe(data="digits", epochs=2, device="cpu")
        ...     trained = train(recipe, out=folder)  # doctest: +ELLIPSIS
        ...     digits = load("digits", folder)
        ...     evaluation = evaluate(load_run(folder), digits.test_images, digits.test_labels)
        data: digits, 1437 training and 360 test images of 10 classes
        ...
        >>> evaluation.accuracy == trained.history.rows[-1]["test_accuracy"]
        True
        >>> evaluation.per_class["7"].count
        36
    """
    batches = EvaluationBatches(
        images,
        labels,
        batch_size=run.recipe.batch_size,
        normalize=run.normalize,
        device=run.device,
    )
    evaluator, outputs = _create_evaluator(run)
    with Progress(len(batches), "evaluating", "batches") as progress:
        evaluator.add_event_handler(Events.ITERATION_COMPLETED, progress.update)
        metrics = evaluator.run(batches).metrics
    probabilities = torch.cat(outputs.data)
    confusion = metrics["confusion"].cpu()
    scores = zip(
        *(metrics[name].tolist() for name in ("precision", "recall", "f1")),
        confusion.sum(dim=1).tolist(),
        strict=True,
    )
    return Evaluation(
        accuracy=metrics["accuracy"],
        interval=wilson_interval(int(confusion.trace()), len(labels)),
        loss=metrics["loss"],
        count=metrics["count"],
        per_class={c: ClassScores(*s) for c, s in zip(run.classes, scores, strict=True)},
        top5=metrics.get("top5"),
        calibration_error=calibration_error(probabilities, labels.cpu()),
        confusion=confusion,
        probabilities=probabilities,
        labels=labels.cpu(),
    )


def calibration_error(probabilities: Tensor, labels: Tensor) -> float:
    """By how much the probability of the predicted class misses the share that is right.

    The mean difference of both over 15 bins of equal width, weighted by the images of each bin
    (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        probabilities: (N, C), N > 0; each row sums to one.
        labels: int64 (N,).

    Returns:
        In [0, 1]; 0 if, say, of the predictions that are 80 % sure 80 % are right.

    Example:
        >>> sure = torch.tensor([[0.75, 0.25]] * 4)
        >>> calibration_error(sure, torch.tensor([0, 0, 0, 1]))
        0.0
        >>> calibration_error(sure, torch.tensor([0, 1, 1, 1]))
        0.5
    """
    confidence, predicted = probabilities.double().max(dim=1)
    surplus = (predicted == labels).double() - confidence
    bins = (confidence * CALIBRATION_BINS).long().clamp_max(CALIBRATION_BINS - 1)
    sums = torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add(0, bins, surplus)
    return float(sums.abs().sum()) / len(labels)


def _create_evaluator(run: LoadedRun) -> tuple[Engine, EpochOutputStore]:
    """The evaluator of the run with more metrics, and what keeps the probabilities."""
    evaluator = create_evaluator(
        run.model,
        device=run.device,
        autocast_dtype=autocast_dtype(run.recipe),
        mirror=run.recipe.mirror,
    )
    precision, recall = Precision(device=run.device), Recall(device=run.device)
    precision.attach(evaluator, "precision")
    recall.attach(evaluator, "recall")
    Fbeta(1, average=False, precision=precision, recall=recall).attach(evaluator, "f1")
    ConfusionMatrix(len(run.classes), device=run.device).attach(evaluator, "confusion")
    if len(run.classes) > 10:
        TopKCategoricalAccuracy(5, device=run.device).attach(evaluator, "top5")
    outputs = EpochOutputStore(lambda output: output[0].softmax(dim=1).cpu())
    outputs.attach(evaluator)
    return evaluator, outputs
