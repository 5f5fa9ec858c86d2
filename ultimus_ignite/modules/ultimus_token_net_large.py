"""The token net without a limit on parameters: it trains within an hour on two cores.

Shape letters: B images of a batch, C channels, H and W height and width.
"""

import torch
from torch import Tensor, nn

from ultimus_ignite.modules.ultimus_token_net import TokenAttention


class UltimusTokenNetLarge(nn.Module):
    """Three times two convolutions and a max-pool; attention over the tokens of the last two.

    ::

        31x31  2x2 convolution to 24 channels
        15x15  convolution to widths[0], max-pool; convolution
         7x7   convolution to widths[1], max-pool; convolution; attention over 49 tokens
         3x3   convolution to widths[2], max-pool; convolution; attention over 9 tokens
               max over the positions, linear classifier

    This is at 32 pixels. After the first convolution, each max-pool halves the sides and rounds
    down, so that 9 pixels are the least; at S pixels the last tokens are (S - 1) // 8 squared.

    From airbench94 (Jordan 2024, https://arxiv.org/abs/2404.00498): the widths, the order of pool
    and norm, and the 3x3 convolutions that start as the identity. The attention is added.

    Args:
        num_classes: number of logits.
        widths: channels at each resolution.
        key_dim: key dimensions of each block.

    Raises:
        ValueError: the images do not have 3 channels, or a side is below 9 pixels.

    Shape:
        ``(B, 3, H, W) -> (B, num_classes)``, H and W 9 or more.

    Example:
        >>> model = UltimusTokenNetLarge()
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        widths: tuple[int, int, int] = (64, 256, 256),
        key_dim: int = 32,
    ) -> None:
        super().__init__()
        first, second, third = widths
        self.stages = nn.Sequential(
            nn.Conv2d(3, 24, 2, bias=False),
            nn.GELU(),
            *_convolutions(24, first),
            *_convolutions(first, second),
            TokenAttention(second, key_dim),
            *_convolutions(second, third),
            TokenAttention(third, key_dim),
        )
        self.classifier = nn.Linear(third, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < 9:
            raise ValueError(
                "UltimusTokenNetLarge takes images of shape (B, 3, H, W), H and W 9 or more, "
                f"got {tuple(images.shape)}"
            )
        x = images.contiguous(memory_format=torch.channels_last)
        x = self.stages(x)  # (B, C, H', W')
        logits: Tensor = self.classifier(x.amax(dim=(2, 3)))
        return logits


def _convolutions(channels: int, out: int) -> list[nn.Module]:
    return [
        _identity(channels, out),
        nn.MaxPool2d(2),  # before norm and activation, to leave them a quarter of the work
        nn.BatchNorm2d(out),
        nn.GELU(),
        _identity(out, out),
        nn.BatchNorm2d(out),
        nn.GELU(),
    ]


def _identity(channels: int, out: int) -> nn.Conv2d:
    """A 3x3 convolution that starts as the identity; its additional channels start random."""
    convolution = nn.Conv2d(channels, out, 3, padding=1, bias=False)
    nn.init.dirac_(convolution.weight.data[:channels])
    return convolution
