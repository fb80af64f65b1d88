"""A family that shows the task in the observation: what an oracle trains and is judged on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from metarl.rollout import Rollout
from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import Info, VectorEnv, box


@dataclass(frozen=True)
class TaskInObservation(Family):
    """`family` with the task's features appended to every observation."""

    family: Family

    @classmethod
    def of(cls, family: Family) -> TaskInObservation:
        """Wrap `family`, keeping its trial length and horizon."""
        return cls(episodes=family.episodes, horizon=family.horizon, family=family)

    def __post_init__(self) -> None:
        """Name, splits and kind of task are those of the family inside."""
        for name in ("name", "splits", "shared_splits", "task_kind"):
            object.__setattr__(self, name, getattr(self.family, name))

    @property
    def observation_space(self) -> gym.spaces.Box:
        """The family's observation `[O]` followed by task features `[F]`."""
        inner, dim = self.family.observation_space, self.family.task_dim
        unbounded = np.full(dim, np.inf, dtype=np.float32)
        return box(np.concatenate([inner.low, -unbounded]), np.concatenate([inner.high, unbounded]))

    @property
    def action_space(self) -> gym.spaces.Box | gym.spaces.Discrete:
        """The family's own."""
        return self.family.action_space

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> TaskBatch:
        """The family's own tasks."""
        return self.family.sample_tasks(n, split, generator)

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> VectorEnv:
        """The family's worlds, seen through a wrapper that appends the task."""
        inner = self.family.make_worlds(num_worlds, device=device, seed=seed, threads=threads)
        return TaskInObservationEnv(self, inner)

    def require_device(self, device: torch.device) -> None:
        """The family's own needs."""
        self.family.require_device(device)

    def figures(self, rollout: Rollout) -> dict[str, float]:
        """The family's own, which knows nothing of the appended task."""
        own = self.family.observation_space.low.size
        shown = {"obs": rollout.obs[..., :own], "final_obs": rollout.final_obs[..., :own]}
        return self.family.figures(replace(rollout, **shown))


class TaskInObservationEnv(VectorEnv):
    """Worlds whose observations end with the features of their task."""

    def __init__(self, family: TaskInObservation, inner: VectorEnv) -> None:
        """Wrap `inner`."""
        super().__init__(family, inner.num_envs, device=inner.device)
        self.inner = inner

    def set_tasks(self, tasks: TaskBatch) -> None:
        """Give the inner worlds their tasks and remember the features."""
        self.inner.set_tasks(tasks)
        self._take_over_tasks()

    def _take_over_tasks(self) -> None:
        self.tasks, self.num_tasks = self.inner.tasks, self.inner.num_tasks
        features = cast(TaskBatch, self.tasks).features()
        self._features = features.repeat_interleave(self.num_envs // self.num_tasks, 0)

    def _append(self, obs: Tensor) -> Tensor:
        return torch.cat([obs, self._features], -1)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, Info]:
        """Reset the inner worlds."""
        obs, info = self.inner.reset(seed=seed, options=options)
        return self._append(obs), info

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Info]:
        """Step the inner worlds."""
        obs, reward, terminated, truncated, info = self.inner.step(actions)
        info["final_obs"] = self._append(info["final_obs"])
        return self._append(obs), reward, terminated, truncated, info

    def rest(self, worlds: Tensor) -> None:
        """It is the inner worlds that may rest."""
        self.inner.rest(worlds)

    def check(self) -> None:
        """The inner worlds have the physics."""
        self.inner.check()

    def dump_unstable_to(self, folder: Path) -> None:
        """The inner worlds have the physics."""
        self.inner.dump_unstable_to(folder)

    def close_extras(self, **kwargs: Any) -> None:
        """Close the inner worlds."""
        self.inner.close(**kwargs)

    def state_dict(self) -> dict[str, Any]:
        """The inner worlds' state."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the inner worlds, and with them the features."""
        self.inner.load_state_dict(state)
        if self.inner.tasks is not None:
            self._take_over_tasks()

    def _apply_tasks(self, tasks: Any) -> None:
        self.inner._apply_tasks(tasks)

    def _reset_worlds(self, mask: Tensor) -> None:
        self.inner._reset_worlds(mask)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        return self.inner._advance(actions)

    def _observe(self) -> Tensor:
        return self._append(self.inner._observe())

    def _world_state(self) -> dict[str, Tensor]:
        return self.inner._world_state()
