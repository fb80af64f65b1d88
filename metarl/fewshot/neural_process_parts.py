"""What neural processes are made of: sets, encoders of them, paths, and a decoder.

Shapes: B tasks, K sets of a task (its classes; 1 for regression), M points of which S support and Q
query, F features of an input, R and Z numbers of a representation and a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from metarl.fewshot.attention import MultiHeadAttention, SelfAttention
from metarl.fewshot.encoding import mlp
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.learner import Prediction

Read = Callable[[Tensor], Tensor]
"""features of queries `[B, Q, F]` to a representation for each `[B, K, Q or 1, R]`"""
Layers = tuple[int, ...]
"""widths; the last one is R"""


@dataclass(frozen=True)
class Sets:
    """Points with features, and which of them are a set: all, or those of a class."""

    features: Tensor
    """`[B, M, F]`"""
    pairs: Tensor
    """`[B, M, I]`, what encoders read: the features, and the values where there are some"""
    members: Tensor
    """bool `[B, K, M]`"""

    def mean(self, x: Tensor) -> Tensor:
        """Of `x` `[B, M, R]` over each set: `[B, K, R]`."""
        weight = self.members.to(x.dtype)
        mean: Tensor = weight @ x / weight.sum(-1, keepdim=True)
        return mean

    def union(self, other: Sets) -> Sets:
        """These points and `other` ones, set by set."""
        return Sets(
            torch.cat([self.features, other.features], 1),
            torch.cat([self.pairs, other.pairs], 1),
            torch.cat([self.members, other.members], 2),
        )


class Encoder(nn.Module):
    """h: points to representations `[B, M, R]`; with attention each sees the rest of its set."""

    def __init__(self, inputs: int, layers: Layers, heads: int = 0) -> None:
        """Attend by so many heads, or not at all."""
        super().__init__()
        self.body = mlp(inputs, *layers)
        self.attention = SelfAttention(layers[-1], heads) if heads else None

    def forward(self, sets: Sets) -> Tensor:
        """Encode each point."""
        h: Tensor = self.body(sets.pairs)
        if self.attention is None:
            return h
        members = sets.members.to(h.dtype)
        together = members.mT @ members > 0  # [B, M, M]
        h = self.attention(h.relu(), together)
        return h


class MeanPath(nn.Module):
    """r = mean_i h(x_i, y_i), the same for every query."""

    def __init__(self, encoder: Encoder) -> None:
        """Summarise what `encoder` says of each point."""
        super().__init__()
        self.encoder = encoder

    def forward(self, sets: Sets) -> Read:
        """Summarise the support set."""
        r = sets.mean(self.encoder(sets)).unsqueeze(2)
        return lambda query: r


class AttentivePath(nn.Module):
    """r(x) = Σ_i w_i(x) h_i: cross-attention from the query to the points of each set."""

    def __init__(self, encoder: Encoder, features: int, width: int, heads: int) -> None:
        """Look up what `encoder` says of points with alike `features`."""
        super().__init__()
        self.encoder = encoder
        self.place = mlp(features, width, width)
        """what makes inputs alike, of queries and of support points"""
        self.attention = MultiHeadAttention(width, width, width, width, heads)

    def forward(self, sets: Sets) -> Read:
        """Store the support set."""
        tasks, count, _ = sets.members.shape
        mask = sets.members.flatten(0, 1).unsqueeze(1)
        keys, values = (
            x.repeat_interleave(count, 0) for x in (self.place(sets.features), self.encoder(sets))
        )

        def read(query: Tensor) -> Tensor:
            places = self.place(query).repeat_interleave(count, 0)
            r: Tensor = self.attention(places, keys, values, mask).unflatten(0, (tasks, count))
            return r

        return read


class LatentPath(nn.Module):
    """q(z | points) = N(μ(s), σ(s)²) with s = mean_i h(x_i, y_i), one latent for each set."""

    def __init__(self, encoder: Encoder, width: int, latent: int) -> None:
        """Map the mean of what `encoder` says, of `width`, to `latent` dimensions."""
        super().__init__()
        self.encoder = encoder
        self.head = mlp(width, width, 2 * latent)

    def forward(self, sets: Sets) -> Normal:
        """The latents `[B, K, Z]` of each set; σ is within (0.1, 1)."""
        mean, raw = self.head(sets.mean(self.encoder(sets))).chunk(2, -1)
        return Normal(mean, 0.1 + 0.9 * raw.sigmoid(), validate_args=False)


class Decoder(nn.Module):
    """g: a query and what is known to a prediction."""

    def __init__(self, spec: TaskSpec, known: int, layers: Layers, min_std: float) -> None:
        """Read `known` numbers: features, representation and latent."""
        super().__init__()
        self.min_std, self.regression = min_std, spec.kind == "regression"
        outputs = 2 * spec.outputs if self.regression else 1
        self.body = mlp(known, *layers, outputs)

    def forward(self, query: Tensor, *known: Tensor) -> Prediction:
        """Predict at `query` `[B, Q, F]` by what is known, each `[B, K, Q or 1, ...]`."""
        tasks, points = query.shape[:2]
        parts = (query.unsqueeze(1), *known)
        sets = max(part.shape[1] for part in parts)
        y = self.body(torch.cat([p.expand(tasks, sets, points, -1) for p in parts], -1))
        if not self.regression:
            return Prediction(y.squeeze(-1).mT)
        mean, raw = y.squeeze(1).chunk(2, -1)
        return Prediction(mean, self.min_std + (1.0 - self.min_std) * F.softplus(raw))


def mixture(predictions: Sequence[Prediction]) -> Prediction:
    """Equal shares of `predictions` as one: logits of the mean probabilities, or mean and spread.

    The mean and the variance of a mixture of Gaussians are E[μ] and E[σ²] + Var[μ].
    """
    values = torch.stack([p.value for p in predictions])
    if predictions[0].std is None:
        return Prediction(values.log_softmax(-1).logsumexp(0) - math.log(len(values)))
    variances = torch.stack([p.std.square() for p in predictions if p.std is not None])
    spread = variances.mean(0) + values.var(0, correction=0)
    return Prediction(values.mean(0), spread.sqrt())
