"""Neural processes: read a support set once, as a set, and predict with uncertainty.

- CNP: Garnelo et al. 2018a, "Conditional Neural Processes", equations 1-3: r = mean_i h(x_i, y_i)
  and p(y | x) = g(x, r).
- NP: Garnelo et al. 2018b, "Neural Processes", equation 8: what is unknown of the function is a
  latent z, learned by log p(y_Q | S) >= E_q(z|S,Q) [log p(y_Q | z)] - KL(q(z|S,Q) || q(z|S)). By
  default we follow Foong et al. 2020, "Meta-Learning Stationary Stochastic Process Prediction",
  section 4: estimate log p(y_Q | S) itself, as log mean_l p(y_Q | z_l) with z_l from q(z|S).
- ANP: Kim et al. 2019, "Attentive Neural Processes", equation 2: a latent, and beside it an r of
  each query that it reads from the support points most like it.

For classification each class is a set of its own (Garnelo et al. 2018a, section 4.3), and one
decoder scores every class, so that neither their order nor their number matters.

Shapes: B tasks, K sets of a task (its classes; 1 for regression), S support and Q query points,
F features of an input, R and Z numbers of a representation and a latent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from metarl.errors import UsageError, require_positive
from metarl.fewshot.attention import MultiHeadAttention, SelfAttention
from metarl.fewshot.episodes import Episodes, Points, TaskSpec
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor, losses
from metarl.fewshot.networks import Body, NetworkConfig
from metarl.networks import relu_mlp

Read = Callable[[Tensor], Tensor]
"""features of queries `[B, Q, F]` to a representation for each `[B, K, Q or 1, R]`"""


@dataclass(frozen=True)
class CNPConfig(LearnerConfig):
    """Sizes; `network.layers` are those of the encoders and of the decoder, also for images."""

    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(layers=(128, 128, 128), norm="running")
    )
    learning_rate: float = 5e-4
    final_learning_rate: float = 0.0
    min_std: float = 0.1
    """smallest standard deviation that is predicted; in (0, 1)"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        if not 0.0 < self.min_std < 1.0:
            raise UsageError(f"learner: min_std must be in (0, 1), got {self.min_std}")


@dataclass(frozen=True)
class NPConfig(CNPConfig):
    """Sizes of the latent."""

    objective: Literal["likelihood", "bound"] = "likelihood"
    """what is learned from: the likelihood by samples of q(z|S) (Foong et al. 2020), or its bound
    by q(z|S,Q) (Garnelo et al. 2018b), which is too sure of itself where the support set is small
    """
    latent: int = 64
    """Z, dimensions of the latent"""
    draws: int = 4
    """latents by which the likelihood is estimated in training"""
    samples: int = 32
    """latents whose predictions are mixed in use"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("latent", "draws", "samples"), "learner")
        if self.objective not in ("likelihood", "bound"):
            raise UsageError(
                f"learner: objective must be likelihood or bound, got {self.objective}"
            )


@dataclass(frozen=True)
class ANPConfig(NPConfig):
    """Sizes of the attention."""

    heads: int = 8
    """heads of the attention"""
    self_attention: bool = False
    """let the points of a set read from each other before they are summarised; twice as slow"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        if self.heads < 1 or self.network.layers[-1] % self.heads:
            raise UsageError(
                f"learner: heads must divide the last of network.layers, {self.network.layers[-1]},"
                f" got {self.heads}"
            )


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

    def __init__(self, inputs: int, config: CNPConfig) -> None:
        """Attend where the config says so."""
        super().__init__()
        *layers, width = config.network.layers
        self.body = relu_mlp([inputs, *layers], width)
        self.attention: SelfAttention | None = None
        if isinstance(config, ANPConfig) and config.self_attention:
            self.attention = SelfAttention(width, config.heads)

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

    def __init__(self, inputs: int, config: CNPConfig) -> None:
        super().__init__()
        self.encoder = Encoder(inputs, config)

    def forward(self, sets: Sets) -> Read:
        """Summarise the support set."""
        r = sets.mean(self.encoder(sets)).unsqueeze(2)
        return lambda query: r


class AttentivePath(nn.Module):
    """r(x) = Σ_i w_i(x) h_i: cross-attention from the query to the points of each set."""

    def __init__(self, features: int, inputs: int, config: ANPConfig) -> None:
        super().__init__()
        width, heads = config.network.layers[-1], config.heads
        self.encoder = Encoder(inputs, config)
        self.place = relu_mlp([features, width], width)
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

    def __init__(self, inputs: int, config: NPConfig) -> None:
        super().__init__()
        width = config.network.layers[-1]
        self.encoder = Encoder(inputs, config)
        self.head = relu_mlp([width, width], 2 * config.latent)

    def forward(self, sets: Sets) -> Normal:
        """The latents `[B, K, Z]` of each set; σ is within (0.1, 1)."""
        mean, raw = self.head(sets.mean(self.encoder(sets))).chunk(2, -1)
        return Normal(mean, 0.1 + 0.9 * raw.sigmoid(), validate_args=False)


class Decoder(nn.Module):
    """g: a query and what is known to a prediction."""

    def __init__(self, spec: TaskSpec, known: int, config: CNPConfig) -> None:
        """Read `known` numbers: features, representation and latent."""
        super().__init__()
        self.min_std, self.regression = config.min_std, spec.kind == "regression"
        outputs = 2 * spec.outputs if self.regression else 1
        self.body = relu_mlp([known, *config.network.layers], outputs)

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


class NeuralProcess(nn.Module):
    """Body, paths and decoder; the type of the config says which paths there are."""

    def __init__(self, spec: TaskSpec, config: CNPConfig) -> None:
        """CNP: the mean; NP: a latent; ANP: attention and a latent."""
        super().__init__()
        images = len(spec.input_shape) == 3
        self.body = Body(spec.input_shape, config.network) if images else None
        known = features = self.body.features if self.body is not None else spec.input_shape[0]
        self.regression = spec.kind == "regression"
        inputs = features + spec.outputs * self.regression
        self.deterministic: MeanPath | AttentivePath | None = None
        self.latent: LatentPath | None = None
        if isinstance(config, ANPConfig):
            self.deterministic = AttentivePath(features, inputs, config)
        elif not isinstance(config, NPConfig):
            self.deterministic = MeanPath(inputs, config)
        if self.deterministic is not None:
            known += config.network.layers[-1]
        if isinstance(config, NPConfig):
            self.latent = LatentPath(inputs, config)
            known += config.latent
        self.decoder = Decoder(spec, known, config)

    def embed(self, x: Tensor) -> Tensor:
        """Features `[B, M, F]` of inputs `[B, M, X...]`."""
        return x if self.body is None else self.body(x)

    def sets(self, points: Points, features: Tensor, ways: int) -> Sets:
        """Sort embedded points into one set, or one for each of `ways` classes."""
        if self.regression:
            everywhere = torch.ones_like(points.y[:, None, :, 0], dtype=torch.bool)
            return Sets(features, torch.cat([features, points.y], -1), everywhere)
        return Sets(features, features, F.one_hot(points.y, ways).mT.bool())

    def support(self, support: Points) -> Sets:
        """The support set, sorted; it has points of every class."""
        ways = 1 if self.regression else support.ways
        return self.sets(support, self.embed(support.x), ways)

    def reader(self, sets: Sets) -> Callable[[Tensor], tuple[Tensor, ...]]:
        """What the deterministic path says to queries; nothing if there is none."""
        if self.deterministic is None:
            return lambda query: ()
        read = self.deterministic(sets)
        return lambda query: (read(query),)


class CNP(Learner):
    """Predicts from the mean of what the support points say."""

    fixed_ways = False
    config: CNPConfig
    network: NeuralProcess

    def build(self) -> nn.Module:
        """The paths that the config asks for."""
        return NeuralProcess(self.spec, self.config)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Read the support set; there are no steps."""
        network = self.network
        read = network.reader(network.support(support))

        def predict(x: Tensor) -> Prediction:
            query = network.embed(x)
            prediction: Prediction = network.decoder(query, *read(query))
            return prediction

        return predict


class NP(CNP):
    """Predicts from a latent function, of which it draws several."""

    config: NPConfig

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Read the support set; the predictions mix those of several latents, as one Gaussian.

        The latents are the same quantiles of q(z|S) in each call, for each task and each class: a
        prediction depends on nothing but its own support set, and leaves no trace.
        """
        network = self.network
        sets = network.support(support)
        read, belief = network.reader(sets), self._latent(sets)
        own = torch.Generator().manual_seed(0)
        noise = torch.randn(self.config.samples, self.config.latent, generator=own)
        latents = [belief.mean + belief.stddev * e for e in noise.to(belief.mean)]

        def predict(x: Tensor) -> Prediction:
            query = network.embed(x)
            known = read(query)
            return mixture([network.decoder(query, *known, z.unsqueeze(2)) for z in latents])

        return predict

    def loss(self, episodes: Episodes, progress: float) -> Tensor:
        """The objective, negative and for each query point: `[B]`."""
        network, points = self.network, episodes.query
        support, query = network.support(episodes.support), network.embed(points.x)
        known = network.reader(support)(query)
        prior = self._latent(support)

        def surprise(belief: Normal) -> Tensor:
            """-log p(y_Q | z) / Q with z drawn from `belief`."""
            noise = torch.randn(belief.mean.shape, generator=self.generator)
            z = belief.mean + belief.stddev * noise.to(belief.mean)
            return losses(network.decoder(query, *known, z.unsqueeze(2)), points.y)

        count = query.shape[1]
        if self.config.objective == "likelihood":
            draws = torch.stack([-count * surprise(prior) for _ in range(self.config.draws)])
            return (math.log(len(draws)) - draws.logsumexp(0)) / count
        everything = support.union(network.sets(points, query, support.members.shape[1]))
        posterior = self._latent(everything)
        return surprise(posterior) + kl_divergence(posterior, prior).sum((1, 2)) / count

    def _latent(self, sets: Sets) -> Normal:
        """q(z | sets)."""
        assert self.network.latent is not None
        belief: Normal = self.network.latent(sets)
        return belief


class ANP(NP):
    """Predicts from a latent function and from the support points most like the query."""

    config: ANPConfig


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
