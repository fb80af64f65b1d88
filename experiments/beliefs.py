"""What a VariBAD agent believes in the course of trials, and what it should believe.

Beliefs are Gaussians over the latent task; a decoder turns them into something that can be looked
at. What is drawn and measured is the posterior predictive, the mean of what is decoded from many
z ~ q_t: for a reward with two values that is the chance that a cell or an arm pays.

Shapes: `T` steps of a trial, `N` tasks, `Z` latent, `E` draws of z, `S` cells or arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from metarl.agents.task_inference import RewardHeads, RewardRegression
from metarl.agents.varibad import VariBAD, VariBADPolicy
from metarl.distributions import Gaussian
from metarl.errors import UsageError
from metarl.experiments.loading import LoadedRun
from metarl.policy import Step
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Split, TaskBatch

DRAWS = 200
"""E, how many z are drawn from a belief"""
INSIDE = 0.05, 0.95
"""quantiles of the draws between which bands are drawn"""


@dataclass(frozen=True)
class BeliefTrials:
    """One trial in each of N tasks, with the belief before the first step and after every one."""

    run: LoadedRun
    """whose policy acted and believed"""
    tasks: TaskBatch
    """N tasks"""
    rollout: Rollout
    """`[T, N, 1, ...]`"""
    belief: Gaussian
    """`[T + 1, N, Z]`"""
    there: Tensor
    """bool `[T + 1, N]`: the trial was not over before"""
    seed: int
    """decides on the draws of z"""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.there) - 1

    @property
    def lengths(self) -> list[int]:
        """How many steps each trial took."""
        return [int(count) for count in self.there.sum(0) - 1]

    @property
    def reward(self) -> Tensor:
        """What every step brought, `[T, N]`."""
        return self.rollout.reward[..., 0]

    def generator(self) -> torch.Generator:
        """A source of draws that is always the same."""
        return torch.Generator(self.belief.mean.device).manual_seed(self.seed)

    def mean(self, values: Tensor) -> float:
        """The mean of `values` `[T + 1, N]` over tasks and over all times of their trials."""
        return float(values[self.there].mean())


class _Noting:
    """A policy that notes what it believes."""

    def __init__(self, policy: VariBADPolicy) -> None:
        self.policy, self.beliefs = policy, list[Gaussian]()

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        self.policy.begin(num_tasks, worlds_per_task)
        self.beliefs = [self.policy.belief]

    def act(self, obs: Tensor) -> Tensor:
        return self.policy.act(obs)

    def observe(self, step: Step) -> None:
        self.policy.observe(step)
        self.beliefs.append(self.policy.belief)


def agent_with_beliefs(run: LoadedRun) -> VariBAD:
    """The agent of `run`.

    Raises:
        UsageError: if it holds no belief.
    """
    if not isinstance(run.agent, VariBAD):
        raise UsageError(
            f"{run.folder.path} was trained with {run.config.agent}, which has no belief to draw; "
            "name a run of varibad"
        )
    return run.agent


def reward_decoder(run: LoadedRun) -> RewardHeads | RewardRegression | None:
    """What decodes rewards from beliefs, if the agent of `run` has that."""
    decoders = agent_with_beliefs(run).network.vae.decoders
    if "reward" not in decoders:
        return None
    return cast(RewardHeads | RewardRegression, decoders["reward"])


def record_beliefs(run: LoadedRun, tasks: int, split: Split, seed: int) -> BeliefTrials:
    """Run one trial in each of `tasks` tasks, as an evaluation does, and note the beliefs.

    Raises:
        UsageError: if the agent holds no belief, or the family has no such split.
    """
    agent = agent_with_beliefs(run)
    run.family.check_split(split)
    batch = run.family.sample_tasks(tasks, split, torch.Generator().manual_seed(seed))
    env = run.family.make_worlds(tasks, seed=seed)
    policy = _Noting(agent.policy())
    try:
        env.set_tasks(batch)
        env.reset(seed=seed)
        rollout = run_trials(policy, env, run.family.episodes)
    finally:
        env.close()
    mean, log_std = (
        torch.stack([belief.parameters[part] for belief in policy.beliefs]) for part in (0, 1)
    )
    active = rollout.active[..., 0]
    there = torch.cat([torch.ones_like(active[:1]), active])
    return BeliefTrials(run, batch, rollout, Gaussian(mean, log_std), there, seed)


# --- what is believed ----------------------------------------------------------------------------


@torch.no_grad()
def pay_chances(heads: RewardHeads, belief: Gaussian, generator: torch.Generator) -> Tensor:
    """How probable a reward is at every site, given each of many z ~ q_t.

    Args:
        heads: the decoder.
        belief: `[..., Z]`.
        generator: source of the draws.

    Returns:
        `[E, ..., S]`; its mean over draws is the posterior predictive.
    """
    # One draw after the other: the decoder's hidden layers are wider than what comes out.
    draws = [heads.predict(belief.sample(generator)).sigmoid() for _ in range(DRAWS)]
    return torch.stack(draws)


@torch.no_grad()
def decoded_rewards(trials: BeliefTrials, after: Sequence[int]) -> Tensor:
    """What every reward of a trial should be, given each of many z ~ q_t at a few times t.

    Args:
        trials: of a run that regresses rewards.
        after: C numbers of steps; the last belief is taken where a trial was over before.

    Returns:
        `[C, E, T, N]`.
    """
    network = agent_with_beliefs(trials.run).network
    decoder = cast(RewardRegression, reward_decoder(trials.run))
    flat = trials.rollout.flat()
    features = trials.tasks.features().to(flat["obs"].device)
    told = network.trials({**flat, "sound": flat["valid"], "features": features}).step
    index = torch.tensor([[min(t, end) for end in trials.lengths] for t in after])
    columns = torch.arange(len(trials.lengths))
    at = Gaussian(*(x[index, columns] for x in trials.belief.parameters))
    many = Gaussian(*(x.expand(DRAWS, *x.shape) for x in at.parameters))
    z = many.sample(trials.generator()).transpose(0, 1).flatten(0, 1)
    # One task after the other: all of them at once would fill the memory.
    rewards = [
        decoder.predict(z[:, task : task + 1], told[:, task : task + 1])
        for task in columns.tolist()
    ]
    return torch.cat(rewards, -1).view(len(after), DRAWS, trials.steps, len(columns))


# --- what should be believed ---------------------------------------------------------------------


def goal_posterior(entered: Tensor, paid: Tensor, candidates: Tensor) -> Tensor:
    """The exact posterior over the goal's cell: uniform over the candidates not ruled out yet.

    Args:
        entered: int64 `[T, N]`, the cell that each step entered.
        paid: bool `[T, N]`, whether that was the goal.
        candidates: bool `[S]`, where the goal may be.

    Returns:
        `[T + 1, N, S]`, before the first step and after each; sums to 1.
    """
    cells = torch.nn.functional.one_hot(entered, len(candidates)).bool()
    cells = torch.cat([torch.zeros_like(cells[:1]), cells])
    paid = torch.cat([torch.zeros_like(paid[:1]), paid]).unsqueeze(-1)
    found = (cells & paid).cumsum(0) > 0
    left = candidates & ((cells & ~paid).cumsum(0) == 0)
    possible = torch.where(found.any(-1, keepdim=True), found, left).float()
    return possible / possible.sum(-1, keepdim=True)


def arm_posterior(pulled: Tensor, paid: Tensor, arms: int) -> Tensor:
    """The exact mean of each arm's chance to pay: of Beta(1 + paid, 1 + not paid).

    The prior is uniform, to within the stripes by which held-out bandits differ from others.

    Args:
        pulled: int64 `[T, N]`, the arm of each pull.
        paid: bool `[T, N]`.
        arms: S.

    Returns:
        `[T + 1, N, S]`, before the first pull and after each.
    """
    pulls = torch.nn.functional.one_hot(pulled, arms)
    pulls = torch.cat([torch.zeros_like(pulls[:1]), pulls]).float()
    wins = torch.cat([torch.zeros_like(paid[:1]), paid]).unsqueeze(-1) * pulls
    mean: Tensor = (1.0 + wins.cumsum(0)) / (2.0 + pulls.cumsum(0))
    return mean


def total_variation(chances: Tensor, exact: Tensor) -> Tensor:
    """Half the summed distance of two distributions over S: `[...]` in [0, 1].

    Args:
        chances: `[..., S]`; brought to a sum of 1, as heads speak of each site alone.
        exact: `[..., S]`, which sums to 1.
    """
    shares = chances / chances.sum(-1, keepdim=True).clamp(min=torch.finfo(chances.dtype).tiny)
    return 0.5 * (shares - exact).abs().sum(-1)
