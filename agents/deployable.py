"""Adaptive policies as pure functions: what leaves for a robot.

A policy becomes one function of one world,

    act(obs, what the last action brought, first, noise, state) -> action, state

which first brings its state up to date by what the last action brought, and then acts by the most
likely action. `first` is true at the first call of a trial: the state and the last action that are
passed in then count for nothing. `metarl.deployment` calls it; the arguments' names say what they
are given.

Shapes: `O` observation, `A` action, `Z` latent, `H` and `S` states of memories; a batch of 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import Parameter, signature
from typing import TypeVar

import torch
from torch import Tensor, nn

from metarl.agents.pearl import Pearl, PearlNetworks
from metarl.agents.rl2 import RL2, RecurrentActorCritic
from metarl.agents.varibad import VariBAD, VariBADNetwork
from metarl.deployment import Noise
from metarl.networks import RunningNorm

ModuleT = TypeVar("ModuleT", bound=nn.Module)


@dataclass(frozen=True)
class Deployable:
    """A policy as programs."""

    act: nn.Module
    """`forward` takes what its arguments are called, and returns the action and the new state"""
    state: Mapping[str, Tensor]
    """what is carried from call to call, by name"""
    noise: Noise = "none"
    """what the argument `noise` is drawn from"""
    noise_dim: int = 0
    """how many numbers it has"""
    draws_at: str = "never"
    """when the trained policy draws them: never, act, or end (of an episode, and at the start)"""
    others: Mapping[str, tuple[nn.Module, tuple[Tensor, ...]]] = field(default_factory=dict)
    """further programs, with examples of what they take"""
    rollouts: int = 0
    """episodes that a gradient step learns from"""
    gradient_steps: int = 0
    """gradient steps of a trial"""

    @property
    def inputs(self) -> list[str]:
        """The arguments of `act`, in order."""
        found = signature(self.act.forward).parameters.values()
        names = [p.name for p in found if p.kind is not Parameter.VAR_POSITIONAL]
        return [*names, *(name for name in self.state if name not in names)]


class FixedNorm(nn.Module):
    """A running normalisation as it is, in float32."""

    mean: Tensor
    scale: Tensor

    def __init__(self, norm: RunningNorm) -> None:
        """Do what `norm` does to float32 tensors, bit for bit."""
        super().__init__()
        self.clip = norm.clip
        self.register_buffer("mean", norm.mean.float())
        self.register_buffer("scale", (norm.var + 1e-8).rsqrt().float())

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `[..., dim]`."""
        return ((x - self.mean) * self.scale).clamp(-self.clip, self.clip)


def fixed_copy(module: ModuleT) -> ModuleT:
    """A copy on the CPU that cannot learn."""
    copy = deepcopy(module).cpu().eval().requires_grad_(False)
    for parent in list(copy.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, RunningNorm):
                parent.register_module(name, FixedNorm(child))
    return copy


def where(condition: Tensor, x: Tensor, other: Tensor) -> Tensor:
    """`x` `[1, ...]` if `condition` bool `[1]`, else `other`."""
    return torch.where(condition.unsqueeze(-1), x, other)


class RL2Act(nn.Module):
    """RL²: the hidden state remembers."""

    def __init__(self, network: RecurrentActorCritic) -> None:
        """Act by a copy of `network`."""
        super().__init__()
        self.network = fixed_copy(network)
        del self.network.actor_critic.critic, self.network.actor_critic.task_norm

    def forward(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        done: Tensor,
        first: Tensor,
        hidden: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """`[1, O]`, the last `[1, A]` or `[1]`, `[1]`, `[1]`, `[1]`, `[1, H]` to action, hidden."""
        actor_critic = self.network.actor_critic
        after = self.network.feedback(action, reward, done)
        x = actor_critic.obs_norm(obs)
        seen = torch.cat([x, where(first, torch.zeros_like(after), after)], -1)
        before = where(first, torch.zeros_like(hidden), hidden)
        hidden = self.network.remember(seen.unsqueeze(0), before)[1]
        return actor_critic.distribution(x, hidden).mode(), hidden


class PlainAct(nn.Module):
    """The same without memory."""

    def __init__(self, network: RecurrentActorCritic) -> None:
        """Act by a copy of `network`."""
        super().__init__()
        self.actor_critic = fixed_copy(network.actor_critic)
        del self.actor_critic.critic, self.actor_critic.task_norm

    def forward(self, obs: Tensor) -> tuple[Tensor]:
        """`[1, O]` to the action."""
        x = self.actor_critic.obs_norm(obs)
        return (self.actor_critic.distribution(x, x.new_zeros(1, 0)).mode(),)


class VariBADAct(nn.Module):
    """VariBAD: a belief over tasks, which is read off the encoder's memory."""

    def __init__(self, network: VariBADNetwork) -> None:
        """Act by a copy of `network`."""
        super().__init__()
        self.network = fixed_copy(network)
        del self.network.vae.decoders
        del self.network.actor_critic.critic, self.network.actor_critic.task_norm

    def forward(
        self,
        obs: Tensor,
        next_obs: Tensor,
        action: Tensor,
        reward: Tensor,
        done: Tensor,
        first: Tensor,
        memory: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As RL²'s, with the true next observation `[1, O]` and the encoder's memory `[1, H]`."""
        network, actor_critic = self.network, self.network.actor_critic
        x = network.inputs(next_obs, action, reward, done)
        after = network.vae.memory(x.unsqueeze(0), memory)[1]
        memory = where(first, torch.zeros_like(memory), after)
        known = network.known(network.vae.belief(memory))
        return actor_critic.distribution(actor_critic.obs_norm(obs), known).mode(), memory


class PearlAct(nn.Module):
    """PEARL: a belief that every transition changes, and a latent that is drawn every episode."""

    def __init__(self, networks: PearlNetworks, prior_episodes: int) -> None:
        """Act by a copy of `networks`; see `metarl.agents.pearl_policy.PearlPolicy`."""
        super().__init__()
        self.networks, self.prior_episodes = fixed_copy(networks), prior_episodes
        del self.networks.sac.critics, self.networks.sac.target
        for name in ("value", "log_alpha"):
            if hasattr(self.networks.sac, name):
                delattr(self.networks.sac, name)

    def forward(
        self,
        obs: Tensor,
        last_obs: Tensor,
        action: Tensor,
        reward: Tensor,
        next_obs: Tensor,
        done: Tensor,
        first: Tensor,
        noise: Tensor,
        belief: Tensor,
        latent: Tensor,
        episode: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Noise and latent are `[1, Z]`, the encoder's sums or memory `[1, S]`, the episode `[1]`.

        Returns:
            Action `[1, A]`, belief, latent, episode.
        """
        networks = self.networks
        x = networks.transition(last_obs, action, reward, next_obs)
        after = networks.encoder.absorb(belief, x)
        belief = where(first, torch.zeros_like(belief), after)
        episode = torch.where(first, torch.zeros_like(episode), episode + done)
        chances = networks.encoder.belief(belief).where(episode >= self.prior_episodes)
        latent = where(first | done, chances.mean + chances.var.sqrt() * noise, latent)
        mean, _ = networks.sac.policy(torch.cat([obs, latent], -1))
        return networks.sac.to_env(mean.tanh()), belief, latent, episode


def of_rl2(agent: RL2) -> Deployable:
    """RL², or the references without memory."""
    if agent.network.hidden == 0:
        return Deployable(PlainAct(agent.network), {})
    return Deployable(RL2Act(agent.network), {"hidden": torch.zeros(1, agent.network.hidden)})


def of_varibad(agent: VariBAD) -> Deployable:
    """VariBAD."""
    memory = torch.zeros(1, agent.network.vae.memory.hidden)
    return Deployable(VariBADAct(agent.network), {"memory": memory})


def of_pearl(agent: Pearl) -> Deployable:
    """PEARL; it draws a latent when a trial begins and whenever an episode ends."""
    latent = agent.config.latent
    state = {
        "belief": torch.zeros_like(agent.networks.encoder.start(1), device="cpu"),
        "latent": torch.zeros(1, latent),
        "episode": torch.zeros(1, dtype=torch.int64),
    }
    act = PearlAct(agent.networks, agent.config.prior_episodes)
    return Deployable(act, state, "normal", latent, draws_at="end")
