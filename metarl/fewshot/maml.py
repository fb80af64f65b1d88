"""MAML: meta-learn an initialisation from which few gradient steps suffice.

Finn, Abbeel and Levine 2017, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks".
Algorithm 2: θ'_i = θ - α ∇_θ L_i(θ; support) and θ ← θ - β ∇_θ Σ_i L_i(θ'_i; query). Without second
derivatives (`second_order=False`, section 5.2) it is FOMAML.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.errors import UsageError, require_positive
from metarl.fewshot.compiled import CompiledGradient
from metarl.fewshot.episodes import Episodes, Points, TaskSpec
from metarl.fewshot.learner import (
    Learner,
    LearnerConfig,
    Prediction,
    Predictor,
    losses,
    steps_up_to,
)
from metarl.fewshot.networks import Network, NetworkConfig
from metarl.inner_loop import SGD, Executor, Rule, faster_executor, own_copies, trajectory
from metarl.layers import Params


@dataclass(frozen=True)
class MAMLConfig(LearnerConfig):
    """Sizes of the steps, and how they are computed."""

    inner_rate: float = 0.01
    """α, step size of the inner loop"""
    inner_steps: int = 1
    """gradient steps on the support set in training"""
    test_steps: int = 10
    """gradient steps on a task that is judged"""
    second_order: bool = True
    """differentiate through the inner gradient; without it: FOMAML"""
    executor: Executor = "auto"
    """all tasks at once, one after the other, or whichever is measured to be faster"""
    compile: bool = False
    """let torch compile the meta-gradient of all tasks at once; it must agree with the eager one"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("inner_rate", "inner_steps", "test_steps"), "learner")
        require_separate_tasks(self.network)


def require_separate_tasks(network: NetworkConfig) -> None:
    """Raise `UsageError` for a network in which the tasks of a batch would touch each other."""
    if network.norm == "running":
        raise UsageError(
            "network: norm running mixes the tasks of a batch, which must adapt apart; give "
            "batch, layer, group, instance or none"
        )


@dataclass(frozen=True)
class FOMAMLConfig(MAMLConfig):
    """MAML without second derivatives: the gradient of the query loss where the steps end."""

    second_order: bool = False
    """differentiate through the inner gradient; without it: FOMAML"""


class MAML(Learner):
    """Adapts all of its parameters by gradient descent from a learned start."""

    config: MAMLConfig

    def __init__(
        self,
        config: MAMLConfig,
        spec: TaskSpec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the network; see `Learner`."""
        super().__init__(config, spec, seed=seed, device=device)
        self.executor: Executor = "vectorised" if config.compile else config.executor
        self.compiled: CompiledGradient | None = None

    def build(self) -> nn.Module:
        """The network whose initial weights are learned."""
        return Network(self.spec, self.config.network)

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """0, 1, 5, 10, ... up to the number of steps in use."""
        return steps_up_to(self.config.test_steps)

    def start(self) -> Mapping[str, Tensor]:
        """The parameters that adapt, as they are before."""
        return dict(self.network.named_parameters())

    def rule(self) -> Rule:
        """What a gradient does to them."""
        return SGD(self.config.inner_rate)

    def forward(self, params: Params, x: Tensor, step: int) -> Prediction:
        """Predict with the adapted `params` `[B, ...]`, of which `step` steps were taken."""
        return Prediction(functional_call(self.network, params, (x,)))

    def adaptation(self, support: Points, steps: int, second_order: bool) -> Iterator[Params]:
        """The parameters of each task after 0, 1, ... `steps` steps on its support set."""

        def loss(params: Params, step: int) -> Tensor:
            return losses(self.forward(params, support.x, step), support.y)

        own = own_copies(self.start(), support.tasks)
        return trajectory(own, loss, self.rule(), steps, second_order=second_order)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Take `steps` gradient steps on the support set."""
        count = self.config.inner_steps if steps is None else steps
        *_, params = self.adaptation(support, count, self.config.second_order)
        return lambda x: self.forward(params, x, count)

    def loss(self, episodes: Episodes, progress: float) -> Tensor:
        """The loss after adaptation, by the chosen executor: `[B]`."""
        if self.executor == "auto":
            self.executor = self._measure(episodes, progress)
        return self._loss_by(self.executor, episodes, progress)

    def _loss_by(self, executor: Executor, episodes: Episodes, progress: float) -> Tensor:
        """The same by `executor`."""
        size = 1 if executor == "loop" else len(episodes)
        return torch.cat([self.adapted_loss(e, progress) for e in episodes.chunks(size)])

    def backward(self, episodes: Episodes, progress: float) -> Tensor:
        """As every learner, or compiled."""
        if not self.config.compile:
            return super().backward(episodes, progress)
        if self.compiled is None:
            self.compiled = CompiledGradient(self.network, lambda e: self.adapted_loss(e, 0.0))
        return self.compiled.backward(episodes)

    def adapted_loss(self, episodes: Episodes, progress: float) -> Tensor:
        """The loss for the query points after adaptation to the support set, `[B]`."""
        return losses(self.adapt(episodes.support)(episodes.query.x), episodes.query.y)

    def _measure(self, episodes: Episodes, progress: float) -> Executor:
        """Which executor is faster on these episodes, here and now; leaves no trace."""
        before = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        faster = faster_executor(
            lambda: self._loss_by("vectorised", episodes, progress),
            lambda: self._loss_by("loop", episodes, progress),
        )
        self.optimizer.zero_grad(set_to_none=True)
        for name, buffer in self.network.named_buffers():
            buffer.copy_(before[name])
        return faster

    def state_dict(self) -> dict[str, Any]:
        """As every learner, and the executor: the two round differently."""
        return {**super().state_dict(), "executor": self.executor}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`, by the executor that was measured then."""
        super().load_state_dict(state)
        self.executor = state["executor"]
