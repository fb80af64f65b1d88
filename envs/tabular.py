"""Random tabular MDPs: the second benchmark of RL² (Duan et al. 2016, section 3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from metarl.tasks import Family, Split, TaskBatch, TaskKind, striped
from metarl.vector import Info, VectorEnv, box

PLANNED_STEPS = 10
"""how far the values that describe a task look ahead: a whole episode of the published length"""


@dataclass(frozen=True)
class TabularTasks(TaskBatch):
    """N Markov decision processes with S states and A actions."""

    reward_mean: Tensor
    """float32 `[N, S, A]`: mean reward of an action in a state"""
    transition: Tensor
    """float32 `[N, S, A, S]`: probability of the next state"""

    def features(self) -> Tensor:
        """Mean rewards, then the best expected return of ten steps from each pair: `[N, 2 S A]`.

        The values say what an oracle needs of the S x A x S transitions in a tenth of the numbers.
        """
        value = self.reward_mean
        for _ in range(PLANNED_STEPS - 1):
            best = value.amax(-1)
            value = self.reward_mean + torch.einsum("nsat,nt->nsa", self.transition, best)
        return torch.cat([self.reward_mean.flatten(1), value.flatten(1)], dim=-1)


@dataclass(frozen=True)
class TabularMDP(Family):
    """Small random MDPs: rewards ~ N(mu, 1) with mu ~ N(1, 1), transitions ~ Dirichlet(1, ..., 1).

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0..states-1 | 1 in the present state; every episode starts in state 0 | - | 0, 1 |

    | action | meaning | unit | range |
    |---|---|---|---|
    | - | the action | index | 0..actions-1 |

    | task | meaning | unit | range |
    |---|---|---|---|
    | actions*s + a | mean reward of action a in state s | reward | normal(1, 1) |
    | states*actions more | best expected return of ten steps that begin with a in s | reward | - |

    An episode lasts 10 steps and is then truncated. Held-out MDPs differ from all training ones in
    the mean reward of the first action in the first state.
    """

    name: ClassVar[str] = "tabular-mdp"
    task_kind: ClassVar[TaskKind] = "continuous"
    episodes: int = 10
    """episodes per trial, n"""
    horizon: int = 10
    states: int = 10
    """number of states"""
    actions: int = 5
    """number of actions"""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.require_count("states", self.states)
        self.require_count("actions", self.actions, least=2)

    @property
    def observation_space(self) -> gym.spaces.Box:
        """The state, one-hot."""
        return box(0.0, 1.0, self.states)

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """The actions."""
        return gym.spaces.Discrete(self.actions)

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> TabularTasks:
        """Draw `n` MDPs; their first mean reward is a quantile in the stripes of `split`."""
        self.check_split(split)
        pairs, double = (self.states, self.actions), torch.float64
        quantile = torch.rand(n, *pairs, dtype=double, generator=generator)
        quantile = quantile.clamp(min=1e-12)
        quantile[:, 0, 0] = striped(quantile[:, 0, 0], split)
        mean = 1.0 + math.sqrt(2.0) * torch.erfinv(2.0 * quantile - 1.0)
        # Exponential numbers over their sum are Dirichlet(1, ..., 1).
        share = -torch.rand(n, *pairs, self.states, dtype=double, generator=generator).neg().log1p()
        transition = share / share.sum(dim=-1, keepdim=True)
        return TabularTasks(reward_mean=mean.float(), transition=transition.float())

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> TabularWorlds:
        """Build `num_worlds` MDPs; `threads` is ignored, torch does the work."""
        return TabularWorlds(self, num_worlds, device=device, seed=seed)


class TabularWorlds(VectorEnv):
    """MDPs stepped together; the next state comes by inversion of its distribution."""

    _mean: Tensor
    _cumulative: Tensor

    def __init__(
        self, family: TabularMDP, num_worlds: int, *, device: torch.device | str, seed: int
    ) -> None:
        """Put all worlds into state 0."""
        super().__init__(family, num_worlds, device=device, seed=seed)
        pairs = family.states * family.actions
        self._actions = family.actions
        self._first_row = pairs * torch.arange(num_worlds, device=self.device)
        self._views = torch.eye(family.states, device=self.device)
        self._state = torch.zeros(num_worlds, dtype=torch.int64, device=self.device)

    def _apply_tasks(self, tasks: TabularTasks) -> None:
        self._mean = tasks.reward_mean.flatten()
        # On a GPU torch has no sum of this kind that gives the same bits every time.
        where = "cpu" if torch.are_deterministic_algorithms_enabled() else self.device
        cumulative = tasks.transition.to(where).cumsum(dim=-1).flatten(0, 2)
        self._cumulative = cumulative.to(self.device)

    def _reset_worlds(self, mask: Tensor) -> None:
        self._state = self._state.masked_fill(mask, 0)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        row = self._first_row + self._actions * self._state + actions
        reward = self._mean.index_select(0, row) + self._normal(1).squeeze(-1)
        cumulative = self._cumulative.index_select(0, row)
        # The last entry is 1 up to rounding, so only the others can be passed.
        self._state = (self._uniform(1) > cumulative[:, :-1]).sum(dim=-1)
        return reward, torch.zeros_like(reward, dtype=torch.bool), {}

    def _observe(self) -> Tensor:
        return self._views.index_select(0, self._state)

    def _world_state(self) -> dict[str, Tensor]:
        return {"state": self._state.clone()}
