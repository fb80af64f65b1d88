"""Trust-region steps: as far down a loss as a bound on the KL allows (Schulman et al. 2015, TRPO).

Parameters are lists of tensors; steps and gradients are flat vectors `[P]`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.conjugate_gradient import conjugate_gradient


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """One vector `[P]` of all numbers."""
    return torch.cat([x.reshape(-1) for x in tensors])


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The parts of a vector `[P]`, shaped like the tensors `like`."""
    parts = vector.split([x.numel() for x in like])
    return [part.view(x.shape) for part, x in zip(parts, like, strict=True)]


def natural_step(
    product: Callable[[Tensor], Tensor],
    gradient: Tensor,
    max_kl: float,
    iterations: int,
    damping: float,
) -> Tensor:
    """The step down `gradient` that a quadratic model of the KL allows: `[P]`.

    x = F⁻¹ g by conjugate gradients, scaled by √(2 δ / xᵀ F x) (appendix C of the paper). What
    they leave of g, after however many iterations, is orthogonal to x: hence xᵀ F x = xᵀ g.

    Args:
        product: vectors `[P]` to F times each.
        gradient: g `[P]`.
        max_kl: δ, in nats.
        iterations: of conjugate gradients.
        damping: added to the diagonal of F.

    Returns:
        The step, to be added; zeros where no direction curves upwards.
    """

    def damped(v: Tensor) -> Tensor:
        return product(v) + damping * v

    x = conjugate_gradient(damped, gradient, iterations)
    length = (x * gradient).sum()
    scale = (2.0 * max_kl / length.clamp(min=1e-30)).sqrt()
    return torch.where(length > 0.0, -scale * x, torch.zeros_like(x))


@dataclass(frozen=True)
class LineSearch:
    """What came of a line search."""

    accepted: bool
    """whether a step was taken; if not, the parameters are as they were, bit for bit"""
    share: float
    """of the full step that was taken, 0 for none"""
    loss: float
    """after the step"""
    kl: float
    """in nats, after the step"""


@torch.no_grad()
def line_search(
    parameters: Sequence[Tensor],
    step: Tensor,
    evaluate: Callable[[], tuple[Tensor, Tensor]],
    before: float,
    max_kl: float,
    ratio: float = 0.8,
    attempts: int = 15,
) -> LineSearch:
    """Move `parameters` along ever shorter steps until the loss falls and the KL is small enough.

    Args:
        parameters: changed in place, or left exactly as they were if no step will do.
        step: the full step `[P]`.
        evaluate: the loss and the KL (nats) of the parameters as they are.
        before: the loss without a step.
        max_kl: bound on the KL.
        ratio: of a step to the one before.
        attempts: how many steps are tried.
    """
    start = [p.clone() for p in parameters]
    parts = unflatten(step, parameters)
    loss = kl = float("nan")
    for attempt in range(attempts):
        share = ratio**attempt
        for p, origin, part in zip(parameters, start, parts, strict=True):
            p.copy_(origin + share * part)
        loss, kl = (float(x) for x in evaluate())
        if loss < before and kl <= max_kl:  # false for NaN
            return LineSearch(True, share, loss, kl)
    for p, origin in zip(parameters, start, strict=True):
        p.copy_(origin)
    return LineSearch(False, 0.0, before, 0.0)
