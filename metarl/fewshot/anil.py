"""ANIL: almost no inner loop; only the head of the network adapts to a task.

Raghu, Raghu, Bengio and Vinyals 2020, "Rapid Learning or Feature Reuse? Towards Understanding the
Effectiveness of MAML", section 5: MAML whose inner loop takes the features as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.func import functional_call

from metarl.fewshot.episodes import Points
from metarl.fewshot.learner import Prediction, Predictor
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.fewshot.networks import Network
from metarl.layers import Params


@dataclass(frozen=True)
class ANILConfig(MAMLConfig):
    """As for MAML."""


class ANIL(MAML):
    """Learns features that all tasks share, and adapts the head that reads them."""

    config: ANILConfig
    network: Network

    def start(self) -> Mapping[str, Tensor]:
        """The parameters of the head."""
        return dict(self.network.head.named_parameters())

    def forward(self, params: Params, x: Tensor, step: int) -> Prediction:
        """Predict from features `x` `[B, M, F]`."""
        return Prediction(functional_call(self.network.head, params, (x,)))

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Compute the features of the support set once, and adapt the head to them."""
        body = self.network.body
        predict = super().adapt(Points(body(support.x), support.y), steps)
        return lambda x: predict(body(x))
