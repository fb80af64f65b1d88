"""One gradient step, made the same careful way by every agent."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from metarl.errors import TrainingError


def linear(start: float, end: float, progress: float) -> float:
    """The value between `start` and `end` after a share `progress` of the way."""
    return start + (end - start) * progress


def gradient_step(
    loss: Tensor,
    optimizer: torch.optim.Optimizer,
    max_norm: float,
    who: str,
    unseen: list[Tensor] | None = None,
) -> None:
    """Step down the gradient of `loss`, cut to `max_norm`.

    Args:
        loss: a number.
        optimizer: of the parameters.
        max_norm: the longest that the gradient may be; infinite leaves it as it is.
        who: whom an error is about.
        unseen: on a GPU it gets the norm before the cut, at which nothing looks, as that would wait
            for the device; `require_finite` takes many at once.

    Raises:
        TrainingError: if the gradient is not finite; the parameters are left as they were.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if unseen is None or loss.device.type == "cpu":
        clipped_step(optimizer, max_norm, who)
        return
    parameters, total = _norm(optimizer)
    if max_norm < float("inf"):
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total, foreach=True)
    optimizer.step()
    unseen.append(total)


def clipped_step(optimizer: torch.optim.Optimizer, max_norm: float, who: str) -> float:
    """Step along the gradients that the parameters hold, cut to `max_norm`; return their norm.

    Raises:
        TrainingError: if the gradient is not finite; the parameters are left as they were.
    """
    parameters, total = _norm(optimizer)
    norm = float(total)
    _require_finite(norm, who)
    if norm > max_norm:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, total, foreach=True)
    optimizer.step()
    return norm


def require_finite(unseen: Sequence[Tensor], who: str) -> None:
    """Raise `TrainingError` unless all norms are finite that `gradient_step` did not look at."""
    for norm in torch.stack(list(unseen)).tolist() if unseen else []:
        _require_finite(norm, who)


def _require_finite(norm: float, who: str) -> None:
    if not norm < float("inf"):
        raise TrainingError(f"{who}: the gradient is not finite (norm {norm})")


def _norm(optimizer: torch.optim.Optimizer) -> tuple[list[nn.Parameter], Tensor]:
    """The parameters, and the norm of all that they hold as gradients."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    grads = [p.grad for p in parameters if p.grad is not None]
    return parameters, nn.utils.get_total_norm(grads, foreach=True)


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
