"""Any gymnasium environment as a family: a sampler of tasks, and a factory that takes a task.

A subclass says how tasks are drawn (`sample`) and how the env of a task is built (`make`); the rest
follows. Observations are flattened to float32 vectors, as `gymnasium.spaces.flatten` does it;
actions stay continuous or discrete. Like all families it is a frozen dataclass of plain options, so
that a run's `config.yaml` can say with which of them it was trained.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from metarl.errors import UsageError
from metarl.gymnasium_env import Env, Task, one_by_one
from metarl.gymnasium_worlds import GymnasiumWorlds
from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import box

Vectorization = Literal["sync", "async"]

__all__ = ["Env", "GymnasiumFamily", "NamedTasks", "Spaces", "Task"]


class NamedTasks(TaskBatch):
    """N tasks, in tensors `[N, ...]` that are named by the sampler that drew them."""

    def __init__(self, /, **tensors: Tensor) -> None:
        """Keep `tensors`, each `[N, ...]`."""
        object.__setattr__(self, "_tensors", tensors)

    # Tensors are not compared; without fields of a dataclass all batches would be equal.
    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, each `[N, ...]`."""
        named: dict[str, Tensor] = self._tensors  # type: ignore[attr-defined]
        return dict(named)


@dataclass(frozen=True)
class Spaces:
    """What an env shows and takes, and as what its family shows it."""

    observation: spaces.Space[Any]
    """the env's own"""
    action: spaces.Space[Any]
    """the env's own"""
    flat_observation: spaces.Box
    """float32 `[O]`"""
    flat_action: spaces.Box | spaces.Discrete
    """float32 `[A]`, or integers from 0"""


@dataclass(frozen=True)
class GymnasiumFamily(Family):
    """Tasks of which each is a gymnasium env; subclasses define `name`, `sample` and `make`.

    The time limit is the family's `horizon`; an env that truncates earlier ends the episode
    earlier, and a step that terminates does not count as truncated. Every episode begins with
    `env.reset(seed=...)`, the seed drawn from its world's own random stream. Actions are clipped to
    the env's bounds. What an env says in `info["success"]` or `info["is_success"]` is taken over.
    """

    vectorization: Vectorization = "sync"
    """step envs in turn (sync), or each in a process of its own (async), with the same results"""

    def __post_init__(self) -> None:
        """Check the options; subclasses with more of them extend this."""
        super().__post_init__()
        if self.vectorization not in get_args(Vectorization):
            raise UsageError(
                f"family {self.name}: vectorization must be one of sync, async, "
                f"got {self.vectorization!r}"
            )

    # --- what a subclass defines -----------------------------------------------------------

    @abstractmethod
    def sample(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the parameters of `n` tasks of `split`, tensors `[n, ...]` by name.

        All chance comes from `generator`; `metarl.tasks.striped` keeps the splits of a continuous
        parameter apart.
        """

    @abstractmethod
    def make(self, task: Task) -> Env:
        """Build the env of `task`: numbers, or arrays `[...]`, by the names that `sample` gave.

        All envs of a family have the same observation and action spaces.
        """

    def change_task(self, env: Env, task: Task) -> Env:
        """Return the env of `task` in place of `env`; by default that one is closed, a new made.

        Override it where an env can be told its task, which saves building it anew.
        """
        env.close()
        return self.make(task)

    # --- what follows from it --------------------------------------------------------------

    @cached_property
    def env_spaces(self) -> Spaces:
        """The spaces, taken from the env of one task.

        Raises:
            UsageError: if `make` returns no env, or one with a space that cannot be used.
        """
        where = f"family {self.name}"
        task = one_by_one(self.sample_tasks(1, "train", torch.Generator()))[0]
        env = require_env(self.make(task), where)
        shown, taken = env.observation_space, env.action_space
        env.close()
        return Spaces(shown, taken, flat_observation(shown, where), flat_action(taken, where))

    @property
    def observation_space(self) -> spaces.Box:
        """The env's, flattened: float32 `[O]`; discrete parts are one-hot."""
        return self.env_spaces.flat_observation

    @property
    def action_space(self) -> spaces.Box | spaces.Discrete:
        """The env's: float32 `[A]`, or integers from 0."""
        return self.env_spaces.flat_action

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> NamedTasks:
        """Draw `n` tasks of `split` with `sample`.

        Raises:
            UsageError: if there is no such split, or `sample` did not return `n` tasks.
        """
        self.check_split(split)
        drawn = self.sample(n, split, generator)
        where = f"family {self.name}: sample"
        if not isinstance(drawn, dict) or not drawn:
            raise UsageError(f"{where} must return a dict of tensors by name, got {drawn!r:.100}")
        for name, values in drawn.items():
            if not isinstance(values, Tensor) or values.dim() == 0:
                kind = type(values).__name__
                raise UsageError(f"{where} must return tensors [n, ...], got {name!r} as {kind}")
            if len(values) != n:
                raise UsageError(
                    f"{where} was asked for {n} tasks and returned {len(values)} of {name!r}"
                )
        return NamedTasks(**drawn)

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> GymnasiumWorlds:
        """Build `num_worlds` worlds; `threads` is ignored, `vectorization` decides."""
        return GymnasiumWorlds(self, num_worlds, device=device, seed=seed)

    def env_of(self, task: Task, before: Env | None = None) -> Env:
        """The env of `task`, in place of the env `before` if there is one, with the same spaces.

        Raises:
            UsageError: if that is no env, or one with other spaces.
        """
        env = self.make(task) if before is None else self.change_task(before, task)
        env = require_env(env, f"family {self.name}")
        for kind in ("observation", "action"):
            usual, own = getattr(self.env_spaces, kind), getattr(env, f"{kind}_space")
            if own != usual:
                env.close()
                raise UsageError(
                    f"family {self.name}: all tasks must have the same {kind} space, one has "
                    f"{_in_short(own)} and another {_in_short(usual)}"
                )
        return env


def require_env(made: object, where: str) -> Env:
    """Return what a factory has `made`, or raise `UsageError` if it is no env."""
    if not isinstance(made, gym.Env):
        raise UsageError(
            f"{where}: make and change_task must return a gymnasium.Env, got {_in_short(made)}"
        )
    return made


def flat_observation(space: spaces.Space[Any], where: str) -> spaces.Box:
    """The float32 vector that observations of `space` are flattened to.

    Raises:
        UsageError: for spaces without a fixed number of numbers.
    """
    odd = _unusable(space)
    if odd is not None:
        raise UsageError(
            f"{where}: observations must be of Box, Discrete, MultiDiscrete, MultiBinary, or Dict "
            f"and Tuple of these, got {_in_short(odd)}"
        )
    flat = spaces.flatten_space(space)
    assert isinstance(flat, spaces.Box)
    with np.errstate(over="ignore"):  # a bound beyond float32 is none
        return box(flat.low.astype(np.float32), flat.high.astype(np.float32))


def flat_action(space: spaces.Space[Any], where: str) -> spaces.Box | spaces.Discrete:
    """The space of actions, a float32 vector or integers from 0, that stands for `space`.

    Raises:
        UsageError: for others than continuous boxes and `Discrete`.
    """
    if isinstance(space, spaces.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating):
        with np.errstate(over="ignore"):
            low, high = (x.ravel().astype(np.float32) for x in (space.low, space.high))
        return box(low, high)
    raise UsageError(
        f"{where}: actions must be a Box of floats or Discrete, got {_in_short(space)}"
    )


def _unusable(space: spaces.Space[Any]) -> spaces.Space[Any] | None:
    """The first part of `space` that does not flatten to a fixed number of numbers."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        parts = space.values() if isinstance(space, spaces.Dict) else space.spaces
        return next((odd for odd in map(_unusable, parts) if odd is not None), None)
    usable = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return None if isinstance(space, usable) else space


def _in_short(value: object) -> str:
    """What error messages call `value`: one line, and not a long one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
