"""Stable-Baselines3's policies as pure functions: what leaves for a robot."""

from __future__ import annotations

from copy import deepcopy

import gymnasium as gym
import torch
from stable_baselines3 import PPO, SAC
from torch import Tensor, nn

from metarl.adapters import Bridge
from metarl.agents.baselines import SB3Agent
from metarl.agents.deployable import Deployable
from metarl.agents.sb3_models import Model
from metarl.errors import UsageError


def mean_network(model: Model) -> nn.Sequential:
    """From an observation to logits, or to the mean of the actions, in about [-1, 1]."""
    if isinstance(model, PPO):
        policy = model.policy
        parts = [policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net]
    elif isinstance(model, SAC):
        actor = model.policy.actor
        parts = [actor.features_extractor, actor.latent_pi, actor.mu, nn.Tanh()]
    else:
        parts = [model.policy.actor.features_extractor, model.policy.actor.mu]
    return nn.Sequential(*deepcopy(parts)).cpu().eval().requires_grad_(False)


class SB3Act(nn.Module):
    """The most likely action of a policy that learns nothing within a trial."""

    def __init__(self, model: Model, bridge: Bridge) -> None:
        """Act by a copy of the policy of `model`, in the family's own actions."""
        super().__init__()
        self.body, space = mean_network(model), bridge.inner_action_space
        self.discrete = isinstance(space, gym.spaces.Discrete)
        if isinstance(space, gym.spaces.Box):
            self.register_buffer("centre", torch.from_numpy(0.5 * (space.high + space.low)))
            self.register_buffer("radius", torch.from_numpy(0.5 * (space.high - space.low)))

    def forward(self, obs: Tensor) -> tuple[Tensor]:
        """`[1, O]` to the action."""
        out: Tensor = self.body(obs)
        if self.discrete:
            return (out.argmax(-1),)
        return (self.get_buffer("centre") + self.get_buffer("radius") * out.clamp(-1.0, 1.0),)


def of_sb3(agent: SB3Agent) -> Deployable:
    """PPO, SAC or TD3.

    Raises:
        UsageError: if the agent learns every task from scratch.
    """
    if agent.config.from_scratch:
        raise UsageError("export: an agent that learns from scratch has no policy to export")
    return Deployable(SB3Act(agent.model, agent.bridge), {})
