"""The adaptive policy of PEARL: it acts as if a hypothesis about the task were the truth.

Shapes: `B` worlds, `O` observation, `A` action, `Z` latent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metarl.acceleration import for_acting
from metarl.policy import Step

if TYPE_CHECKING:
    from metarl.agents.pearl import PearlNetworks


@for_acting
def choose(networks: PearlNetworks, obs: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log standard deviation `[B, A]` of actions for `obs` `[B, O]` and z `[B, Z]`."""
    return networks.sac.policy(torch.cat([obs, z], -1))


@for_acting
def absorb(
    networks: PearlNetworks, obs: Tensor, action: Tensor, step: Step, state: Tensor
) -> Tensor:
    """The state of the encoder after one more transition."""
    x = networks.transition(obs, action, step.reward, step.next_obs)
    return networks.encoder.absorb(state, x)


def _may_hold(flags: Tensor) -> bool:
    """Whether any of `flags` holds; on a GPU, where to look would wait for the device, it may."""
    return flags.device.type != "cpu" or bool(flags.any())


class PearlPolicy:
    """The adaptive policy: what it learned about a task is in its belief, what it tries is z."""

    def __init__(
        self,
        networks: PearlNetworks,
        prior_episodes: int,
        deterministic: float,
        generator: torch.Generator,
    ) -> None:
        """Draw z from the prior for `prior_episodes`, then from the belief.

        A share `deterministic` of the worlds of each task act by the mean, the others draw.
        """
        self.networks, self.prior_episodes = networks, prior_episodes
        self.deterministic, self.generator = deterministic, generator

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything; every world tries a z of its own from the prior."""
        worlds = num_tasks * worlds_per_task
        self.state = self.networks.encoder.start(worlds)
        self.episode = torch.zeros(worlds, dtype=torch.int64, device=self.state.device)
        within = torch.arange(worlds_per_task, device=self.state.device)
        self.steady = (within < self.deterministic * worlds_per_task).repeat(num_tasks)
        self.z = self._draw(torch.zeros_like(self.episode, dtype=torch.bool))

    def _draw(self, informed: Tensor) -> Tensor:
        """New latents `[B, Z]`: from the belief where `informed`, else from the prior."""
        belief = self.networks.encoder.belief(self.state)
        return belief.where(informed).sample(self.generator)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Choose actions `[B, A]` for `obs` `[B, O]` as if z were the truth."""
        chances = choose(self.networks, obs, self.z)
        self.action = self.networks.sac.act(*chances, self.steady, self.generator)
        self.obs = obs
        return self.action

    @torch.no_grad()
    def observe(self, step: Step) -> None:
        """Add the transition to the belief; where an episode ended, draw z anew."""
        self.state = absorb(self.networks, self.obs, self.action, step, self.state)
        done = step.terminated | step.truncated
        self.episode += done
        if _may_hold(done):
            drawn = self._draw(self.episode >= self.prior_episodes)
            self.z = torch.where(done.unsqueeze(-1), drawn, self.z)
