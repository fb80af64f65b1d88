"""Bernoulli bandits: the multi-armed bandits of RL² (Duan et al. 2016, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from metarl.tasks import Family, RewardSite, Split, TaskBatch, TaskKind, striped
from metarl.vector import Info, VectorEnv, box


@dataclass(frozen=True)
class BanditTasks(TaskBatch):
    """N bandits."""

    probability: Tensor
    """float32 `[N, arms]` in (0, 1): how probable a reward of 1 is for each arm"""


@dataclass(frozen=True)
class Bandit(Family):
    """Bernoulli bandits: every arm pays 1 with a probability of its own, else 0.

    An episode is one pull, so a trial of K episodes is the published game of n = K pulls.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | nothing: a bandit has no state | - | 0 |

    | action | meaning | unit | range |
    |---|---|---|---|
    | - | the arm to pull | index | 0..arms-1 |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0..arms-1 | probability of each arm to pay, independent and uniform | - | (0, 1) |

    The reward is 0 or 1. Held-out bandits differ from all training ones in their first arm.
    """

    name: ClassVar[str] = "bandit"
    task_kind: ClassVar[TaskKind] = "continuous"
    episodes: int = 10
    """pulls per trial, n"""
    horizon: int = 1
    """pulls per episode"""
    arms: int = 5
    """number of arms, k"""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.require_count("arms", self.arms, least=2)

    @property
    def observation_space(self) -> gym.spaces.Box:
        """A constant."""
        return box(0.0, 0.0, 1)

    @property
    def reward_site(self) -> RewardSite:
        """The arm pulled."""
        return "action"

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """One action per arm."""
        return gym.spaces.Discrete(self.arms)

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> BanditTasks:
        """Draw `n` bandits; their first arm lies in the stripes of `split`."""
        self.check_split(split)
        u = torch.rand(n, self.arms, dtype=torch.float64, generator=generator)
        u[:, 0] = striped(u[:, 0], split)
        return BanditTasks(probability=u.float())

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> BanditWorlds:
        """Build `num_worlds` bandits; `threads` is ignored, torch does the work."""
        return BanditWorlds(self, num_worlds, device=device, seed=seed)


class BanditWorlds(VectorEnv):
    """Bandits pulled together; their only state is the random stream."""

    _probability: Tensor

    def _apply_tasks(self, tasks: BanditTasks) -> None:
        self._probability = tasks.probability

    def _reset_worlds(self, mask: Tensor) -> None:
        pass

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        chance = self._probability.gather(1, actions.unsqueeze(-1))
        pays = (self._uniform(1) < chance).squeeze(-1)
        return pays.float(), torch.zeros_like(pays), {}

    def _observe(self) -> Tensor:
        return torch.zeros(self.num_envs, 1, device=self.device)

    def _world_state(self) -> dict[str, Any]:
        return {}
