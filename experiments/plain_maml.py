"""MAML as one writes it down from the paper: torch's own layers, and a loop over the tasks.

The peer of `metarl bench fewshot`. It learns exactly what `metarl.fewshot.maml` does; a test holds
the two gradients against each other.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes
from metarl.fewshot.maml import MAML


class PlainMAML:
    """Learns what `learner` does, from the same weights, one task after the other."""

    def __init__(self, learner: MAML) -> None:
        """Copy the weights of `learner`.

        Raises:
            UsageError: for networks other than those of the published experiments.
        """
        self.config = learner.config
        self.network = _plain_network(learner)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.config.learning_rate)

    def loss(self, episodes: Episodes) -> Tensor:
        """The mean over tasks of the loss after adaptation."""
        support, query = episodes.support, episodes.query
        total = support.x.new_zeros(())
        for task in range(len(episodes)):
            params: dict[str, Tensor] = dict(self.network.named_parameters())
            for _ in range(self.config.inner_steps):
                inner = self._task_loss(params, support.x[task], support.y[task])
                grads = torch.autograd.grad(
                    inner, list(params.values()), create_graph=self.config.second_order
                )
                params = {
                    name: p - self.config.inner_rate * g
                    for (name, p), g in zip(params.items(), grads, strict=True)
                }
            total = total + self._task_loss(params, query.x[task], query.y[task])
        return total / len(episodes)

    def _task_loss(self, params: Mapping[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        """The loss of one task, with weights `params`."""
        output = functional_call(self.network, dict(params), (x,))
        return F.mse_loss(output, y) if y.is_floating_point() else F.cross_entropy(output, y)

    def update(self, episodes: Episodes) -> None:
        """One iteration of the outer loop."""
        self.optimizer.zero_grad()
        self.loss(episodes).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.max_grad_norm)
        self.optimizer.step()


def _plain_network(learner: MAML) -> nn.Module:
    """The network of `learner` in torch's own layers, with the same weights."""
    config, shape = learner.config.network, learner.spec.input_shape
    layers: list[nn.Module] = []
    if len(shape) == 1:
        for width in config.layers:
            layers += [nn.LazyLinear(width), nn.ReLU()]
    else:
        if config.norm != "batch" or config.pooling != "stride":
            raise UsageError(
                "bench fewshot: the loop has strided convolutions with batch norm only"
            )
        for filters in config.filters:
            norm = nn.BatchNorm2d(filters, track_running_stats=False)
            layers += [nn.LazyConv2d(filters, 3, 2, 1), norm, nn.ReLU()]
        layers.append(nn.Flatten())
    network = nn.Sequential(*layers, nn.LazyLinear(learner.spec.outputs))
    network(torch.zeros(2, *shape))
    ours = list(learner.network.parameters())
    network.to(ours[0])
    with torch.no_grad():
        for plain, own in zip(network.parameters(), ours, strict=True):
            plain.copy_(own)
    return network
