"""What the best possible policy reaches: a reference for adaptation curves, where it is known.

The reference is for the tasks of the family at large, and for a policy that tries each task in one
world at a time and wants the largest expected return of the whole trial, without discount.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from metarl.envs.bandits import Bandit
from metarl.envs.bayes_bandits import (
    BayesOptimalBandit,
    GittinsBandit,
    per_episode,
    pulls_of,
    simulate,
    solve,
)
from metarl.envs.bayes_gridnavi import BayesOptimalGridNavi, expected_returns
from metarl.envs.gridnavi import GridNavi
from metarl.oracle import TaskInObservation
from metarl.policy import AdaptivePolicy
from metarl.tasks import Family

QUICK_PULLS = 300
"""Bandits with more pulls take longer than about three seconds."""


@dataclass(frozen=True)
class Reference:
    """The best that a policy can do which does not know the task."""

    name: str
    """Bayes-optimal, or Gittins index"""
    returns: list[float]
    """`[K]`: expected return of episode 1, 2, ... K"""
    exact: bool
    """False for a policy that is nearly optimal, and valued by simulation"""
    error: float
    """standard error of the sum of the returns; 0 where exact"""
    policy: Callable[[], AdaptivePolicy]
    """makes a policy that reaches these returns"""

    def plain(self) -> dict[str, Any]:
        """All but the policy, as plain values for scripts."""
        return {
            "name": self.name,
            "returns": self.returns,
            "total": sum(self.returns),
            "exact": self.exact,
            "error": self.error,
        }


def bayes_optimal(
    family: Family, episodes: int | None = None, *, quick: bool = False
) -> Reference | None:
    """The reference of `family`; None if it has none.

    Args:
        family: what it is the reference of. It does not see the task where an oracle does.
        episodes: K, episodes of a trial; those of the family if not given.
        quick: None, too, where it takes longer than about three seconds.

    Raises:
        UsageError: if it would take minutes, or `episodes` is no number of episodes.
    """
    if isinstance(family, TaskInObservation):
        family = family.family
    # Subclasses may play by other rules.
    if type(family) not in (GridNavi, Bandit):
        return None
    if episodes is not None:
        family = replace(family, episodes=episodes)
    if isinstance(family, GridNavi):
        policy = partial(BayesOptimalGridNavi, family)
        return Reference("Bayes-optimal", expected_returns(family), True, 0.0, policy)
    assert isinstance(family, Bandit)
    return None if quick and pulls_of(family) > QUICK_PULLS else _of_bandit(family)


def _of_bandit(family: Bandit) -> Reference:
    """The exact solution where the game is small enough, else the Gittins index."""
    solution = solve(pulls_of(family), family.arms)
    if solution is not None:
        returns = per_episode(solution.rewards, family)
        policy = partial(BayesOptimalBandit, family, solution)
        return Reference("Bayes-optimal", returns, True, 0.0, policy)
    rewards, error = simulate(GittinsBandit(family))
    returns = per_episode(rewards, family)
    return Reference("Gittins index", returns, False, error, partial(GittinsBandit, family))
