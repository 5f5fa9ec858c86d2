"""The original notebook's model.

Shape letters: B images of a batch, C channels, H and W height and width, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultimus_ignite.modules.ultimus_block import UltimusBlock

SHRINKAGE = 6  # three 3x3 convolutions without padding take a border of 1 pixel each


def _windows(size: int, window: int) -> Tensor:
    """A (size - window + 1, size) matrix: row i is 1 in the i-th window, else 0."""
    starts = torch.arange(size - window + 1).unsqueeze(1)
    positions = torch.arange(size)
    return ((positions >= starts) & (positions < starts + window)).float()


class UltimusNet(nn.Module):
    """Three convolutions, average pooling, `UltimusBlock` four times, a linear classifier.

    Without a non-linearity between them, the convolutions are one 7x7 convolution, and pooling
    commutes with it: the mean over the 26x26 outputs equals one 7x7 kernel applied to the 3x7x7
    image whose pixel (i, j) is the mean of the input's 26x26 window at offset (i, j). Multiply-adds
    per image: in the notebook's order 16x27x30x30 + 32x144x28x28 + 48x288x26x26 = 13.3 million;
    pooled first 3x7x32x32 + 3x7x7x32 for the window means and 48x147 for the kernel = 33 thousand.
    The kernel itself takes 3x16x32x5x5x9 + 3x32x48x7x7x9 = 2.4 million, once per batch.

    These figures are for 32x32 pixels. In an image of S x S the outputs and the windows are S - 6
    wide; the parameters stay the same.

    Each block is used as ``x + block(norm(x))`` with a norm without parameters, because the plain
    stack of four blocks diverges at the notebook's learning rate.

    Args:
        num_classes: number of logits.
        image_size: height and width of the images in pixels, 7 or more.
        pool_first: pool before the convolutions; False: after them, as in the notebook. Both give
            the same outputs and gradients up to rounding, and share one ``state_dict``.

    Raises:
        ValueError: ``image_size`` is below 7, or the images have another size or number of
            channels.

    Shape:
        ``(B, 3, image_size, image_size) -> (B, num_classes)``

    Example:
        >>> model = UltimusNet()
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in model.parameters())
        25786
    """

    def __init__(
        self, *, num_classes: int = 10, image_size: int = 32, pool_first: bool = True
    ) -> None:
        super().__init__()
        if image_size <= SHRINKAGE:
            raise ValueError(f"image_size must be {SHRINKAGE + 1} or more, got {image_size}")
        self.image_size = image_size
        self.feature_map_size = image_size - SHRINKAGE
        self.pool_first = pool_first
        self.conv1 = nn.Conv2d(3, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.conv3 = nn.Conv2d(32, 48, 3)
        self.pool = nn.AvgPool2d(self.feature_map_size)
        self.blocks = nn.ModuleList(UltimusBlock(48, 8) for _ in range(4))
        self.classifier = nn.Linear(48, num_classes)
        # Zeros and a power of two are exact in every dtype, and with about 1 / size the sums of
        # large images do not overflow float16. Two matrix products, rows first, take 0.9 ms per
        # batch of 512; two average poolings take 6 ms.
        self.windows: Tensor
        self.window_weight = 2.0 ** (1 - self.feature_map_size.bit_length())
        windows = self.window_weight * _windows(image_size, self.feature_map_size)
        self.register_buffer("windows", windows, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ValueError(
                f"UltimusNet(image_size={self.image_size}) takes images of shape "
                f"(B, 3, {self.image_size}, {self.image_size}), got {tuple(images.shape)}"
            )
        x = self.features(images)  # (B, 48)
        for block in self.blocks:
            x = x + block(F.layer_norm(x, x.shape[-1:]))
        logits: Tensor = self.classifier(x)
        return logits

    def features(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W) -> (B, 48)``: outputs of the convolutions, averaged over positions."""
        if not self.pool_first:
            return torch.flatten(self.pool(self.conv3(self.conv2(self.conv1(images)))), 1)
        sums = self.windows @ images @ self.windows.T  # (B, 3, 7, 7)
        means = sums / (self.feature_map_size * self.window_weight) ** 2
        return F.linear(means.flatten(1), *self.joint_convolution())

    def joint_convolution(self) -> tuple[Tensor, Tensor]:
        """The 7x7 convolution that equals the three: flat kernel (48, 147) and bias (48,)."""
        kernel = self.conv1.weight.transpose(0, 1)  # (3, 16, 3, 3)
        bias: Tensor = self.conv1.get_parameter("bias")
        for conv in (self.conv2, self.conv3):
            kernel = F.conv2d(kernel, conv.weight.flip(2, 3), padding=2)
            bias = conv.get_parameter("bias") + conv.weight.sum(dim=(2, 3)) @ bias
        return kernel.transpose(0, 1).flatten(1), bias
