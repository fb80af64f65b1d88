"""What of the task can be read off what an agent remembers, by a linear map.

A ridge regression from the memory at the end of an episode (RL²'s hidden state, VariBAD's and
PEARL's belief) to the numbers that describe the task is fitted on training tasks and judged on
others: R² = 1 - error / variance, 0 for a memory that knows nothing. The robot's return tells what
the knowledge is worth; this tells whether it is there (Alain and Bengio 2017).

Shapes: `T` steps of a trial, `N` tasks, `M` numbers of a memory, `F` of a task, `K` episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from metarl.agents.pearl_policy import PearlPolicy
from metarl.agents.rl2 import RL2Policy
from metarl.agents.varibad import VariBADPolicy
from metarl.envs.robot import Robot, RobotTask
from metarl.errors import UsageError
from metarl.experiments.figures import Series, coloured, layout, returns_by_episode
from metarl.experiments.loading import LoadedRun, open_run
from metarl.experiments.records import Comparison
from metarl.policy import AdaptivePolicy, Step
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Split, TaskBatch

RIDGE = 1e-2
"""weight of the penalty, relative to the number of tasks; memories are standardised"""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """How well each number of the task can be read off a memory."""

    label: str
    """of the runs"""
    names: tuple[str, ...]
    """F names of the numbers that differ between tasks"""
    r2: Array
    """`[K, F]`: on held-out tasks, at the end of each episode"""


def memory_of(policy: AdaptivePolicy) -> Tensor:
    """What a policy remembers of the task in each world, `[B, M]`.

    Raises:
        UsageError: for a policy whose memory is not a vector.
    """
    if isinstance(policy, RL2Policy) and policy.network.hidden:
        return policy.hidden
    if isinstance(policy, VariBADPolicy):
        return torch.cat([policy.belief.mean, policy.belief.log_std], -1)
    if isinstance(policy, PearlPolicy):
        with torch.no_grad():
            return policy.networks.encoder.belief(policy.state).mean
    raise UsageError("probe: only the agents rl2, varibad and pearl remember a vector")


class _Noting:
    """A policy that notes what it remembers after every step."""

    def __init__(self, policy: AdaptivePolicy) -> None:
        self.policy, self.memories = policy, list[Tensor]()

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        self.policy.begin(num_tasks, worlds_per_task)
        memory_of(self.policy)

    def act(self, obs: Tensor) -> Tensor:
        return self.policy.act(obs)

    def observe(self, step: Step) -> None:
        self.policy.observe(step)
        self.memories.append(memory_of(self.policy).clone())


def remembered(
    run: LoadedRun, tasks: int, split: Split, seed: int
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Memories `[K, N, M]` at the ends of episodes, tasks `[N, F]`, and the names of the latter."""
    family = run.family
    family.check_split(split)
    batch = family.sample_tasks(tasks, split, torch.Generator().manual_seed(seed))
    env = family.make_worlds(tasks, seed=seed)
    try:
        env.set_tasks(batch)
        policy = _Noting(run.agent.policy())
        env.reset(seed=seed)
        rollout = run_trials(policy, env, family.episodes)
    finally:
        env.close()
    last = last_steps(rollout, family.episodes)
    memories = torch.stack(policy.memories)[last, torch.arange(tasks)]
    return memories.double(), batch.features().double(), names_of(run, batch)


def last_steps(rollout: Rollout, episodes: int) -> Tensor:
    """The step of each task's trial with which episode 1..K ended, int64 `[K, N]`."""
    time = torch.arange(len(rollout.active)).view(-1, 1)
    episode, active = rollout.episode[..., 0], rollout.active[..., 0]
    return torch.stack([(time * (active & (episode == k))).amax(0) for k in range(episodes)])


def names_of(run: LoadedRun, tasks: TaskBatch) -> tuple[str, ...]:
    """A name for every number that describes a task: of its field, or a plain count."""
    names: list[str] = []
    for name, values in tasks.tensors().items():
        width = values[0].numel()
        if name == "dynamics" and isinstance(tasks, RobotTask) and isinstance(run.family, Robot):
            names += run.family.parameters.names
        else:
            names += [name] if width == 1 else [f"{name} {i}" for i in range(width)]
    told = tasks.features().shape[1]
    # Some tasks are told in other numbers than those that they are made of.
    return tuple(names) if len(names) == told else tuple(f"task {i}" for i in range(told))


def read_off(memory: Tensor, task: Tensor, others: Tensor, truth: Tensor) -> Array:
    """R² `[F]` of a ridge regression fitted to one set of tasks, on another.

    Args:
        memory: `[N, M]` of the tasks that are fitted.
        task: `[N, F]` their numbers.
        others: `[N', M]` memories of other tasks.
        truth: `[N', F]` their numbers.
    """
    mean, std = memory.mean(0), memory.std(0).clamp(min=1e-8)
    x, x_other = (memory - mean) / std, (others - mean) / std
    centre = task.mean(0)
    penalty = RIDGE * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(x.T @ x + penalty, x.T @ (task - centre))
    error = (x_other @ weights + centre - truth).square().mean(0)
    variance = (truth - truth.mean(0)).square().mean(0)
    r2: Array = (1.0 - error / variance.clamp(min=1e-12)).numpy()
    return r2


def probe_run(run: LoadedRun, tasks: int, seed: int) -> tuple[tuple[str, ...], Array]:
    """Names of the task's numbers, and R² `[K, F]` on `tasks` held-out tasks.

    Twice as many training tasks are fitted. Numbers that are the same in all held-out tasks, such
    as those of skills that are not among them, are left out: there is nothing to tell.
    """
    memory, task, names = remembered(run, 2 * tasks, "train", seed)
    others, truth, _ = remembered(run, tasks, "held-out", seed + 1)
    varies = (truth != truth[0]).any(0)
    task, truth = task[:, varies], truth[:, varies]
    names = tuple(name for name, kept in zip(names, varies.tolist(), strict=True) if kept)
    pairs = zip(memory, others, strict=True)
    return names, np.stack([read_off(mine, task, theirs, truth) for mine, theirs in pairs])


def probe(comparison: Comparison, tasks: int, seed: int) -> list[Probe]:
    """Probe all runs of a family; runs that differ in their seed alone are averaged."""
    probes = []
    for group in comparison.groups:
        found = [probe_run(open_run(run.folder.path), tasks, seed) for run in group.runs]
        probes.append(Probe(group.label, found[0][0], np.mean([r2 for _, r2 in found], 0)))
    return probes


def probe_figure(comparison: Comparison, probes: Sequence[Probe]) -> Figure:
    """Return by episode, beside what can be read off after the last one."""
    series = coloured([Series(g.label, g.curves(comparison.protocol)) for g in comparison.groups])

    def bars(ax: Axes, shown: Sequence[Series]) -> None:
        names, share = probes[0].names, 0.8 / len(probes)
        for index, (one, of) in enumerate(zip(probes, shown, strict=True)):
            y = np.arange(len(names)) + share * (index - 0.5 * (len(probes) - 1))
            ax.barh(y, one.r2[-1], height=share, color=of.colour)
        ax.set_yticks(np.arange(len(names)), names)
        ax.invert_yaxis()
        ax.axvline(0.0, color="#444444", linewidth=0.8)
        ax.set(title="Read off the memory after the last episode", xlabel="R² on held-out tasks")

    height = max(3.9, 1.5 + 0.24 * len(probes[0].names))
    return layout(series, [returns_by_episode, bars], widths=[2, 3], size=(10.0, height))
