"""Distributions over actions, as tensors: what a policy's head returns."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Noise = torch.Generator | Tensor
"""where noise is drawn from, or noise that was drawn before"""


def normal(like: Tensor, noise: Noise) -> Tensor:
    """Standard normal noise, float32, of the shape of `like`."""
    if isinstance(noise, Tensor):
        return noise
    return torch.randn(like.shape, generator=noise, device=like.device)


@dataclass(frozen=True)
class Gaussian:
    """Independent normal distributions of each action dimension."""

    mean: Tensor
    """`[..., A]`"""
    log_std: Tensor
    """log standard deviations, of a shape that broadcasts to the mean's"""

    @property
    def parameters(self) -> tuple[Tensor, Tensor]:
        """The tensors that it is made of."""
        return self.mean, self.log_std

    def sample(self, noise: Noise) -> Tensor:
        """Draw actions `[..., A]`."""
        return self.mean + self.log_std.exp() * normal(self.mean, noise)

    def mode(self) -> Tensor:
        """The most likely actions `[..., A]`."""
        return self.mean

    def log_prob(self, action: Tensor) -> Tensor:
        """Log density, summed over action dimensions: `[...]`."""
        z = (action - self.mean) * (-self.log_std).exp()
        return -(0.5 * z.square() + self.log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)

    def entropy(self) -> Tensor:
        """Differential entropy `[...]` in nats."""
        each = self.log_std + 0.5 + 0.5 * math.log(2.0 * math.pi)
        return each.sum(-1).expand(self.mean.shape[:-1])

    def kl(self, other: Gaussian) -> Tensor:
        """KL(self || other) `[...]` in nats."""
        apart = (self.mean - other.mean).square() + (2.0 * self.log_std).exp()
        each = other.log_std - self.log_std + 0.5 * apart * (-2.0 * other.log_std).exp() - 0.5
        return each.sum(-1)


@dataclass(frozen=True)
class Categorical:
    """One choice of several."""

    logits: Tensor
    """unnormalised log probabilities `[..., choices]`"""

    @property
    def parameters(self) -> tuple[Tensor]:
        """The tensor that it is made of."""
        return (self.logits,)

    @property
    def log_probs(self) -> Tensor:
        """Log probabilities `[..., choices]`."""
        return F.log_softmax(self.logits, -1)

    def sample(self, generator: torch.Generator) -> Tensor:
        """Draw actions, int64 `[...]`, by the Gumbel trick (one draw a logit, no normalising)."""
        noise = torch.empty_like(self.logits).exponential_(generator=generator)
        return (self.logits - noise.log()).argmax(-1)

    def mode(self) -> Tensor:
        """The most likely actions, int64 `[...]`."""
        return self.logits.argmax(-1)

    def log_prob(self, action: Tensor) -> Tensor:
        """Log probability of `action` `[...]`."""
        return self.log_probs.gather(-1, action.unsqueeze(-1)).squeeze(-1)

    def entropy(self) -> Tensor:
        """Entropy `[...]` in nats."""
        log_probs = self.log_probs
        return -(log_probs.exp() * log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other) `[...]` in nats."""
        log_probs = self.log_probs
        return (log_probs.exp() * (log_probs - other.log_probs)).sum(-1)


Distribution = Gaussian | Categorical
