"""The networks that few-shot learners adapt: an MLP for vectors, convolutions for images.

Both are a body, which turns an input into features, and a linear head. Every layer is one of
`metarl.layers`, so that any of their parameters may be replaced by one set for each task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from metarl.errors import UsageError, require_widths
from metarl.fewshot.episodes import TaskSpec
from metarl.layers import NORMS, Conv2d, Linear, Norm

Film = Sequence[tuple[Tensor, Tensor]]
"""scale and shift `[B, C]` for the features of each block (Perez et al. 2018)"""


@dataclass(frozen=True)
class NetworkConfig:
    """Sizes of a network; vectors go through `layers`, images through `filters`."""

    layers: tuple[int, ...] = (40, 40)
    """widths of the hidden layers for vectors"""
    filters: tuple[int, ...] = (64, 64, 64, 64)
    """filters of each 3x3 convolution for images"""
    pooling: Literal["stride", "max"] = "stride"
    """what halves the plane: a stride of 2 (MAML on Omniglot) or max pooling (ProtoNet)"""
    norm: Norm = "batch"
    """normalisation of the convolutions; batch: over each task's inputs, running: over all"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for sizes that make no network."""
        require_widths(self, ("layers", "filters"), "network")


class Block(nn.Module):
    """One layer of a body: linear or convolution, norm, scale and shift, ReLU, pooling."""

    def __init__(self, layer: nn.Module, norm: nn.Module | None, pool: bool) -> None:
        super().__init__()
        self.layer, self.norm, self.pool = layer, norm, pool

    def forward(self, x: Tensor, film: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """`[B, M, ...]` to `[B, M, C, ...]`."""
        y: Tensor = self.layer(x)
        if self.norm is not None:
            y = self.norm(y)
        if film is not None:
            trailing = (1,) * (y.dim() - 3)
            scale, shift = (f.view(len(f), 1, -1, *trailing) for f in film)
            y = y * scale + shift
        y = y.relu()
        if self.pool:
            y = F.max_pool2d(y.flatten(0, 1), 2).unflatten(0, y.shape[:2])
        return y


class Body(nn.Module):
    """From inputs to features `[B, M, F]`."""

    def __init__(self, input_shape: tuple[int, ...], config: NetworkConfig) -> None:
        """Build an MLP for vectors `(I,)`, and convolutions for images `(C, H, W)`.

        Raises:
            UsageError: if the inputs have another shape, or are too small for the convolutions.
        """
        super().__init__()
        if len(input_shape) == 1:
            self.widths = config.layers
            sizes = (input_shape[0], *config.layers)
            blocks = [Block(Linear(i, o), None, False) for i, o in pairwise(sizes)]
            self.features = config.layers[-1]
        elif len(input_shape) == 3:
            self.widths = config.filters
            blocks = list(_convolutions(input_shape, config))
            side = [_side(size, config) for size in input_shape[1:]]
            self.features = config.filters[-1] * math.prod(side)
        else:
            raise UsageError(f"network: inputs must be vectors or images, got shape {input_shape}")
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, film: Film | None = None) -> Tensor:
        """Features of `x` `[B, M, X...]`; `film` has one scale and shift for each block."""
        for k, block in enumerate(self.blocks):
            x = block(x, None if film is None else film[k])
        return x.flatten(2)


def _convolutions(shape: tuple[int, ...], config: NetworkConfig) -> list[Block]:
    """The blocks for images of `shape`."""
    channels = (shape[0], *config.filters)
    stride = 2 if config.pooling == "stride" else 1
    norm = None if config.norm == "none" else NORMS[config.norm]
    return [
        Block(Conv2d(i, o, 3, stride), norm(o) if norm else None, config.pooling == "max")
        for i, o in pairwise(channels)
    ]


def _side(size: int, config: NetworkConfig) -> int:
    """What is left of a side of the plane.

    Raises:
        UsageError: if nothing is.
    """
    for _ in config.filters:
        size = (size + 1) // 2 if config.pooling == "stride" else size // 2
    if size == 0:
        raise UsageError(
            f"network: {len(config.filters)} poolings leave nothing of images this small; give "
            "fewer filters or larger images"
        )
    return size


class Network(nn.Module):
    """Body and head: `x` `[B, M, X...]` to `[B, M, outputs]`."""

    def __init__(self, spec: TaskSpec, config: NetworkConfig) -> None:
        """Build the network of `config` for the tasks of `spec`."""
        super().__init__()
        self.body = Body(spec.input_shape, config)
        self.head = Linear(self.body.features, spec.outputs)

    def forward(self, x: Tensor, film: Film | None = None) -> Tensor:
        """Logits or values."""
        y: Tensor = self.head(self.body(x, film))
        return y
