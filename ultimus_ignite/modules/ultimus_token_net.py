"""A model whose blocks attend over positions of the image, before global pooling.

Shape letters: B images of a batch, C channels, H and W height and width, D features.
"""

import torch
from torch import Tensor, nn

from ultimus_ignite.modules.ultimus_block import UltimusBlock


class UltimusTokenNet(nn.Module):
    """Convolutions to a quarter of the image's side, then four `UltimusBlock`s over the tokens.

    ::

        32x32  3x3 convolution to widths[0]
        16x16  convolution to widths[1], stride 2; two residual ones
         8x8   convolution to widths[2], stride 2
         8x8   twice: a residual convolution; attention over the 64 tokens
         4x4   average pooling; twice: a residual convolution; attention over the 16 tokens
               mean of the normalised tokens, linear classifier

    All convolutions but the first are depthwise-separable (Howard et al. 2017,
    https://arxiv.org/abs/1704.04861): 9 C + C C' weights instead of 9 C C'. Each ends in BatchNorm
    and SiLU. Each block is used as ``tokens + block(LayerNorm(tokens))``. The padded convolutions
    tell a token its position, without the 64 x 48 parameters of positional embeddings. An image of
    another size gives (H/4) x (W/4) tokens, then a quarter of them.

    Args:
        num_classes: number of logits.
        widths: channels at each resolution; the last is the D of the blocks.
        key_dim: key dimensions of each block.

    Raises:
        ValueError: the images do not have 3 channels, or a side is not a multiple of 8 pixels.

    Shape:
        ``(B, 3, H, W) -> (B, num_classes)``, H and W multiples of 8.

    Example:
        >>> model = UltimusTokenNet()
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> sum(p.numel() for p in model.parameters())
        24490
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        widths: tuple[int, int, int] = (16, 32, 48),
        key_dim: int = 8,
    ) -> None:
        super().__init__()
        first, second, dim = widths
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.SiLU(),
            _separable(first, second, stride=2),
            Residual(_separable(second, second)),
            Residual(_separable(second, second)),
            _separable(second, dim, stride=2),
        )
        self.stages = nn.Sequential()
        for stage in range(4):
            if stage == 2:
                self.stages.append(nn.AvgPool2d(2))
            self.stages.append(Residual(_separable(dim, dim)))
            self.stages.append(TokenAttention(dim, key_dim))
        self.norm = nn.LayerNorm(dim)
        self.classifier = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or any(n % 8 for n in images.shape[2:]):
            raise ValueError(
                "UltimusTokenNet takes images of shape (B, 3, H, W), H and W multiples of 8, "
                f"got {tuple(images.shape)}"
            )
        # In channels-last layout the tokens are a view of the feature map.
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.stages(self.stem(x))  # (B, D, H/8, W/8)
        tokens = self.norm(_tokens(x))  # before the mean: the gradient is channels last, too
        logits: Tensor = self.classifier(tokens.mean(dim=1))
        return logits


class TokenAttention(nn.Module):
    """``x + block(LayerNorm(x))`` over all positions: ``(B, D, H, W) -> (B, D, H, W)``."""

    def __init__(self, dim: int, key_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.block = UltimusBlock(dim, key_dim, over="tokens")

    def forward(self, x: Tensor) -> Tensor:
        tokens = _tokens(x)
        tokens = tokens + self.block(self.norm(tokens))
        output: Tensor = tokens.transpose(1, 2).unflatten(2, x.shape[2:])
        return output


class Residual(nn.Module):
    """``x + inner(x)``"""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.inner(x)
        return output


def _separable(channels: int, out: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, out, 1, bias=False),
        nn.BatchNorm2d(out),
        nn.SiLU(),
    )


def _tokens(x: Tensor) -> Tensor:
    """``(B, D, H, W) -> (B, H * W, D)``"""
    return x.flatten(2).transpose(1, 2)
