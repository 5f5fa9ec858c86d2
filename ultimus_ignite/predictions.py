"""Which predictions are right, for the kinds of labels that classifiers are trained on."""

from collections.abc import Callable

from torch import Tensor

Rule = Callable[[Tensor, Tensor], Tensor]


class Judge:
    """Says which predictions are right, where that can be said.

    =======================================  =========================================
    Labels                                   Prediction
    =======================================  =========================================
    classes, int ``(B, ...)``                the highest of the logits ``(B, C, ...)``
    shares of C > 1 classes, ``(B, C)``      the class with the highest logit, as the
                                             label's is the one with the highest share
    0 or 1 for each logit, any shape         whether the logit is positive
    =======================================  =========================================

    The rule is found on the first batch of a kind, which waits for the device. Of more than one
    label an image, a negative one does not count, as in ``ignore_index=-100``.

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
        self._rules: dict[tuple[object, ...], Rule | None] = {}

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """bool, one for each label that counts; None for labels as those of a regression.

        Args:
            logits: ``(B, C, ...)``, or one a label.
            labels: as above.
        """
        kind = (labels.dtype, labels.shape[1:], logits.shape[1:])
        if kind not in self._rules:
            self._rules[kind] = _rule(logits, labels)
        rule = self._rules[kind]
        return None if rule is None else rule(logits, labels)


def _rule(logits: Tensor, labels: Tensor) -> Rule | None:
    has_classes = logits.ndim > 1 and logits.shape[1] > 1
    if has_classes and not labels.is_floating_point():
        if logits.ndim == labels.ndim + 1:
            return _class if labels.ndim == 1 else _class_of_each
        if labels.shape[1:] == (1,):
            return lambda logits, labels: _class(logits, labels.squeeze(1))
    if has_classes and logits.shape == labels.shape and labels.ndim == 2 and _are_shares(labels):
        return lambda logits, labels: _class(logits, labels.argmax(dim=1))
    if logits.numel() == labels.numel() and bool(((labels == 0) | (labels == 1)).all()):
        return lambda logits, labels: (logits.reshape(labels.shape) > 0) == (labels > 0.5)
    return None


def _are_shares(labels: Tensor) -> bool:
    return bool((labels.sum(dim=1) - 1).abs().max() < 1e-3)


def _class(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.argmax(dim=1) == labels


def _class_of_each(logits: Tensor, labels: Tensor) -> Tensor:
    return _class(logits, labels)[labels >= 0]
