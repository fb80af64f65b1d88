"""One gymnasium env behind the flat spaces of its family; runs in a process of its own if asked to.

Only numpy here: a forked process must not use the threads of its parent's torch.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from metarl.errors import UsageError
from metarl.tasks import TaskBatch
from metarl.vector import Info

if TYPE_CHECKING:
    from metarl.gymnasium_family import GymnasiumFamily

Array = NDArray[Any]
Env = gym.Env[Any, Any]
Task = dict[str, Any]
"""One task by name: a number, or an array `[...]`"""


def one_by_one(tasks: TaskBatch) -> list[Task]:
    """The N tasks as a factory takes them: numbers and arrays, without torch."""
    columns = {name: tensor.cpu().numpy() for name, tensor in tasks.tensors().items()}
    return [
        {name: x[i].item() if x.ndim == 1 else x[i].copy() for name, x in columns.items()}
        for i in range(len(tasks))
    ]


class World(gym.Env[Array, Any]):
    """The env of one world, behind the flat spaces that all worlds of a family share.

    Gymnasium's vector envs set one attribute of many envs to different values, but call a method of
    all with the same arguments only: so tasks are given, and episodes relived, by setting `task`
    and `past`.
    """

    def __init__(self, family: GymnasiumFamily, isolated: bool) -> None:
        """Without an env until a task is set.

        Args:
            family: makes the envs.
            isolated: whether this lives in a process of its own. Errors are then kept in `error`,
                because not every exception survives the way to another process.
        """
        self.family, self.isolated = family, isolated
        self.observation_space = family.observation_space
        self.action_space = family.action_space
        self.error: tuple[bool, str] | None = None
        self._env: Env | None = None
        self._task: Task = {}
        self._blank: Array = np.zeros_like(family.observation_space.low)

    @property
    def env(self) -> Env:
        """The env of the present task."""
        assert self._env is not None, "no task was set"
        return self._env

    @property
    def task(self) -> Task:
        """The present task."""
        return self._task

    @task.setter
    def task(self, task: Task) -> None:
        with self._noting_errors():
            if self.isolated:
                # Ctrl-C reaches all processes: the one in charge finishes and then ends the others.
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            before, self._env = self._env, None
            self._env = self.family.env_of(task, before)
            self._task = task

    def _live_again(self, past: tuple[int, Array, Array]) -> None:
        """Begin with a seed, take actions `[t, ...]`, and arrive at an observation `[O]`."""
        with self._noting_errors():
            seed, actions, last = past
            obs = self._reset(seed)
            for action in actions:
                obs = self._step(action)[0]
            if not np.array_equal(obs, last):
                raise UsageError(
                    f"family {self.family.name}: a saved episode cannot be gone on with, because "
                    "the env shows something else after the same seed and actions; call reset"
                )

    past = property(fset=_live_again, doc="What the present episode shall have been.")

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, Info]:
        """Begin an episode; the observation is float32 `[O]`."""
        with self._noting_errors():
            return self._reset(seed), {}
        return self._blank, {"failed": True}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, Info]:
        """Take an action of the flat space; the observation is float32 `[O]`."""
        with self._noting_errors():
            return self._step(action)
        return self._blank, 0.0, False, False, {"failed": True}

    def close(self) -> None:
        """Close the env."""
        env, self._env = self._env, None
        if env is not None:
            env.close()

    def _reset(self, seed: int | None) -> Array:
        obs = self._flat(self.env.reset(seed=seed)[0])
        if not np.isfinite(obs).all():
            raise UsageError(
                f"family {self.family.name}: an episode of task {self.task} began with an "
                "observation that is not finite"
            )
        return obs

    def _step(self, action: Any) -> tuple[Array, float, bool, bool, Info]:
        obs, reward, terminated, truncated, info = self.env.step(self._as_taken(action))
        given = (info.get(key) for key in ("success", "is_success"))
        success = next((float(value) for value in given if value is not None), None)
        return (
            self._flat(obs),
            float(reward),
            bool(terminated),
            bool(truncated),
            {} if success is None else {"success": success},
        )

    def _as_taken(self, action: Any) -> Any:
        """An action of the flat space as the env takes it."""
        space = self.family.env_spaces.action
        if isinstance(space, spaces.Discrete):
            return int(action) + int(space.start)
        assert isinstance(space, spaces.Box)
        return np.clip(action.reshape(space.shape).astype(space.dtype), space.low, space.high)

    def _flat(self, obs: Any) -> Array:
        """An observation of the env as float32 `[O]`."""
        with np.errstate(over="ignore"):  # the infinity that comes of it is noticed
            flat = np.asarray(spaces.flatten(self.family.env_spaces.observation, obs), np.float32)
        if flat.shape != self._blank.shape:
            raise UsageError(
                f"family {self.family.name}: an env returned an observation of {flat.size} "
                f"numbers, its space has {self._blank.size}"
            )
        return flat

    @contextmanager
    def _noting_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if not self.isolated:
                raise
            foreseen = isinstance(error, UsageError)
            self.error = (foreseen, str(error) if foreseen else traceback.format_exc())
