"""A family of which everything can be predicted, and whose episodes may end early."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import Info, VectorEnv, box


@dataclass(frozen=True)
class Counting(TaskBatch):
    """Tasks of the family below."""

    offset: Tensor
    """float32 `[N]`, added to every reward"""


@dataclass(frozen=True)
class CountingFamily(Family):
    """Observation = episode + step / 10, reward = offset + step: everything can be predicted."""

    name: ClassVar[str] = "counting"
    episodes: int = 3
    horizon: int = 4
    broken_step: int = -1
    """elapsed step at which world 0 is unstable"""
    bad_value: float = 0.0
    """added to the reward of world 0 at that step"""

    @property
    def observation_space(self) -> gym.spaces.Box:
        """One number."""
        return box(-float("inf"), float("inf"), 1)

    @property
    def action_space(self) -> gym.spaces.Box:
        """One number, ignored."""
        return box(-1.0, 1.0, 1)

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> Counting:
        """Offsets 0, 100, 200, ..."""
        return Counting(torch.arange(n).float() * 100.0)

    def make_worlds(
        self, num_worlds: int, *, device: Any = "cpu", seed: int = 0, threads: int = 1
    ) -> VectorEnv:
        """Build the worlds."""
        return CountingEnv(self, num_worlds, device=device, seed=seed)


class CountingEnv(VectorEnv):
    """World w terminates after 4 steps, but world 1 after 2."""

    family: CountingFamily

    def _apply_tasks(self, tasks: Any) -> None:
        self._offset = tasks.offset
        self._episode = torch.full((self.num_envs,), -1)

    def _reset_worlds(self, mask: Tensor) -> None:
        self._episode += mask

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        early = (torch.arange(self.num_envs) == 1) & (self._elapsed == 1)
        unstable = torch.zeros(self.num_envs, dtype=torch.bool)
        unstable[0] = bool(self._elapsed[0] == self.family.broken_step)
        reward = self._offset + self._elapsed
        reward = torch.where(unstable, reward + self.family.bad_value, reward)
        return reward, early, {"unstable": unstable}

    def _observe(self) -> Tensor:
        return (self._episode + self._elapsed / 10.0).unsqueeze(1).float()

    def _world_state(self) -> dict[str, Tensor]:
        return {"episode": self._episode}
