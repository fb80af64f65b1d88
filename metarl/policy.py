"""The two contracts of an agent: a policy that adapts, and an iteration of meta-training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from metarl.states import Stream
from metarl.vector import VectorEnv


@dataclass(frozen=True)
class Step:
    """What an action brought, for every world (`B = N * W` worlds, task-major)."""

    next_obs: Tensor
    """float32 `[B, O]`, the true next observation, also at the end of an episode"""
    reward: Tensor
    """float32 `[B]`"""
    terminated: Tensor
    """bool `[B]`: the task ended the episode"""
    truncated: Tensor
    """bool `[B]`: the time limit ended the episode"""


class AdaptivePolicy(Protocol):
    """A policy that may learn from what it sees within a trial.

    Evaluation, videos, studies and robots use these three calls and no others.
    """

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything: a trial in new, unknown tasks begins."""

    def act(self, obs: Tensor) -> Tensor:
        """Choose actions for observations `[B, O]`: float32 `[B, A]` or int64 `[B]`."""

    def observe(self, step: Step) -> None:
        """Take in what the last actions brought."""


class Agent(Protocol):
    """A meta-learner: a config and spaces in, a policy out. It opens no files."""

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """Collect and learn once.

        Args:
            env: worlds of the training family; the agent sets their tasks.
            progress: share of the training budget that is spent, in [0, 1], for annealing.

        Returns:
            Figures to log; `steps` is the number of environment steps taken, `return_first` and
            `return_last` the mean returns of a trial's first and last episode.
        """

    def policy(self, deterministic: bool = True) -> AdaptivePolicy:
        """The present policy; `deterministic` takes the most likely action."""

    def buffers(self) -> Mapping[str, Stream]:
        """Memories too large for `state_dict`, such as replay, by name; saved as streams."""

    def state_dict(self) -> dict[str, Any]:
        """All else that learning changes: parameters, optimiser, normalisers, random state."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""


def worlds_per_task(agent: Agent) -> int:
    """In how many worlds an agent's policy tries a task at once when it is judged.

    One, unless the agent has a property of this name that says otherwise.
    """
    return int(getattr(agent, "worlds_per_task", 1))
