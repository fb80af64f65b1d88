"""CAVIA: only a context vector adapts to a task; the network that reads it is shared.

Zintgraf, Shiarlis, Kurin, Hofmann and Whiteson 2019, "Fast Context Adaptation via Meta-Learning",
equations 3 and 4: φ_i = φ_0 - α ∇_φ L_i(φ_0, θ; support) with φ_0 = 0 for every task, and
θ ← θ - β ∇_θ Σ_i L_i(φ_i, θ; query). Vectors are given φ as further inputs of the first layer
(section 3.3); for images φ scales and shifts the filters (section 3.4), here those of each block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from metarl.errors import require_positive
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.learner import Prediction
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.networks import Network, NetworkConfig
from metarl.layers import Params


@dataclass(frozen=True)
class CAVIAConfig(MAMLConfig):
    """As for MAML; the steps may be long, for the network learns what a context means."""

    inner_rate: float = 1.0
    """α, step size of the inner loop; images learn faster with 10 or more"""
    context: int = 5
    """numbers of the context φ; 4 or 5 do for sinusoids, images want about 100"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("context",), "learner")


class ContextNetwork(nn.Module):
    """A network that reads a context: of vectors as further inputs, of images by FiLM."""

    def __init__(self, spec: TaskSpec, config: NetworkConfig, context: int) -> None:
        """Build it for the tasks of `spec`."""
        super().__init__()
        widths: tuple[int, ...] = ()
        if len(spec.input_shape) == 1:
            spec = replace(spec, input_shape=(spec.input_shape[0] + context,))
            self.network = Network(spec, config)
        else:
            self.network = Network(spec, config)
            widths = self.network.body.widths
        # Without a bias a context of zero leaves the features as they are.
        self.films = nn.ModuleList(nn.Linear(context, 2 * width, bias=False) for width in widths)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """`x` `[B, M, X...]` and one context `[B, C]` for each task to `[B, M, outputs]`."""
        if not self.films:
            wide = context.unsqueeze(1).expand(-1, x.shape[1], -1)
            y: Tensor = self.network(torch.cat([x, wide], -1))
            return y
        scales_and_shifts = (film(context).chunk(2, -1) for film in self.films)
        y = self.network(x, [(1.0 + scale, shift) for scale, shift in scales_and_shifts])
        return y


class CAVIA(MAML):
    """Learns a network that a few numbers, found by gradient descent, fit to a task."""

    config: CAVIAConfig
    network: ContextNetwork

    def build(self) -> nn.Module:
        """The network and how it reads a context."""
        return ContextNetwork(self.spec, self.config.network, self.config.context)

    def start(self) -> Mapping[str, Tensor]:
        """The context of zeros that every task starts from."""
        like = next(self.network.parameters())
        return {"context": like.new_zeros(self.config.context).requires_grad_()}

    def forward(self, params: Params, x: Tensor, step: int) -> Prediction:
        """Predict with each task's context."""
        return Prediction(self.network(x, params["context"]))
