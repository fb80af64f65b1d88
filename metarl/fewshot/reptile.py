"""Reptile: move the start towards where plain training on each task ends.

Nichol, Achiam and Schulman 2018, "On First-Order Meta-Learning Algorithms". Algorithm 2:
θ'_i = k steps of an optimiser on task i from θ, and θ ← θ + ε mean_i (θ'_i - θ), where ε falls
to 0. There are no query points, and no derivatives of steps: θ - mean_i θ'_i takes the place of the
gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.errors import require_positive
from metarl.fewshot.episodes import Episodes, Points
from metarl.fewshot.learner import (
    Learner,
    LearnerConfig,
    Prediction,
    Predictor,
    losses,
    steps_up_to,
)
from metarl.fewshot.maml import require_separate_tasks
from metarl.fewshot.networks import Network
from metarl.inner_loop import SGD, Adam, Rule, adapt, own_copies
from metarl.layers import Params


@dataclass(frozen=True)
class ReptileConfig(LearnerConfig):
    """Sizes of the steps, inside and outside; as the paper has them for Omniglot."""

    meta_batch: int = 5
    """tasks of an iteration"""
    learning_rate: float = 1.0
    """ε, the share of the way to the mean of the adapted parameters that the start moves"""
    final_learning_rate: float = 0.0
    """the same at the end; linear in between"""
    inner_optimizer: Literal["adam", "sgd"] = "adam"
    """what trains on a task; Adam has no first moment (β₁ = 0)"""
    inner_rate: float = 1e-3
    """step size of the inner loop"""
    inner_steps: int = 5
    """steps on a task in training"""
    inner_batch: int = 10
    """points of each step in training, drawn from support and query points together"""
    test_steps: int = 50
    """steps on a task that is judged, on its whole support set"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        sizes = "inner_rate", "inner_steps", "inner_batch", "test_steps"
        require_positive(self, sizes, "learner")
        require_separate_tasks(self.network)


class Reptile(Learner):
    """Trains on tasks with all their points, and starts nearer to where that ends.

    It wants more points of a task in training than in use, and longer adaptation in use.
    """

    config: ReptileConfig
    network: Network

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Plain steps: with θ - mean_i θ'_i for a gradient, those of algorithm 2."""
        return torch.optim.SGD(self.network.parameters(), lr=self.config.learning_rate)

    def build(self) -> nn.Module:
        """The network whose initial weights are learned."""
        return Network(self.spec, self.config.network)

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """0, 1, 5, 10, ... up to the number of steps in use."""
        return steps_up_to(self.config.test_steps)

    def rule(self) -> Rule:
        """The optimiser of the inner loop, without a memory of earlier tasks."""
        if self.config.inner_optimizer == "sgd":
            return SGD(self.config.inner_rate)
        return Adam(self.config.inner_rate, betas=(0.0, 0.999))

    def forward(self, params: Params, x: Tensor) -> Prediction:
        """Predict with each task's own parameters."""
        return Prediction(functional_call(self.network, params, (x,)))

    @torch.no_grad()
    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Take `steps` steps on all support points."""
        count = self.config.inner_steps if steps is None else steps

        def loss(params: Params, step: int) -> Tensor:
            return losses(self.forward(params, support.x), support.y)

        own = own_copies(dict(self.network.named_parameters()), support.tasks)
        params = adapt(own, loss, self.rule(), count)
        return lambda x: self.forward(params, x)

    @torch.no_grad()
    def backward(self, episodes: Episodes, progress: float) -> Tensor:
        """Put θ - mean_i θ'_i where the gradient goes; return the mean loss on the way."""
        config, seen = self.config, []
        support, query = episodes.support, episodes.query
        points = Points(torch.cat([support.x, query.x], 1), torch.cat([support.y, query.y], 1))
        batches = minibatches(
            len(episodes), points.x.shape[1], config.inner_steps, config.inner_batch, self.generator
        ).to(points.x.device)
        rows = torch.arange(len(episodes), device=points.x.device).unsqueeze(1)

        def loss(params: Params, step: int) -> Tensor:
            some = rows, batches[step]
            now = losses(self.forward(params, points.x[some]), points.y[some])
            seen.append(now.detach().mean())
            return now

        start = dict(self.network.named_parameters())
        adapted = adapt(own_copies(start, len(episodes)), loss, self.rule(), config.inner_steps)
        for name, p in start.items():
            p.grad = p - adapted[name].mean(0)
        return torch.stack(seen).mean()


def minibatches(
    tasks: int, points: int, steps: int, size: int, generator: torch.Generator
) -> Tensor:
    """Indices of the points for each step, int64 `[steps, tasks, min(size, points)]`.

    Each task goes through all its points in a random order before it comes back to one.
    """
    size = min(size, points)
    rounds = -(-steps * size // points)
    order = torch.rand(tasks, rounds, points, generator=generator).argsort(-1).flatten(1)
    return order[:, : steps * size].view(tasks, steps, size).transpose(0, 1)
