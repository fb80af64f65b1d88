"""The baselines that meta-learning has to beat: pre-train and fine-tune, and train from scratch.

Chen, Liu, Kira, Wang and Huang 2019, "A Closer Look at Few-shot Classification": a classifier of
all training classes is trained as usual; a task then gets a new head, trained on its support set,
on top of the features. With cosine logits s·cos(f(x), w_n) it is their Baseline++. A new head
starts from zeros, or, with cosines, from the class means of the support set (Qi, Brown and Lowe
2018, "Low-Shot Learning with Imprinted Weights"). Regression pre-trains one network on the points
of all tasks at once, and goes on from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.errors import UsageError, require_positive
from metarl.fewshot.encoding import class_means
from metarl.fewshot.episodes import Data, Episodes, ImageData, Points, Protocol
from metarl.fewshot.learner import (
    Learner,
    LearnerConfig,
    Prediction,
    Predictor,
    losses,
    steps_up_to,
)
from metarl.fewshot.networks import Network, NetworkConfig
from metarl.fewshot.prototypical import cosines, embedding_network
from metarl.inner_loop import SGD, Adam, Rule, adapt, own_copies
from metarl.layers import Linear, Params, per_task


@dataclass(frozen=True)
class ScratchConfig(LearnerConfig):
    """How a task is learned from its support set."""

    optimizer: Literal["adam", "sgd"] = "adam"
    """the rule of the steps on the support set"""
    inner_rate: float = 0.01
    """step size on the support set"""
    test_steps: int = 50
    """gradient steps on the support set"""
    adapts: Literal["auto", "head", "all"] = "auto"
    """what the steps on the support set change; auto is what did better: everything where values
    are predicted or nothing was learned before, and else the head"""
    cosine: bool = False
    """classify by cosines instead of a linear head"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("inner_rate", "test_steps"), "learner")


@dataclass(frozen=True)
class FineTuneConfig(ScratchConfig):
    """How the network is trained before, too."""

    network: NetworkConfig = field(default_factory=embedding_network)
    inner_rate: float = 0.003
    """step size on the support set"""
    test_steps: int = 200
    """gradient steps on the support set"""
    batch: int = 128
    """images of an iteration, for classification; regression takes `meta_batch` tasks"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("batch",), "learner")


class CosineHead(Linear):
    """s·cos(x, w_n) of features `[B, M, F]`, with weights `[N, F]` or `[B, N, F]`."""

    def __init__(self, features: int, classes: int) -> None:
        """Draw the weights; the scale s is learned, from 10."""
        super().__init__(features, classes, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def forward(self, input: Tensor) -> Tensor:
        """Logits `[B, M, N]`."""
        weight = self.weight if per_task(self.weight, 2) else self.weight.unsqueeze(0)
        return self.log_scale.exp().view(-1, 1, 1) * cosines(input, weight)


class Scratch(Learner):
    """Learns a task from random weights, the same for every task, by steps on its support set."""

    fixed_ways = False
    config: ScratchConfig
    network: Network

    def build(self) -> nn.Module:
        """The network; its head is replaced where there are classes."""
        network = Network(self.spec, self.config.network)
        if self.spec.kind == "classification" and self.config.cosine:
            network.head = CosineHead(network.body.features, self.spec.outputs)
        return network

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """0, 1, 5, 10, ... up to the number of steps in use."""
        return steps_up_to(self.config.test_steps, (0, 1, 5, 10, 20, 50, 100))

    @property
    def adapts_all(self) -> bool:
        """Whether all parameters adapt, or only the head."""
        return self.config.adapts != "head"

    def rule(self) -> Rule:
        """What a gradient does to the parameters."""
        rate = self.config.inner_rate
        return Adam(rate) if self.config.optimizer == "adam" else SGD(rate)

    @torch.no_grad()
    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Take `steps` gradient steps, `test_steps` by default, from the weights at hand."""
        count = self.config.test_steps if steps is None else steps
        network = self.network
        whole = self.adapts_all
        adapting: nn.Module = network if whole else network.head

        def inputs(x: Tensor) -> Tensor:
            return x if whole else network.body(x)

        known = Points(inputs(support.x), support.y)
        start = own_copies(dict(adapting.named_parameters()), support.tasks)
        if self.spec.kind == "classification":
            head = self._new_head(support, learned=count > 0)
            start |= {f"head.{name}" if whole else name: p for name, p in head.items()}

        def loss(params: Params, step: int) -> Tensor:
            logits = functional_call(adapting, params, (known.x,))
            return losses(Prediction(logits), known.y)

        params = adapt(start, loss, self.rule(), count, second_order=False)
        return lambda x: Prediction(functional_call(adapting, params, (inputs(x),)))

    def _new_head(self, support: Points, learned: bool) -> Params:
        """The weights `[B, ways, ...]` of new classes, zeros if nothing is `learned` of them."""
        body, tasks, ways = self.network.body, support.tasks, support.ways
        zeros = support.x.new_zeros(tasks, ways, body.features)
        if not self.config.cosine:
            return {"weight": zeros, "bias": zeros[..., 0]}
        means = class_means(body(support.x), support.y, ways) if learned else zeros
        return {"weight": means}

    def train_step(self, data: Data, protocol: Protocol, progress: float) -> dict[str, float]:
        """Learn nothing; report the loss of the random network on one task."""
        episodes = data.episodes(protocol, 1, "train", self.generator).to(self.device)
        y = episodes.query.y
        loss = losses(self.predict(episodes, steps=0), y)
        return {"loss": float(loss), "gradient_norm": 0.0}


class FineTune(Scratch):
    """Trains one network on everything, and goes on from it for each task."""

    config: FineTuneConfig

    @property
    def adapts_all(self) -> bool:
        """Whether all parameters adapt; for classes, good features are better left alone."""
        if self.config.adapts == "auto":
            return self.spec.kind == "regression"
        return super().adapts_all

    def train_step(self, data: Data, protocol: Protocol, progress: float) -> dict[str, float]:
        """One step on a batch of images of all training classes, or on the points of tasks.

        Raises:
            UsageError: if the data have classes, but do not tell which classes those of a task are.
            TrainingError: if the gradient is not finite.
        """
        if self.spec.kind == "regression":
            return super(Scratch, self).train_step(data, protocol, progress)
        if not isinstance(data, ImageData):
            raise UsageError(f"fine-tune: {data.name} must be image data, which name their classes")
        self._grow(data.classes("train"))
        self.network.train()
        images = data.batch(self.config.batch, "train", self.generator).to(self.device)
        return self.update(Episodes(*images.split(0)), progress)

    def loss(self, episodes: Episodes, progress: float) -> Tensor:
        """The loss of one network for all points of the tasks: `[B]`."""
        pairs = zip(*((p.x, p.y) for p in (episodes.support, episodes.query)), strict=True)
        x, y = (torch.cat(pair, 1) for pair in pairs)
        return losses(Prediction(self.network(x)), y)

    def _grow(self, classes: int) -> None:
        """Give the network a head for so many classes, unless it has one."""
        head = self.network.head
        if len(head.weight) == classes:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=self.generator)))
            make = CosineHead if self.config.cosine else Linear
            self.network.head = make(self.network.body.features, classes).to(head.weight)
        self.optimizer = self.make_optimizer()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`, whose head may have other classes."""
        self._grow(len(state["network"]["head.weight"]))
        super().load_state_dict(state)
