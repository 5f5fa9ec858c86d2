"""Which predictions are right, for the kinds of labels that classifiers are trained on."""

from collections.abc import Callable

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor | None]


class Judge:
    """Says which predictions are right, if the labels are those of a classifier.

    =======================================  =========================================
    Labels                                   The prediction is right if
    =======================================  =========================================
    classes, int ``(B, ...)``                the label's class has the highest of the
                                             logits ``(B, C, ...)``
    shares of C > 1 classes, ``(B, C)``      the class with the highest share has the
                                             highest logit
    0 or 1 for each logit, any shape         the logit is positive exactly for label 1
    =======================================  =========================================

    The first batch of each kind waits for the device, to choose the rule. If an image has more than
    one class label, negative ones do not count, as in ``ignore_index=-100``.

    Example:
        >>> import torch
        >>> judge = Judge()
        >>> judge(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        tensor([ True, False])
        >>> judge(torch.tensor([[2.0], [3.0]]), torch.tensor([0.0, 1.0]))
        tensor([False,  True])
        >>> judge(torch.tensor([[2.0], [3.0]]), torch.tensor([[4.2], [1.7]])) is None
        True
    """

    def __init__(self) -> None:
        self._rules: dict[tuple[object, ...], Rule] = {}

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """One bool for each label that counts; None if the labels are not those of a classifier."""
        kind = (labels.dtype, labels.shape[1:], logits.shape[1:])
        if kind not in self._rules:
            self._rules[kind] = _rule(logits, labels)
        return self._rules[kind](logits, labels)


def _rule(logits: Tensor, labels: Tensor) -> Rule:
    has_classes = logits.ndim > 1 and logits.shape[1] > 1
    if has_classes and not labels.is_floating_point():
        if logits.ndim == labels.ndim + 1:
            if labels.ndim == 1:
                return _class
            return lambda logits, labels: _class(logits, labels)[labels >= 0]
        if labels.shape[1:] == (1,):
            return lambda logits, labels: _class(logits, labels.squeeze(1))
    if has_classes and logits.shape == labels.shape and labels.ndim == 2:
        sums = labels.sum(dim=1)
        if bool((sums - 1).abs().max() < 1e-3):  # shares
            return lambda logits, labels: _class(logits, labels.argmax(dim=1))
    if logits.numel() == labels.numel() and bool(((labels == 0) | (labels == 1)).all()):
        return lambda logits, labels: (logits.reshape(labels.shape) > 0) == (labels > 0.5)
    return lambda logits, labels: None


def _class(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) == labels


class ClassifierMetrics(Metric):
    """Loss, accuracy and number of labels of an evaluation, over all ranks by a single sum.

    Args:
        loss_fn: ``(logits, labels) -> 0-d loss``, a mean over the batch; not asked about none.
        device: of the logits.

    Raises:
        ValueError: the labels are not those of a classifier, or the loss is not a mean.
        NotComputableError: there was no label.
    """

    def __init__(self, loss_fn: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> None:
        self._loss_fn = loss_fn
        self._judge = Judge()
        super().__init__(device=device)

    def reset(self) -> None:
        widest = torch.float32 if self._device.type == "mps" else torch.float64
        self._loss, self._right = torch.zeros(2, dtype=widest, device=self._device)
        self._images = self._labels = 0

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        logits, labels = output
        right = self._judge(logits, labels)
        if right is None:
            raise ValueError(
                f"create_evaluator measures classifiers, got {labels.dtype} labels "
                f"{tuple(labels.shape)} for logits {tuple(logits.shape)}: write your own evaluator"
            )
        if count := len(labels):  # of none, the mean is NaN
            loss = self._loss_fn(logits, labels)
            if loss.ndim:
                raise ValueError(f"loss_fn must return a mean, got {tuple(loss.shape)}")
            self._loss += loss * count
        self._right += right.sum()
        self._images += count
        self._labels += right.numel()

    def compute(self) -> dict[str, float]:
        counts = self._loss.new_tensor([self._images, self._labels])
        totals = idist.all_reduce(torch.cat([torch.stack([self._loss, self._right]), counts]))
        loss, right, images, labels = totals.tolist()  # type: ignore[union-attr]
        if not labels:
            raise NotComputableError("there was no label to evaluate")
        return {"loss": loss / images, "accuracy": right / labels, "count": int(labels)}

    def completed(self, engine: Engine, name: str) -> None:
        """As Ignite's, without an entry for all metrics together."""
        engine.state.metrics.update(self.compute())
