"""Conjugate gradients: solve A x = b by products with A alone, for many systems at once.

Hestenes and Stiefel 1952, "Methods of Conjugate Gradients for Solving Linear Systems". What A is,
nobody needs to know: a Hessian or a Fisher matrix is multiplied by differentiating twice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def conjugate_gradient(
    product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 1e-10
) -> Tensor:
    """Solve A x = b for symmetric positive definite A, from x = 0.

    A system rests once its residual is small, or once it meets a direction p along which A does
    not curve upwards (pᵀAp <= 0), where no step makes sense; the others go on without it.

    Args:
        product: vectors `[..., P]` to A times each of them; systems may differ in A.
        b: `[..., P]`, one right-hand side for each system.
        iterations: at most; P of them are enough but for rounding.
        tolerance: length of the residual, relative to that of b, at which a system is solved.

    Returns:
        x `[..., P]`, which is not differentiable.
    """
    with torch.no_grad():
        x, residual, direction = torch.zeros_like(b), b.clone(), b.clone()
        size = residual.square().sum(-1, keepdim=True)
        enough = tolerance**2 * size
        active = size > enough
        for _ in range(iterations):
            if b.device.type == "cpu" and not bool(active.any()):
                break  # elsewhere to know it takes longer than steps of 0
            along = product(direction)
            curvature = (direction * along).sum(-1, keepdim=True)
            active = active & (curvature > 0.0)
            # Systems at rest take steps of 0; the ones only keep their divisions finite.
            step = torch.where(active, size / torch.where(active, curvature, 1.0), 0.0)
            x = x + step * direction
            residual = residual - step * along
            now = residual.square().sum(-1, keepdim=True)
            direction = residual + now / torch.where(active, size, 1.0) * direction
            size, active = now, active & (now > enough)
    return x
