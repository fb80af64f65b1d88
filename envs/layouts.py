"""Random maze layouts, generated in batch: rooms on a square lattice, joined by passages.

A layout of N mazes with R x R rooms is `open` bool `[N, E]`: which of the E = 2R(R-1) walls between
neighbouring rooms have a passage. The loops below run over rooms, never over mazes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metarl import random
from metarl.tasks import HELD_OUT_EVERY


def walls_between(side: int) -> Tensor:
    """The two rooms on either side of each wall of a `side` x `side` lattice, int64 `[E, 2]`.

    Room (i, j), row and column, has the index `side * i + j`.
    """
    rooms = torch.arange(side * side).view(side, side)
    beside = torch.stack([rooms[:, :-1].flatten(), rooms[:, 1:].flatten()], dim=-1)
    below = torch.stack([rooms[:-1].flatten(), rooms[1:].flatten()], dim=-1)
    return torch.cat([beside, below])


def spanning_trees(weights: Tensor, ends: Tensor) -> Tensor:
    """Open the fewest passages that join all rooms, the cheapest ones first (Prim 1957).

    Args:
        weights: float `[N, E]`, the price of each passage; random ones give random trees.
        ends: int64 `[E, 2]`, from `walls_between`.

    Returns:
        bool `[N, E]`, a tree in every row.
    """
    mazes, rooms = len(weights), int(ends.max()) + 1
    tree = torch.zeros(weights.shape, dtype=torch.bool)
    joined = torch.zeros(mazes, rooms, dtype=torch.bool)
    joined[:, 0] = True
    for _ in range(rooms - 1):
        leads_out = joined[:, ends[:, 0]] ^ joined[:, ends[:, 1]]
        cheapest = weights.masked_fill(~leads_out, torch.inf).argmin(dim=-1)
        tree.scatter_(1, cheapest.unsqueeze(-1), True)
        joined.scatter_(1, ends[cheapest], True)
    return tree


def reachable(passages: Tensor, ends: Tensor, start: Tensor) -> Tensor:
    """The rooms that can be reached from room `start` int64 `[N]` through `passages` `[N, E]`.

    Returns:
        bool `[N, rooms]`.
    """
    rooms = int(ends.max()) + 1
    reached = torch.nn.functional.one_hot(start, rooms).float()
    for _ in range(rooms - 1):
        crossed = (passages & (reached[:, ends[:, 0]] != reached[:, ends[:, 1]])).float()
        if not bool(crossed.any()):
            break
        reached.index_add_(1, ends[:, 0], crossed).index_add_(1, ends[:, 1], crossed)
        reached.clamp_(max=1.0)
    return reached.bool()


def is_held_out(passages: Tensor) -> Tensor:
    """Which layouts `[N, E]` belong to the held-out split, bool `[N]`: a fifth, by a hash.

    The split is a property of the layout alone, so no layout can be in both.
    """
    coefficients = random.world_keys(0, passages.shape[-1])
    codes = (passages * coefficients).sum(dim=-1)
    return codes % HELD_OUT_EVERY == HELD_OUT_EVERY - 1


def pick(mask: Tensor, generator: torch.Generator) -> Tensor:
    """One of the true entries of each row of `mask` bool `[N, M]`, uniformly: int64 `[N]`."""
    return (torch.rand(mask.shape, generator=generator) + mask).argmax(dim=-1)
