"""Siamese networks: learn to tell same from different, and classify by the most similar.

Koch, Zemel and Salakhutdinov 2015, "Siamese Neural Networks for One-shot Image Recognition". Two
points are the same with probability p = σ(Σ_j α_j |f_j(x₁) - f_j(x₂)| + b), trained by binary
cross-entropy on pairs of a query and a support point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from metarl.fewshot.encoding import class_means
from metarl.fewshot.episodes import Kind, Points
from metarl.fewshot.learner import LearnerConfig, Prediction
from metarl.fewshot.networks import Body, NetworkConfig
from metarl.fewshot.prototypical import MetricLearner, embedding_network


@dataclass(frozen=True)
class SiameseConfig(LearnerConfig):
    """Sizes of the twins."""

    network: NetworkConfig = field(default_factory=embedding_network)
    meta_batch: int = 4
    """tasks of an iteration"""


class _Twins(nn.Module):
    """The body both points go through, and the weights α, b of their distance."""

    def __init__(self, body: Body) -> None:
        super().__init__()
        self.body = body
        self.similarity = nn.Linear(body.features, 1)


class Siamese(MetricLearner):
    """Judges pairs; a class is as similar as its support points are on average."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classification",)
    config: SiameseConfig
    network: _Twins

    def build(self) -> nn.Module:
        """The twins."""
        return _Twins(Body(self.spec.input_shape, self.config.network))

    def embed(self, x: Tensor) -> Tensor:
        """Features `[B, M, F]`."""
        features: Tensor = self.network.body(x)
        return features

    def similarities(self, support: Tensor, query: Tensor) -> Tensor:
        """Logits of being the same, of features `[B, S, F]` and `[B, Q, F]`: `[B, Q, S]`."""
        apart = (query.unsqueeze(2) - support.unsqueeze(1)).abs()
        logits: Tensor = self.network.similarity(apart).squeeze(-1)
        return logits

    def compare(self, support: Points, query: Tensor) -> Prediction:
        """The mean similarity to the support points of each class."""
        pairs = self.similarities(support.x, query)
        return Prediction(class_means(pairs.mT, support.y, support.ways).mT)

    def judge(self, support: Points, query: Points) -> Tensor:
        """Binary cross-entropy of all pairs of embedded points, `[B]`.

        Same and different pairs weigh the same, as if as many were drawn of either.
        """
        logits = self.similarities(support.x, query.x)
        same = (query.y.unsqueeze(2) == support.y.unsqueeze(1)).to(logits.dtype)
        share = same.mean((1, 2), keepdim=True)
        weight = 0.5 * (same / share + (1.0 - same) / (1.0 - share))
        entropy = F.binary_cross_entropy_with_logits(logits, same, weight, reduction="none")
        return entropy.mean((1, 2))
