"""What an exported file computes: the model of a run together with what its evaluations do.

B: images of a batch. S: side of the images. C: number of classes.
"""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ultimus_ignite.data.augment import Normalize
from ultimus_ignite.errors import UserError, one_line
from ultimus_ignite.networks.models import reason

Input = Literal["float32", "uint8"]
"""``float32``: normalised images, to logits. ``uint8``: raw pixels, to probabilities."""


class ExportError(UserError):
    """The model cannot be exported; the message says why."""


class ExportGraph(nn.Module):
    """A model with the steps before and after it, which leave a user of the file nothing to do.

    Args:
        model: in eval mode, normalised images to logits, on the CPU.
        normalize: uint8 images to normalised ones; None if the graph takes normalised ones and
            gives logits, instead of raw pixels and probabilities.
        mirror: use the mean of the logits of each image and its mirror image.
        image_size: S, in pixels.

    Shape:
        ``(B, 3, S, S) -> (B, C)``

    Example:
        >>> flat = nn.Flatten()
        >>> graph = ExportGraph(flat, normalize=None, mirror=True, image_size=2)
        >>> graph(torch.tensor([[[[1.0, 3.0]]]]))
        tensor([[2., 2.]])
    """

    def __init__(
        self, model: nn.Module, *, normalize: Normalize | None, mirror: bool, image_size: int
    ) -> None:
        super().__init__()
        self.model = model
        self.normalize = normalize
        self.mirror = mirror
        dtype = torch.float32 if normalize is None else torch.uint8
        # Zeros, because torch.export.save writes its example into the file.
        self.example = torch.zeros(2, 3, image_size, image_size, dtype=dtype)
        self.eval()

    @property
    def output_name(self) -> str:
        """What the graph gives."""
        return "logits" if self.normalize is None else "probabilities"

    def forward(self, images: Tensor) -> Tensor:
        if self.normalize is not None:
            images = self.normalize(images)
        logits: Tensor = self.model(images)
        if self.mirror:
            logits = (logits + self.model(images.flip(-1))) / 2
        return logits if self.normalize is None else logits.softmax(dim=1)

    def trace(self) -> ExportedProgram:
        """The operations of `forward` for any number of images, without paths of this machine.

        Raises:
            ExportError: torch.export cannot trace the model, or only for one number of images.
        """
        try:
            self(self.example)  # Normalize keeps its tensors: those of a trace would be no numbers
            with quiet():
                batch = {0: Dim("batch")}
                program = torch.export.export(self, (self.example,), dynamic_shapes=(batch,))
        except Exception as error:
            name = type(self.model).__name__
            raise ExportError(
                one_line(f"torch.export cannot trace {name}: {reason(error)}")
            ) from error
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
        return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings and logs of torch's exporters: what counts is checked on the file."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
