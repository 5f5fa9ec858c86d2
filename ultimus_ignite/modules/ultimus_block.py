"""The attention block of the original notebook, as a layer for any model.

Shape letters: B images of a batch, N tokens, D features, K key dimensions.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LONG = 256
"""With more tokens than this the (N, N) weights are not kept in memory.

F.scaled_dot_product_attention computes them piece by piece. Forward and backward on one CPU core,
8 key dimensions, against the weights written out: +13 % time with 64 tokens, -14 % with 256, -25 %
with 576, half with 1,024. A training step of a net with four blocks over 3,136 tokens each, on 16
images, takes 1.6 s instead of 4.7 and 0.8 GB instead of 3.2. In bfloat16 a CPU is slower with
it (64 tokens: 4.6 times; 576: twice; 1,024: 1.1 times) and still needs less memory.
"""


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
            image (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762). With more than 256
            tokens it is torch's own, whose fused kernels have no second derivative; within
            ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` it has one.

    Raises:
        ValueError: ``dim`` or ``key_dim`` is not positive, or ``over`` is neither of the two.

    Shape:
        ``(..., D) -> (..., D)`` over features, ``(B, ..., N, D) -> (B, ..., N, D)`` over tokens.

    Example:
        >>> import torch
        >>> block = UltimusBlock(48, 8)
        >>> block(torch.zeros(2, 48)).shape
        torch.Size([2, 48])
        >>> sum(p.numel() for p in block.parameters())  # 3 x 48 x 8 + 8 x 48 + 48
        1584

        Two sentences of 5 and 3 words, the second one padded:

        >>> block = UltimusBlock(48, 8, over="tokens")
        >>> is_word = torch.arange(5) < torch.tensor([[5], [3]])
        >>> block(torch.zeros(2, 5, 48), mask=is_word[:, None, :]).shape
        torch.Size([2, 5, 48])
    """

    def __init__(
        self, dim: int, key_dim: int, *, over: Literal["features", "tokens"] = "features"
    ) -> None:
        super().__init__()
        if dim < 1 or key_dim < 1:
            raise ValueError(f"dim and key_dim must be positive, got {dim} and {key_dim}")
        if over not in ("features", "tokens"):
            raise ValueError(f"over must be 'features' or 'tokens', got {over!r}")
        self.dim = dim
        self.over = over
        self.query, self.key, self.value = (nn.Linear(dim, key_dim, bias=False) for _ in range(3))
        self.out = nn.Linear(key_dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            x: ``(..., D)`` over features, ``(B, ..., N, D)`` over tokens.
            mask: over tokens only: boolean, broadcast to ``(B, ..., N, N)``. True at ``[n, m]``:
                token n may attend to token m, as in ``F.scaled_dot_product_attention``. A token
                that may attend to none gets zeros.

        Returns:
            The shape of ``x``.

        Raises:
            ValueError: ``x`` has another last dimension than D or no token axis, or the mask is
                not boolean, does not broadcast, or is given over features.
        """
        self._check(x, mask)
        q, k, v = self.query(x), self.key(x), self.value(x)
        if self.over == "features":
            v = _first(v)
            z = (v.unsqueeze(1) * _feature_weights(q, k)).sum(dim=0).movedim(0, -1)
        elif x.shape[-2] <= LONG:
            z = _token_weights(q, k, mask) @ v
        else:
            q, k, v = (y.unsqueeze(-3) for y in (q, k, v))  # one head
            of_the_head = None
            if mask is not None:
                of_the_head = mask[None, None] if mask.dim() == 1 else mask.unsqueeze(-3)
            z = F.scaled_dot_product_attention(q, k, v, attn_mask=of_the_head).squeeze(-3)
        output: Tensor = self.out(z)
        if mask is not None:
            output = output.masked_fill(~mask.any(dim=-1, keepdim=True), 0)
        return output

    def attention(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The weights of the weighted means, for pictures and tests.

        Args:
            x: as for ``forward``.
            mask: as for ``forward``.

        Returns:
            ``(..., K, K)`` over features, ``(B, ..., N, N)`` over tokens: row n has the weights of
            the mean that n gets. A row sums to one, and to zero where all of it is masked.

        Raises:
            ValueError: as ``forward``.

        Example:
            >>> block = UltimusBlock(48, 8, over="tokens")
            >>> block.attention(torch.zeros(1, 2, 48)).tolist()
            [[[0.5, 0.5], [0.5, 0.5]]]
        """
        self._check(x, mask)
        q, k = self.query(x), self.key(x)
        if self.over == "features":
            return _feature_weights(q, k).movedim((1, 0), (-2, -1))
        return _token_weights(q, k, mask)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        if x.shape[-1:] != (self.dim,):
            raise ValueError(
                f"this UltimusBlock takes {self.dim} features in the last dimension, "
                f"got {x.shape[-1:].numel()}: an input of shape {tuple(x.shape)}"
            )
        if self.over == "tokens" and x.dim() < 3:
            raise ValueError(
                f"UltimusBlock over tokens takes (B, N, {self.dim}): images, tokens, features, "
                f"got {tuple(x.shape)}"
            )
        if mask is None:
            return
        if self.over == "features":
            raise ValueError("a mask is for UltimusBlock(over='tokens'): features have none")
        weights = (*x.shape[:-1], x.shape[-2])
        sizes = zip(reversed(mask.shape), reversed(weights), strict=False)
        broadcasts = mask.dim() <= x.dim() and all(m in (1, n) for m, n in sizes)
        if mask.dtype != torch.bool or not broadcasts:
            raise ValueError(
                f"the mask must be boolean and broadcast to {weights}, "
                f"got {mask.dtype} of shape {tuple(mask.shape)}"
            )


def _token_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    scores: Tensor = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    if mask is None:
        return scores.softmax(dim=-1)
    # The lowest number instead of -inf: a row that is all -inf has NaN inside, which anomaly
    # detection reports.
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(dim=-1)
    return weights.masked_fill(~mask, 0)


def _feature_weights(q: Tensor, k: Tensor) -> Tensor:
    """``(K, K, ...)``: at ``[i, j]`` the weight of ``v[i]`` in ``z[j]``."""
    q, k = _first(q), _first(k)
    scores: Tensor = (q * q.shape[0] ** -0.5).unsqueeze(1) * k.unsqueeze(0)
    return scores.softmax(dim=0)


def _first(x: Tensor) -> Tensor:
    """``(..., K) -> (K, ...)``.

    Now the vectors are the last dimension, which the processor takes 16 float32 at a time: on 512
    vectors this halves the time of a batched product with (K, K).
    """
    return x.movedim(-1, 0).contiguous()
