"""How the episodes of a task begin, taken from Meta-World's own environments.

A reset of Meta-World is a function of the skill and the task's vector alone: it simulates 50 steps
that bring the hand to its place, puts the objects where the vector says and notes a few constants
for the reward. Here it is run once for each task and its result is kept, so that episodes begin as
the package's do, to the bit, at the cost of copying a row.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import torch
from torch import Tensor

from metarl.envs.metaworld.package import make_env, set_task
from metarl.envs.physics import Model

MODEL_FIELDS = ("body_pos", "site_pos", "eq_data")
"""fields of the model that resets change, and the one that the package changes when it loads it"""
CONSTANTS = ("_target_pos", "obj_init_pos", "init_tcp", "hand_init_pos")
"""attributes that the rewards of most skills read"""
FRAME = 18
"""numbers in an observation of the present: hand, gripper and objects"""


@dataclass(frozen=True)
class Start:
    """How every episode of one task begins; float64 tensors."""

    state: Tensor
    """`[nstate]`: MuJoCo's integration state"""
    fields: dict[str, Tensor]
    """the model's fields of `MODEL_FIELDS`"""
    constants: dict[str, Tensor]
    """what the reward keeps of it, by the names of the package's attributes"""
    observation: Tensor
    """`[39]`: the first observation, with the goal shown"""


class Sawyer:
    """One skill's model, the box its hand and goal lie in, and the starts of its tasks."""

    def __init__(self, name: str, constants: Sequence[str]) -> None:
        """Load the skill called `name`; its reward also reads `constants`."""
        self._env = make_env(name)
        self._constants = (*CONSTANTS, *constants)
        path = Path(self._env.model_name)
        compiled = copy.deepcopy(self._env.model)
        self.model = Model(compiled, str(path), path.read_text(encoding="utf-8"))
        self.frame_skip = int(self._env.frame_skip)
        """physics steps in a control step"""
        self.action_scale = float(self._env.action_scale)
        """how far the hand is asked to move by an action of 1, m"""
        self.mocap_low = torch.from_numpy(self._env.mocap_low.astype(np.float64))
        self.mocap_high = torch.from_numpy(self._env.mocap_high.astype(np.float64))
        goal = self._env.goal_space
        self.goal_low = torch.from_numpy(goal.low.astype(np.float64))
        self.goal_high = torch.from_numpy(goal.high.astype(np.float64))
        space = self._env._random_reset_space
        self.vector_low = torch.from_numpy(space.low.astype(np.float64))
        self.vector_high = torch.from_numpy(space.high.astype(np.float64))
        self._starts: dict[bytes, Start] = {}

    def start(self, vector: np.ndarray) -> Start:
        """How episodes of the task with this vector, float64 `[V]`, begin."""
        key = vector.tobytes()
        if key not in self._starts:
            self._starts[key] = self._run(vector)
        return self._starts[key]

    def _run(self, vector: np.ndarray) -> Start:
        env = self._env
        set_task(env, vector, goal_hidden=False)
        observation, _ = env.reset()
        spec = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(mujoco.mj_stateSize(env.model, spec))
        mujoco.mj_getState(env.model, env.data, state, spec)
        fields = {name: _tensor(getattr(env.model, name)) for name in MODEL_FIELDS}
        known = [name for name in self._constants if getattr(env, name) is not None]
        constants = {name: _tensor(getattr(env, name)) for name in known}
        if len(known) < len(self._constants):
            # Noted at the first step, of what falls into place whatever the arm does.
            env.step(np.zeros(4, dtype=np.float32))
        constants |= {n: _tensor(getattr(env, n)) for n in self._constants if n not in constants}
        return Start(torch.from_numpy(state), fields, constants, _tensor(observation))


def _tensor(value: Any) -> Tensor:
    """A float64 copy."""
    return torch.from_numpy(np.array(value, dtype=np.float64))


@cache
def sawyer(name: str, constants: tuple[str, ...] = ()) -> Sawyer:
    """The skill called `name`, loaded once."""
    return Sawyer(name, constants)
