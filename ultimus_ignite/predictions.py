"""Which predictions are right, for the kinds of labels that classifiers are trained on."""

from collections.abc import Callable

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
