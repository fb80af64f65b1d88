"""Conditioned networks: one network reads the support set and sets up another, in one pass.

A hypernetwork writes weights (Ha, Dai and Le 2017, "HyperNetworks"; from an example of what is to
be learned: Bertinetto et al. 2016, "Learning feed-forward one-shot learners"). FiLM only scales and
shifts the features of each block (Perez et al. 2018, "FiLM: Visual Reasoning with a General
Conditioning Layer"), here from a summary of the support set and with a head made from the means of
the classes, as in CNAPs (Requeima et al. 2019, "Fast and Flexible Multi-Task Classification Using
Conditional Neural Adaptive Processes"), but with the body learned together with the rest.

A support set is summarised by a mean over its points (of each class), so that their order does not
matter (Zaheer et al. 2017, "Deep Sets").
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.errors import require_positive
from metarl.fewshot.encoding import class_means, mlp
from metarl.fewshot.episodes import Points, TaskSpec
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor
from metarl.fewshot.networks import Body, Film, Network, NetworkConfig
from metarl.layers import Linear, Params


@dataclass(frozen=True)
class HypernetworkConfig(LearnerConfig):
    """Sizes of what reads the support set."""

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(norm="running"))
    """the network whose weights are written; for images, and for classes, only its head is"""
    hidden: int = 128
    """units of the layers between the support set and the weights"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for sizes that make no network."""
        super().__post_init__()
        require_positive(self, ("hidden",), "learner")


@dataclass(frozen=True)
class FiLMConfig(LearnerConfig):
    """Sizes of what reads the support set."""

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(norm="running"))
    """the network whose features are scaled and shifted"""
    hidden: int = 64
    """size of the summary of a support set, and of the layers around it"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for sizes that make no network."""
        super().__post_init__()
        require_positive(self, ("hidden",), "learner")


class SetEncoder(nn.Module):
    """From a support set to one vector `[B, hidden]`."""

    def __init__(self, spec: TaskSpec, config: HypernetworkConfig | FiLMConfig) -> None:
        """Read vectors as they are, and images by convolutions of its own."""
        super().__init__()
        image = len(spec.input_shape) > 1
        self.body = Body(spec.input_shape, config.network) if image else None
        features = spec.input_shape[0] if self.body is None else self.body.features
        # What the classes of a task are called says nothing about it; values do.
        features += spec.outputs if spec.kind == "regression" else 0
        self.point = mlp(features, config.hidden, config.hidden)
        self.set = mlp(config.hidden, config.hidden, config.hidden)

    def forward(self, support: Points) -> Tensor:
        """Take the mean over the points, between two networks."""
        read = support.x if self.body is None else self.body(support.x)
        if support.y.is_floating_point():
            read = torch.cat([read, support.y], -1)
        summary: Tensor = self.set(self.point(read).mean(1)).relu()
        return summary


class ClassHead(nn.Module):
    """Writes a linear head, for each class from the mean feature of its support points."""

    def __init__(self, features: int, hidden: int) -> None:
        """Build what makes a weight `[F]` and a bias of the mean of a class and that of all."""
        super().__init__()
        self.write = mlp(2 * features, hidden, features + 1)
        self.scale = features**-0.5

    def forward(self, features: Tensor, y: Tensor) -> Params:
        """Support features `[B, S, F]` to a weight `[B, ways, F]` and a bias `[B, ways]`.

        What is written is added to the mean itself, as in CNAPs.
        """
        means = class_means(features, y, int(y.max()) + 1)
        read = torch.cat([means, means.mean(1, keepdim=True).expand_as(means)], -1)
        weight, bias = self.write(read).split([means.shape[-1], 1], -1)
        return {"weight": (means + weight) * self.scale, "bias": bias.squeeze(-1)}


class WritingNetwork(nn.Module):
    """A network, and what writes the weights of some of its layers.

    The weights are the network's own, which are learned, plus what the support set makes of them.
    """

    def __init__(self, spec: TaskSpec, config: HypernetworkConfig) -> None:
        """Write all weights of a network for vectors, and the head of one for images."""
        super().__init__()
        self.network = Network(spec, config.network)
        self.encoder = SetEncoder(spec, config)
        written = "" if len(spec.input_shape) == 1 else "head."
        named = self.network.named_parameters()
        self.shapes = {name: p.shape for name, p in named if name.startswith(written)}
        self.sizes = [shape.numel() for shape in self.shapes.values()]
        self.write = nn.Linear(config.hidden, sum(self.sizes))
        # At first every task has nearly the same weights, drawn as those of any network are.
        nn.init.normal_(self.write.weight, std=0.1 * config.hidden**-0.5)
        nn.init.zeros_(self.write.bias)

    def weights(self, support: Points) -> Params:
        """The written weights `[B, ...]`."""
        own = dict(self.network.named_parameters())
        parts = self.write(self.encoder(support)).split(self.sizes, -1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: own[name] + part.unflatten(-1, shape) for (name, shape), part in named}

    def forward(self, weights: Params, x: Tensor) -> Tensor:
        """Predict with the weights of each task."""
        y: Tensor = functional_call(self.network, weights, (x,))
        return y


class HeadWritingNetwork(nn.Module):
    """A body that all tasks share, and what writes a head for any number of classes."""

    def __init__(self, spec: TaskSpec, config: HypernetworkConfig) -> None:
        super().__init__()
        self.body = Body(spec.input_shape, config.network)
        self.head = ClassHead(self.body.features, config.hidden)

    def weights(self, support: Points) -> Params:
        """The head of each task."""
        written: Params = self.head(self.body(support.x), support.y)
        return written

    def forward(self, weights: Params, x: Tensor) -> Tensor:
        """Predict with the head of each task."""
        return linear(self.body(x), weights)


def linear(features: Tensor, weights: Params) -> Tensor:
    """A linear layer of each task's own: `[B, Q, F]` to `[B, Q, ways]`."""
    return torch.baddbmm(weights["bias"].unsqueeze(1), features, weights["weight"].mT)


class Hypernetwork(Learner):
    """Writes weights in one look at the support set."""

    fixed_ways = False

    config: HypernetworkConfig
    network: WritingNetwork | HeadWritingNetwork

    def build(self) -> nn.Module:
        """A head for each class, or for a regression all weights that a summary can tell."""
        if self.spec.kind == "classification":
            return HeadWritingNetwork(self.spec, self.config)
        return WritingNetwork(self.spec, self.config)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Write the weights; there are no steps."""
        weights = self.network.weights(support)
        return lambda x: Prediction(self.network(weights, x))


class FiLMNetwork(nn.Module):
    """A body whose features are scaled and shifted for each task, and its head."""

    def __init__(self, spec: TaskSpec, config: FiLMConfig) -> None:
        """Classes get a written head; values a learned one, which all tasks share."""
        super().__init__()
        self.encoder = SetEncoder(spec, config)
        self.body = Body(spec.input_shape, config.network)
        self.film = nn.ModuleList([nn.Linear(config.hidden, 2 * w) for w in self.body.widths])
        for layer in self.film:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.1 * config.hidden**-0.5)
            nn.init.zeros_(layer.bias)
        features = self.body.features
        regression = spec.kind == "regression"
        self.head = Linear(features, spec.outputs) if regression else None
        self.class_head = None if regression else ClassHead(features, config.hidden)

    def conditions(self, support: Points) -> Film:
        """Scale and shift of the features of each block, `[B, C]`; at first near 1 and 0."""
        summary = self.encoder(support)
        pairs = [layer(summary).chunk(2, -1) for layer in self.film]
        return [(1.0 + scale, shift) for scale, shift in pairs]

    def predictor(self, support: Points) -> Predictor:
        """Read the support set once for the features, and for classes again for the head."""
        film = self.conditions(support)
        if self.head is not None:
            shared = self.head
            return lambda x: Prediction(shared(self.body(x, film)))
        assert self.class_head is not None
        weights: Params = self.class_head(self.body(support.x, film), support.y)
        return lambda x: Prediction(linear(self.body(x, film), weights))


class FiLM(Learner):
    """Scales and shifts the features of every block for the task."""

    fixed_ways = False

    config: FiLMConfig
    network: FiLMNetwork

    def build(self) -> nn.Module:
        """The body, and what reads the support set."""
        return FiLMNetwork(self.spec, self.config)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Find scales, shifts and head; there are no steps."""
        return self.network.predictor(support)
