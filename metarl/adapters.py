"""Families for other libraries: as a Gymnasium env, and as a vector env of Stable-Baselines3.

Both speak numpy and show spaces that such libraries can work with: actions in [-1, 1], whatever the
family's own bounds are, and observations between finite bounds.

Gymnasium's and Stable-Baselines3's checkers have nothing to complain about, not even a warning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from metarl.errors import UsageError, require_positive
from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import Info, VectorEnv, box

Array = NDArray[Any]
LARGEST = float(np.finfo(np.float32).max)
_SEEDS = 2**31
"""Seeds are drawn below this."""


@dataclass(frozen=True)
class Bridge:
    """Between the spaces and tensors of a family and those that other libraries expect."""

    inner_observation_space: gym.spaces.Box
    """the family's own"""
    inner_action_space: gym.spaces.Box | gym.spaces.Discrete
    """the family's own"""

    @cached_property
    def observation_space(self) -> gym.spaces.Box:
        """The family's, with float32's largest numbers for infinite bounds.

        A constant, which has no room between its bounds, gets 1 above it.
        """
        inner = self.inner_observation_space
        low, high = (np.clip(bound, -LARGEST, LARGEST) for bound in (inner.low, inner.high))
        return box(low, np.where(high > low, high, low + np.float32(1.0)))

    @cached_property
    def action_space(self) -> gym.spaces.Box | gym.spaces.Discrete:
        """The family's if it is discrete, else [-1, 1] for every motor."""
        inner = self.inner_action_space
        if isinstance(inner, gym.spaces.Discrete):
            return gym.spaces.Discrete(int(inner.n))
        return box(-1.0, 1.0, int(inner.low.size))

    def actions(self, actions: Array, device: torch.device | str = "cpu") -> Tensor:
        """Actions `[B, A]` in [-1, 1], or indices `[B]`, as the family's worlds take them."""
        inner = self.inner_action_space
        if isinstance(inner, gym.spaces.Discrete):
            return torch.as_tensor(np.asarray(actions, dtype=np.int64), device=device)
        centre, half = 0.5 * (inner.high + inner.low), 0.5 * (inner.high - inner.low)
        return torch.as_tensor(centre + half * np.asarray(actions, np.float32), device=device)


def as_array(tensor: Tensor) -> Array:
    """A copy of `tensor` that nobody else writes to."""
    return tensor.detach().cpu().numpy().copy()


def _step(
    env: VectorEnv, actions: Tensor, before: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Info]:
    """Step `env`, and tell what other libraries can neither leave out nor tell apart.

    A step in which a simulation blew up becomes one that leads nowhere and brings nothing, from
    `before` `[B, O]` to `before`. An episode that is over after its only step has no future: it
    terminated, and nobody has to estimate what a time limit cut off.
    """
    obs, reward, terminated, truncated, info = env.step(actions)
    unstable = info.get("unstable")
    if unstable is not None and bool(unstable.any()):
        info["final_obs"] = torch.where(unstable.unsqueeze(-1), before, info["final_obs"])
    if env.horizon == 1:
        terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
    return obs, reward, terminated, truncated, info


class FamilyEnv(gym.Env[Array, Any]):
    """One world of a family as a `gymnasium.Env`; every reset draws a new task of a split.

    `tasks` holds the present task. In a family that defines success, `info["is_success"]` says
    whether the episode has been solved so far.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    render_mode = None

    def __init__(
        self, family: Family, split: Split = "train", tasks: TaskBatch | None = None
    ) -> None:
        """Show one world of `family`.

        Args:
            family: the tasks and their worlds.
            split: where tasks are drawn from.
            tasks: a batch of one task that stays; nothing is drawn then.

        Raises:
            UsageError: if the family has no such split, or `tasks` is not one task.
        """
        family.check_split(split)
        if tasks is not None and len(tasks) != 1:
            raise UsageError(f"{family.name}: an env runs one task at a time, got {len(tasks)}")
        self.family, self.split, self.fixed = family, split, tasks
        self.bridge = Bridge(family.observation_space, family.action_space)
        self.observation_space = self.bridge.observation_space
        self.action_space = self.bridge.action_space
        self.worlds = family.make_worlds(1)
        self.generator = torch.Generator()
        self._seeded = self._solved = False
        self._obs = torch.zeros(1)
        options = {"family": family, "split": split, "tasks": tasks}
        make: Any = FamilyEnv
        self.spec = EnvSpec(f"metarl/{family.name}-v0", entry_point=make, kwargs=options)

    @property
    def tasks(self) -> TaskBatch | None:
        """The present task, a batch of one; None before the first reset."""
        return self.worlds.tasks

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Begin an episode; a `seed` decides on the tasks and on the luck from here on."""
        super().reset(seed=seed)
        luck: int | None = None
        if seed is not None or not self._seeded:
            self._seeded, luck = True, int(self.np_random.integers(_SEEDS))
            self.generator.manual_seed(int(self.np_random.integers(_SEEDS)))
        new = self.fixed or self.family.sample_tasks(1, self.split, self.generator)
        self.worlds.set_tasks(new)
        self._obs, _ = self.worlds.reset(seed=luck)
        self._solved = False
        return as_array(self._obs[0]), {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Advance by one control step.

        Raises:
            UsageError: before the first reset, or for an action of a wrong shape or value.
        """
        actions = self.bridge.actions(np.asarray(action)[None])
        self._obs, reward, terminated, truncated, info = _step(self.worlds, actions, self._obs)
        shown: dict[str, Any] = {}
        if "success" in info:
            self._solved |= bool(info["success"][0] > 0.0)
            shown["is_success"] = self._solved
        obs = as_array(info["final_obs"][0])
        return obs, float(reward[0]), bool(terminated[0]), bool(truncated[0]), shown

    def close(self) -> None:
        """Free the world."""
        self.worlds.close()


class FamilyVecEnv(VecEnv):
    """Worlds of a family as a `VecEnv` of Stable-Baselines3, with ever new tasks.

    Every world runs a task of its own. After `episodes_per_task` times the horizon all tasks are
    exchanged for new ones, drawn from a split by a generator of this env; episodes that other ends
    have shifted are then cut off, which they report like a time limit. `infos` hold what the
    library reads: `terminal_observation`, `TimeLimit.truncated`, `episode` and `is_success`.
    """

    def __init__(
        self, env: VectorEnv, split: Split = "train", *, seed: int = 0, episodes_per_task: int = 1
    ) -> None:
        """Show `env`, whose tasks this adapter sets.

        Args:
            env: the worlds.
            split: where tasks are drawn from.
            seed: decides on the tasks; the luck of the worlds is decided by their own seed.
            episodes_per_task: full episodes between two exchanges of all tasks.

        Raises:
            UsageError: if the family has no such split, or `episodes_per_task` is below 1.
        """
        env.family.check_split(split)
        self.env, self.split, self.episodes_per_task = env, split, episodes_per_task
        require_positive(self, ["episodes_per_task"], "FamilyVecEnv")
        self.bridge = Bridge(env.family.observation_space, env.family.action_space)
        self.generator = torch.Generator().manual_seed(seed)
        self.elapsed = 0
        """steps since the last exchange of tasks"""
        self.episode_return = torch.zeros(env.num_envs, dtype=torch.float64)
        self.episode_length = torch.zeros(env.num_envs, dtype=torch.int64)
        self.solved = torch.zeros(env.num_envs, dtype=torch.bool)
        self.finished: list[float] = []
        """returns of whole episodes, in the order in which they ended; whoever reads it empties it
        """
        self._obs = torch.zeros(env.num_envs, 1, device=env.device)
        self._actions: Array | None = None
        super().__init__(env.num_envs, self.bridge.observation_space, self.bridge.action_space)

    def reset(self) -> Array:
        """Begin episodes in new tasks; after `seed`, with random streams begun anew."""
        seed, self._seeds = self._seeds[0], [None] * self.num_envs
        if seed is not None:
            self.generator.manual_seed(seed)
        self._begin(seed)
        return as_array(self._obs)

    def _begin(self, seed: int | None = None) -> None:
        """Exchange all tasks."""
        tasks = self.env.family.sample_tasks(self.num_envs, self.split, self.generator)
        self.env.set_tasks(tasks)
        self._obs, _ = self.env.reset(seed=seed)
        self.elapsed = 0
        for record in (self.episode_return, self.episode_length, self.solved):
            record.zero_()

    def step_async(self, actions: Array) -> None:
        """Take actions `[B, A]` or `[B]`; `step_wait` carries them out."""
        self._actions = actions

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """Step all worlds: observations, rewards, whether the episode ended, and infos."""
        assert self._actions is not None, "step_async comes first"
        actions = self.bridge.actions(self._actions, self.env.device)
        self._obs, reward, terminated, truncated, info = _step(self.env, actions, self._obs)
        self.elapsed += 1
        self.episode_return += reward.cpu()
        self.episode_length += 1
        if "success" in info:
            self.solved |= info["success"].cpu() > 0.0
        whole = terminated | truncated
        if self.elapsed >= self.episodes_per_task * self.env.horizon:
            truncated = ~terminated
        infos = self._infos(whole.cpu(), truncated.cpu(), "success" in info)
        done = as_array(terminated | truncated)
        if done.any():
            final = as_array(info["final_obs"])
            for world in np.flatnonzero(done):
                infos[world]["terminal_observation"] = final[world]
            self._clear(terminated | truncated)
        if self.elapsed >= self.episodes_per_task * self.env.horizon:
            self._begin()
        return as_array(self._obs), as_array(reward), done, infos

    def _infos(self, whole: Tensor, truncated: Tensor, judged: bool) -> list[dict[str, Any]]:
        """One dict a world, empty where the episode goes on; `whole` episodes were not cut off."""
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for world in (whole | truncated).nonzero()[:, 0].tolist():
            infos[world]["TimeLimit.truncated"] = bool(truncated[world])
            if judged:
                infos[world]["is_success"] = bool(self.solved[world])
            if whole[world]:
                total = float(self.episode_return[world])
                infos[world]["episode"] = {"r": total, "l": int(self.episode_length[world])}
                self.finished.append(total)
        return infos

    def _clear(self, done: Tensor) -> None:
        for record in (self.episode_return, self.episode_length, self.solved):
            record[done.cpu()] = 0

    def state_dict(self) -> dict[str, Any]:
        """All that the worlds' own `state_dict` does not hold, as tensors and plain numbers."""
        return {
            "generator": self.generator.get_state(),
            "elapsed": self.elapsed,
            "episode_return": self.episode_return.clone(),
            "episode_length": self.episode_length.clone(),
            "solved": self.solved.clone(),
            "obs": self._obs.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`; the worlds are restored by their own `load_state_dict`."""
        self.generator.set_state(state["generator"].cpu())
        self.elapsed = int(state["elapsed"])
        self.episode_return = state["episode_return"].clone()
        self.episode_length = state["episode_length"].clone()
        self.solved = state["solved"].clone()
        self._obs = state["obs"].to(self.env.device).clone()
        self.finished.clear()

    def close(self) -> None:
        """Free the worlds."""
        self.env.close()

    # Worlds are stepped together: what one has, all have, and none has methods of its own.

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the worlds, once for each of `indices`."""
        return [getattr(self.env, attr_name)] * len(self._chosen(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: the worlds share what they have."""
        raise AttributeError(f"{attr_name}: worlds that are stepped together have nothing to set")

    def env_method(
        self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any
    ) -> list[Any]:
        """Refused: there is no single env whose method could be called."""
        raise AttributeError(f"{method_name}: worlds that are stepped together have no methods")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """Never: there is no single env to be wrapped."""
        return [False] * len(self._chosen(indices))

    def _chosen(self, indices: int | Sequence[int] | None) -> Sequence[int]:
        """The worlds that `indices` names; None names all."""
        return cast("Sequence[int]", self._get_indices(indices))
