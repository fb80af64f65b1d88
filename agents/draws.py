"""Steps that are drawn out of trials.

Shapes: `T` steps of a trial, `M` trials, `D` steps that are drawn out of a trial.
"""

from __future__ import annotations

import torch
from torch import Tensor


def at(x: Tensor, index: Tensor | None) -> Tensor:
    """Of `x` `[T, M, ...]` the steps `index` int64 `[D, M]`, None for all: `[D, M, ...]`."""
    if index is None:
        return x
    wide = index.view(*index.shape, *[1] * (x.dim() - 2)).expand(*index.shape, *x.shape[2:])
    return x.gather(0, wide)


def draw(there: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor | None, Tensor]:
    """Draw `count` of the steps of each trial that are `there`, without replacement.

    Their weighted sum is an unbiased estimate of the sum over all steps that are there.

    Args:
        there: bool `[T, M]`.
        count: D; 0, or T or more, takes all T and draws nothing.
        generator: source of the draws.

    Returns:
        Which, int64 `[D, M]` or None for all, and the weight of each, `[D, M]`: 0 where a trial has
        too few.
    """
    if count == 0 or count >= len(there):
        return None, there.float()
    order = torch.rand(there.shape, generator=generator, device=there.device)
    index = order.masked_fill(~there, 2.0).argsort(0)[:count]
    total = there.sum(0)
    return index, at(there, index) * (total / total.clamp(min=1, max=count))
