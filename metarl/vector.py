"""The vector-env contract: many worlds stepped together, everything a torch tensor.

A `gymnasium.vector.VectorEnv` whose observations, rewards and flags are tensors `[num_worlds, ...]`
on one device, laid out task-major (`num_worlds = N * W`). Autoreset is SAME_STEP: the step that
ends an episode returns the first observation of the next one, and `info["final_obs"]` holds the
true next observation of every world. A time limit truncates; it never terminates. Where the reward
is sparse, `info["dense_reward"]` may hold one that is easier to learn from in simulation.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from torch import Tensor

from metarl import random
from metarl.errors import UsageError

if TYPE_CHECKING:
    from metarl.tasks import Family, TaskBatch

Info = dict[str, Any]


class VectorEnv(gym.vector.VectorEnv[Tensor, Tensor, Any]):
    """Template of batched worlds; a family fills in the five hooks at the end of the class."""

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    def __init__(
        self, family: Family, num_worlds: int, *, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        """Lay out `num_worlds` worlds of `family` on `device`, with random streams from `seed`."""
        if num_worlds < 1:
            raise UsageError(f"{family.name}: num_worlds must be at least 1, got {num_worlds}")
        self.family = family
        self.num_envs = num_worlds
        self.device = torch.device(device)
        self.horizon = family.horizon
        self.single_observation_space = family.observation_space
        self.single_action_space = family.action_space
        self.observation_space = batch_space(self.single_observation_space, num_worlds)
        self.action_space = batch_space(self.single_action_space, num_worlds)
        self.tasks: TaskBatch | None = None
        self.num_tasks = 0
        self._world_tasks: TaskBatch | None = None
        self._keys = random.world_keys(seed, num_worlds, self.device)
        self._draws = torch.zeros(num_worlds, dtype=torch.int64, device=self.device)
        self._elapsed = torch.zeros(num_worlds, dtype=torch.int64, device=self.device)
        self._was_reset = False
        self._resting: Tensor | None = None

    # --- what users call -------------------------------------------------------------------

    def set_tasks(self, tasks: TaskBatch) -> None:
        """Give the worlds N tasks, task-major; call `reset` before the next step.

        Raises:
            UsageError: if the number of worlds is not a multiple of the number of tasks.
        """
        if len(tasks) == 0 or self.num_envs % len(tasks):
            raise UsageError(
                f"{self.family.name}: {self.num_envs} worlds cannot be shared evenly by "
                f"{len(tasks)} tasks; choose a number of tasks that divides the number of worlds"
            )
        self.tasks = tasks.to(self.device)
        self.num_tasks = len(tasks)
        self._world_tasks = self.tasks.repeat_interleave(self.num_envs // len(tasks))
        self._apply_tasks(self._world_tasks)
        self._was_reset = False

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Tensor, Info]:
        """Start a new episode in every world; a `seed` restarts the random streams.

        Returns:
            Observations `[num_worlds, O]` and an empty info.
        """
        if self._world_tasks is None:
            raise UsageError(f"{self.family.name}: call set_tasks before reset")
        if seed is not None:
            if not isinstance(seed, int):
                raise UsageError(f"{self.family.name}: reset takes one integer seed for all worlds")
            self._keys = random.world_keys(seed, self.num_envs, self.device)
            self._draws.zero_()
        self._elapsed.zero_()
        self._resting = None
        self._reset_worlds(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        self._was_reset = True
        return self._observe(), {}

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Info]:
        """Advance every world by one control step.

        Args:
            actions: float32 `[num_worlds, A]`, or int64 `[num_worlds]` for discrete actions.

        Returns:
            obs `[num_worlds, O]`, reward float32 `[num_worlds]`, terminated and truncated bool
            `[num_worlds]`, and info with `final_obs` `[num_worlds, O]`, the true next observation.

        Raises:
            UsageError: before the first reset, or for actions of a wrong shape or value.
        """
        self._check_actions(actions)
        reward, terminated, info = self._advance(actions)
        self._elapsed += 1
        truncated = self._elapsed >= self.horizon
        if "truncated" in info:
            truncated |= info.pop("truncated")
        if "unstable" in info:
            # A simulation that blew up ends its episode; no state of it may be bootstrapped from.
            truncated |= info["unstable"]
        truncated &= ~terminated
        obs = final_obs = self._observe()
        done = terminated | truncated
        if self.device.type != "cpu" or bool(done.any()):
            self._elapsed.masked_fill_(done, 0)
            self._reset_worlds(done)
            obs = self._observe()
        return obs, reward, terminated, truncated, {"final_obs": final_obs, **info}

    def rest(self, worlds: Tensor) -> None:
        """Until the next `reset` nobody looks at `worlds`, bool `[num_worlds]`.

        What they show and earn is without meaning from here on: simulators need not step them.
        """
        self._resting = worlds

    def check(self) -> None:
        """Tell what went wrong since the last call and could not be told at once.

        Worlds on a device count it there; to look at the counts waits for the device, so callers
        do it once a rollout.
        """

    def dump_unstable_to(self, folder: Path) -> None:
        """Where simulations that blow up leave their last step; worlds without physics cannot."""

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on exactly from here, as tensors and plain numbers."""
        return {
            "keys": self._keys.clone(),
            "draws": self._draws.clone(),
            "elapsed": self._elapsed.clone(),
            "was_reset": self._was_reset,
            "tasks": None if self.tasks is None else self.tasks.tensors(),
            "worlds": {} if self.tasks is None else self._world_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`, which `state_dict` of an equal env returned."""
        if len(state["keys"]) != self.num_envs:
            raise UsageError(
                f"{self.family.name}: the saved state has {len(state['keys'])} worlds, "
                f"this env has {self.num_envs}"
            )
        if state["tasks"] is not None:
            template = self.family.sample_tasks(1, "train", torch.Generator())
            self.set_tasks(type(template)(**state["tasks"]))
            self._load_world_state(state["worlds"])
        self._keys = state["keys"].to(self.device).clone()
        self._draws = state["draws"].to(self.device).clone()
        self._elapsed = state["elapsed"].to(self.device).clone()
        self._was_reset = bool(state["was_reset"])

    # --- for families ----------------------------------------------------------------------

    def _uniform(self, k: int) -> Tensor:
        """`k` uniform numbers in (0, 1) for every world, `[num_worlds, k]`."""
        numbers = random.uniform(self._keys, self._draws, k)
        self._draws += 1
        return numbers

    def _normal(self, k: int) -> Tensor:
        """`k` standard normal numbers for every world, `[num_worlds, k]`."""
        numbers = random.normal(self._keys, self._draws, k)
        self._draws += 1
        return numbers

    def _reset_noise(self, mask: Tensor, k: int) -> Tensor:
        """`k` uniform numbers for every world; only the worlds in `mask` use up a draw.

        Resets come at different times in different worlds: counting only the own ones keeps a
        world's stream independent of what happens in the others.
        """
        numbers = random.uniform(self._keys, self._draws, k)
        self._draws += mask
        return numbers

    def _check_actions(self, actions: Tensor) -> None:
        name, space = self.family.name, self.single_action_space
        if not self._was_reset:
            raise UsageError(f"{name}: call reset after set_tasks and before step")
        shape = (self.num_envs, *(space.shape or ()))
        if tuple(actions.shape) != shape:
            raise UsageError(f"{name}: actions must have shape {shape}, got {tuple(actions.shape)}")
        dtype = torch.int64 if isinstance(space, gym.spaces.Discrete) else torch.float32
        if actions.dtype != dtype:
            raise UsageError(f"{name}: actions must be {dtype} tensors, got {actions.dtype}")
        if self.device.type != "cpu":
            return  # looking at the values would wait for the device at every step
        if isinstance(space, gym.spaces.Discrete):
            low, high = torch.aminmax(actions)
            if low < 0 or high >= space.n:
                raise UsageError(
                    f"{name}: actions must lie in 0..{space.n - 1}, got {int(low)}..{int(high)}"
                )
        # One pass over the actions tells; only a sum that is not finite is looked into.
        elif not math.isfinite(actions.sum()) and bool((~torch.isfinite(actions)).any()):
            world = int((~torch.isfinite(actions)).any(-1).nonzero()[0, 0])
            raise UsageError(f"{name}: the action of world {world} is not finite")

    # --- the five hooks --------------------------------------------------------------------

    @abstractmethod
    def _apply_tasks(self, tasks: Any) -> None:
        """Take over the tasks of all worlds, a `TaskBatch` of length `num_worlds`."""

    @abstractmethod
    def _reset_worlds(self, mask: Tensor) -> None:
        """Start a new episode where `mask` bool `[num_worlds]` is true."""

    @abstractmethod
    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        """Step all worlds: reward `[num_worlds]`, terminated `[num_worlds]`, extra info.

        `truncated` `[num_worlds]` in the info ends episodes that a world cuts short of the horizon.
        """

    @abstractmethod
    def _observe(self) -> Tensor:
        """The present observation of every world, a fresh float32 tensor `[num_worlds, O]`."""

    @abstractmethod
    def _world_state(self) -> dict[str, Tensor]:
        """Copies of the tensors that hold the worlds' state."""

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        """Write back what `_world_state` returned."""
        for name, value in state.items():
            setattr(self, f"_{name}", value.to(self.device).clone())


def box(
    low: float | np.ndarray, high: float | np.ndarray, dim: int | None = None
) -> gym.spaces.Box:
    """A float32 vector space; `dim` is its length where the bounds are plain numbers."""
    shape = None if dim is None else (dim,)
    return gym.spaces.Box(low, high, shape=shape, dtype=np.float32)
