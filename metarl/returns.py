"""Returns and advantages over rollouts `[T, ...]`; trailing dimensions are worlds."""

from __future__ import annotations

import torch
from torch import Tensor


def discounted_returns(reward_t: Tensor, carry_t: Tensor, gamma: float) -> Tensor:
    """G_t = r_t + gamma * carry_t * G_{t+1}, with G_T = 0.

    Args:
        reward_t: `[T, ...]`.
        carry_t: bool `[T, ...]`, False where the sum stops after step t.
        gamma: discount per step.
    """
    returns = torch.empty_like(reward_t)
    following = torch.zeros_like(reward_t[0])
    for t in reversed(range(len(reward_t))):
        following = reward_t[t] + gamma * (carry_t[t] * following)
        returns[t] = following
    return returns


def running_returns(reward_t: Tensor, gamma: float) -> Tensor:
    """R_t = gamma * R_{t-1} + r_t: the past's discounted sum, whose spread scales rewards."""
    sums = torch.empty_like(reward_t)
    previous = torch.zeros_like(reward_t[0])
    for t in range(len(reward_t)):
        previous = gamma * previous + reward_t[t]
        sums[t] = previous
    return sums


def gae(
    reward_t: Tensor,
    value_t: Tensor,
    next_value_t: Tensor,
    carry_t: Tensor,
    valid_t: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16).

    A_t = delta_t + gamma lambda carry_t A_{t+1},  delta_t = r_t + gamma V(s_{t+1}) - V(s_t)

    The caller says what follows step t: `next_value_t` is 0 after a true end and V(final_obs)
    after a time limit; `carry_t` is False where A_{t+1} belongs to something else.

    Args:
        reward_t: `[T, ...]`.
        value_t: V(s_t), `[T, ...]`.
        next_value_t: V(s_{t+1}), `[T, ...]`, already 0 where nothing follows.
        carry_t: bool `[T, ...]`.
        valid_t: bool `[T, ...]`; where False the advantage is 0 and nothing flows through.
        gamma: discount per step.
        lam: lambda, 0 for one-step and 1 for Monte-Carlo advantages.

    Returns:
        `[T, ...]` advantages.
    """
    delta_t = reward_t + gamma * next_value_t - value_t
    decay_t = carry_t.to(reward_t.dtype) * (gamma * lam)
    advantages = torch.empty_like(reward_t)
    following = torch.zeros_like(reward_t[0])
    for t in reversed(range(len(reward_t))):
        following = (delta_t[t] + decay_t[t] * following) * valid_t[t]
        advantages[t] = following
    return advantages


def episode_boundaries(
    final_value_t: Tensor, terminated_t: Tensor, truncated_t: Tensor
) -> tuple[Tensor, Tensor]:
    """What follows each step when every episode stands alone: (next_value_t, carry_t).

    Args:
        final_value_t: V(final_obs) at every step, `[T, ...]`.
        terminated_t: bool `[T, ...]`; nothing follows.
        truncated_t: bool `[T, ...]`; the episode would have gone on, so V(final_obs) follows.
    """
    return final_value_t * ~terminated_t, ~(terminated_t | truncated_t)


def trial_boundaries(value_t: Tensor, active_t: Tensor) -> tuple[Tensor, Tensor]:
    """What follows each step when a trial is one long episode: (next_value_t, carry_t).

    Values run across episode boundaries, because a policy with memory takes what it learned in one
    episode into the next; the last step of the trial is a true end.

    Args:
        value_t: V at every step, `[T, ...]`.
        active_t: bool `[T, ...]`, the steps that belong to the trial.
    """
    zero = torch.zeros_like(value_t[:1])
    carry_t = torch.cat([active_t[1:], torch.zeros_like(active_t[:1])])
    return torch.cat([value_t[1:], zero]) * carry_t, carry_t
