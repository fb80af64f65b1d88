"""The linear feature baseline: returns predicted from time and observation, task by task.

Duan et al. 2016, "Benchmarking Deep Reinforcement Learning for Continuous Control", section 2, as
MAML and ProMP use it: fitted anew to every batch, which it then predicts itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-5
"""weight of the squared coefficients at first; ten times more wherever a system cannot be solved"""
ATTEMPTS = 6
"""how often that is tried"""


def features(obs: Tensor, elapsed: Tensor) -> Tensor:
    """What returns are predicted from: `[..., 2 O + 4]`, float64.

    [o, o², t/100, (t/100)², (t/100)³, 1], with observations o cut to ±10.

    Args:
        obs: `[..., O]`.
        elapsed: steps since the start of the episode, `[...]`.
    """
    o = obs.double().clamp(-10.0, 10.0)
    t = elapsed.double().unsqueeze(-1) / 100.0
    return torch.cat([o, o.square(), t, t.square(), t**3, torch.ones_like(t)], -1)


def feature_count(obs_dim: int) -> int:
    """How many features observations `[obs_dim]` have."""
    return 2 * obs_dim + 4


def fit(x: Tensor, returns: Tensor, weight: Tensor, look: bool = True) -> Tensor:
    """Ridge regression for all tasks at once, in float64.

    Args:
        x: features `[N, M, F]`, float64.
        returns: `[N, M]`, what to predict.
        weight: `[N, M]`, 1 for the points that count and 0 for others.
        look: stop as soon as all systems are solved; a trace cannot look at values.

    Returns:
        Coefficients `[N, F]`; NaN for a task whose system cannot be solved.
    """
    xw = x * weight.double().unsqueeze(-1)
    gram = xw.mT @ x
    target = xw.mT @ returns.double().unsqueeze(-1)
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    coefficients = torch.full_like(target, float("nan"))
    for attempt in range(ATTEMPTS):
        factor, info = torch.linalg.cholesky_ex(gram + RIDGE * 10.0**attempt * identity)
        solved = torch.cholesky_solve(target, factor)
        good = (info == 0) & solved.isfinite().all(-2).squeeze(-1)
        missing = coefficients.isnan().any(-2).squeeze(-1)
        coefficients = torch.where((good & missing).view(-1, 1, 1), solved, coefficients)
        if look and bool((good | ~missing).all()):
            break
    return coefficients.squeeze(-1)


def fit_predict(
    obs: Tensor, elapsed: Tensor, returns: Tensor, weight: Tensor, look: bool = True
) -> Tensor:
    """Predictions for the very points that were fitted: `[N, M]`, in the dtype of `returns`.

    Args:
        obs: `[N, M, O]`.
        elapsed: `[N, M]`, steps since the start of the episode.
        returns: `[N, M]`, discounted returns.
        weight: `[N, M]`, 1 for the points that count and 0 for others.
        look: see `fit`.
    """
    x = features(obs, elapsed)
    predicted: Tensor = (x @ fit(x, returns, weight, look).unsqueeze(-1)).squeeze(-1)
    return predicted.to(returns.dtype)
