"""LEO: adapt a latent code of few numbers, from which the weights of the head are drawn.

Rusu, Rao, Sygnowski, Vinyals, Pascanu, Osindero and Hadsell 2019, "Meta-Learning with Latent
Embedding Optimization". An encoder and a relation network give each class a code z ~ q(z | support)
(equations 1 and 2), a decoder gives the weights w ~ p(w | z) (3 and 4), and the support loss is
reduced by steps of z (equation 6) and then of w. Training reduces (equation 8, with the penalty of
section 2.2.4)

    L(w'; query) + β KL(q || N(0, I)) + γ |stop(z') - z|² + λ |C - I|²

where z' is the adapted code and C the correlation of the decoder's columns. The paper takes its
features from a wide residual network that was trained before and is frozen; here they come from the
network of the config, which is learned together with the rest. The paper's dropout and weight decay
are left out. A regression has one code for the whole task, read from features and values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.errors import require_between, require_positive
from metarl.fewshot.encoding import memberships
from metarl.fewshot.episodes import Episodes, Points, TaskSpec
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor, losses
from metarl.fewshot.networks import Body
from metarl.inner_loop import SGD, adapt
from metarl.layers import Params


@dataclass(frozen=True)
class LEOConfig(LearnerConfig):
    """Sizes of the code and of the steps, and the weights of the penalties."""

    latent: int = 64
    """numbers of a code"""
    hidden: int = 64
    """numbers that the encoder makes of the features of a point"""
    latent_rate: float = 0.1
    """step size of the codes, where it starts"""
    fine_tune_rate: float = 0.001
    """step size of the weights, where it starts"""
    latent_steps: int = 5
    """gradient steps of the codes"""
    fine_tune_steps: int = 5
    """gradient steps of the weights, after them"""
    kl_weight: float = 1e-3
    """β, keeps codes near to a standard normal"""
    encoder_penalty: float = 1e-3
    """γ, pulls the first code towards the adapted one"""
    orthogonality: float = 0.1
    """λ, keeps the numbers of a code from doing the same"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        sizes = "latent", "hidden", "latent_rate", "fine_tune_rate"
        require_positive(self, (*sizes, "latent_steps", "fine_tune_steps"), "learner")
        weights = "kl_weight", "encoder_penalty", "orthogonality"
        require_between(self, weights, "learner", 0.0)


class CodedNetwork(nn.Module):
    """Features, and what makes codes of them and heads of codes."""

    def __init__(self, spec: TaskSpec, config: LEOConfig) -> None:
        """Build it for the tasks of `spec`."""
        super().__init__()
        self.body = Body(spec.input_shape, config.network)
        features, hidden = self.body.features, config.hidden
        regression = spec.kind == "regression"
        self.outputs = spec.outputs if regression else 1
        """rows of the head that one code makes"""
        read = features + spec.outputs if regression else features
        self.encoder = nn.Linear(read, hidden, bias=False)
        wide = 2 * hidden
        self.relation = nn.Sequential(
            *(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, wide), nn.ReLU()),
            nn.Linear(wide, 2 * config.latent),
        )
        # One weight more for each row: the bias.
        self.decoder = nn.Linear(config.latent, 2 * self.outputs * (features + 1), bias=False)
        self.spread = math.sqrt(2.0 / (features + 1 + spec.outputs))
        """standard deviation of weights that the decoder says nothing about (Glorot)"""
        self.latent_rate = nn.Parameter(torch.tensor(config.latent_rate))
        self.fine_tune_rate = nn.Parameter(torch.tensor(config.fine_tune_rate))

    def features(self, x: Tensor) -> Tensor:
        """`[B, M, X...]` to `[B, M, F + 1]`; the last is 1, for the bias."""
        return F.pad(self.body(x), (0, 1), value=1.0)

    def codes(self, points: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Means and log standard deviations of the codes, `[B, N, latent]` each.

        Every point is compared with every other, and a code averages over those of its class.

        Args:
            points: what is read of each support point, `[B, S, ...]`.
            members: `[B, N, S]`, 1 where a point belongs to a code.
        """
        h = self.encoder(points)
        count = h.shape[1]
        one = h.unsqueeze(2).expand(-1, -1, count, -1)
        other = h.unsqueeze(1).expand(-1, count, -1, -1)
        each = self.relation(torch.cat([one, other], -1)).mean(2)
        mean, log_std = ((members / members.sum(-1, keepdim=True)) @ each).chunk(2, -1)
        return mean, log_std

    def head(self, codes: Tensor, noise: Tensor) -> Tensor:
        """Weights `[B, N * outputs, F + 1]` of codes `[B, N, latent]`."""
        mean, log_std = self.decoder(codes).chunk(2, -1)
        drawn: Tensor = mean + self.spread * log_std.exp() * noise
        return drawn.view(len(codes), -1, drawn.shape[-1] // self.outputs)

    def correlation_penalty(self) -> Tensor:
        """|C - I|² of the decoder's columns, a mean over the numbers of C."""
        columns = F.normalize(self.decoder.weight, dim=0)
        excess = columns.T @ columns - torch.eye(columns.shape[1]).to(columns)
        penalty: Tensor = excess.square().mean()
        return penalty


@dataclass(frozen=True)
class Adapted:
    """The codes and the head of B tasks, with N codes each."""

    mean: Tensor
    """of q(z | support), `[B, N, latent]`"""
    log_std: Tensor
    """of the same"""
    first: Tensor
    """z before any step"""
    code: Tensor
    """z' after its steps"""
    weights: Tensor
    """w' after its steps, `[B, N * outputs, F + 1]`"""


class LEO(Learner):
    """Finds the head of the network by gradient descent in a space of few dimensions.

    In training the codes and the weights are drawn, once for each task; in use they are means.
    """

    fixed_ways: ClassVar[bool] = False

    config: LEOConfig
    network: CodedNetwork

    def build(self) -> nn.Module:
        """Features, encoder, relation network, decoder and step sizes."""
        return CodedNetwork(self.spec, self.config)

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """As decoded, after the steps of the codes, and after those of the weights."""
        first = self.config.latent_steps
        return 0, first, first + self.config.fine_tune_steps

    def noise(self, tasks: int, codes: int) -> tuple[Tensor, Tensor]:
        """What the codes and the weights are drawn with; zeros in use."""
        net, like = self.network, self.network.encoder.weight
        shape = (tasks, codes)
        sizes = self.config.latent, net.decoder.out_features // 2
        if not net.training:
            return like.new_zeros(*shape, sizes[0]), like.new_zeros(*shape, sizes[1])
        z, w = (torch.randn(*shape, size, generator=self.generator).to(like) for size in sizes)
        return z, w

    def adapted(self, support: Points, steps: int) -> Adapted:
        """The codes and the head after `steps` steps, the first of which are those of the codes."""
        net, config, y = self.network, self.config, support.y
        features = net.features(support.x)
        mean, log_std = net.codes(*self.read(features, support))
        for_code, for_weights = self.noise(support.tasks, mean.shape[1])
        first = mean + log_std.exp() * for_code

        def of_code(params: Params, step: int) -> Tensor:
            return losses(predicted(features, net.head(params["code"], for_weights)), y)

        def of_weights(params: Params, step: int) -> Tensor:
            return losses(predicted(features, params["weights"]), y)

        in_code = min(steps, config.latent_steps)
        code = adapt({"code": first}, of_code, SGD(net.latent_rate), in_code)["code"]
        start = {"weights": net.head(code, for_weights)}
        end = adapt(start, of_weights, SGD(net.fine_tune_rate), steps - in_code)
        return Adapted(mean, log_std, first, code, end["weights"])

    def read(self, features: Tensor, support: Points) -> tuple[Tensor, Tensor]:
        """What the encoder reads of each support point, and the code that the point belongs to."""
        x, y = features[..., :-1], support.y
        if y.is_floating_point():
            return torch.cat([x, y], -1), torch.ones_like(x[:, None, :, 0])
        return x, memberships(y, support.ways, x)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Find codes, then take `steps` steps; without any the head is what the codes say."""
        count = self.steps_shown[-1] if steps is None else steps
        weights = self.adapted(support, count).weights
        return lambda x: predicted(self.network.features(x), weights)

    def loss(self, episodes: Episodes, progress: float) -> Tensor:
        """The loss for the query points and the penalties, `[B]`."""
        config, net = self.config, self.network
        a = self.adapted(episodes.support, self.steps_shown[-1])
        query = losses(predicted(net.features(episodes.query.x), a.weights), episodes.query.y)
        kl = 0.5 * ((2.0 * a.log_std).exp() + a.mean.square() - 1.0 - 2.0 * a.log_std)
        moved = (a.code.detach() - a.first).square()
        penalties = config.kl_weight * kl + config.encoder_penalty * moved
        correlation = config.orthogonality * net.correlation_penalty()
        return query + penalties.sum(-1).mean(-1) + correlation


def predicted(features: Tensor, weights: Tensor) -> Prediction:
    """Linear in features `[B, M, F + 1]`."""
    return Prediction(features @ weights.mT)
