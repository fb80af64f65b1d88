"""The outer steps of MAML and ProMP as one writes them down from the papers: a loop over the tasks.

The peer of `metarl bench update maml` and `metarl bench update promp`. A task is adapted, its loss
computed and differentiated, then the next. TRPO differentiates the KL of each task twice, through
the adaptation, and keeps the graphs of all tasks from one product to the next. It takes the same
steps as `metarl.agents.maml` and `metarl.agents.promp`; a test holds them against each other.

Shapes: `M` steps of a task, `O` observation, `A` action, `P` all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from metarl.agents.gradient_adaptation import Batch
from metarl.agents.maml import MAML
from metarl.agents.promp import ProMP
from metarl.trust_region import flatten, line_search, natural_step

Parameters = list[Tensor]
"""log standard deviations `[A]`, then weight `[out, in]` and bias `[out]` of each layer"""


def policy(parameters: Parameters, obs: Tensor) -> tuple[Tensor, Tensor]:
    """Means `[M, A]` and log standard deviations `[A]` of actions for observations `[M, O]`."""
    log_std, *layers = parameters
    h = obs
    for weight, bias in zip(layers[:-2:2], layers[1:-2:2], strict=True):
        h = F.linear(h, weight, bias).tanh()
    return F.linear(h, layers[-2], layers[-1]), log_std


def log_prob(mean: Tensor, log_std: Tensor, action: Tensor) -> Tensor:
    """Log density of a normal distribution, `[M]`."""
    z = (action - mean) / log_std.exp()
    return -0.5 * z.square().sum(-1) - (log_std + 0.5 * math.log(2.0 * math.pi)).sum(-1)


def kl(old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """KL(old || new) of normal distributions, a mean over the steps."""
    (old_mean, old_log_std), (mean, log_std) = old, new
    variance = (2.0 * log_std).exp()
    apart = (old_mean - mean).square() + (2.0 * old_log_std).exp()
    return (log_std - old_log_std + 0.5 * apart / variance - 0.5).sum(-1).mean()


class Steps:
    """A round of one task."""

    def __init__(self, batch: Batch, task: int) -> None:
        """Take those of `task`, all of which may be learned from."""
        self.obs, self.action = batch.obs[task], batch.action[task]
        self.advantage, self.log_prob = batch.advantage[task], batch.log_prob[task]
        mean, log_std = batch.old
        self.old = mean[task], log_std[task]

    def surrogate(self, new: tuple[Tensor, Tensor]) -> Tensor:
        """-E[π(a|s) / π_old(a|s) A]."""
        return -(self.ratio(new) * self.advantage).mean()

    def log_likelihood(self, new: tuple[Tensor, Tensor]) -> Tensor:
        """-E[log π(a|s) A]."""
        return -(log_prob(*new, self.action) * self.advantage).mean()

    def ratio(self, new: tuple[Tensor, Tensor]) -> Tensor:
        """π(a|s) / π_old(a|s), `[M]`."""
        return (log_prob(*new, self.action) - self.log_prob).exp()


def tasks_of(rounds: Sequence[Batch]) -> list[tuple[Steps, Steps]]:
    """What each task saw before and after its one gradient step."""
    before, after = rounds
    return [(Steps(before, task), Steps(after, task)) for task in range(len(before))]


class PlainMAML:
    """MAML with TRPO, from the settings and the parameters of `agent`."""

    def __init__(self, agent: MAML) -> None:
        """Copy the parameters."""
        self.config = agent.config
        self.parameters = [p.detach().clone().requires_grad_() for p in agent.meta_parameters]

    def adapted(self, before: Steps, create_graph: bool = True) -> Parameters:
        """θ' = θ - α ∇L(θ)."""
        loss = before.log_likelihood(policy(self.parameters, before.obs))
        grads = torch.autograd.grad(loss, self.parameters, create_graph=create_graph)
        rate = self.config.inner_rate
        return [p - rate * g for p, g in zip(self.parameters, grads, strict=True)]

    def learn(self, rounds: Sequence[Batch]) -> None:
        """A natural gradient step whose length a line search finds."""
        tasks, config = tasks_of(rounds), self.config
        gradient, total = torch.zeros_like(flatten(self.parameters)), 0.0
        slopes: list[Tensor] = []  # ∇KL of each task, with its graph
        for before, after in tasks:
            new = policy(self.adapted(before), after.obs)
            loss = after.surrogate(new)
            gradient += flatten(torch.autograd.grad(loss, self.parameters, retain_graph=True))
            total += float(loss.detach())
            divergence = kl((new[0].detach(), new[1].detach()), new)
            slope = torch.autograd.grad(divergence, self.parameters, create_graph=True)
            slopes.append(flatten(slope))

        def product(v: Tensor) -> Tensor:
            products = torch.zeros_like(v)
            for slope in slopes:
                out = torch.autograd.grad(slope, self.parameters, v, retain_graph=True)
                products += flatten(out)
            return products / len(tasks)

        step = natural_step(
            product, gradient / len(tasks), config.max_kl, config.cg_iterations, config.damping
        )
        slopes.clear()  # and with them the graphs
        start = total / len(tasks)
        line_search(self.parameters, step, lambda: self.evaluate(tasks), start, config.max_kl)

    def evaluate(self, tasks: Sequence[tuple[Steps, Steps]]) -> tuple[Tensor, Tensor]:
        """The loss and the KL from the policies that acted, means over tasks."""
        losses, kls = [], []
        for before, after in tasks:
            with torch.enable_grad():
                adapted = self.adapted(before, create_graph=False)
            with torch.no_grad():
                new = policy(adapted, after.obs)
                losses.append(after.surrogate(new))
                kls.append(kl(after.old, new))
        return torch.stack(losses).mean(), torch.stack(kls).mean()


class PlainProMP:
    """ProMP, from the settings and the parameters of `agent`."""

    def __init__(self, agent: ProMP) -> None:
        """Copy the parameters."""
        self.config = agent.config
        self.parameters = [p.detach().clone().requires_grad_() for p in agent.meta_parameters]
        self.optimizer = torch.optim.Adam(self.parameters, self.config.learning_rate)

    def loss(self, before: Steps, after: Steps) -> Tensor:
        """The clipped objective after adaptation, and the KL before it."""
        config = self.config
        old = policy(self.parameters, before.obs)
        grads = torch.autograd.grad(before.surrogate(old), self.parameters, create_graph=True)
        pairs = zip(self.parameters, grads, strict=True)
        ratio = after.ratio(policy([p - config.inner_rate * g for p, g in pairs], after.obs))
        clipped = ratio.clamp(1.0 - config.clip, 1.0 + config.clip)
        gain = torch.min(ratio * after.advantage, clipped * after.advantage).mean()
        return config.kl_weight * kl(before.old, old) - gain

    def learn(self, rounds: Sequence[Batch]) -> None:
        """Some epochs of Adam."""
        tasks = tasks_of(rounds)
        for _ in range(self.config.epochs):
            self.optimizer.zero_grad()
            for before, after in tasks:
                (self.loss(before, after) / len(tasks)).backward()
            self.optimizer.step()
