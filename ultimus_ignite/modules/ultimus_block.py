"""The attention block of the original notebook, as a layer for any model.

Shape letters: B images of a batch, N tokens, D features, K key dimensions.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UltimusBlock(nn.Module):
    """Single-head attention with a narrow key space: queries, keys and values of ``key_dim`` each.

    The output for one image never depends on the other images of its batch.

    Args:
        dim: number of features D of input and output.
        key_dim: number of key dimensions K.
        over: ``"features"``: the K key dimensions of one vector attend to each other, as the
            assignment defines it: ``z = v A``, ``A = softmax(q^T k / sqrt(K))``, a K x K matrix.
            The softmax and ``v A`` sum over the same index, so each number of ``z`` is a weighted
            mean of ``v``. ``"tokens"``: scaled dot-product attention between the N tokens of one
            image (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Raises:
        ValueError: ``dim`` or ``key_dim`` is not positive, or ``over`` is neither of the two.

    Shape:
        ``(..., D) -> (..., D)`` over features, ``(B, N, D) -> (B, N, D)`` over tokens.

    Example:
        >>> import torch
        >>> block = UltimusBlock(48, 8)
        >>> block(torch.zeros(2, 48)).shape
        torch.Size([2, 48])
        >>> sum(p.numel() for p in block.parameters())  # 3 x 48 x 8 + 8 x 48 + 48
        1584
    """

    def __init__(
        self, dim: int, key_dim: int, *, over: Literal["features", "tokens"] = "features"
    ) -> None:
        super().__init__()
        if dim < 1 or key_dim < 1:
            raise ValueError(f"dim and key_dim must be positive, got {dim} and {key_dim}")
        if over not in ("features", "tokens"):
            raise ValueError(f"over must be 'features' or 'tokens', got {over!r}")
        self.over = over
        self.query, self.key, self.value = (nn.Linear(dim, key_dim, bias=False) for _ in range(3))
        self.out = nn.Linear(key_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.key.out_features**-0.5
        if self.over == "tokens":
            # One product instead of three calls of the layers saves 8 % of a training step of
            # `tokens`. The attention is written out, because F.scaled_dot_product_attention makes
            # the block 7 % slower on a CPU (256 x 64 tokens, 8 key dimensions).
            weights = [layer.weight for layer in (self.query, self.key, self.value)]
            q, k, v = F.linear(x, torch.cat(weights)).chunk(3, dim=-1)
            z = (q * scale @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        else:
            # The vectors are the last dimension, which the processor takes 16 float32 at a time:
            # on 512 vectors this halves the time of a batched product with (K, K).
            q, k, v = (
                layer(x).movedim(-1, 0).contiguous() for layer in (self.query, self.key, self.value)
            )  # (K, ...)
            attention = (q * scale).unsqueeze(1) * k.unsqueeze(0)  # (K, K, ...)
            z = (v.unsqueeze(1) * attention.softmax(dim=0)).sum(dim=0).movedim(0, -1)
        output: Tensor = self.out(z)
        return output
