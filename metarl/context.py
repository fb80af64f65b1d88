"""Encoders of context: from transitions `(s, a, r[, s'])` of a task to a belief over its latent.

Both encoders can be read in two ways that agree: `forward` takes whole batches of contexts while
learning, and `start`, `absorb`, `belief` take one transition after the other while acting, at a
cost and a memory that do not grow with the trial.

Shapes: `M` contexts, `C` transitions of a context, `X` numbers of a transition, `Z` latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.acceleration import whole
from metarl.distributions import Noise, normal
from metarl.memory import GRUMemory
from metarl.networks import relu_mlp

MIN_VARIANCE = 1e-7


@dataclass(frozen=True)
class Belief:
    """A diagonal Gaussian over the latents of M tasks."""

    mean: Tensor
    """`[M, Z]`"""
    var: Tensor
    """`[M, Z]`"""

    def sample(self, noise: Noise) -> Tensor:
        """Draw latents `[M, Z]`, differentiable in mean and variance."""
        return self.mean + self.var.sqrt() * normal(self.mean, noise)

    def where(self, known: Tensor) -> Belief:
        """This belief where `known` bool `[M]`, the prior N(0, I) elsewhere."""
        known = known.unsqueeze(-1)
        return Belief(torch.where(known, self.mean, 0.0), torch.where(known, self.var, 1.0))

    def kl_to_prior(self) -> Tensor:
        """KL(q || N(0, I)) of each task `[M]`, summed over the latent's dimensions."""
        return 0.5 * (self.var + self.mean.square() - 1.0 - self.var.log()).sum(-1)


def product_of_gaussians(mean: Tensor, var: Tensor, mask: Tensor | None = None) -> Belief:
    """The normalised product over the factors of a context: precisions add up.

    q(z) ∝ Π_n N(z; μ_n, σ²_n)  ⇒  1/σ² = Σ 1/σ²_n,  μ = σ² Σ μ_n/σ²_n   (Rakelly et al. 2019, 4.2)

    Args:
        mean: `[M, C, Z]`.
        var: `[M, C, Z]`.
        mask: bool `[M, C]`, which factors there are; all by default.
    """
    precision = 1.0 / var
    if mask is not None:
        precision = precision * mask.unsqueeze(-1)
    return _normalise((mean * precision).sum(-2), precision.sum(-2))


def _normalise(shift: Tensor, precision: Tensor) -> Belief:
    """Σ μ_n/σ²_n and Σ 1/σ²_n as mean and variance; without any factor it is N(0, I)."""
    empty = precision == 0
    var = 1.0 / torch.where(empty, 1.0, precision)
    return Belief(torch.where(empty, 0.0, shift * var), var.clamp(min=MIN_VARIANCE))


def first(mask: Tensor, count: Tensor) -> Tensor:
    """Of contexts with `mask` bool `[M, C]` the first `count` int64 `[M]` transitions at most."""
    return mask & (torch.arange(mask.shape[1], device=mask.device) < count.unsqueeze(-1))


def join(full: Tensor, partial: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Contexts `[M, C, X]` that exist as a whole, before others of which `mask` `[M', C']` exists.

    Returns:
        `[M + M', max(C, C'), X]` and its mask; the shorter ones are padded with zeros.
    """
    length = max(full.shape[1], partial.shape[1])
    there = torch.ones(full.shape[:2], dtype=torch.bool, device=full.device)
    parts, masks = (full, partial), (there, mask)
    x = torch.cat([F.pad(part, (0, 0, 0, length - part.shape[1])) for part in parts])
    return x, torch.cat([F.pad(known, (0, length - known.shape[1])) for known in masks])


class ProductEncoder(nn.Module):
    """One Gaussian factor a transition, whatever their order (Rakelly et al. 2019, section 4.2)."""

    def __init__(self, inputs: int, layers: tuple[int, ...], latent: int) -> None:
        """Map transitions `[..., inputs]` to factors over `latent` dimensions."""
        super().__init__()
        self.latent = latent
        self.body = relu_mlp([inputs, *layers], 2 * latent, last=3e-3)

    def factors(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance `[..., Z]` of the factor of each transition `[..., X]`."""
        mean, raw = self.body(x).chunk(2, -1)
        return mean, F.softplus(raw).clamp(min=MIN_VARIANCE)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Belief:
        """The belief after contexts `[M, C, X]`, of which `mask` bool `[M, C]` exist."""
        return product_of_gaussians(*self.factors(x), mask)

    def start(self, worlds: int) -> Tensor:
        """Nothing seen: `[worlds, 2 Z]`, the sums of μ/σ² and of 1/σ²."""
        return next(self.parameters()).new_zeros(worlds, 2 * self.latent)

    def absorb(self, state: Tensor, x: Tensor) -> Tensor:
        """The state after one more transition `[worlds, X]`."""
        mean, var = self.factors(x)
        return state + torch.cat([mean / var, 1.0 / var], -1)

    def belief(self, state: Tensor) -> Belief:
        """The belief that `state` stands for."""
        return _normalise(*state.chunk(2, -1))


class LikelihoodEncoder(nn.Module):
    """Each transition weighs the prior N(0, I) by a likelihood exp(a z - b z² / 2), b > 0.

    q(z) ∝ N(z; 0, I) Π_n exp(a_n z - b_n z² / 2)  ⇒  1/σ² = 1 + Σ b_n,  μ = σ² Σ a_n

    Unlike a product of normalised factors it is as wide as the prior while nothing was learned,
    however much was seen; and a transition can move the mean without making it more certain, as one
    does that rules something out.
    """

    def __init__(self, inputs: int, layers: tuple[int, ...], latent: int) -> None:
        """Map transitions `[..., inputs]` to likelihoods over `latent` dimensions."""
        super().__init__()
        self.latent = latent
        self.body = relu_mlp([inputs, *layers], 2 * latent, last=3e-3)

    def terms(self, x: Tensor) -> Tensor:
        """`[..., 2 Z]`: a and b of each transition `[..., X]`."""
        a, raw = self.body(x).chunk(2, -1)
        # Small at first: an untrained encoder should not be sure of anything.
        return torch.cat([a, (raw.clamp(max=15.0) - 4.0).exp()], -1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Belief:
        """The belief after contexts `[M, C, X]`, of which `mask` bool `[M, C]` exist."""
        terms = self.terms(x)
        return self.belief((terms if mask is None else terms * mask.unsqueeze(-1)).sum(-2))

    def start(self, worlds: int) -> Tensor:
        """Nothing seen: `[worlds, 2 Z]`, the sums of a and b."""
        return next(self.parameters()).new_zeros(worlds, 2 * self.latent)

    def absorb(self, state: Tensor, x: Tensor) -> Tensor:
        """The state after one more transition `[worlds, X]`."""
        return state + self.terms(x)

    def belief(self, state: Tensor) -> Belief:
        """The belief that `state` stands for."""
        a, b = state.chunk(2, -1)
        var = 1.0 / (1.0 + b)
        return Belief(a * var, var.clamp(min=MIN_VARIANCE))


class RecurrentEncoder(nn.Module):
    """A GRU over the context in its order; the belief is read off its last state."""

    def __init__(self, inputs: int, layers: tuple[int, ...], latent: int) -> None:
        """Map transitions `[..., inputs]` to beliefs over `latent` dimensions."""
        super().__init__()
        body = nn.Sequential(relu_mlp([inputs, *layers[:-1]], layers[-1]), nn.ReLU())
        self.memory = GRUMemory(body, layers[-1], layers[-1])
        self.head = nn.Linear(layers[-1], 2 * latent)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Belief:
        """The belief after contexts `[M, C, X]`, of which `mask` bool `[M, C]` exist."""
        if mask is not None:
            # What exists moves to the front, in its order: the state there is free of the rest.
            order = (~mask).byte().argsort(dim=1, stable=True)
            x = x.gather(1, order.unsqueeze(-1).expand_as(x))
        states, _ = self.memory(x.transpose(0, 1), self.start(len(x)))
        if mask is None:
            return self.belief(states[-1])
        states = torch.cat([torch.zeros_like(states[:1]), states])
        return self.belief(states[mask.sum(-1), torch.arange(len(x), device=x.device)])

    def start(self, worlds: int) -> Tensor:
        """Nothing seen: the state `[worlds, hidden]` is zero."""
        return self.memory.start(worlds)

    def absorb(self, state: Tensor, x: Tensor) -> Tensor:
        """The state after one more transition `[worlds, X]`."""
        last: Tensor = self.memory(x.unsqueeze(0), state)[1]
        return last

    def belief(self, state: Tensor) -> Belief:
        """The belief that `state` stands for; N(0, I) where nothing has been seen."""
        mean, raw = whole(self.head(state)).chunk(2, -1)
        seen = (state != 0).any(-1)
        return Belief(mean, F.softplus(raw).clamp(min=MIN_VARIANCE)).where(seen)


Encoder = ProductEncoder | LikelihoodEncoder | RecurrentEncoder
ENCODERS: dict[str, type[Encoder]] = {
    "product": ProductEncoder,
    "likelihood": LikelihoodEncoder,
    "recurrent": RecurrentEncoder,
}
