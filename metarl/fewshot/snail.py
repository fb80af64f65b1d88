"""SNAIL: read the support set and a query as one sequence, by convolutions and attention.

Mishra, Rohaninejad, Chen and Abbeel 2018, "A Simple Neural Attentive Meta-Learner", section 3 and
figure 2; the order of the blocks is that of the appendix for few-shot classification. A dense layer
adds to its inputs tanh(x * w_f) ⊙ σ(x * w_g), with * a causal convolution of two points that are
`dilation` apart; dilations double from layer to layer. An attention layer adds what its queries
find among the keys of the points so far.

Each query stands at the end of a sequence of its own. As nothing looks ahead, what the layers make
of the support set is the same in all of them: it is computed once, and the queries, which see it
and themselves, in parallel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from metarl.errors import require_positive
from metarl.fewshot.encoding import Embedding, as_sequence, encode_labels
from metarl.fewshot.episodes import Points, TaskSpec
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor
from metarl.fewshot.networks import NetworkConfig


@dataclass(frozen=True)
class SNAILConfig(LearnerConfig):
    """Sizes of the sequence model."""

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(norm="running"))
    """what inputs go through before the sequence model"""
    embedding: int = 64
    """numbers that an input becomes"""
    filters: int = 128
    """filters of each convolution in time"""
    dense_layers: int = 4
    """convolutions of each block, with dilations 1, 2, 4, ...; 4 reach over 16 points"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for sizes that make no network."""
        super().__post_init__()
        require_positive(self, ("embedding", "filters", "dense_layers"), "learner")


class Causal(nn.Module, ABC):
    """A layer of a sequence, each element of which sees itself and those before it."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """All elements of `[B, T, C]`."""

    @abstractmethod
    def last(self, x: Tensor, before: Tensor) -> Tensor:
        """Elements `x` `[B, Q, C]`, each of which comes next after `before` `[B, T, C]`."""


class Dense(Causal):
    """A gated causal convolution of two points, whose outputs are added as new channels."""

    def __init__(self, channels: int, filters: int, dilation: int) -> None:
        """Look `dilation` points back."""
        super().__init__()
        self.now = nn.Linear(channels, 2 * filters)
        self.then = nn.Linear(channels, 2 * filters, bias=False)
        self.dilation = dilation

    def _join(self, x: Tensor, then: Tensor) -> Tensor:
        """Add the new channels to `x`; `then` is what lay `dilation` points back, put in."""
        content, gate = (self.now(x) + then).chunk(2, -1)
        return torch.cat([x, content.tanh() * gate.sigmoid()], -1)

    def forward(self, x: Tensor) -> Tensor:
        """Before the first element there are zeros."""
        length = x.shape[1]
        shifted = nn.functional.pad(x, (0, 0, self.dilation, 0))[:, :length]
        return self._join(x, self.then(shifted))

    def last(self, x: Tensor, before: Tensor) -> Tensor:
        """One look back, shared by all elements that come next."""
        place = before.shape[1] - self.dilation
        then = before[:, place : place + 1] if place >= 0 else torch.zeros_like(x[:, :1])
        return self._join(x, self.then(then))


class Attention(Causal):
    """Causal attention with one head, whose outputs are added as new channels."""

    def __init__(self, channels: int, keys: int, values: int) -> None:
        """Sizes of the keys and of the values."""
        super().__init__()
        self.query = nn.Linear(channels, keys)
        self.key = nn.Linear(channels, keys)
        self.value = nn.Linear(channels, values)
        self.scale = 1.0 / math.sqrt(keys)

    def forward(self, x: Tensor) -> Tensor:
        """Attend to all elements that are not later."""
        length = x.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        score = (self.query(x) @ self.key(x).mT * self.scale).masked_fill(later, -math.inf)
        return torch.cat([x, score.softmax(-1) @ self.value(x)], -1)

    def last(self, x: Tensor, before: Tensor) -> Tensor:
        """Attend to all that came before, and to itself, but not to its neighbours in `x`."""
        query = self.query(x) * self.scale
        seen = query @ self.key(before).mT
        itself = (query * self.key(x)).sum(-1, keepdim=True)
        weight = torch.cat([seen, itself], -1).softmax(-1)
        found = weight[..., :-1] @ self.value(before) + weight[..., -1:] * self.value(x)
        return torch.cat([x, found], -1)


class SequenceNetwork(nn.Module):
    """The embedding, and the causal layers over it."""

    def __init__(self, spec: TaskSpec, config: SNAILConfig) -> None:
        """Attention, convolutions, attention, convolutions, attention; then linear."""
        super().__init__()
        self.embedding = Embedding(spec.input_shape, config.network, config.embedding)
        self.outputs = spec.outputs
        layers: list[Causal] = []
        channels = config.embedding + spec.outputs

        def attention(keys: int, values: int) -> None:
            nonlocal channels
            layers.append(Attention(channels, keys, values))
            channels += values

        def convolutions() -> None:
            nonlocal channels
            for k in range(config.dense_layers):
                layers.append(Dense(channels, config.filters, 2**k))
                channels += config.filters

        size = config.filters
        attention(size // 2, size // 4)
        convolutions()
        attention(2 * size, size)
        convolutions()
        attention(4 * size, 2 * size)
        self.layers = nn.ModuleList(layers)
        self.output = nn.Linear(channels, spec.outputs)

    def embed(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """Inputs `[B, M, X...]` with their labels `[B, M, D]`; zeros where they are unknown."""
        features: Tensor = self.embedding(x)
        if labels is None:
            labels = features.new_zeros(*features.shape[:2], self.outputs)
        return torch.cat([features, labels.to(features.dtype)], -1)

    def remember(self, x: Tensor) -> list[Tensor]:
        """What each layer is given for the support set `[B, S, E]`."""
        inputs = [x]
        for layer in list(self.layers)[:-1]:
            inputs.append(layer(inputs[-1]))
        return inputs

    def answer(self, x: Tensor, memory: list[Tensor]) -> Tensor:
        """Outputs `[B, Q, D]` for queries `[B, Q, E]`, each alone after the support set."""
        for layer, before in zip(self.layers, memory, strict=True):
            assert isinstance(layer, Causal)
            x = layer.last(x, before)
        y: Tensor = self.output(x)
        return y


class SNAIL(Learner):
    """Reads the support set and one query as a sequence."""

    config: SNAILConfig
    network: SequenceNetwork

    def build(self) -> nn.Module:
        """The embedding and the sequence model."""
        return SequenceNetwork(self.spec, self.config)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Read the support set in a random order; there are no steps."""
        network = self.network
        support = as_sequence(support, self.generator if network.training else None)
        memory = network.remember(network.embed(support.x, encode_labels(support.y, self.spec)))
        return lambda x: Prediction(network.answer(network.embed(x), memory))
