"""A recorded trial of a trained policy, and exported files that have to act as it did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from metarl import deployment
from metarl.agents.deployable import Deployable
from metarl.deployment import Array, ExportedPolicy
from metarl.errors import TrainingError
from metarl.experiments.loading import LoadedRun
from metarl.policy import AdaptivePolicy, Step
from metarl.rollout import run_trials
from metarl.tasks import Split

LARGEST_DIFFERENCE = 1e-5
"""between an exported policy's action and the trained one's, relative to the action if above 1"""
TIMED_STEPS = 1000


@dataclass(frozen=True)
class Checked:
    """What an exported file was seen to do."""

    difference: float
    """largest difference of an action from the recorded one"""
    microseconds: float
    """median time of one act and observe, on one core"""
    bytes: int
    """size of the file"""


class Recorder:
    """A policy, and the random numbers that it uses."""

    def __init__(self, policy: AdaptivePolicy, deployable: Deployable) -> None:
        """Record what `policy` draws, which it draws from its attribute `generator`."""
        self.policy, self.kind = policy, deployable.noise
        self.size, self.draws_at = deployable.noise_dim, deployable.draws_at
        self.next, self.noise = torch.zeros(self.size), list[Tensor]()

    def _look_ahead(self, event: str) -> None:
        if event != self.draws_at:
            return
        source: torch.Generator = getattr(self.policy, "generator")  # noqa: B009
        copy = torch.Generator()
        copy.set_state(source.get_state())
        if self.kind == "normal":
            self.next = torch.randn(self.size, generator=copy)
        else:
            self.next = torch.empty(self.size).exponential_(generator=copy)

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Begin."""
        self._look_ahead("end")
        self.policy.begin(num_tasks, worlds_per_task)

    def act(self, obs: Tensor) -> Tensor:
        """Act, and keep the numbers that this takes."""
        self._look_ahead("act")
        self.noise.append(self.next)
        return self.policy.act(obs)

    def observe(self, step: Step) -> None:
        """Observe."""
        self._look_ahead("end")
        self.policy.observe(step)


def record(run: LoadedRun, deployable: Deployable, split: Split, seed: int) -> dict[str, Array]:
    """A trial of the trained policy in one task, step by step `[T, ...]`.

    Raises:
        UsageError: if the family has no such split.
    """
    family = run.family
    family.check_split(split)
    task = family.sample_tasks(1, split, torch.Generator().manual_seed(seed))
    recorder = Recorder(run.agent.policy(), deployable)
    worlds = family.make_worlds(1, seed=seed)
    try:
        worlds.set_tasks(task)
        worlds.reset(seed=seed)
        flat = run_trials(recorder, worlds, family.episodes).flat()
    finally:
        worlds.close()
    names = {"obs": "obs", "action": "action", "reward": "reward", "next_obs": "final_obs"}
    names |= {name: name for name in ("terminated", "truncated")}
    arrays = {name: flat[source][:, 0].numpy() for name, source in names.items()}
    return {**arrays, "noise": torch.stack(recorder.noise).numpy(), "task": task.features().numpy()}


def replay(policy: ExportedPolicy, trial: Mapping[str, Array]) -> tuple[float, list[float]]:
    """Largest difference of an action from the recorded one, and seconds of act and observe."""
    largest, seconds = 0.0, []
    policy.begin()
    names = ("next_obs", "reward", "terminated", "truncated")
    told = list(zip(*(trial[name] for name in names), strict=True))
    for obs, noise, wanted, brought in zip(
        trial["obs"], trial["noise"], trial["action"], told, strict=True
    ):
        start = perf_counter()
        policy.act(obs, noise)
        policy.observe(*brought)
        seconds.append(perf_counter() - start)
        apart = np.abs(np.asarray(policy.chosen, float) - wanted) / np.maximum(1.0, np.abs(wanted))
        largest = max(largest, float(apart.max()))
    return largest, seconds


def check(path: Path, trial: Mapping[str, Array]) -> Checked:
    """Run the recorded trial through an exported file.

    Raises:
        TrainingError: if its actions are not the recorded ones.
    """
    policy = deployment.load(path)
    difference, seconds = replay(policy, trial)
    if not difference <= LARGEST_DIFFERENCE:
        raise TrainingError(
            f"export: an action of {path.name} is {difference:.1e} from the trained policy's, "
            f"more than {LARGEST_DIFFERENCE:.0e}; nothing was written"
        )
    while len(seconds) < TIMED_STEPS:
        seconds += replay(policy, trial)[1]
    return Checked(difference, 1e6 * median(seconds), path.stat().st_size)


@torch.no_grad()
def eager_microseconds(policy: AdaptivePolicy, trial: Mapping[str, Array]) -> float:
    """Median time of one act and observe of a trained policy in one world."""
    names = ("obs", "next_obs", "reward", "terminated", "truncated")
    steps = [
        [torch.from_numpy(trial[n][t : t + 1]) for n in names] for t in range(len(trial["obs"]))
    ]
    seconds: list[float] = []
    while len(seconds) < TIMED_STEPS:
        policy.begin(1, 1)
        for obs, *brought in steps:
            start = perf_counter()
            policy.act(obs)
            policy.observe(Step(*brought))
            seconds.append(perf_counter() - start)
    return 1e6 * median(seconds)
