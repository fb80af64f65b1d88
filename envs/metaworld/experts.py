"""Meta-World's scripted policies, one for each skill, as a policy for worlds that show the goal."""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from metarl.envs.metaworld.package import metaworld
from metarl.envs.metaworld.starts import FRAME
from metarl.errors import UsageError
from metarl.policy import Step

if TYPE_CHECKING:
    from metarl.envs.metaworld.families import MetaWorld

_SHOWN = 2 * FRAME + 3
"""what they look at: two frames and the goal"""


@cache
def expert(skill: str) -> Any:
    """The package's scripted policy for `skill`; its `get_action` takes `[39]` to `[4]`."""
    metaworld()  # says what is wrong where it cannot be imported
    policies: Any = import_module("metaworld.policies")
    return policies.ENV_POLICY_MAP[f"{skill}-v3"]()


class Experts:
    """An `AdaptivePolicy` that does in every world what the package's script for it says.

    The scripts are plain functions of one world's observation, so that worlds take turns.
    """

    def __init__(self, family: MetaWorld) -> None:
        """Act in worlds of `family`.

        Raises:
            UsageError: if it hides the goal, which the scripts look at.
        """
        if family.goal_hidden:
            raise UsageError(
                f"family {family.name} hides the goal, which Meta-World's scripted policies look "
                "at: take a multi-task family, metaworld-mt1-SKILL, -mt10, -mt25 or -mt50"
            )
        self._skills = family.skills

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Nothing is learned, so there is nothing to forget."""

    def act(self, obs: Tensor) -> Tensor:
        """What the scripts do, float32 `[B, 4]`, for observations `[B, 39]` or `[B, 39 + E]`."""
        labels = obs[:, _SHOWN:]
        which = labels.argmax(-1).tolist() if labels.shape[1] else [0] * len(obs)
        seen = obs[:, :_SHOWN].double().cpu().numpy()
        actions = np.empty((len(seen), 4), dtype=np.float32)
        with warnings.catch_warnings():
            # They ask for more than the arm does in a step, and warn of it.
            warnings.filterwarnings("ignore", message="Constant.s. may be too high")
            for world, skill in enumerate(which):
                actions[world] = expert(self._skills[skill]).get_action(seen[world])
        return torch.from_numpy(actions).to(obs.device)

    def observe(self, step: Step) -> None:
        """Nothing is learned."""
