"""MAML, ProMP and their relatives as pure functions: what leaves for a robot.

Three programs: `start` gives the meta-learned parameters, `act` acts by parameters, and `adapt`
takes a gradient step from parameters and the episodes of one world. `metarl.deployment` calls them.

Shapes: `E` episodes that a gradient step learns from, `H` most steps of an episode, `M` = E * H,
`O` observation, `A` action; parameters are `[1, ...]`.
"""

from __future__ import annotations

from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from metarl.agents.deployable import Deployable, fixed_copy
from metarl.agents.gradient_adaptation import (
    AdaptingPolicy,
    Baseline,
    Batch,
    no_baseline,
    task_mean,
    where_finite,
)
from metarl.agents.gradient_agent import GradientAgent
from metarl.distributions import Gaussian
from metarl.linear_baseline import fit_predict
from metarl.networks import action_dim


class Start(nn.Module):
    """The parameters that adapt, as they are before."""

    def __init__(self, network: AdaptingPolicy) -> None:
        """Those of a copy of `network`."""
        super().__init__()
        self.network = fixed_copy(network)

    def forward(self) -> tuple[Tensor, ...]:
        """Each `[1, ...]`."""
        return tuple(p.unsqueeze(0) for p in self.network.start().values())


class GradientAct(nn.Module):
    """Acts by parameters that have adapted, or not yet."""

    def __init__(self, network: AdaptingPolicy) -> None:
        """Act by a copy of `network`."""
        super().__init__()
        self.network = fixed_copy(network)
        self.names = list(network.start())

    def forward(self, obs: Tensor, noise: Tensor, explore: Tensor, *params: Tensor) -> Tensor:
        """`[1, O]`, `[1, A]`, `[1]` to the action, drawn if `explore`, else the most likely."""
        chances = self.network.chances(dict(zip(self.names, params, strict=True)), obs[None])
        if isinstance(chances, Gaussian):
            drawn = chances.mean + chances.log_std.exp() * noise
            return torch.where(explore, drawn, chances.mean)[0]
        drawn = (chances.logits - noise.log()).argmax(-1)
        return torch.where(explore, drawn, chances.mode())[0]


class Adapt(nn.Module):
    """One gradient step on E episodes of one world."""

    def __init__(self, agent: GradientAgent, baseline: Baseline) -> None:
        """Adapt a copy of the agent's network."""
        super().__init__()
        config, horizon = agent.config, agent.spec.horizon
        self.network, self.baseline = fixed_copy(agent.network), baseline
        self.names, self.gamma = list(self.network.start()), config.gamma
        self.register_buffer("discounts", powers(config.gamma, horizon))
        self.register_buffer("traces", powers(config.gamma * config.lam, horizon))

    def forward(
        self, obs: Tensor, action: Tensor, reward: Tensor, valid: Tensor, *params: Tensor
    ) -> tuple[Tensor, ...]:
        """The parameters after the step.

        Args:
            obs: `[E, H, O]`; episodes may be shorter than H.
            action: `[E, H, A]` or `[E, H]`.
            reward: `[E, H]`.
            valid: bool `[E, H]`, the steps that there are.
            params: `[1, ...]`, in the order of `names`.
        """
        own = dict(zip(self.names, params, strict=True))
        batch = self.batch(obs, action, reward, valid, own)
        adapted = self.network.adapted([batch], second_order=False, params=own)
        return tuple(where_finite(adapted, own).values())

    def batch(
        self, obs: Tensor, action: Tensor, reward: Tensor, valid: Tensor, own: dict[str, Tensor]
    ) -> Batch:
        """What `metarl.agents.gradient_adaptation.prepare` makes of them, without its loops.

        Sums over what follows within an episode are products with powers of the discount.
        """
        discounts, traces = self.get_buffer("discounts"), self.get_buffer("traces")
        episodes, horizon = reward.shape
        shape, weight = (1, episodes * horizon), valid.flatten()[None].to(reward.dtype)
        reward = reward.where(valid, 0.0)
        returns = (reward @ discounts).view(shape)
        rows = obs.view(*shape, -1)
        elapsed = torch.arange(horizon).repeat(episodes)[None]
        value = self.baseline(rows, elapsed, returns, weight).view(episodes, horizon) * valid
        following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], 1)
        delta = (reward + self.gamma * following - value) * valid
        advantage = (delta @ traces).view(shape) * weight
        centred = advantage - task_mean(advantage, weight).unsqueeze(-1)
        spread = task_mean(centred.square(), weight).sqrt().unsqueeze(-1)
        taken, old = action.view(*shape, *action.shape[2:]), self.network.chances(own, rows)
        return Batch(
            obs=rows,
            action=taken,
            advantage=centred / (spread + 1e-8) * weight,
            weight=weight,
            log_prob=old.log_prob(taken).detach(),
            old=old.parameters,
            elapsed=elapsed,
            returns=returns,
            credit=torch.zeros(1),
        )


def powers(factor: float, size: int) -> Tensor:
    """`[size, size]` that holds factor^(row - column) below the diagonal and on it, else 0."""
    time = torch.arange(size)
    gap = time.unsqueeze(1) - time
    return torch.where(gap >= 0, float(factor) ** gap.clamp(min=0), 0.0)


def of_gradient(agent: GradientAgent) -> Deployable:
    """MAML or ProMP: it learns from one world's episodes, as many for each step as in training."""
    config, spec = agent.config, agent.spec
    # A trace cannot look at values, to see whether the regression has been solved yet.
    linear: Baseline = partial(fit_predict, look=False)
    baselines = {
        "linear": linear,
        "value": deepcopy(agent.value).cpu().predict,
        "none": no_baseline,
    }
    adapt, actions = Adapt(agent, baselines[config.baseline]), action_dim(spec.action_space)
    discrete = not hasattr(agent.network.policy, "log_std")
    params = dict(zip(adapt.names, Start(agent.network)(), strict=True))
    room = config.rollouts, spec.horizon
    taken = torch.zeros(room, dtype=torch.int64) if discrete else torch.zeros(*room, actions)
    episodes = (
        torch.zeros(*room, spec.obs_dim),
        taken,
        torch.zeros(room),
        torch.ones(room, dtype=torch.bool),
    )
    return Deployable(
        GradientAct(agent.network),
        {f"parameter_{k}": p for k, p in enumerate(params.values())},
        "exponential" if discrete else "normal",
        actions,
        draws_at="act",
        others={
            "start": (Start(agent.network), ()),
            "adapt": (adapt, (*episodes, *params.values())),
        },
        rollouts=config.rollouts,
        gradient_steps=(spec.episodes - 1) // config.rollouts,
    )
