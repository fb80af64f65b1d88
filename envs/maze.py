"""Procedural mazes: a new layout for every task, seen through a small window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.envs.layouts import is_held_out, pick, reachable, spanning_trees, walls_between
from metarl.errors import UsageError
from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import Info, VectorEnv, box

Variant = Literal["goal", "key-door"]

VIEW = 5
"""Side of the square window that is centred on the agent, cells."""
MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""(row, column) steps of the actions: up, right, down, left."""
FLOOR, WALL, GOAL, KEY, DOOR = range(5)
"""What a cell can hold."""
AT_GOAL, STEP_COST = 1.0, -0.01
"""Rewards of a step."""


@dataclass(frozen=True)
class MazeTasks(TaskBatch):
    """N mazes of S x S cells; places are (row, column) with (0, 0) in the upper left corner."""

    walls: Tensor
    """bool `[N, S, S]`: cells that cannot be entered"""
    start: Tensor
    """int64 `[N, 2]`: where every episode starts, cells"""
    goal: Tensor
    """int64 `[N, 2]`: where every episode ends, cells"""
    key: Tensor
    """int64 `[N, 2]`: where the key lies, cells; (0, 0), a wall, where there is none"""
    door: Tensor
    """int64 `[N, 2]`: where the locked door is, cells; (0, 0), a wall, where there is none"""

    def features(self) -> Tensor:
        """Walls, then start, goal, key and door in units of the maze's side: float32 `[N, F]`."""
        places = torch.stack([self.start, self.goal, self.key, self.door], dim=1)
        scaled = places.flatten(1) / self.walls.shape[-1]
        return torch.cat([self.walls.flatten(1).float(), scaled], dim=-1)


@dataclass(frozen=True)
class Maze(Family):
    """Random mazes: find the goal, remember the way, and be faster in the next episode.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 5i + j | wall in row i, column j of the 5x5 window centred on the agent | - | 0, 1 |
    | 25 + 5i + j | goal there | - | 0, 1 |
    | 50, 51 | row, column of the agent | cells | 1..size-2 |
    | key-door: 52 + 5i + j | key there, not yet picked up | - | 0, 1 |
    | key-door: 77 + 5i + j | door there | - | 0, 1 |
    | key-door: 102 | the agent has the key | - | 0, 1 |

    | action | meaning | unit | range |
    |---|---|---|---|
    | - | up, right, down, left; walls and locked doors stop the agent | index | 0..3 |

    | task | meaning | unit | range |
    |---|---|---|---|
    | size*i + j | wall at row i, column j | - | 0, 1 |
    | then 2 each | row, column of start, goal, key, door (0 where there is none) | size | 0..1 |

    Rooms lie at odd rows and columns; a random spanning tree joins all of them, and further walls
    fall with probability `openness`. Layout, start, goal, key and door stay the same over a trial.
    With `key-door` a locked door is the only way to the goal, and the key lies on this side of it;
    every episode starts without the key. The reward is 1 at the goal, where the episode terminates,
    and -0.01 elsewhere; it is truncated after 100 steps. No held-out layout occurs in training.
    """

    name: ClassVar[str] = "maze"
    episodes: int = 4
    horizon: int = 100
    size: int = 11
    """side of the maze with its outer walls, cells; odd, 7 to 41"""
    variant: Variant = "goal"
    """whether a locked door bars the way"""
    openness: float = 0.3
    """probability that a wall which could be spared is left out, 0 to 0.9; 0 gives no loops"""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.require_count("size", self.size, least=7)
        if self.size % 2 == 0 or self.size > 41:
            raise UsageError(f"family maze: size must be odd, 7 to 41, got {self.size}")
        if self.variant not in get_args(Variant):
            allowed = ", ".join(get_args(Variant))
            raise UsageError(f"family maze: variant must be one of {allowed}, got {self.variant!r}")
        # With all walls gone there is only one layout, which cannot be in both splits.
        if not 0.0 <= self.openness <= 0.9:
            raise UsageError(f"family maze: openness must lie in 0..0.9, got {self.openness}")

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Windows, position and, with a door, whether the agent has the key."""
        window = VIEW * VIEW
        highs = [np.ones(2 * window), np.full(2, self.size - 2.0)]
        if self.variant == "key-door":
            highs.append(np.ones(2 * window + 1))
        high = np.concatenate(highs).astype(np.float32)
        return box(np.zeros_like(high), high)

    @property
    def action_space(self) -> gym.spaces.Discrete:
        """Four moves."""
        return gym.spaces.Discrete(len(MOVES))

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> MazeTasks:
        """Draw `n` mazes; layouts that belong to the other split are thrown away."""
        self.check_split(split)
        share = 0.2 if split == "held-out" else 0.8
        kept: list[MazeTasks] = []
        found = 0
        while found < max(n, 1):
            tasks, held_out = self._draw(int(1.1 * (n - found) / share) + 16, generator)
            kept.append(tasks[held_out == (split == "held-out")])
            found += len(kept[-1])
        return MazeTasks.concatenate(kept)[:n]

    def _draw(self, n: int, generator: torch.Generator) -> tuple[MazeTasks, Tensor]:
        """Draw `n` mazes of either split, and whether each is held out, bool `[n]`."""
        side = self.size // 2
        ends = walls_between(side)
        passages = spanning_trees(torch.rand(n, len(ends), generator=generator), ends)
        may_open = torch.rand(n, len(ends), generator=generator) < self.openness
        if self.variant == "key-door":
            door = pick(passages, generator)
            near = _side_of_start(passages, ends, door)
            # A passage between the two sides would be a way around the door.
            may_open &= near[:, ends[:, 0]] == near[:, ends[:, 1]]
            start = pick(near, generator)
            key = pick(near & _others(start, side), generator)
            goal = pick(~near, generator)
        else:
            start = pick(torch.ones(n, side * side, dtype=torch.bool), generator)
            goal = pick(_others(start, side), generator)
        passages = passages | may_open
        between = _cell(ends[:, 0], side) + _cell(ends[:, 1], side)
        absent = torch.zeros(n, 2, dtype=torch.int64)
        has_door = self.variant == "key-door"
        tasks = MazeTasks(
            walls=_draw_walls(passages, between // 2, self.size),
            start=_cell(start, side),
            goal=_cell(goal, side),
            key=_cell(key, side) if has_door else absent,
            door=between[door] // 2 if has_door else absent,
        )
        return tasks, is_held_out(passages)

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> MazeWorlds:
        """Build `num_worlds` mazes; `threads` is ignored, torch does the work."""
        return MazeWorlds(self, num_worlds, device=device, seed=seed)


def _cell(room: Tensor, side: int) -> Tensor:
    """Row and column of the cell of `room` int64 `[...]` in the maze: `[..., 2]`."""
    return torch.stack([2 * (room // side) + 1, 2 * (room % side) + 1], dim=-1)


def _others(room: Tensor, side: int) -> Tensor:
    """All rooms but `room` int64 `[N]`: bool `[N, side * side]`."""
    return torch.nn.functional.one_hot(room, side * side) == 0


def _side_of_start(tree: Tensor, ends: Tensor, door: Tensor) -> Tensor:
    """The rooms on the larger side of passage `door` `[N]`, bool `[N, rooms]`."""
    without_door = tree.scatter(1, door.unsqueeze(-1), False)
    one_side = reachable(without_door, ends, ends[door, 0])
    smaller = 2 * one_side.sum(dim=-1, keepdim=True) < one_side.shape[-1]
    return one_side ^ smaller


def _draw_walls(passages: Tensor, between: Tensor, size: int) -> Tensor:
    """Walls bool `[N, size, size]` of the layouts `[N, E]`; `between` `[E, 2]` are the passages."""
    walls = torch.ones(len(passages), size, size, dtype=torch.bool)
    walls[:, 1::2, 1::2] = False
    walls[:, between[:, 0], between[:, 1]] = ~passages
    return walls


class MazeWorlds(VectorEnv):
    """Mazes walked together. Cells are kept in one flat row per world, with a margin of walls.

    The margin is as wide as the window looks past the outer wall: nothing needs a check of bounds.
    """

    def __init__(
        self, family: Maze, num_worlds: int, *, device: torch.device | str, seed: int
    ) -> None:
        """Lay out empty mazes."""
        super().__init__(family, num_worlds, device=device, seed=seed)
        self._has_door = family.variant == "key-door"
        self._margin = VIEW // 2 - 1
        self._width = family.size + 2 * self._margin
        steps = torch.tensor(MOVES, device=self.device)
        self._moves = steps[:, 0] * self._width + steps[:, 1]
        reach = torch.arange(VIEW, device=self.device) - VIEW // 2
        self._window = (reach.unsqueeze(-1) * self._width + reach).flatten()
        worlds = torch.arange(num_worlds, device=self.device)
        self._first_cell = worlds * self._width**2
        self._position = self._first_cell.clone()
        self._key_found = torch.zeros(num_worlds, dtype=torch.bool, device=self.device)

    def _flat(self, place: Tensor) -> Tensor:
        """Index in the row of all cells of (row, column) `[num_worlds, 2]`."""
        row, column = place.unbind(-1)
        return self._first_cell + (row + self._margin) * self._width + column + self._margin

    def _apply_tasks(self, tasks: MazeTasks) -> None:
        margins = [self._margin] * 4
        cells = torch.nn.functional.pad(tasks.walls.byte(), margins, value=WALL).flatten()
        self._start, self._goal = self._flat(tasks.start), self._flat(tasks.goal)
        self._key = self._flat(tasks.key)
        cells[self._goal] = GOAL
        if self._has_door:
            cells[self._key] = KEY
            cells[self._flat(tasks.door)] = DOOR
        self._cells = cells

    def _reset_worlds(self, mask: Tensor) -> None:
        self._position = torch.where(mask, self._start, self._position)
        self._key_found = self._key_found & ~mask

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        target = self._position + self._moves.index_select(0, actions)
        cell = self._cells.index_select(0, target)
        free = cell != WALL
        if self._has_door:
            free &= (cell != DOOR) | self._key_found
        self._position = torch.where(free, target, self._position)
        if self._has_door:
            self._key_found = self._key_found | (self._position == self._key)
        there = self._position == self._goal
        return torch.where(there, AT_GOAL, STEP_COST), there, {"success": there.float()}

    def _observe(self) -> Tensor:
        window = self._position.unsqueeze(-1) + self._window
        seen = self._cells.index_select(0, window.flatten()).view(self.num_envs, -1)
        inside = self._position - self._first_cell
        row, column = inside // self._width - self._margin, inside % self._width - self._margin
        parts = [seen == WALL, seen == GOAL, torch.stack([row, column], dim=-1)]
        if self._has_door:
            found = self._key_found.unsqueeze(-1)
            parts += [(seen == KEY) & ~found, seen == DOOR, found]
        # Joining bytes and turning them into floats in one go moves a quarter of the memory.
        return torch.cat([part.to(torch.uint8) for part in parts], dim=-1).float()

    def _world_state(self) -> dict[str, Tensor]:
        return {"position": self._position.clone(), "key_found": self._key_found.clone()}
