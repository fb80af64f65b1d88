"""Matching networks: attention over the support set says what a query point is.

Vinyals, Blundell, Lillicrap, Kavukcuoglu and Wierstra 2016, "Matching Networks for One Shot
Learning". Equation 1: ŷ = Σ_i a(x, x_i) y_i, with a the softmax of cosines between f(x, S) and
g(x_i, S); values are averaged by the same attention. The softmax has a learned temperature, as that
of a bare cosine can hardly be sure of anything. Full context embeddings (appendices A.1 and A.2)
let support points see each other, and query points the support set.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metarl.errors import require_positive
from metarl.fewshot.encoding import memberships
from metarl.fewshot.episodes import Points
from metarl.fewshot.learner import LearnerConfig, Prediction
from metarl.fewshot.networks import Body, NetworkConfig
from metarl.fewshot.prototypical import MetricLearner, cosines, embedding_network


@dataclass(frozen=True)
class MatchingConfig(LearnerConfig):
    """What the embeddings depend on."""

    network: NetworkConfig = field(default_factory=embedding_network)
    meta_batch: int = 4
    """tasks of an iteration"""
    full_context: bool = False
    """embed each point in the context of the support set"""
    reads: int = 5
    """K, how often a query point reads the support set; for full context"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("reads",), "learner")


class SupportContext(nn.Module):
    """g(x_i, S) = h→_i + h←_i + g'(x_i), of an LSTM that reads S both ways (appendix A.2)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, features, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        """Support features `[B, S, F]` in the context of each other."""
        both: Tensor = self.lstm(x)[0]
        forwards, backwards = both.chunk(2, -1)
        return forwards + backwards + x


class QueryContext(nn.Module):
    """f(x, S): an LSTM that reads the support set by attention, K times (appendix A.1)."""

    def __init__(self, features: int, reads: int) -> None:
        super().__init__()
        self.gates = nn.Linear(3 * features, 4 * features)
        self.reads = reads

    def forward(self, x: Tensor, support: Tensor) -> Tensor:
        """Query features `[B, Q, F]` in the context of `[B, S, F]`, each for itself.

        Equations 3 to 6, with r the average of the g_i under the softmax of h·g_i:
        ĥ, c = LSTM(f'(x), [h, r], c); h = ĥ + f'(x).
        """
        h = memory = torch.zeros_like(x)
        read = support.mean(1, keepdim=True).expand_as(x)
        for _ in range(self.reads):
            i, f, o, new = self.gates(torch.cat([x, h, read], -1)).chunk(4, -1)
            memory = f.sigmoid() * memory + i.sigmoid() * new.tanh()
            h = o.sigmoid() * memory.tanh() + x
            read = (h @ support.mT).softmax(-1) @ support
        return h


class _Matching(nn.Module):
    """Body, temperature and perhaps contexts."""

    def __init__(self, body: Body, config: MatchingConfig) -> None:
        super().__init__()
        full, width = config.full_context, body.features
        self.body = body
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())
        self.support = SupportContext(width) if full else None
        self.query = QueryContext(width, config.reads) if full else None


class Matching(MetricLearner):
    """Classifies, or predicts values, by attention over the support points."""

    config: MatchingConfig
    network: _Matching

    def build(self) -> nn.Module:
        """An embedding, with contexts if they are asked for."""
        return _Matching(Body(self.spec.input_shape, self.config.network), self.config)

    def embed(self, x: Tensor) -> Tensor:
        """Features without context `[B, M, F]`."""
        features: Tensor = self.network.body(x)
        return features

    def compare(self, support: Points, query: Tensor) -> Prediction:
        """Logits are the logarithms of equation 1."""
        known = support.x
        if self.network.support is not None and self.network.query is not None:
            known = self.network.support(known)
            query = self.network.query(query, known)
        scores = self.network.log_scale.exp() * cosines(query, known)
        if support.y.is_floating_point():
            return Prediction(scores.softmax(-1) @ support.y)
        member = memberships(support.y, support.ways, scores)  # [B, ways, S]
        log_attention = scores.log_softmax(-1).unsqueeze(2)
        return Prediction((log_attention + member.log().unsqueeze(1)).logsumexp(-1))
