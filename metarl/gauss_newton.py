"""Products with a Gauss-Newton matrix Jᵀ H J, where J is known only to autograd.

A network gives outputs d = f(θ), a loss ℓ(d) of theirs has the Hessian H, and J = ∂d/∂θ. At a point
where ∇ℓ = 0, Jᵀ H J is the Hessian of ℓ(f(θ)): so with the KL between policies for ℓ it is the
Fisher matrix, through whatever lies between θ and the policy, steps of adaptation included
(Schraudolph 2002; Martens 2020, "New Insights and Perspectives on the Natural Gradient Method").

Autograd gives Jᵀ u. As that is linear in u, its derivative with respect to u in the direction v is
J v: no forward mode and no second pass through f is needed, only the graph, which is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


class GaussNewton:
    """v ↦ Jᵀ H J v."""

    def __init__(
        self,
        outputs: Sequence[Tensor],
        inputs: Sequence[Tensor],
        loss: Callable[..., Tensor],
    ) -> None:
        """Keep what the products need of the graph that leads from `inputs` to `outputs`.

        Args:
            outputs: d, tensors of any shapes, computed from the inputs.
            inputs: θ.
            loss: ℓ, from tensors like the outputs to a number; twice differentiable.
        """
        self.outputs, self.inputs = list(outputs), list(inputs)
        self.u = [torch.zeros_like(d).requires_grad_() for d in outputs]
        self.pulled = torch.autograd.grad(  # Jᵀ u
            self.outputs, self.inputs, self.u, create_graph=True, materialize_grads=True
        )
        self.d = [d.detach().requires_grad_() for d in outputs]
        self.slope = torch.autograd.grad(
            loss(*self.d), self.d, create_graph=True, materialize_grads=True
        )

    def __call__(self, v: Sequence[Tensor]) -> list[Tensor]:
        """The product with `v`, tensors like the inputs."""
        keep = {"retain_graph": True, "materialize_grads": True}
        # An input that no output depends on has a Jᵀ u of zero, without a graph.
        linked = [(p, t) for p, t in zip(self.pulled, v, strict=True) if p.requires_grad]
        jv = torch.autograd.grad([p for p, _ in linked], self.u, [t for _, t in linked], **keep)
        hjv = torch.autograd.grad(self.slope, self.d, jv, **keep)
        return list(torch.autograd.grad(self.outputs, self.inputs, hjv, **keep))
