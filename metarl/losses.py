"""Losses of on-policy learning: pure functions of tensors, one formula each."""

from __future__ import annotations

from torch import Tensor


def masked_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of `x` where `weight` is 1; both of the same shape."""
    return (x * weight).sum() / weight.sum().clamp(min=1.0)


def masked_standardize(x: Tensor, weight: Tensor) -> Tensor:
    """`x` minus its mean, over its standard deviation, both taken where `weight` is 1."""
    centred = x - masked_mean(x, weight)
    return centred / (masked_mean(centred.square(), weight).sqrt() + 1e-8)


def clipped_surrogate(
    log_prob_t: Tensor, old_log_prob_t: Tensor, advantage_t: Tensor, weight_t: Tensor, clip: float
) -> Tensor:
    """PPO's objective as a loss (Schulman et al. 2017, eq. 7).

    -E[min(rho A, clip(rho, 1 - eps, 1 + eps) A)],  rho = pi(a|s) / pi_old(a|s)
    """
    ratio = (log_prob_t - old_log_prob_t).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    return -masked_mean((ratio * advantage_t).minimum(clipped * advantage_t), weight_t)


def approximate_kl(log_prob_t: Tensor, old_log_prob_t: Tensor, weight_t: Tensor) -> Tensor:
    """KL(pi_old || pi) from samples of pi_old: E[(rho - 1) - log rho], never negative."""
    log_ratio = log_prob_t - old_log_prob_t
    return masked_mean(log_ratio.exp() - 1.0 - log_ratio, weight_t)


def huber(error: Tensor, weight: Tensor, delta: float = 1.0) -> Tensor:
    """Mean Huber loss: quadratic up to `delta`, linear beyond it."""
    size = error.abs()
    quadratic = size.clamp(max=delta)
    return masked_mean(quadratic * (size - 0.5 * quadratic), weight)
