"""GridNavi: find a hidden goal on a 5x5 grid (Zintgraf et al. 2020, VariBAD, section 5.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import gymnasium as gym
import torch
from torch import Tensor

from metarl.errors import UsageError
from metarl.rollout import Rollout
from metarl.tasks import Family, RewardSite, Split, TaskBatch, TaskKind
from metarl.vector import Info, VectorEnv, box

SIZE = 5
CELLS = SIZE * SIZE
START = 0
"""A cell (x, y) has the index 5x + y; every episode starts in (0, 0)."""
MOVES = ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))
"""(dx, dy) of the actions: stay, up, right, down, left."""
GOALS = tuple(SIZE * x + y for x in range(SIZE) for y in range(SIZE) if x > 1 or y > 1)
"""The 21 cells outside the 2x2 corner of the start."""
ON_GOAL, ELSEWHERE = 1.0, -0.1
"""Rewards of a step."""

Observation = Literal["xy", "one-hot"]


@dataclass(frozen=True)
class GridTasks(TaskBatch):
    """N goals."""

    goal: Tensor
    """int64 `[N]`: index 5x + y of the goal's cell"""

    def features(self) -> Tensor:
        """The goal as a one-hot vector, float32 `[N, 25]`: a network cannot use a cell's index."""
        return torch.nn.functional.one_hot(self.goal, CELLS).float()


@dataclass(frozen=True)
class GridNavi(Family):
    """A 5x5 grid with a goal that shows only by the reward of standing on it.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | one-hot: 5x + y | 1 in the cell (x, y) where the agent is | - | 0, 1 |
    | xy: 0, 1 | x and y of the agent | cells | 0..4 |

    | action | meaning | unit | range |
    |---|---|---|---|
    | - | stay, up (y + 1), right (x + 1), down (y - 1), left (x - 1) | index | 0..4 |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 5x + y | 1 in the goal's cell, uniform over 21 | - | 0, 1 |

    The edge of the grid stops the agent. The reward is 1 on the goal and -0.1 elsewhere; an episode
    lasts 15 steps and is then truncated.
    As published, the 21 goals are the training tasks and the test tasks. Any 21 tasks drawn
    together, counted from the first, are all 21 goals in random order.
    """

    name: ClassVar[str] = "gridnavi"
    task_kind: ClassVar[TaskKind] = "one-hot"
    shared_splits: ClassVar[bool] = True
    episodes: int = 4
    horizon: int = 15
    observation: Observation = "one-hot"
    """how the agent sees its cell"""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.observation not in get_args(Observation):
            raise UsageError(
                f"family {self.name}: observation must be one of "
                f"{', '.join(get_args(Observation))}, got {self.observation!r}"
            )

    @property
    def observation_space(self) -> gym.spaces.Box:
        """The agent's cell."""
        return box(0.0, 1.0, CELLS) if self.observation == "one-hot" else box(0.0, SIZE - 1.0, 2)

    @property
    def reward_site(self) -> RewardSite:
        """The cell stepped on, where the observation shows it as a one-hot vector."""
        return "next-obs" if self.observation == "one-hot" else "none"

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """Stay or move."""
        return gym.spaces.Discrete(len(MOVES))

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> GridTasks:
        """Draw `n` goals: one random order of the 21 after the other."""
        self.check_split(split)
        rounds = -(-n // len(GOALS))
        order = torch.rand(rounds, len(GOALS), generator=generator).argsort(dim=-1)
        return GridTasks(goal=torch.tensor(GOALS)[order.flatten()[:n]])

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> GridWorlds:
        """Build `num_worlds` grids; `threads` is ignored, torch does the work."""
        return GridWorlds(self, num_worlds, device=device, seed=seed)

    def cells(self, obs: Tensor) -> Tensor:
        """The cells, int64 `[...]`, that observations `[..., O]` show."""
        if self.observation == "one-hot":
            return obs.argmax(-1)
        return (SIZE * obs[..., 0] + obs[..., 1]).long()

    def figures(self, rollout: Rollout) -> dict[str, float]:
        """How well the first episode is used for looking: `exploration`."""
        share = exploration(self.cells(rollout.final_obs), rollout)
        return {} if share is None else {"exploration": share}


def neighbours() -> Tensor:
    """Where each action leads, int64 `[25 * 5]`: entry `5 * cell + action` is the next cell."""
    cell = torch.arange(CELLS)
    xy = torch.stack([cell // SIZE, cell % SIZE], dim=-1)
    moved = (xy.unsqueeze(1) + torch.tensor(MOVES)).clamp(0, SIZE - 1)
    return (SIZE * moved[..., 0] + moved[..., 1]).flatten()


def exploration(cells: Tensor, rollout: Rollout) -> float | None:
    """The share of steps that look into a new cell, while the goal is still to be found.

    Counted are the steps of the first episode from the second on (no goal can be reached in one),
    up to and with the one that finds the goal. The share of those that enter a cell where the goal
    may be, and which was not entered before, is taken over the steps of all trials together. None
    where there are no such steps.

    Args:
        cells: int64 `[T, N, W]`, where each step led.
        rollout: the trials.
    """
    first = rollout.active & (rollout.episode == 0)
    steps = int(first.flatten(1).any(-1).sum())
    cells, first, on_goal = cells[:steps], first[:steps], rollout.reward[:steps] == ON_GOAL
    counted = first & (rollout.elapsed[:steps] > 0) & (on_goal.cumsum(0) - on_goal.long() == 0)
    entered = torch.nn.functional.one_hot(cells, CELLS)
    again = (entered.cumsum(0) - entered).gather(-1, cells.unsqueeze(-1)).squeeze(-1) > 0
    candidate = torch.zeros(CELLS, dtype=torch.bool, device=cells.device)
    candidate[list(GOALS)] = True
    total = int(counted.sum())
    return int((counted & candidate[cells] & ~again).sum()) / total if total else None


class GridWorlds(VectorEnv):
    """Grids stepped together by table lookup."""

    _goal: Tensor

    def __init__(
        self, family: GridNavi, num_worlds: int, *, device: torch.device | str, seed: int
    ) -> None:
        """Lay out the tables for moving and seeing."""
        super().__init__(family, num_worlds, device=device, seed=seed)
        cells = torch.arange(CELLS)
        xy = torch.stack([cells // SIZE, cells % SIZE], dim=-1).float()
        views = torch.eye(CELLS) if family.observation == "one-hot" else xy
        self._views = views.to(self.device)
        self._neighbours = neighbours().to(self.device)
        self._cell = torch.full((num_worlds,), START, device=self.device)

    def _apply_tasks(self, tasks: GridTasks) -> None:
        self._goal = tasks.goal

    def _reset_worlds(self, mask: Tensor) -> None:
        self._cell = self._cell.masked_fill(mask, START)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        move = len(MOVES) * self._cell + actions
        self._cell = self._neighbours.index_select(0, move)
        on_goal = self._cell == self._goal
        success = on_goal.float()
        reward = torch.where(on_goal, ON_GOAL, ELSEWHERE)
        return reward, torch.zeros_like(on_goal), {"success": success}

    def _observe(self) -> Tensor:
        return self._views.index_select(0, self._cell)

    def _world_state(self) -> dict[str, Tensor]:
        return {"cell": self._cell.clone()}
