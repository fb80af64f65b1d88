"""The exactly Bayes-optimal way to play GridNavi, with the proof that it is optimal.

A goal shows only to who stands on it, so until then nothing is learned but which cells are not the
goal: what to do is a plan made in advance, to be followed until the goal is found. From then on the
oracle's walk is optimal. What is left is a shortest-path problem in (episode, step, cell, cells
still to be searched). Its cost is the number of steps on the goal that are lost against an oracle:
a goal at distance d from the start, found in step t (from 1) of episode e (from 0), loses the
H - d + 1 steps on it of each of the e episodes before and t - d steps of its own.

The many sets of cells are coped with by a lower bound: only the distance from the start is kept of
a cell, and only how many cells are left of each distance. That smaller problem is solved for all
its states (`least_losses`); a walk on the grid that loses no more than the bound is optimal. For
every number of episodes and every horizon there is one.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.envs.gridnavi import (
    CELLS,
    ELSEWHERE,
    GOALS,
    MOVES,
    ON_GOAL,
    SIZE,
    START,
    GridNavi,
    neighbours,
)
from metarl.errors import UsageError
from metarl.policy import Step

MOST_EPISODES = 5
"""More episodes are never needed to find the goal."""
MOST_STEPS = len(GOALS) + 1
"""In so many steps all goals can be searched, a new one in each step from the second on. Longer
episodes change nothing: a goal left out would lose more than the last one does in that walk."""
STAY = 0
UNKNOWN = -1
DISTANCE = [sum(divmod(cell, SIZE)) for cell in range(CELLS)]
"""Steps from the start (0, 0) to each cell."""
FARTHEST = max(DISTANCE)
NEXT: list[list[int]] = neighbours().view(CELLS, len(MOVES)).tolist()
"""`NEXT[cell][action]` is the cell that the action leads to."""

Losses = NDArray[np.int16]


@dataclass(frozen=True)
class Plan:
    """What to do until the goal is found."""

    actions: tuple[tuple[int, ...], ...]
    """by episode and step; whoever has followed it to its end knows the goal, or cannot reach it"""
    found: dict[int, tuple[int, int]]
    """by goal that is found: the episode and the step, both from 0, that enter it"""


# --- the lower bound ---------------------------------------------------------------------------


def least_losses(episodes: int, horizon: int) -> Losses:
    """The bound: what is lost at least, by how far from the start one is and what is left.

    In each step one may stay, or go away from the start or towards it by one, and then enter a cell
    still to be searched if any is left at that distance. Every walk on the grid is such a walk, so
    none can lose less.

    Returns:
        int16 `[episodes, horizon + 1, 9, n_0 + 1, ..., n_8 + 1]`, where n_d is the number of goals
        at distance d that an episode can reach: the least loss of all goals still left, by episode,
        steps taken in it, distance from the start, and how many goals are left of each distance.
    """
    reach = [goal for goal in GOALS if DISTANCE[goal] <= horizon]
    most = [sum(DISTANCE[goal] == d for goal in reach) + 1 for d in range(FARTHEST + 1)]
    per_episode = [horizon + 1 - d for d in range(FARTHEST + 1)]
    losses = np.empty((episodes, horizon + 1, FARTHEST + 1, *most), dtype=np.int16)
    # At best, what is left after the last episode would be found as by an oracle in the next.
    left = np.indices(most, sparse=True)
    after = episodes * sum(n * steps for n, steps in zip(left, per_episode, strict=True))
    for e in reversed(range(episodes)):
        losses[e, horizon] = after
        for t in range(horizon, 0, -1):
            entered = losses[e, t].copy()
            for d in range(1, FARTHEST + 1):
                fewer = np.moveaxis(losses[e, t, d], d, 0)[:-1]
                found = np.moveaxis(entered[d], d, 0)[1:]
                np.minimum(found, fewer + (e * per_episode[d] + t - d), out=found)
            best = losses[e, t - 1]
            best[:] = losses[e, t]
            np.minimum(best[1:], entered[:-1], out=best[1:])
            np.minimum(best[:-1], entered[1:], out=best[:-1])
        after = losses[e, 0, DISTANCE[START]]
    return losses


# --- the walk that attains it ------------------------------------------------------------------


@cache
def plan_search(episodes: int, horizon: int) -> Plan:
    """The Bayes-optimal plan for trials of `episodes` episodes of `horizon` steps."""
    episodes, horizon = min(episodes, MOST_EPISODES), min(horizon, MOST_STEPS)
    losses = least_losses(episodes, horizon)
    hopeless: set[tuple[int, int, int, frozenset[int]]] = set()

    def bound(e: int, t: int, cell: int, left: frozenset[int]) -> int:
        counts = Counter(DISTANCE[goal] for goal in left)
        return int(losses[e, t, DISTANCE[cell]][tuple(counts[d] for d in range(FARTHEST + 1))])

    def walk_on(e: int, t: int, cell: int, left: frozenset[int]) -> list[int] | None:
        """Actions that lose no more than the bound, the last one first; None if there are none."""
        if t == horizon:
            e, t, cell = e + 1, 0, START
        if not left or e == episodes:
            return []
        if (e, t, cell, left) in hopeless:
            return None
        least = bound(e, t, cell, left)
        # Those that enter a cell to be searched come first.
        for known, action, there in sorted((x not in left, a, x) for a, x in enumerate(NEXT[cell])):
            lost = 0 if known else e * (horizon + 1 - DISTANCE[there]) + t + 1 - DISTANCE[there]
            still = left - {there}
            if lost + bound(e, t + 1, there, still) == least:
                rest = walk_on(e, t + 1, there, still)
                if rest is not None:
                    return [*rest, action]
        hopeless.add((e, t, cell, left))
        return None

    reach = frozenset(goal for goal in GOALS if DISTANCE[goal] <= horizon)
    walk = walk_on(0, 0, START, reach)
    # There is one for all numbers of episodes and steps that come here.
    assert walk is not None
    return _plan_of(walk[::-1], horizon)


def _plan_of(walk: list[int], horizon: int) -> Plan:
    """Cut a walk into episodes and note when it finds which goal."""
    found: dict[int, tuple[int, int]] = {}
    cell = START
    for index, action in enumerate(walk):
        episode, step = divmod(index, horizon)
        cell = NEXT[START if step == 0 else cell][action]
        if cell in GOALS:
            found.setdefault(cell, (episode, step))
    parts = range(0, len(walk), horizon)
    return Plan(tuple(tuple(walk[i : i + horizon]) for i in parts), found)


def expected_returns(family: GridNavi) -> list[float]:
    """The Bayes-optimal return of each episode, mean over the goals, `[K]`.

    It is the total that is largest. Where several plans share it, this is one of them.
    """
    plan = plan_search(family.episodes, family.horizon)
    on_goal = np.zeros(family.episodes, dtype=np.int64)
    for goal, (episode, step) in plan.found.items():
        on_goal[episode] += family.horizon - step
        on_goal[episode + 1 :] += family.horizon + 1 - DISTANCE[goal]
    gained = (ON_GOAL - ELSEWHERE) * on_goal / len(GOALS)
    returns: list[float] = (ELSEWHERE * family.horizon + gained).tolist()
    return returns


# --- the policy --------------------------------------------------------------------------------


def _ways() -> Tensor:
    """Where to go, int64 `[25, 25]`: an action that leads from a cell nearer to a goal."""
    xy = torch.tensor([divmod(cell, SIZE) for cell in range(CELLS)])
    beside = torch.tensor(NEXT)
    far = (xy[beside].unsqueeze(2) - xy).abs().sum(-1)
    return far.argmin(1)


class BayesOptimalGridNavi:
    """Follows the plan until the goal is found, then goes to the goal and stays there."""

    def __init__(self, family: GridNavi) -> None:
        """Plan for trials of `family`."""
        self.family = family
        plan = plan_search(family.episodes, family.horizon)
        self._plan = torch.full((family.episodes, family.horizon), STAY)
        for episode, actions in enumerate(plan.actions):
            self._plan[episode, : len(actions)] = torch.tensor(actions)
        self._ways = _ways()

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Know no goal; every world searches for itself."""
        worlds = num_tasks * worlds_per_task
        self._goal = torch.full((worlds,), UNKNOWN)
        self._episode, self._step = torch.zeros(2, worlds, dtype=torch.int64)

    def act(self, obs: Tensor) -> Tensor:
        """Actions int64 `[B]` for observations `[B, O]`.

        Raises:
            UsageError: in an episode beyond those that were planned for.
        """
        planned = self.family.episodes
        if int(self._episode.max()) >= planned:
            raise UsageError(
                f"Bayes-optimal policy of {self.family.name}: planned for trials of {planned} "
                "episodes; build it for a family with as many episodes as are played"
            )
        to_goal = self._ways[self.family.cells(obs).cpu(), self._goal]
        searching = self._plan[self._episode, self._step]
        return torch.where(self._goal == UNKNOWN, searching, to_goal).to(obs.device)

    def observe(self, step: Step) -> None:
        """See whether this is the goal."""
        cells = self.family.cells(step.next_obs).cpu()
        self._goal = torch.where(step.reward.cpu() == ON_GOAL, cells, self._goal)
        done = (step.terminated | step.truncated).cpu()
        self._episode += done
        self._step = (self._step + 1) * ~done
