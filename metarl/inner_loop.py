"""The inner loop: differentiable adaptation of many tasks at once.

Everything is a pure function of parameters `[B, ...]`, one set for each of B tasks, and a loss that
gives one number for each task. As the tasks share nothing, the gradient of the sum of their losses
holds the gradient of each. The few-shot learners and gradient-based meta-RL adapt by this module.

    own = own_copies(initial, tasks)                      # [B, ...], still tied to `initial`
    adapted = adapt(own, loss, SGD(0.01), steps=5)        # differentiable, to second order
    meta_loss = query_loss(adapted).mean()                # its gradient reaches `initial`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from metarl.layers import Params

Loss = Callable[[Params, int], Tensor]
"""parameters `[B, ...]` and the number of the step to one loss for each task, `[B]`"""
Rate = float | Tensor | Mapping[str, Tensor]
"""one step size, or one for each tensor: of shape `[]`, or of the parameter's for each element"""
Executor = Literal["auto", "vectorised", "loop"]
"""all tasks in one computation, one after the other, or what is measured to be faster"""


class Rule(Protocol):
    """How a gradient changes the parameters; all state is passed in and returned."""

    def start(self, params: Params) -> Any:
        """What the rule remembers before the first step."""

    def step(self, params: Params, grads: Params, memory: Any, k: int) -> tuple[Params, Any]:
        """The parameters and the memory after step `k`, which counts from 0."""


def _rate(rate: Rate | Callable[[int], Rate], name: str, k: int) -> float | Tensor:
    """The step size of the parameter `name` in step `k`."""
    now = rate(k) if callable(rate) else rate
    return now[name] if isinstance(now, Mapping) else now


@dataclass(frozen=True)
class SGD:
    """θ ← θ - α ∇L: MAML with one α, Meta-SGD with a learned one for each element."""

    rate: Rate | Callable[[int], Rate]
    """α; a function of the step where each step has its own"""

    def start(self, params: Params) -> None:
        """Nothing to remember."""

    def step(self, params: Params, grads: Params, memory: None, k: int) -> tuple[Params, None]:
        """One step down the gradient."""
        return {n: p - _rate(self.rate, n, k) * grads[n] for n, p in params.items()}, None


@dataclass(frozen=True)
class Momentum:
    """v ← μ v + ∇L, θ ← θ - α v (Polyak 1964)."""

    rate: Rate | Callable[[int], Rate]
    """α"""
    momentum: float = 0.9
    """μ"""

    def start(self, params: Params) -> Params:
        """Velocities of zero."""
        return {name: torch.zeros_like(p) for name, p in params.items()}

    def step(self, params: Params, grads: Params, memory: Params, k: int) -> tuple[Params, Params]:
        """One step along the velocity."""
        velocity = {n: self.momentum * v + grads[n] for n, v in memory.items()}
        moved = {n: p - _rate(self.rate, n, k) * velocity[n] for n, p in params.items()}
        return moved, velocity


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015, algorithm 1), differentiable."""

    rate: Rate | Callable[[int], Rate]
    """α"""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8

    def start(self, params: Params) -> tuple[Params, Params]:
        """First and second moments of zero."""
        zeros = {name: torch.zeros_like(p) for name, p in params.items()}
        return zeros, dict(zeros)

    def step(
        self, params: Params, grads: Params, memory: tuple[Params, Params], k: int
    ) -> tuple[Params, tuple[Params, Params]]:
        """One step along the corrected moments."""
        (b1, b2), (first, second) = self.betas, memory
        m = {n: b1 * first[n] + (1.0 - b1) * g for n, g in grads.items()}
        v = {n: b2 * second[n] + (1.0 - b2) * g.square() for n, g in grads.items()}
        moved = {}
        for n, p in params.items():
            # The tiny number keeps the root differentiable where a gradient is exactly zero.
            spread = (v[n] / (1.0 - b2 ** (k + 1)) + 1e-30).sqrt() + self.eps
            moved[n] = p - _rate(self.rate, n, k) * m[n] / (1.0 - b1 ** (k + 1)) / spread
        return moved, (m, v)


@dataclass(frozen=True)
class Proximal:
    """Another rule on L + λ/2 |θ - θ₀|²: stay near the start (Rajeswaran et al. 2019, eq. 3)."""

    rule: Rule
    """what steps"""
    strength: float
    """λ"""

    def start(self, params: Params) -> tuple[Params, Any]:
        """The start itself, and what the other rule remembers."""
        return params, self.rule.start(params)

    def step(
        self, params: Params, grads: Params, memory: tuple[Params, Any], k: int
    ) -> tuple[Params, tuple[Params, Any]]:
        """One step of the other rule, with the pull to the start in the gradient."""
        start, inner = memory
        pulled = {n: g + self.strength * (params[n] - start[n]) for n, g in grads.items()}
        moved, inner = self.rule.step(params, pulled, inner, k)
        return moved, (start, inner)


def own_copies(params: Mapping[str, Tensor], tasks: int) -> Params:
    """Give every task its own `[B, ...]` of `params`; gradients flow back to them."""
    return {name: p.expand(tasks, *p.shape) for name, p in params.items()}


def trajectory(
    params: Params, loss: Loss, rule: Rule, steps: int, *, second_order: bool = True
) -> Iterator[Params]:
    """The parameters after 0, 1, ... `steps` steps down `loss`.

    Args:
        params: `[B, ...]`, only those that adapt (`loss` knows the others). Where gradients are
            on, each must require them or come from something that does.
        loss: of these parameters, one number for each task.
        rule: what a gradient does to them.
        steps: how many.
        second_order: keep the derivative of the steps; without it they are constants, which the
            gradient of what comes out passes as if they were the identity (FOMAML).
    """
    memory = rule.start(params)
    yield params
    for k in range(steps):
        grads = gradient(loss, params, k, second_order=second_order)
        params, memory = rule.step(params, grads, memory, k)
        yield params


def adapt(
    params: Params, loss: Loss, rule: Rule, steps: int, *, second_order: bool = True
) -> Params:
    """The parameters after `steps` steps; see `trajectory`."""
    adapted = params
    for adapted in trajectory(params, loss, rule, steps, second_order=second_order):  # noqa: B007
        pass
    return adapted


def gradient(loss: Loss, params: Params, step: int = 0, *, second_order: bool = True) -> Params:
    """The gradient of each task's loss with respect to its own parameters, `[B, ...]`.

    Under `torch.no_grad()` the result is a constant: what evaluation wants.
    """
    if torch.compiler.is_compiling():
        grads: Params = torch.func.grad(lambda p: loss(p, step).sum())(params)
        return grads if second_order else {n: g.detach() for n, g in grads.items()}
    graph = second_order and torch.is_grad_enabled()
    if not torch.is_grad_enabled():
        params = {name: p.detach().requires_grad_() for name, p in params.items()}
    with torch.enable_grad():
        total = loss(params, step).sum()
        found = torch.autograd.grad(
            total, list(params.values()), create_graph=graph, materialize_grads=True
        )
    return dict(zip(params, found, strict=True))


def faster_executor(
    vectorised: Callable[[], Tensor], loop: Callable[[], Tensor], repeats: int = 3
) -> Executor:
    """Measure which of two ways to the same losses is faster, backward pass included.

    The way that is vectorised is taken unless the loop is at least 3 % faster, so that a draw is
    always decided alike.
    """
    ways = {"vectorised": vectorised, "loop": loop}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats + 1):  # the first round warms up
        for name, way in ways.items():
            start = perf_counter()
            way().sum().backward()
            seconds[name].append(perf_counter() - start)
    times = {name: median(values[1:]) for name, values in seconds.items()}
    return "loop" if times["loop"] < 0.97 * times["vectorised"] else "vectorised"
