"""How a support set becomes numbers that a network can read: labels, sequences, summaries."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.fewshot.episodes import Points, TaskSpec
from metarl.fewshot.networks import Body, NetworkConfig
from metarl.layers import Linear, RunningBatchNorm
from metarl.networks import ReluMLP

ORDER_IN_USE = 0
"""seed of the one order in which every support set is read when a learner is judged"""


def encode_labels(y: Tensor, spec: TaskSpec) -> Tensor:
    """Labels `[B, M]` as one-hot vectors `[B, M, outputs]`; values `[B, M, D]` as they are."""
    return y if y.is_floating_point() else F.one_hot(y, spec.outputs)


def as_sequence(support: Points, generator: torch.Generator | None) -> Points:
    """The support set in a random order, for learners that read it point after point.

    Args:
        support: sets whose points may be grouped by class.
        generator: draws an order for each task, in training. Without it all sets are read in one
            order, always the same, so that what a task gets depends on that task only.
    """
    if generator is not None:
        return support.permuted(generator)
    fixed = torch.Generator().manual_seed(ORDER_IN_USE)
    order = torch.randperm(support.x.shape[1], generator=fixed).to(support.x.device)
    return Points(support.x[:, order], support.y[:, order])


def memberships(y: Tensor, ways: int, like: Tensor) -> Tensor:
    """Labels `[B, S]` to floats `[B, ways, S]`: 1 where a point is of a class, else 0."""
    return F.one_hot(y, ways).mT.to(like.dtype)


def class_means(x: Tensor, y: Tensor, ways: int) -> Tensor:
    """The mean of the points `[B, S, F]` of each class, `[B, ways, F]`."""
    member = memberships(y, ways, x)
    return (member / member.sum(-1, keepdim=True)) @ x


def mlp(*widths: int) -> ReluMLP:
    """Linear layers with ReLU between them, on the last dimension, with the weights of torch.

    Their biases spread the kinks over the inputs. All kinks of the first layer in one place, as
    equal biases put them, make curves hard to tell.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return ReluMLP(*layers[:-1])


class Embedding(nn.Module):
    """Inputs `[B, M, X...]` to vectors `[B, M, size]`."""

    def __init__(self, input_shape: tuple[int, ...], config: NetworkConfig, size: int) -> None:
        """Body, linear layer, and for images a norm.

        What convolutions with ReLU make of two images is much alike. Reading it as a sequence only
        begins to succeed once that common part is taken away.
        """
        super().__init__()
        self.body = Body(input_shape, config)
        self.project = Linear(self.body.features, size)
        self.norm = RunningBatchNorm(size) if len(input_shape) > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Embed each input by itself, but for the statistics of the norm in training."""
        y: Tensor = self.norm(self.project(self.body(x)))
        return y
