"""Trainer and evaluator Engines for any `nn.Module` and any iterable of (images, labels)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import reduce
from typing import Any

import ignite.distributed as idist
import torch
import torch.nn.functional as F
from ignite.engine import Engine
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from ultimus_ignite.distributed.step import begin_sum, split
from ultimus_ignite.machine.devices import select_device
from ultimus_ignite.predictions import ClassifierMetrics, Judge
from ultimus_ignite.seeding import derive_seed

LossFn = Callable[[Tensor, Tensor], Tensor]


def create_trainer(
    model: nn.Module,
    optimizer: Optimizer,
    loss_fn: LossFn = F.cross_entropy,
    *,
    device: str | torch.device = "auto",
    seed: int | None = None,
    max_grad_norm: float | None = None,
    accumulation_steps: int = 1,
    autocast_dtype: torch.dtype | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Engine:
    """An Engine that trains ``model`` on batches of (images, labels).

    Args:
        model: ``images -> logits (B, classes)``; moved to the device. In `DistributedDataParallel`
            each process gets its share of a batch; a batch with a number ``total``, see
            `ultimus_ignite.data.stream.Batch`, may have shares of different sizes, even empty ones.
        optimizer: over the model's parameters.
        loss_fn: ``(logits, labels) -> 0-d loss``, a mean over the batch.
        device: the batches are moved to it, see `select_device`.
        seed: seeds torch before each step from (seed, iteration), so that dropout draws the same in
            a resumed run, and makes cuDNN deterministic; neither if None.
        max_grad_norm: gradients above this 2-norm are scaled down to it; never if None.
        accumulation_steps: number of parts that each batch is split into, to save memory; one
            iteration is still one optimizer step.
        autocast_dtype: precision of the forward pass, see `torch.autocast`; no autocast if None.
        scaler: keeps small float16 gradients from vanishing.

    Returns:
        An Engine whose output is ``{"loss", "correct", "count"}``: two 0-d tensors that stay on the
        device, and the number of labels, one per image or per pixel. ``correct`` is left out if
        the labels are not those of a classifier, see `Judge`. They are of the whole batch, on
        every process.

    Raises:
        ValueError: there is no such device.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> trainer = create_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> batches = [(torch.ones(8, 1, 2, 2), torch.zeros(8, dtype=torch.long))]
        >>> trainer.run(batches, max_epochs=20).output["correct"].item()
        8
    """
    device = select_device(device)
    model.to(device)
    judge = Judge()
    in_training: list[nn.Module] = []  # modules in training mode at the first step
    scaler = scaler or torch.amp.GradScaler(device.type, enabled=False)
    repeatable = nullcontext if seed is None or device.type != "cuda" else _deterministic_cudnn
    ranks = idist.get_world_size() if isinstance(model, DistributedDataParallel) else 1
    purpose = f"step of rank {rank}" if ranks > 1 and (rank := idist.get_rank()) else "step"

    def update(engine: Engine, batch: Any) -> dict[str, Any]:
        images, labels = (x.to(device, non_blocking=True) for x in (batch[0], batch[1]))
        if seed is not None:
            _seed_torch(derive_seed(seed, purpose, engine.state.iteration - 1), device)
        if not model.training:  # left so by an evaluator or, before the first step, by the user
            for module in in_training or model.train().modules():
                module.training = True
        if not in_training:
            in_training.extend(module for module in model.modules() if module.training)
        optimizer.zero_grad()
        losses, right = [], []
        total = getattr(batch, "total", ranks * len(labels)) if ranks > 1 else len(labels)
        for x, y in split(images, labels, accumulation_steps, total, ranks):
            with repeatable():
                with _autocast(device, autocast_dtype):
                    logits = model(x)
                    # Of an empty share all gradients are zero.
                    mean = loss_fn(logits, y) if len(y) else logits.sum()
                    loss = mean * (len(y) * ranks / total)  # the gradients are means over ranks
                scaler.scale(loss).backward()
            losses.append(loss.detach())
            right.append(judge(logits.detach(), y))
        if max_grad_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), max_grad_norm)
        output = _output(losses, right, len(labels))
        if ranks > 1:  # summed while the step runs
            labels_are_images = output["count"] == len(labels)
            finish = begin_sum(output, ranks, total if labels_are_images else None)
        scaler.step(optimizer)
        scaler.update()
        return finish() if ranks > 1 else output

    return Engine(update)


def _output(losses: list[Tensor], right: list[Tensor | None], count: int) -> dict[str, Any]:
    """The output of the trainer's step, from the parts of a batch."""
    output = {"loss": reduce(torch.add, losses), "count": count}
    known = [hits for hits in right if hits is not None]
    if len(known) == len(right):
        output["correct"] = reduce(torch.add, (hits.sum() for hits in known))
        output["count"] = sum(hits.numel() for hits in known)
    return output


def create_evaluator(
    model: nn.Module,
    loss_fn: LossFn = F.cross_entropy,
    *,
    device: str | torch.device = "auto",
    autocast_dtype: torch.dtype | None = None,
    mirror: bool = False,
) -> Engine:
    """An Engine that measures ``model`` in eval mode and then restores each module's mode.

    Args:
        model: moved to the device.
        loss_fn: ``(logits, labels) -> 0-d loss``, a mean over the batch.
        device: see `select_device`.
        autocast_dtype: precision of the forward pass; the metrics are computed in float32.
        mirror: use the mean of the logits of each image and its mirror image.

    Returns:
        An Engine whose output is ``(logits, labels)`` and whose metrics are ``loss`` (mean over
        samples), ``accuracy`` in [0, 1] and ``count``, over all processes; a process may have
        batches without images.

    Raises:
        ValueError: there is no such device.

    Example:
        >>> evaluator = create_evaluator(nn.Flatten(), device="cpu")
        >>> batches = [(torch.eye(2), torch.tensor([0, 1])), (torch.eye(2)[:1], torch.tensor([1]))]
        >>> metrics = evaluator.run(batches).metrics
        >>> round(metrics["accuracy"], 3), metrics["count"]
        (0.667, 3)
    """
    device = select_device(device)
    model.to(device)

    def update(engine: Engine, batch: Any) -> tuple[Tensor, Tensor]:
        images, labels = (x.to(device, non_blocking=True) for x in (batch[0], batch[1]))
        some = images if len(images) else images.new_zeros(1, *images.shape[1:])
        logits = predict_logits(model, some, autocast_dtype=autocast_dtype, mirror=mirror)
        return logits[: len(images)], labels

    evaluator = Engine(update)
    ClassifierMetrics(loss_fn, device=device).attach(evaluator, "")
    return evaluator


def predict_logits(
    model: nn.Module,
    images: Tensor,
    *,
    autocast_dtype: torch.dtype | None = None,
    mirror: bool = False,
) -> Tensor:
    """The logits of a model in eval mode; afterwards each module has its own mode again.

    Args:
        model: ``images -> logits (B, classes)``.
        images: ``(B, ...)``, on the device of the model.
        autocast_dtype: precision of the forward pass, see `torch.autocast`; no autocast if None.
        mirror: the mean of the logits of each image and its mirror image.

    Returns:
        float32 ``(B, classes)``, an inference tensor.

    Example:
        >>> predict_logits(nn.Flatten(), torch.tensor([[1.0, 3.0]]), mirror=True)
        tensor([[2., 2.]])
    """
    with evaluating(model), torch.inference_mode(), _autocast(images.device, autocast_dtype):
        logits: Tensor = model(images).float()
        if mirror:
            logits = (logits + model(images.flip(-1)).float()) / 2
        return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards each module has its own mode again, so frozen ones stay frozen."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextmanager
def _deterministic_cudnn() -> Iterator[None]:
    """Make cuDNN sum the gradients of a float32 convolution in the same order each time."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.benchmark
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = before


def _seed_torch(seed: int, device: torch.device) -> None:
    # torch.manual_seed visits every backend and takes 80 us per call; this takes 1 us.
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
