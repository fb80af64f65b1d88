"""Prototypical networks: a class is the mean of its embedded support points.

Snell, Swersky and Zemel 2017, "Prototypical Networks for Few-shot Learning". Equation 1:
c_n = mean of f(x_i) over the support points of class n; equation 2: p(n | x) ∝ exp(-d(f(x), c_n)).
Gaussian distance: Fort 2017, "Gaussian Prototypical Networks for Few-Shot Learning on Omniglot".
Values are predicted by the same distances to the support points themselves, as the kernel of
Nadaraya 1964 and Watson 1964: ŷ(x) = Σ_i softmax_i(-d(f(x), f(x_i))) y_i.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.fewshot.encoding import class_means, memberships
from metarl.fewshot.episodes import Episodes, Points
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor, losses
from metarl.fewshot.networks import Body, NetworkConfig

Distance = Literal["euclidean", "cosine", "gaussian"]


def embedding_network() -> NetworkConfig:
    """The default of learners whose network only embeds: one embedding, whoever is beside it."""
    return NetworkConfig(norm="running")


def squared_distances(x: Tensor, c: Tensor) -> Tensor:
    """|x - c|² of points `[B, Q, F]` and `[B, N, F]`: `[B, Q, N]`."""
    return (x.unsqueeze(2) - c.unsqueeze(1)).square().sum(-1)


def cosines(x: Tensor, c: Tensor) -> Tensor:
    """The cosine of the angles between `[B, Q, F]` and `[B, N, F]`: `[B, Q, N]`."""
    return F.normalize(x, dim=-1) @ F.normalize(c, dim=-1).mT


class MetricLearner(Learner):
    """Compares embedded query points with embedded support points; takes no steps to adapt."""

    fixed_ways = False

    @abstractmethod
    def embed(self, x: Tensor) -> Tensor:
        """Inputs `[B, M, X...]` to features `[B, M, ...]`."""

    @abstractmethod
    def compare(self, support: Points, query: Tensor) -> Prediction:
        """Predict for embedded query points `[B, Q, ...]`, from embedded support points."""

    def judge(self, support: Points, query: Points) -> Tensor:
        """One loss for each task, `[B]`, of embedded points."""
        return losses(self.compare(support, query.x), query.y)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Embed the support set; `steps` does not matter."""
        known = Points(self.embed(support.x), support.y)
        return lambda x: self.compare(known, self.embed(x))

    def loss(self, episodes: Episodes, progress: float) -> Tensor:
        """The loss for the query points: `[B]`."""
        support, query = episodes.support, episodes.query
        if self.config.network.norm == "batch":  # as in use, where the query points come later
            known, asked = self.embed(support.x), self.embed(query.x)
        else:  # statistics that all inputs share are those of support and query points together
            features = self.embed(torch.cat([support.x, query.x], 1))
            known, asked = features.tensor_split((support.x.shape[1],), 1)
        return self.judge(Points(known, support.y), Points(asked, query.y))


@dataclass(frozen=True)
class PrototypicalConfig(LearnerConfig):
    """How points are compared."""

    network: NetworkConfig = field(default_factory=embedding_network)
    meta_batch: int = 4
    """tasks of an iteration"""
    distance: Distance = "euclidean"
    """squared Euclidean, cosine, or Euclidean with a precision that each support point predicts"""


class _Embedding(nn.Module):
    """Body, the logarithm of the scale of distances, and perhaps a precision."""

    def __init__(self, body: Body, scale: float, precision: bool) -> None:
        super().__init__()
        self.body = body
        self.log_scale = nn.Parameter(torch.tensor(scale).log())
        self.precision = nn.Linear(body.features, 1) if precision else None


class Prototypical(MetricLearner):
    """Classifies by the nearest class mean; predicts values by a learned kernel."""

    config: PrototypicalConfig
    network: _Embedding

    def build(self) -> nn.Module:
        """An embedding; cosines, which are at most 1, start out scaled up by 10."""
        config = self.config
        scale = 10.0 if config.distance == "cosine" else 1.0
        body = Body(self.spec.input_shape, config.network)
        return _Embedding(body, scale, config.distance == "gaussian")

    def embed(self, x: Tensor) -> Tensor:
        """Features `[B, M, F]`."""
        features: Tensor = self.network.body(x)
        return features

    def compare(self, support: Points, query: Tensor) -> Prediction:
        """Logits are minus distances to class means; values, kernel averages."""
        if support.y.is_floating_point():
            precision = self._precisions(support.x)
            nearness = self._nearness(query, support.x, precision)
            return Prediction(nearness.softmax(-1) @ support.y)
        centres, precision = self._prototypes(support)
        return Prediction(self._nearness(query, centres, precision))

    def _precisions(self, x: Tensor) -> Tensor | None:
        """Of each point `[B, S]`: s = 1 + softplus(w·f(x) + b), the radius of Fort 2017."""
        if self.network.precision is None:
            return None
        raw: Tensor = self.network.precision(x).squeeze(-1)
        return 1.0 + F.softplus(raw)

    def _prototypes(self, support: Points) -> tuple[Tensor, Tensor | None]:
        """Class means `[B, ways, F]`; where points have precisions, weighted by them.

        The precision of a class `[B, ways]` is the sum of those of its points (Fort 2017).
        """
        precision = self._precisions(support.x)
        if precision is None:
            return class_means(support.x, support.y, support.ways), None
        weights = memberships(support.y, support.ways, support.x) * precision.unsqueeze(1)
        total = weights.sum(-1)
        return (weights @ support.x) / total.unsqueeze(-1), total

    def _nearness(self, x: Tensor, centres: Tensor, precision: Tensor | None) -> Tensor:
        """Minus the scaled distance of `[B, Q, F]` to `[B, N, F]`: `[B, Q, N]`."""
        scale = self.network.log_scale.exp()
        if self.config.distance == "cosine":
            return scale * cosines(x, centres)
        distances = squared_distances(x, centres)
        if precision is None:
            return -scale * distances
        # A length, not its square, grows only by the root of the precision.
        return -scale * (distances * precision.unsqueeze(1) + 1e-12).sqrt()
