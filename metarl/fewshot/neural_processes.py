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
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from metarl.errors import UsageError, require_positive
from metarl.fewshot.episodes import Episodes, Points, TaskSpec
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor, losses
from metarl.fewshot.networks import Body, NetworkConfig
from metarl.fewshot.neural_process_parts import (
    AttentivePath,
    Decoder,
    Encoder,
    LatentPath,
    MeanPath,
    Sets,
    mixture,
)


@dataclass(frozen=True)
class CNPConfig(LearnerConfig):
    """Sizes; `network.layers` are those of the encoders and of the decoder, also for images."""

    network: NetworkConfig = field(
        default_factory=lambda: NetworkConfig(layers=(128, 128, 128), norm="running")
    )
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
        layers, width = config.network.layers, config.network.layers[-1]
        heads = config.heads if isinstance(config, ANPConfig) and config.self_attention else 0
        if isinstance(config, ANPConfig):
            encoder = Encoder(inputs, layers, heads)
            self.deterministic = AttentivePath(encoder, features, width, config.heads)
        elif not isinstance(config, NPConfig):
            self.deterministic = MeanPath(Encoder(inputs, layers))
        if self.deterministic is not None:
            known += width
        if isinstance(config, NPConfig):
            self.latent = LatentPath(Encoder(inputs, layers, heads), width, config.latent)
            known += config.latent
        self.decoder = Decoder(spec, known, layers, config.min_std)

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
