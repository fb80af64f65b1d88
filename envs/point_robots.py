"""Point robots on a plane: dense and sparse goals (PEARL) and 2-D navigation (MAML).

PEARL: Rakelly et al. 2019, sections 6.1 and 6.3. MAML: Finn et al. 2017, section 5.3. One set of
worlds runs all three; a family fixes where episodes start, where goals lie, and the reward.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from metarl.tasks import Family, Split, TaskBatch, TaskKind, striped
from metarl.vector import Info, VectorEnv, box

STEP = 0.1
"""How far an action of 1 moves the robot along an axis, in metres."""


@dataclass(frozen=True)
class PointTasks(TaskBatch):
    """N goals on the plane."""

    goal: Tensor
    """float32 `[N, 2]`: x and y of the goal, m"""


def square_goals(u: Tensor, split: Split, half: float, outer: float) -> Tensor:
    """Goals uniform in the square [-half, half]², or in the frame around it when out of range.

    Args:
        u: float64 `[N, 2]` in [0, 1).
        split: the first coordinate of train and held-out goals lies in the stripes of the split.
        half: half the side of the square, m.
        outer: half the outer side of the frame that holds the out-of-range goals, m.

    Returns:
        float64 `[N, 2]`.
    """
    if split != "out-of-range":
        return half * (2.0 * torch.stack([striped(u[:, 0], split), u[:, 1]], dim=-1) - 1.0)
    # A point of the frame lies on the rim of a square whose area is uniform between the two.
    radius = (half**2 + u[:, 0] * (outer**2 - half**2)).sqrt()
    side, along = (4.0 * u[:, 1]).floor(), 2.0 * ((4.0 * u[:, 1]) % 1.0) - 1.0
    sign = 1.0 - 2.0 * (side % 2.0)
    goals = torch.stack([sign * radius, along * radius], dim=-1)
    return torch.where((side < 2.0).unsqueeze(-1), goals, goals.flip(-1))


@dataclass(frozen=True)
class PointFamily(Family):
    """What the three point robots share."""

    splits: ClassVar[tuple[Split, ...]] = ("train", "held-out", "out-of-range")
    start_half: ClassVar[float] = 0.0
    """Episodes start uniformly in [-start_half, start_half]², m."""
    sparse: ClassVar[bool] = False
    """The reward is sparse; learners may use minus the distance, `info["dense_reward"]`."""

    @property
    def observation_space(self) -> gym.spaces.Box:
        """The position; nothing bounds the plane."""
        return box(-math.inf, math.inf, 2)

    @property
    def action_space(self) -> gym.spaces.Box:
        """The move."""
        return box(-1.0, 1.0, 2)

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> PointTasks:
        """Draw `n` goals of `split`."""
        self.check_split(split)
        u = torch.rand(n, 2, dtype=torch.float64, generator=generator)
        return PointTasks(goal=self.place_goals(u, split).float())

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> PointWorlds:
        """Build `num_worlds` robots; `threads` is ignored, torch does the work."""
        return PointWorlds(self, num_worlds, device=device, seed=seed)

    @abstractmethod
    def place_goals(self, u: Tensor, split: Split) -> Tensor:
        """Turn uniform numbers `[N, 2]` into goals `[N, 2]`, both float64."""

    @abstractmethod
    def judge(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Judge where the robot is: `offset` `[W, 2]` is its position minus the goal, m.

        Returns:
            reward float32 `[W]`, terminated bool `[W]`, and success bool `[W]`.
        """


@dataclass(frozen=True)
class PointDense(PointFamily):
    """A robot that starts anywhere and is told its distance to a goal that it does not see.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | x, y of the robot | m | -3..3 within one episode |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | move along x, y; clipped | 0.1 m | -1..1 |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | x, y of the goal, uniform | m | -1..1; out of range: between 1 and 1.5 on one axis |

    The reward is minus the distance to the goal; success is to be within 0.1 m of it. The start is
    uniform in [-1, 1]² at every episode, which lasts 20 steps and is then truncated. Held-out goals
    differ from all training goals in x. A robot that knows the goal earns -5.19 an episode.
    """

    name: ClassVar[str] = "point-dense"
    task_kind: ClassVar[TaskKind] = "continuous"
    start_half: ClassVar[float] = 1.0
    episodes: int = 3
    horizon: int = 20

    def place_goals(self, u: Tensor, split: Split) -> Tensor:
        """Goals in [-1, 1]²; out of range between it and [-1.5, 1.5]²."""
        return square_goals(u, split, half=1.0, outer=1.5)

    def judge(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward minus the distance; never terminates."""
        distance = torch.linalg.vector_norm(offset, dim=-1)
        near = distance <= STEP
        return -distance, torch.zeros_like(near), near


@dataclass(frozen=True)
class PointSparse(PointFamily):
    """A robot that is rewarded only near a goal on a half-circle around its start.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | x, y of the robot | m | -2..2 within one episode |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | move along x, y; clipped | 0.1 m | -1..1 |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | x, y of the goal, 1 m from the start | m | angle 0..pi; out of range: pi..2 pi |

    The reward is 1 minus the distance within 0.2 m of the goal (success) and 0 elsewhere. The start
    is (0, 0); an episode lasts 20 steps and is then truncated. Held-out goals differ from all
    training goals in their angle. A robot that knows the goal earns 13.38 an episode. As published,
    agents may learn from minus the distance (`info["dense_reward"]`), but adapt and are judged by
    the sparse reward.
    """

    name: ClassVar[str] = "point-sparse"
    task_kind: ClassVar[TaskKind] = "continuous"
    sparse: ClassVar[bool] = True
    episodes: int = 5
    horizon: int = 20

    def place_goals(self, u: Tensor, split: Split) -> Tensor:
        """Goals on the upper half of the unit circle; out of range on the lower half."""
        below = split == "out-of-range"
        angle = math.pi * (1.0 + u[:, 0] if below else striped(u[:, 0], split))
        return torch.stack([angle.cos(), angle.sin()], dim=-1)

    def judge(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward 1 minus the distance, but only near the goal; never terminates."""
        distance = torch.linalg.vector_norm(offset, dim=-1)
        near = distance <= 0.2
        return (1.0 - distance) * near, torch.zeros_like(near), near


@dataclass(frozen=True)
class Navigation2D(PointFamily):
    """MAML's 2-D navigation: reach a goal near the start, told the distance to it.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | x, y of the robot | m | -10..10 within one episode |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | move along x, y; clipped | 0.1 m | -1..1 |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | x, y of the goal, uniform | m | -0.5..0.5; out of range: up to 0.75 on one axis |

    The reward is minus the distance to the goal. The start is (0, 0). The episode terminates with
    success where the robot is within 0.01 m of the goal on both axes, and is truncated after 100
    steps. Held-out goals differ from all training goals in x. A robot that knows the goal earns
    -0.51 an episode.
    """

    name: ClassVar[str] = "navigation-2d"
    task_kind: ClassVar[TaskKind] = "continuous"
    episodes: int = 2
    horizon: int = 100

    def place_goals(self, u: Tensor, split: Split) -> Tensor:
        """Goals in [-0.5, 0.5]²; out of range between it and [-0.75, 0.75]²."""
        return square_goals(u, split, half=0.5, outer=0.75)

    def judge(self, offset: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reward minus the distance; terminates at the goal."""
        there = (offset.abs() < 0.01).all(dim=-1)
        return -torch.linalg.vector_norm(offset, dim=-1), there, there


class PointWorlds(VectorEnv):
    """Point robots moved together."""

    family: PointFamily
    _goal: Tensor

    def __init__(
        self, family: PointFamily, num_worlds: int, *, device: torch.device | str, seed: int
    ) -> None:
        """Put all robots at the origin."""
        super().__init__(family, num_worlds, device=device, seed=seed)
        self._position = torch.zeros(num_worlds, 2, device=self.device)

    def _apply_tasks(self, tasks: PointTasks) -> None:
        self._goal = tasks.goal

    def _reset_worlds(self, mask: Tensor) -> None:
        start = self.family.start_half * (2.0 * self._reset_noise(mask, 2) - 1.0)
        self._position = torch.where(mask.unsqueeze(-1), start, self._position)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        self._position = self._position + STEP * actions.clamp(-1.0, 1.0)
        offset = self._position - self._goal
        reward, terminated, success = self.family.judge(offset)
        info = {"success": success.float()}
        if self.family.sparse:
            info["dense_reward"] = -torch.linalg.vector_norm(offset, dim=-1)
        return reward, terminated, info

    def _observe(self) -> Tensor:
        return self._position.clone()

    def _world_state(self) -> dict[str, Tensor]:
        return {"position": self._position.clone()}
