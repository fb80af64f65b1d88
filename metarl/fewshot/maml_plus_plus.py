"""MAML++: MAML with what makes its training stable.

Antoniou, Edwards and Storkey 2019, "How to Train Your MAML". To MAML it adds

- the multi-step loss Σ_k w_k L(θ_k; query) over all inner steps (MSL, equation 5), whose weights
  shift to the last step early in training;
- first-order gradients for the first part of training (DA);
- a learned step size for each layer and step (LSLR);
- batch norm with a scale and shift (BNWB) and statistics (BNRS) of its own for each step;
- an outer step size that falls along a cosine (CA).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.errors import UsageError, require_between
from metarl.fewshot.episodes import Episodes, TaskSpec
from metarl.fewshot.learner import Prediction, losses
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.networks import Network
from metarl.inner_loop import SGD, Rule
from metarl.layers import BatchNorm, Params
from metarl.optimization import set_learning_rate


@dataclass(frozen=True)
class MAMLPlusPlusConfig(MAMLConfig):
    """As for MAML; `inner_rate` is where the step sizes start."""

    inner_rate: float = 0.1
    """α, where the step sizes of the inner loop start"""
    inner_steps: int = 5
    """gradient steps on the support set in training"""
    test_steps: int = 5
    """gradient steps on a task that is judged; beyond those of training the last one repeats"""
    final_learning_rate: float = 1e-5
    """step size of the outer loop at the end, along a cosine"""
    multi_step_until: float = 0.1
    """share of training after which only the last step's loss counts"""
    first_order_until: float = 0.3
    """share of training before second derivatives are used"""
    statistics: Literal["batch", "running"] = "batch"
    """what batch norm uses in use: those of the points passed together, as the published code does,
    or the running ones of the step, so that query points do not depend on each other"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_between(self, ("multi_step_until", "first_order_until"), "learner", 0.0, 1.0)
        if self.compile:
            raise UsageError(
                "learner: the loss of MAML++ changes during training and cannot be compiled; "
                "train without compile"
            )


class StepBatchNorm(nn.Module):
    """Batch norm over each task's inputs, with parameters and statistics for each inner step."""

    mean: Tensor
    var: Tensor

    def __init__(self, features: int, steps: int, running: bool, momentum: float = 0.1) -> None:
        """Start from scale 1, shift 0, mean 0 and variance 1, before and after `steps` steps."""
        super().__init__()
        shape = steps + 1, features
        self.weight, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.running, self.momentum = running, momentum
        self.step = 0
        """how many steps the weights around it have taken; set before each call"""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `[B, M, C, ...]`."""
        k = min(self.step, len(self.weight) - 1)
        over = (1, *range(3, x.dim()))
        if self.running and not self.training:
            mean, var = (_for_features(s[k], x) for s in (self.mean, self.var))
        else:
            mean = x.mean(over, keepdim=True)
            var = (x - mean).square().mean(over, keepdim=True)
            if self.training:
                self._remember(mean, var, k)
        y = (x - mean) * (var + 1e-5).rsqrt()
        return y * _for_features(self.weight[k], x) + _for_features(self.bias[k], x)

    @torch.no_grad()
    def _remember(self, mean: Tensor, var: Tensor, k: int) -> None:
        """Move the running statistics of step `k` towards those of B tasks, B times as far."""
        share = 1.0 - (1.0 - self.momentum) ** len(mean)
        self.mean[k].lerp_(mean.mean(0).flatten(), share)
        self.var[k].lerp_(var.mean(0).flatten(), share)


def _for_features(values: Tensor, x: Tensor) -> Tensor:
    """View `[C]` so that it broadcasts over `x` `[B, M, C, ...]`."""
    return values.view(-1, *(1,) * (x.dim() - 3))


class SteppedNetwork(Network):
    """A network with batch norm for each step, and step sizes `[steps]` for what adapts."""

    def __init__(self, spec: TaskSpec, config: MAMLPlusPlusConfig) -> None:
        """Start all step sizes from `config.inner_rate`."""
        super().__init__(spec, config.network)
        steps = config.inner_steps
        self.step_norms: list[StepBatchNorm] = []
        for block in self.body.blocks:
            if isinstance(block.norm, BatchNorm):
                features = len(block.norm.weight)
                block.norm = StepBatchNorm(features, steps, config.statistics == "running")
                self.step_norms.append(block.norm)
        self.rates = nn.ParameterList(
            [torch.full((steps,), config.inner_rate) for _ in self.adapting()]
        )

    def adapting(self) -> dict[str, nn.Parameter]:
        """The parameters that adapt: all but batch norm's, which have a set for each step."""
        own = {id(p) for norm in self.step_norms for p in norm.parameters()}
        named = self.named_parameters()
        return {n: p for n, p in named if id(p) not in own and not n.startswith("rates.")}


class MAMLPlusPlus(MAML):
    """Adapts as MAML does, by learned step sizes and batch norm of each step's own."""

    config: MAMLPlusPlusConfig
    network: SteppedNetwork

    def build(self) -> nn.Module:
        """The network whose initial weights, step sizes and norms are learned."""
        return SteppedNetwork(self.spec, self.config)

    def start(self) -> Mapping[str, Tensor]:
        """All parameters but the step sizes and those of batch norm."""
        return dict(self.network.adapting())

    def rule(self) -> Rule:
        """The learned step sizes of each step; beyond those of training, the last."""
        last = self.config.inner_steps - 1
        named = dict(zip(self.start(), self.network.rates, strict=True))
        return SGD(lambda k: {name: rates[min(k, last)] for name, rates in named.items()})

    def forward(self, params: Params, x: Tensor, step: int) -> Prediction:
        """Predict after `step` steps, with the norms of that step."""
        for norm in self.network.step_norms:
            norm.step = step
        return Prediction(functional_call(self.network, params, (x,)))

    def step_weights(self, progress: float) -> list[float]:
        """w_k after 0, 1, ... steps: first all steps alike, in the end the last one alone."""
        steps, until = self.config.inner_steps, self.config.multi_step_until
        early = max(0.0, 1.0 - progress / until) / steps if until > 0.0 else 0.0
        return [0.0, *[early] * (steps - 1), 1.0 - (steps - 1) * early]

    def adapted_loss(self, episodes: Episodes, progress: float) -> Tensor:
        """The multi-step loss for the query points, `[B]`."""
        config, query = self.config, episodes.query
        second_order = config.second_order and progress >= config.first_order_until
        path = self.adaptation(episodes.support, config.inner_steps, second_order)
        total = query.x.new_zeros(len(episodes))
        for k, (weight, params) in enumerate(zip(self.step_weights(progress), path, strict=True)):
            if weight > 0.0:
                total = total + weight * losses(self.forward(params, query.x, k), query.y)
        return total

    def backward(self, episodes: Episodes, progress: float) -> Tensor:
        """As MAML, before a step whose size is on the cosine and not on the straight line."""
        rates = self.config.learning_rate, self.config.final_learning_rate
        along = 0.5 - 0.5 * math.cos(math.pi * min(progress, 1.0))
        set_learning_rate(self.optimizer, *rates, along)
        return super().backward(episodes, progress)
