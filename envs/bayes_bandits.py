"""The best that can be done on Bernoulli bandits: exactly for small ones, else by Gittins indices.

With arms that are independent and uniform a priori, s rewards in m pulls of an arm leave the belief
Beta(s + 1, m - s + 1) with mean (s + 1) / (m + 2). Arms are exchangeable, so the state of a game is
the multiset of the pairs (m, s); dynamic programming over these is exact, and small games have few
enough of them. (Held-out bandits draw their first arm from stripes of (0, 1): it is uniform only to
within 1 / 200, which moves its mean by 1 / 500.)

In larger games each pull goes to the arm with the largest finite-horizon Gittins index: the reward
that a known arm would have to pay for sure to be as good as this one, if these two were all there
is until the game ends (Kaufmann 2018, On Bayesian index policies for sequential resource
allocation). The classical index of Gittins (1979) is optimal in endless games with a discount, but
games here end, and no discount stands for that. No index is exactly optimal in games that end;
where both can be computed, this one is as good as the optimum to three digits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.envs.bandits import Bandit
from metarl.errors import UsageError
from metarl.policy import Step

LARGEST = 2_000_000
"""An exact solution may have so many pairs of a state and an arm: a second, 100 MB."""
MOST_PULLS = 600
"""Gittins indices of longer games would take minutes and gigabytes."""
KNOWN_ARMS = 65
"""What a known arm pays, evenly spaced from 0 to 1; the index is interpolated between these."""
TRIALS = 10_000
"""games that value a policy by simulation"""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def pulls_of(family: Bandit) -> int:
    """n, the number of pulls in a trial."""
    return family.episodes * family.horizon


def per_episode(rewards: list[float], family: Bandit) -> list[float]:
    """Rewards of each pull, summed to returns of each episode, `[K]`."""
    returns: list[float] = np.reshape(rewards, (family.episodes, family.horizon)).sum(1).tolist()
    return returns


# --- small games, exactly ----------------------------------------------------------------------


@dataclass(frozen=True)
class Solution:
    """The Bayes-optimal way to play; an arm with s rewards in m pulls has number m(m + 1)/2 + s."""

    radix: Ints
    """`[arms]`: a state is known by the product of its ascending arm numbers with this"""
    states: list[Ints]
    """for each number of pulls made: the states there can be, ascending"""
    best: list[Ints]
    """for each of these states: which of its arms, counted in ascending order, is best pulled"""
    value: float
    """expected reward of the whole game"""
    rewards: list[float]
    """expected reward of each pull"""


@cache
def solve(pulls: int, arms: int) -> Solution | None:
    """Solve the game of `pulls` pulls by dynamic programming; None if it is too large."""
    arms = min(arms, pulls)  # the others are never pulled
    numbers = (pulls + 1) * (pulls + 2) // 2
    if numbers**arms >= 2**63:
        return None
    made = np.repeat(np.arange(pulls + 1), np.arange(1, pulls + 2))
    mean = (np.arange(numbers) - made * (made + 1) // 2 + 1) / (made + 2)
    radix = numbers ** np.arange(arms, dtype=np.int64)[::-1]
    layers, after, size = [np.zeros((1, arms), dtype=np.int64)], [], arms
    for _ in range(pulls):
        outcomes = _outcomes(layers[-1], made) @ radix
        states, index = np.unique(outcomes, return_inverse=True)
        after.append(index.reshape(outcomes.shape))
        layers.append(states[:, None] // radix % numbers)
        size += layers[-1].size
        if size > LARGEST:
            return None
    value = np.zeros(len(layers[-1]))
    best: list[Ints] = []
    for layer, (paid, unpaid) in zip(layers[-2::-1], after[::-1], strict=True):
        chance = mean[layer]
        gain = chance * (1.0 + value[paid]) + (1.0 - chance) * value[unpaid]
        best.insert(0, gain.argmax(1))
        value = gain.max(1)
    rewards = _rewards(layers, after, best, mean)
    states = [layer @ radix for layer in layers[:-1]]
    return Solution(radix, states, best, float(value[0]), rewards)


def _outcomes(layer: Ints, made: Ints) -> Ints:
    """States `[2, M, arms, arms]` after a reward and after none, from each of M by each arm."""
    arm = np.arange(layer.shape[1])
    states = np.repeat(layer[:, None], len(arm), axis=1)
    states = np.stack([states, states])
    # The number of an arm with one more pull, and with one more reward or not.
    states[1, :, arm, arm] = (layer + made[layer] + 1).T
    states[0, :, arm, arm] = states[1, :, arm, arm] + 1
    states.sort(axis=-1)
    return states


def _rewards(layers: list[Ints], after: list[Ints], best: list[Ints], mean: Floats) -> list[float]:
    """Expected reward of each pull, by going through the states with their chances."""
    share: Any = np.ones(1)
    rewards = []
    for k, choice in enumerate(best):
        state = np.arange(len(choice))
        pays = share * mean[layers[k][state, choice]]
        rewards.append(float(pays.sum()))
        paid, unpaid = after[k][:, state, choice]
        count = len(layers[k + 1])
        share = np.bincount(paid, pays, count) + np.bincount(unpaid, share - pays, count)
    return rewards


# --- larger games, by an index -----------------------------------------------------------------


@cache
def gittins_indices(pulls: int) -> list[NDArray[np.float32]]:
    """Finite-horizon Gittins indices of arms in games of `pulls` pulls.

    For each reward that a known arm may pay, the game against it is solved backwards: once it is
    best it stays best, so its value is that of pulling it to the end. The index lies where an arm
    is as good.

    Returns:
        For an arm with m = 0, 1, ... pulls, float32 `[pulls - m, m + 1]`: its index by the pulls
        that are left (from 1) and the rewards it gave.

    Raises:
        UsageError: if that would take too long.
    """
    if pulls > MOST_PULLS:
        raise UsageError(
            f"Gittins indices of a game of {pulls} pulls would take too long; "
            f"at most {MOST_PULLS} are allowed"
        )
    pays = np.linspace(0.0, 1.0, KNOWN_ARMS, dtype=np.float32)
    sure = pays[:, None, None] * np.arange(pulls + 1, dtype=np.float32)[:, None]
    value = np.zeros((KNOWN_ARMS, 1, pulls + 1), dtype=np.float32)
    indices = []
    for m in range(pulls - 1, -1, -1):
        mean = (np.arange(1, m + 2) / (m + 2)).astype(np.float32)
        tried = mean * (1.0 + value[:, :, 1:]) + (1.0 - mean) * value[:, :, :-1]
        known = sure[:, 1 : pulls - m + 1]
        indices.append(_crossing(tried - known))
        value = np.concatenate([np.zeros_like(tried[:, :1]), np.maximum(tried, known)], axis=1)
    return indices[::-1]


def _crossing(advantage: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where `advantage` `[KNOWN_ARMS, ...]`, which falls from above 0 to below, is 0, in (0, 1)."""
    last = (advantage > 0.0).sum(0, keepdims=True) - 1
    above, below = (np.take_along_axis(advantage, last + i, 0)[0] for i in (0, 1))
    crossing: NDArray[np.float32] = (last[0] + above / (above - below)) / (KNOWN_ARMS - 1)
    return crossing.astype(np.float32)


# --- the policies ------------------------------------------------------------------------------


class _CountingPolicy(ABC):
    """Counts pulls and rewards of every arm in every world, and decides by them."""

    def __init__(self, family: Bandit) -> None:
        """Prepare for trials of `family`."""
        self.family, self.pulls = family, pulls_of(family)

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Know of no pull; every world is on its own."""
        worlds = num_tasks * worlds_per_task
        self._made, self._paid = torch.zeros(2, worlds, self.family.arms, dtype=torch.int64)
        self._pull = 0

    def act(self, obs: Tensor) -> Tensor:
        """The arms to pull, int64 `[B]`.

        Raises:
            UsageError: after the last pull that was planned for.
        """
        if self._pull >= self.pulls:
            raise UsageError(
                f"policy of {self.family.name}: planned for trials of {self.pulls} pulls; build it "
                "for a family with as many as are played"
            )
        self._arm = self._choose().unsqueeze(-1)
        return self._arm.squeeze(-1).to(obs.device)

    def observe(self, step: Step) -> None:
        """Count the pull."""
        self._made.scatter_add_(1, self._arm, torch.ones_like(self._arm))
        self._paid.scatter_add_(1, self._arm, step.reward.cpu().long().unsqueeze(-1))
        self._pull += 1

    @abstractmethod
    def _choose(self) -> Tensor:
        """The arms to pull, int64 `[B]`."""


class BayesOptimalBandit(_CountingPolicy):
    """Looks up what is best in the exact solution."""

    def __init__(self, family: Bandit, solution: Solution) -> None:
        """Play by `solution`, which is that of the family's game."""
        super().__init__(family)
        self._radix = torch.from_numpy(solution.radix.copy())
        self._states = [torch.from_numpy(states) for states in solution.states]
        self._best = [torch.from_numpy(best) for best in solution.best]

    def _choose(self) -> Tensor:
        number = self._made * (self._made + 1) // 2 + self._paid
        ascending, arm = number.sort(stable=True)
        told_apart = len(self._radix)  # the others were never pulled and have number 0
        state = (ascending[:, -told_apart:] * self._radix).sum(-1)
        row = torch.searchsorted(self._states[self._pull], state)
        choice = self._best[self._pull][row].unsqueeze(-1)
        chosen: Tensor = arm[:, -told_apart:].gather(-1, choice).squeeze(-1)
        return chosen


class GittinsBandit(_CountingPolicy):
    """Pulls the arm with the largest index, the first of equals."""

    def __init__(self, family: Bandit) -> None:
        """Compute the indices.

        Raises:
            UsageError: if that would take too long.
        """
        super().__init__(family)
        tables = gittins_indices(self.pulls)
        self._index = torch.from_numpy(np.concatenate([table.ravel() for table in tables]))
        self._start = torch.tensor([0, *np.cumsum([table.size for table in tables])[:-1]])

    def _choose(self) -> Tensor:
        left = self.pulls - self._pull
        place = self._start[self._made] + (left - 1) * (self._made + 1) + self._paid
        arm: Tensor = self._index[place].argmax(-1)
        return arm


def simulate(policy: _CountingPolicy, *, seed: int = 0) -> tuple[list[float], float]:
    """Value a policy by many games with arms that are uniform on (0, 1).

    What counts is the chance of the arm pulled, less that of the best arm plus its known mean,
    arms / (arms + 1): that is right on average, and scatters much less than the rewards do.

    Returns:
        Expected reward of each pull, and the standard error of their sum.
    """
    generator = torch.Generator().manual_seed(seed)
    arms = policy.family.arms
    chances = torch.rand(TRIALS, arms, dtype=torch.float64, generator=generator)
    known = arms / (arms + 1) - chances.amax(-1)
    total, rewards = torch.zeros_like(known), []
    obs, never = torch.zeros(TRIALS, 1), torch.zeros(TRIALS, dtype=torch.bool)
    policy.begin(TRIALS, 1)
    for _ in range(policy.pulls):
        chance = chances.gather(-1, policy.act(obs).unsqueeze(-1)).squeeze(-1)
        luck = torch.rand(TRIALS, dtype=torch.float64, generator=generator)
        policy.observe(Step(obs, (luck < chance).float(), never, never))
        total += chance + known
        rewards.append(float((chance + known).mean()))
    return rewards, float(total.std()) / TRIALS**0.5
