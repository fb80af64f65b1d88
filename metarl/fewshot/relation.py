"""Relation networks: learn how to compare, too.

Sung, Yang, Zhang, Xiang, Torr and Hospedales 2018, "Learning to Compare: Relation Network for
Few-Shot Learning". Equation 1: the score of class n is r = g([f(x_n), f(x)]) in [0, 1], of the
feature maps of class and query point laid on top of each other. Those of the support points of a
class are added in the paper; here they are averaged, so that more shots change no scale. Equation
2: the squared error of the scores to 1 for the right class and 0 for the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.errors import UsageError, require_positive, require_widths
from metarl.fewshot.encoding import class_means
from metarl.fewshot.episodes import Kind, Points
from metarl.fewshot.learner import LearnerConfig, Prediction
from metarl.fewshot.networks import Block, Body, NetworkConfig
from metarl.fewshot.prototypical import MetricLearner
from metarl.layers import NORMS, Conv2d, Linear


def _maps() -> NetworkConfig:
    """Two poolings, which leave a plane for the relation module to look at."""
    return NetworkConfig(filters=(64, 64), norm="running")


@dataclass(frozen=True)
class RelationConfig(LearnerConfig):
    """Sizes of the embedding and of the relation module."""

    network: NetworkConfig = field(default_factory=_maps)
    meta_batch: int = 4
    """tasks of an iteration"""
    relation_filters: tuple[int, ...] = (64, 64)
    """filters of each convolution, of stride 2, of the relation module"""
    relation_width: int = 8
    """of the hidden layer after them"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_widths(self, ("relation_filters",), "learner")
        require_positive(self, ("relation_width",), "learner")


class RelationModule(nn.Module):
    """g: a pair of feature maps on top of each other to a score."""

    def __init__(self, maps: tuple[int, ...], config: RelationConfig) -> None:
        """Build it for pairs of maps `(C, H, W)`."""
        super().__init__()
        channels, height, width = maps
        norm = None if config.network.norm == "none" else NORMS[config.network.norm]
        sizes = (2 * channels, *config.relation_filters)
        self.blocks = nn.Sequential(
            *(
                Block(Conv2d(i, o, 3, 2), norm(o) if norm else None, False)
                for i, o in pairwise(sizes)
            )
        )
        for _ in config.relation_filters:
            height, width = (height + 1) // 2, (width + 1) // 2
        self.hidden = Linear(sizes[-1] * height * width, config.relation_width)
        self.score = Linear(config.relation_width, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        """`[B, P, 2C, H, W]` to scores in [0, 1], `[B, P]`."""
        hidden = self.hidden(self.blocks(pairs).flatten(2)).relu()
        scores: Tensor = self.score(hidden).squeeze(-1).sigmoid()
        return scores


class _Relation(nn.Module):
    """f and g."""

    def __init__(self, body: Body, relation: RelationModule) -> None:
        super().__init__()
        self.body, self.relation = body, relation


class Relation(MetricLearner):
    """Classifies by learned scores of pairs of a query point and a class."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    config: RelationConfig
    network: _Relation

    def build(self) -> nn.Module:
        """The embedding and the relation module.

        Raises:
            UsageError: if the inputs are not images.
        """
        shape = self.spec.input_shape
        if len(shape) != 3:
            raise UsageError(f"relation: inputs must be images (channels, height, width): {shape}")
        body = Body(shape, self.config.network)
        with torch.no_grad():
            maps = _feature_maps(body.eval(), torch.zeros(1, 2, *shape)).shape[2:]
        return _Relation(body, RelationModule(tuple(maps), self.config))

    def embed(self, x: Tensor) -> Tensor:
        """Feature maps `[B, M, C, H, W]`."""
        return _feature_maps(self.network.body, x)

    def compare(self, support: Points, query: Tensor) -> Prediction:
        """Scores of all pairs, in [0, 1] instead of logits: `[B, Q, ways]`."""
        ways, maps = support.ways, query.shape[2:]
        means = class_means(support.x.flatten(2), support.y, ways).unflatten(2, maps)
        points = query.unsqueeze(2).expand(-1, -1, ways, *maps)
        pairs = torch.cat([means.unsqueeze(1).expand_as(points), points], 3)
        scores: Tensor = self.network.relation(pairs.flatten(1, 2))
        return Prediction(scores.unflatten(1, (query.shape[1], ways)))

    def judge(self, support: Points, query: Points) -> Tensor:
        """Equation 2, summed over classes and averaged over query points: `[B]`."""
        scores = self.compare(support, query.x).value
        target = F.one_hot(query.y, support.ways).to(scores.dtype)
        return (scores - target).square().sum(-1).mean(-1)


def _feature_maps(body: Body, x: Tensor) -> Tensor:
    """What the convolutions make of images `[B, M, C, H, W]`, as planes still."""
    for block in body.blocks:
        x = block(x)
    return x
