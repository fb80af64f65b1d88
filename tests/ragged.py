"""A family whose episodes end at other times in every world; some steps of it may be poisoned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarl.tasks import Family, TaskBatch
from metarl.vector import VectorEnv, box


@dataclass(frozen=True)
class RaggedTasks(TaskBatch):
    """Targets."""

    target: Tensor
    """float32 `[N]`"""


@dataclass(frozen=True)
class Ragged(Family):
    """Move a number to a target that is not seen; episodes end when chance will have it."""

    name: ClassVar[str] = "ragged"
    episodes: int = 7
    horizon: int = 5
    ragged: bool = True
    """episodes of 1 to 5 steps; without it all last for the horizon"""
    poison: float = 0.0
    """what the task of the largest target gets as its reward from `poisoned_from` on"""
    poisoned_from: int = 10**9
    """count of steps of the worlds"""

    @property
    def observation_space(self):
        return box(-float("inf"), float("inf"), 2)

    @property
    def action_space(self):
        return box(-1.0, 1.0, 1)

    def sample_tasks(self, n, split, generator):
        return RaggedTasks(torch.rand(n, generator=generator) * 2.0 - 1.0)

    def make_worlds(self, num_worlds, *, device="cpu", seed=0, threads=1):
        return RaggedEnv(self, num_worlds, device=device, seed=seed)


class RaggedEnv(VectorEnv):
    """Numbers."""

    steps = 0
    """since the worlds were made"""

    def _apply_tasks(self, tasks):
        self._target = tasks.target
        self._x = torch.zeros(self.num_envs, device=self.device)
        self._length = torch.zeros(self.num_envs, device=self.device)

    def _reset_worlds(self, mask):
        u = self._reset_noise(mask, 2)
        length = (u[:, 0] * 5).floor() + 1 if self.family.ragged else torch.full_like(u[:, 0], 99)
        self._length = torch.where(mask, length, self._length)
        self._x = torch.where(mask, u[:, 1] - 0.5, self._x).float()

    def _advance(self, actions):
        self._x = self._x + 0.3 * actions[:, 0].clamp(-1.0, 1.0)
        reward = -(self._x - self._target).abs()
        if self.steps >= self.family.poisoned_from:
            reward = reward.masked_fill(self._target == self._target.max(), self.family.poison)
        self.steps += 1
        return reward, self._elapsed + 1 >= self._length, {}

    def _observe(self):
        return torch.stack([self._x, self._elapsed.float() / 5.0], 1)

    def _world_state(self):
        return {"x": self._x.clone(), "length": self._length.clone()}
