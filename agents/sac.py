"""Soft actor-critic on states that may carry a latent, as PEARL's do.

Two variants. `modern` (Haarnoja et al. 2018, "Algorithms and Applications"): twin critics with
targets and a learned temperature. `paper` (Haarnoja et al. 2018, ICML; what PEARL was published
with): a state value with a target, temperature 1, and a penalty on the policy's parameters.

Shapes: `S` state, `A` action, `E` = 2 critics; all else are batch dimensions `...`.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import ClassVar, Literal

import gymnasium as gym
import torch
from torch import Tensor, nn

from metarl.distributions import Noise
from metarl.errors import UsageError, require_between, require_positive, require_widths
from metarl.networks import EnsembleMLP, TanhGaussianHead, relu_mlp

Variant = Literal["modern", "paper"]

REGULARISATION = 1e-3
"""weight of the squared mean and log standard deviation of the policy (variant paper)"""


@dataclass(frozen=True)
class SACConfig:
    """Settings of SAC on replay."""

    name: ClassVar[str] = "sac"
    """what error messages call the agent"""
    variant: Variant = "modern"
    """modern: target critics, learned temperature; paper: V with a target, temperature 1"""
    layers: tuple[int, ...] = (64, 64, 64)
    """hidden layers of the policy and of the critics"""
    capacity: int = 100_000
    """transitions that the replay of a task holds"""
    replay_folder: str = ""
    """where to keep the replay on the disk, if it is larger than the memory"""
    updates: int = 1000
    """gradient steps per iteration"""
    batch: int = 256
    """transitions per task of a gradient step"""
    learning_rate: float = 3e-4
    """Adam's step size at the start"""
    final_learning_rate: float = 3e-4
    """Adam's step size at the end of the budget; linear in between"""
    gamma: float = 0.99
    """discount per step"""
    tau: float = 0.005
    """how far the targets follow at every gradient step"""
    reward_scale: float = 5.0
    """rewards are multiplied by this in the Bellman target"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        require_between(self, ("updates", "batch"), self.name, 1)
        require_between(self, ("gamma", "tau"), self.name, 0, 1)
        require_between(self, ("final_learning_rate",), self.name, 0)
        require_positive(self, ("learning_rate", "reward_scale"), self.name)
        require_widths(self, ("layers",), self.name)
        if self.capacity < self.batch:
            raise UsageError(
                f"{self.name}: capacity must be at least one batch ({self.batch}), got "
                f"{self.capacity}"
            )


class SoftActorCritic(nn.Module):
    """Policy, twin critics and their targets; actions inside are in [-1, 1]."""

    low: Tensor
    high: Tensor

    def __init__(
        self,
        states: int,
        space: gym.spaces.Space[object],
        layers: tuple[int, ...],
        variant: Variant,
    ) -> None:
        """Build the networks for states `[..., states]` and the action space `space`.

        Raises:
            UsageError: if actions are not continuous and bounded.
        """
        super().__init__()
        if not isinstance(space, gym.spaces.Box) or not space.is_bounded():
            raise UsageError(
                f"sac: actions must be continuous and bounded, the family's are {space}"
            )
        actions = int(space.low.size)
        self.actor = relu_mlp([states, *layers[:-1]], layers[-1])
        self.head = TanhGaussianHead(layers[-1], actions)
        self.critics = EnsembleMLP(2, [states + actions, *layers])
        if variant == "paper":
            self.value = EnsembleMLP(1, [states, *layers])
        else:
            self.log_alpha = nn.Parameter(torch.zeros(()))
        self.variant = variant
        self.target = deepcopy(self._followed).requires_grad_(False)
        self.register_buffer("low", torch.from_numpy(space.low))
        self.register_buffer("high", torch.from_numpy(space.high))

    @property
    def _followed(self) -> EnsembleMLP:
        return self.value if self.variant == "paper" else self.critics

    @torch.no_grad()
    def follow(self, tau: float) -> None:
        """Move the target towards what it follows by a share `tau`."""
        target, followed = self.target.parameters(), self._followed.parameters()
        torch._foreach_lerp_(list(target), list(followed), tau)

    def policy(self, state: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation `[..., A]` before the squeeze."""
        mean, log_std = self.head(self.actor(state).relu())
        return mean, log_std

    def act(
        self, mean: Tensor, log_std: Tensor, steady: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The family's actions `[B, A]` by what `policy` says of states.

        Where `steady` bool `[B]` they are the squeezed mean, elsewhere drawn.
        """
        drawn = self.head.sample(mean, log_std, generator)[0]
        return self.to_env(torch.where(steady.unsqueeze(-1), mean.tanh(), drawn))

    def to_env(self, action: Tensor) -> Tensor:
        """Actions in [-1, 1] as those of the family."""
        return self.low + (self.high - self.low) * (0.5 * (action + 1.0))

    def from_env(self, action: Tensor) -> Tensor:
        """The family's actions as those in [-1, 1]."""
        return 2.0 * (action - self.low) / (self.high - self.low) - 1.0


def bellman(sac: SoftActorCritic, state: Tensor, action: Tensor, target: Tensor) -> Tensor:
    """Sum over the critics of the mean squared error to `target` `[...]`.

    Gradients reach the critics and whatever `state` came from.
    """
    error = sac.critics(torch.cat([state, action], -1)) - target
    loss: Tensor = error.square().flatten(1).mean(1).sum()
    return loss


@torch.no_grad()
def next_value(sac: SoftActorCritic, state: Tensor, noise: Noise) -> Tensor:
    """The value `[...]` of next states: V(s'), or min Q(s', a') - α log π(a'|s') with a' ~ π."""
    if sac.variant == "paper":
        value: Tensor = sac.target(state)[0]
        return value
    action, log_prob = sac.head.sample(*sac.policy(state), noise)
    q: Tensor = sac.target(torch.cat([state, action], -1)).amin(0)
    return q - sac.log_alpha.exp() * log_prob


def actor_losses(sac: SoftActorCritic, state: Tensor, noise: Noise) -> dict[str, Tensor]:
    """The losses of the policy, and of the value or the temperature, at detached states."""
    mean, log_std = sac.policy(state)
    action, log_prob = sac.head.sample(mean, log_std, noise)
    q = sac.critics(torch.cat([state, action], -1), frozen=True).amin(0)
    if sac.variant == "paper":
        error = sac.value(state)[0] - (q - log_prob).detach()
        penalty = mean.square().mean() + log_std.square().mean()
        policy = (log_prob - q).mean() + REGULARISATION * penalty
        return {"policy": policy, "value": error.square().mean()}
    policy = (sac.log_alpha.detach().exp() * log_prob - q).mean()
    # log π + target entropy, which is -A: above zero the policy is too sure of itself.
    surplus = log_prob.detach().mean() - action.shape[-1]
    return {"policy": policy, "temperature": -sac.log_alpha * surplus}
