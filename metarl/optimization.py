"""One gradient step, made the same careful way by every agent."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from metarl.errors import TrainingError


def linear(start: float, end: float, progress: float) -> float:
    """The value between `start` and `end` after a share `progress` of the way."""
    return start + (end - start) * progress


def gradient_step(
    loss: Tensor, optimizer: torch.optim.Optimizer, max_norm: float, who: str
) -> float:
    """Step down the gradient of `loss`, cut to `max_norm`; return its norm before the cut.

    Raises:
        TrainingError: if the gradient is not finite; the parameters are left as they were.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    return clipped_step(optimizer, max_norm, who)


def clipped_step(optimizer: torch.optim.Optimizer, max_norm: float, who: str) -> float:
    """Step along the gradients that the parameters hold; otherwise as `gradient_step`."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total = nn.utils.get_total_norm(
        [p.grad for p in parameters if p.grad is not None], foreach=True
    )
    norm = float(total)
    if not norm < float("inf"):
        raise TrainingError(f"{who}: the gradient is not finite (norm {norm})")
    if norm > max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total, foreach=True)
    optimizer.step()
    return norm


def set_learning_rate(
    optimizer: torch.optim.Optimizer, start: float, end: float, progress: float
) -> None:
    """Anneal the step size linearly from `start` to `end` by `progress` in [0, 1]."""
    for group in optimizer.param_groups:
        group["lr"] = linear(start, end, min(progress, 1.0))


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Restore `optimizer` from `state`, which stays untouched.

    Adam keeps the step counters that it is given: without a copy two agents would share them.
    """
    optimizer.load_state_dict(deepcopy(state))
