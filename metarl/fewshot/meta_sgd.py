"""Meta-SGD: meta-learn the initialisation together with the step sizes and their signs.

Li, Zhou, Chen and Li 2017, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", equation 2:
θ' = θ - α ∘ ∇L(θ; support), where the vector α is learned like θ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.networks import Network
from metarl.inner_loop import SGD, Rule


@dataclass(frozen=True)
class MetaSGDConfig(MAMLConfig):
    """As for MAML; `inner_rate` is where the step sizes start."""

    test_steps: int = 1
    """gradient steps on a task that is judged; beyond those of training the step sizes overshoot"""
    rates: Literal["element", "tensor"] = "element"
    """a step size for each number, as in the paper, or for each weight matrix and bias"""


class RatedNetwork(Network):
    """A network with step sizes for its parameters, in the order of `named_parameters`."""

    def __init__(self, spec: TaskSpec, config: MetaSGDConfig) -> None:
        """Start all step sizes from `config.inner_rate`."""
        super().__init__(spec, config.network)
        shapes = [p.shape if config.rates == "element" else () for p in self.parameters()]
        self.rates = nn.ParameterList([torch.full(shape, config.inner_rate) for shape in shapes])


class MetaSGD(MAML):
    """Adapts by learned step sizes, which may grow, shrink and change their sign."""

    config: MetaSGDConfig
    network: RatedNetwork

    def build(self) -> nn.Module:
        """The network whose initial weights and step sizes are learned."""
        return RatedNetwork(self.spec, self.config)

    def start(self) -> Mapping[str, Tensor]:
        """All parameters but the step sizes."""
        named = self.network.named_parameters()
        return {name: p for name, p in named if not name.startswith("rates.")}

    def rule(self) -> Rule:
        """The learned step sizes, in every step the same."""
        return SGD(dict(zip(self.start(), self.network.rates, strict=True)))
