"""iMAML: the meta-gradient from where adaptation ends, whatever way led there.

Rajeswaran, Finn, Kakade and Levine 2019, "Meta-Learning with Implicit Gradients". Adaptation solves
φ_i = argmin_φ L_i(φ; support) + λ/2 |φ - θ|² (equation 3), and where it is solved (equation 6)
dL_i(φ_i; query)/dθ = (I + H_i/λ)⁻¹ ∇L_i(φ_i; query), where H_i is the Hessian of the support loss
at φ_i. Conjugate gradients find it from products with H_i: no step is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.conjugate_gradient import conjugate_gradient
from metarl.errors import require_between, require_positive
from metarl.fewshot.episodes import Episodes, Points
from metarl.fewshot.learner import (
    Learner,
    LearnerConfig,
    Prediction,
    Predictor,
    losses,
    steps_up_to,
)
from metarl.fewshot.maml import require_separate_tasks
from metarl.fewshot.networks import Network
from metarl.inner_loop import Momentum, Proximal, adapt, gradient, own_copies
from metarl.layers import Params

LONGEST = 3.0
"""Length of an implicit gradient, relative to ∇L(φ; query), beyond which it is cut.

Where H is positive it is at most 1. Far from a minimum H may nearly undo the pull to the start, and
one such task would outweigh all others.
"""


@dataclass(frozen=True)
class IMAMLConfig(LearnerConfig):
    """How near to the start the tasks stay, and how well the two problems are solved."""

    strength: float = 2.0
    """λ, of the pull to the start; the larger, the sooner both problems are solved"""
    inner_rate: float = 0.01
    """step size of the inner loop"""
    momentum: float = 0.0
    """of the inner loop; with more of it few steps end further from where they should"""
    inner_steps: int = 16
    """steps of the inner loop in training"""
    test_steps: int = 16
    """steps on a task that is judged"""
    solver_iterations: int = 5
    """of conjugate gradients"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        sizes = "strength", "inner_rate", "inner_steps", "test_steps", "solver_iterations"
        require_positive(self, sizes, "learner")
        require_between(self, ("momentum",), "learner", 0.0, 0.999)
        require_separate_tasks(self.network)


class IMAML(Learner):
    """Adapts all of its parameters near a start that implicit gradients improve."""

    config: IMAMLConfig
    network: Network

    def build(self) -> nn.Module:
        """The network whose initial weights are learned."""
        return Network(self.spec, self.config.network)

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """0, 1, 5, 10, ... up to the number of steps in use."""
        return steps_up_to(self.config.test_steps)

    def task_loss(self, params: Params, points: Points) -> Tensor:
        """The loss of each task with its own parameters, `[B]`."""
        return losses(Prediction(functional_call(self.network, params, (points.x,))), points.y)

    @torch.no_grad()
    def solve(self, support: Points, steps: int) -> Params:
        """φ of each task, `[B, ...]`, after `steps` steps from θ."""
        config = self.config
        rule = Proximal(Momentum(config.inner_rate, config.momentum), config.strength)
        own = own_copies(dict(self.network.named_parameters()), support.tasks)
        return adapt(own, lambda params, _: self.task_loss(params, support), rule, steps)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Take `steps` steps on the support set; no gradient goes through them."""
        params = self.solve(support, self.config.inner_steps if steps is None else steps)
        return lambda x: Prediction(functional_call(self.network, params, (x,)))

    def backward(self, episodes: Episodes, progress: float) -> Tensor:
        """Put the mean of the implicit gradients into the parameters; return the mean loss."""
        solved = self.solve(episodes.support, self.config.inner_steps)
        found, loss = self.implicit_gradient(solved, episodes)
        for name, p in self.network.named_parameters():
            p.grad = found[name].mean(0)
        return loss.mean()

    def implicit_gradient(self, solved: Params, episodes: Episodes) -> tuple[Params, Tensor]:
        """The gradient of each task's query loss with respect to θ, `[B, ...]`; and that loss."""
        params = {name: p.detach().requires_grad_() for name, p in solved.items()}
        query = self.task_loss(params, episodes.query)
        grads = torch.autograd.grad(query.sum(), list(params.values()), materialize_grads=True)
        slope = gradient(lambda p, _: self.task_loss(p, episodes.support), params)
        flat_slope = _flat(slope.values())

        def product(v: Tensor) -> Tensor:
            """(I + H/λ) v: the gradient of the support loss's slope along v."""
            hessian = torch.autograd.grad(
                flat_slope, list(params.values()), v, retain_graph=True, materialize_grads=True
            )
            return v + _flat(hessian) / self.config.strength

        explicit = _flat(grads)
        flat = conjugate_gradient(product, explicit, self.config.solver_iterations)
        longest = LONGEST * explicit.norm(dim=-1, keepdim=True)
        flat = flat * (longest / flat.norm(dim=-1, keepdim=True).clamp_min(1e-30)).clamp_max(1.0)
        parts = flat.split([p[0].numel() for p in params.values()], -1)
        named = zip(params.items(), parts, strict=True)
        return {name: part.view_as(p) for (name, p), part in named}, query.detach()


def _flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors `[B, ...]` to one `[B, P]`."""
    return torch.cat([t.flatten(1) for t in tensors], 1)
