"""Worlds that are Meta-World's own environments, stepped one after the other.

The one vector env here that loops over its worlds in Python: it is what the batched worlds are
compared with, and the only way to version 1 of the rewards.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from metarl.envs.metaworld import package
from metarl.envs.metaworld.starts import FRAME
from metarl.envs.physics.model import capture_warnings
from metarl.vector import Info, VectorEnv

if TYPE_CHECKING:
    from metarl.envs.metaworld.families import MetaWorld, Placement

_log = logging.getLogger("metarl.physics")

CHANGED = (
    "curr_path_length",
    "_target_to_obj_init",
    "pickCompleted",
    "placeCompleted",
    "reachCompleted",
)
"""attributes of some environments that steps change, apart from frames and MuJoCo's state"""
_STATE = mujoco.mjtState.mjSTATE_INTEGRATION
_BAD = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
    mujoco.mjtWarning.mjWARN_BADCTRL,
)


class PackageWorlds(VectorEnv):
    """Meta-World's own environments, each at its own task, and of any skills of the family."""

    family: MetaWorld

    def __init__(
        self,
        family: MetaWorld,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Lay out worlds; their environments are made when it is known what skills they have."""
        super().__init__(family, num_worlds, device=device, seed=seed)
        capture_warnings()
        self._names: list[str] = []
        self._envs: list[Any] = []
        """one for each world"""
        self._seen = np.zeros((num_worlds, 2 * FRAME + 3))
        """the last observation of each world, the goal as the package shows it"""

    def close_extras(self, **kwargs: Any) -> None:
        """Close the package's environments."""
        for env in self._envs:
            env.close()
        self._names, self._envs = [], []

    # --- the hooks --------------------------------------------------------------------------

    def _apply_tasks(self, tasks: Placement) -> None:
        which = tasks.which.argmax(-1).tolist()
        spare = defaultdict(list)
        for name, env in zip(self._names, self._envs, strict=True):
            spare[name].append(env)
        self._names = [self.family.skills[index] for index in which]
        self._envs = [
            spare[name].pop() if spare[name] else package.make_env(name, self.family.reward_version)
            for name in self._names
        ]
        hidden = self.family.goal_hidden
        for env, vector in zip(self._envs, tasks.vector.cpu().numpy(), strict=True):
            size = env._random_reset_space.shape[0]
            package.set_task(env, vector[:size].copy(), goal_hidden=hidden)
        self._label = tasks.which.to(self.device) if self.family.shows_skill else None

    def _reset_worlds(self, mask: Tensor) -> None:
        for world in mask.nonzero()[:, 0].tolist():
            self._seen[world], _ = self._envs[world].reset()

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        reward, success, blown = np.zeros((3, self.num_envs), dtype=np.float32)
        asked = actions.cpu().numpy()
        resting = None if self._resting is None else self._resting.tolist()
        for world, env in enumerate(self._envs):
            if resting is not None and resting[world]:
                continue
            self._seen[world], reward[world], _, _, info = env.step(asked[world])
            success[world] = info["success"]
            if _unstable(env):
                words = "%s: the simulation of world %d became unstable; its episode ends"
                _log.warning(words, self.family.name, world)
                reward[world], success[world], blown[world] = 0.0, 0.0, 1.0
        earned, solved, unstable = (
            torch.from_numpy(x).to(self.device) for x in (reward, success, blown)
        )
        ended = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return earned, ended, {"success": solved, "unstable": unstable > 0}

    def _observe(self) -> Tensor:
        obs = torch.from_numpy(self._seen.astype(np.float32)).to(self.device)
        return obs if self._label is None else torch.cat([obs, self._label], -1)

    # --- saved state ------------------------------------------------------------------------

    def _world_state(self) -> dict[str, Tensor]:
        if not self._was_reset:
            return {}
        rows = {str(world): torch.from_numpy(_row(env)) for world, env in enumerate(self._envs)}
        return {"seen": torch.from_numpy(self._seen.copy()), **rows}

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        if not state:
            return
        self._seen = state["seen"].cpu().numpy().copy()
        for world, env in enumerate(self._envs):
            # What does not change during an episode follows from the task.
            env.reset()
            _put(env, state[str(world)].cpu().numpy())


def _unstable(env: Any) -> bool:
    """Whether MuJoCo gave up on the simulation in the last step, which it then began anew."""
    bad = False
    for kind in _BAD:
        warning = env.data.warning[kind]
        bad |= warning.number > 0
        warning.number = 0
    return bad


def _row(env: Any) -> np.ndarray:
    """All that steps change of an environment, float64: frame, attributes, MuJoCo's state."""
    state = np.empty(mujoco.mj_stateSize(env.model, _STATE))
    mujoco.mj_getState(env.model, env.data, state, _STATE)
    changed = [getattr(env, name, None) for name in CHANGED]
    numbers = [np.nan if value is None else float(value) for value in changed]
    return np.concatenate([env._prev_obs, numbers, state])


def _put(env: Any, row: np.ndarray) -> None:
    """Write back what `_row` returned into an environment that was reset to the same task."""
    frame, numbers, state = np.split(row, np.cumsum([len(env._prev_obs), len(CHANGED)]))
    env._prev_obs = frame.copy()
    for name, value in zip(CHANGED, numbers.tolist(), strict=True):
        if not np.isnan(value):
            setattr(env, name, int(value) if name == CHANGED[0] else value)
    # Forward fills in what is derived, but also leaves traces in the state.
    for after in (mujoco.mj_forward, None):
        mujoco.mj_setState(env.model, env.data, state, _STATE)
        if after is not None:
            after(env.model, env.data)
