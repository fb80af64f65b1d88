"""Attention over sets of points: each reads from all, whatever their order."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from metarl.errors import UsageError


class MultiHeadAttention(nn.Module):
    """softmax(Q Kᵀ / √d) V in several heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, queries: int, keys: int, values: int, width: int, heads: int) -> None:
        """Map queries, keys and values of the given sizes to `width`, split among `heads`.

        Raises:
            UsageError: if `heads` does not divide `width`.
        """
        super().__init__()
        if width % heads:
            raise UsageError(f"attention: heads must divide the width {width}, got {heads}")
        self.heads = heads
        self.query, self.key = nn.Linear(queries, width), nn.Linear(keys, width)
        self.value, self.out = nn.Linear(values, width), nn.Linear(width, width)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Read `values` `[..., S, V]` at `keys` `[..., S, K]` by `queries` `[..., Q, C]`.

        `mask` bool, which broadcasts to `[..., Q, S]`, says what may be read. Leading dimensions
        broadcast. Returns `[..., Q, width]`.
        """
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for layer, x in ((self.query, queries), (self.key, keys), (self.value, values))
        )
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(-3))
        y: Tensor = self.out(read.transpose(-3, -2).flatten(-2))
        return y


class SelfAttention(nn.Module):
    """A residual layer in which the points of a set read from each other."""

    def __init__(self, width: int, heads: int) -> None:
        """Keep `width`."""
        super().__init__()
        self.attention = MultiHeadAttention(width, width, width, width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map `[B, S, width]` to the same; `mask` bool `[B, S, S]` says who may read whom."""
        normal = self.norm(x)
        y: Tensor = x + self.attention(normal, normal, normal, mask)
        return y
