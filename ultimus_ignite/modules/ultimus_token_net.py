"""A small model whose block attends over positions of the image.

Shape letters: B images of a batch, C channels, H and W height and width, D features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ultimus_ignite.modules.ultimus_block import UltimusBlock


class UltimusTokenNet(nn.Module):
    """Three convolutions that are applied several times each, and attention over the last tokens.

    ::

        16x16  4x4 convolution to widths[0], stride 2; a residual convolution, three times
         8x8   gated pooling; 1x1 convolution to widths[1]; two residual convolutions, twice each
         4x4   gated pooling; attention over the 16 tokens
         2x2   gated pooling, linear classifier of all 4 x D numbers

    The residual convolutions are depthwise-separable (Howard et al. 2017,
    https://arxiv.org/abs/1704.04861): 9 C + C C weights instead of 9 C C. Each is applied several
    times with the same weights and norms of its own, see `RepeatedConvolution`: depth without
    parameters. The block is used as ``tokens + block(LayerNorm(tokens))``. This is at 32 pixels.
    Each pooling halves the sides and rounds down, but the last, which gives 2x2 of any size; so 8
    pixels are the least, and at S pixels there are (S // 8) squared tokens.

    Args:
        num_classes: number of logits.
        widths: channels at a half of the image's side, and at a quarter and an eighth: D.
        key_dim: key dimensions of the block.

    Raises:
        ValueError: the images do not have 3 channels, or a side is below 8 pixels.

    Shape:
        ``(B, 3, H, W) -> (B, num_classes)``, H and W 8 or more.

    Example:
        >>> model = UltimusTokenNet()
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in model.parameters())
        24442
    """

    def __init__(
        self, *, num_classes: int = 10, widths: tuple[int, int] = (48, 64), key_dim: int = 8
    ) -> None:
        super().__init__()
        first, dim = widths
        self.stages = nn.Sequential(
            nn.Conv2d(3, first, 4, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.SiLU(),
            RepeatedConvolution(first, times=3),
            GatedPool(first),
            nn.Conv2d(first, dim, 1, bias=False),
            nn.BatchNorm2d(dim),
            RepeatedConvolution(dim, times=2),
            RepeatedConvolution(dim, times=2),
            GatedPool(dim),
            TokenAttention(dim, key_dim),
        )
        self.pool = GatedPool(dim, size=2)
        self.classifier = nn.Linear(4 * dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 8:
            raise ValueError(
                "UltimusTokenNet takes images of shape (B, 3, H, W), H and W 8 or more, "
                f"got {tuple(images.shape)}"
            )
        # In channels-last layout the tokens are a view of the feature map.
        x = self.stages(images.contiguous(memory_format=torch.channels_last))
        logits: Tensor = self.classifier(self.pool(x).flatten(1))
        return logits


class RepeatedConvolution(nn.Module):
    """``x + f(x)`` several times: f has the same weights each time, and norms of its own.

    f is a depthwise 3x3 convolution and a 1x1 convolution, each with BatchNorm and SiLU. Norms of
    their own let the applications differ (as in recurrent nets that share weights over depth, Liao
    and Poggio 2016, https://arxiv.org/abs/1604.03640).

    Shape:
        ``(B, C, H, W) -> (B, C, H, W)``
    """

    def __init__(self, channels: int, *, times: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.inner_norms, self.outer_norms = (
            nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(times)) for _ in range(2)
        )
        self.activation = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        for inner, outer in zip(self.inner_norms, self.outer_norms, strict=True):
            y = self.activation(inner(self.depthwise(x)))
            x = x + self.activation(outer(self.pointwise(y)))
        return x


class GatedPool(nn.Module):
    """The mean of each patch times ``sigmoid(BatchNorm(its maximum))``.

    From TinyVision's model40 (https://github.com/SaptakBhoumik/TinyVision).

    Args:
        channels: C.
        size: height and width of the output; None: half of the input's.
    """

    def __init__(self, channels: int, *, size: int | None = None) -> None:
        super().__init__()
        self.size = size
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        if self.size is None:
            mean, highest = F.avg_pool2d(x, 2), F.max_pool2d(x, 2)
        else:
            mean = F.adaptive_avg_pool2d(x, self.size)
            highest = F.adaptive_max_pool2d(x, self.size)
        return mean * torch.sigmoid(self.norm(highest))


class TokenAttention(nn.Module):
    """``x + block(LayerNorm(x))`` over all positions: ``(B, D, H, W) -> (B, D, H, W)``."""

    def __init__(self, dim: int, key_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.block = UltimusBlock(dim, key_dim, over="tokens")

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, H * W, D)
        tokens = tokens + self.block(self.norm(tokens))
        output: Tensor = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        return output
