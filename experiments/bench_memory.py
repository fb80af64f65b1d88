"""How much memory of a GPU the worlds of each robot take, computed without a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarl.envs.disturbances import MODEL_FIELDS
from metarl.envs.physics.warp_memory import bytes_per_world
from metarl.envs.registry import FAMILIES, family_class, make_family
from metarl.envs.robot import Robot
from metarl.errors import UsageError

WORLDS = 16384


def bench_memory(families: Iterable[str] = (), num_worlds: int = WORLDS) -> list[dict[str, Any]]:
    """How much memory worlds take on a GPU.

    Args:
        families: names of families of robots; none means all of them.
        num_worlds: how many worlds shall fit.

    Returns:
        For each family its name and its room for `contacts` and `constraints` (None: MuJoCo Warp's
        own guess), bytes of a world that shares its model with all others (`shared_model`) and of
        one with its own values of every field that can be randomised (`own_model`), both in bytes,
        and bytes of `num_worlds` worlds with their own models (`all`).

    Raises:
        UsageError: for a family that MuJoCo Warp does not simulate, or if it is not installed.
    """
    if num_worlds < 1:
        raise UsageError(f"bench memory: --num-worlds must be at least 1, got {num_worlds}")
    return [_row(_robot(name), num_worlds) for name in families or _robots()]


def _robots() -> list[str]:
    """The families that MuJoCo Warp simulates on a GPU."""
    return [name for name in FAMILIES if issubclass(family_class(name), Robot)]


def _robot(name: str) -> Robot:
    family = make_family(name)
    if not isinstance(family, Robot):
        raise UsageError(
            f"bench memory: worlds of {name} are not simulated by MuJoCo Warp; "
            f"choose from {', '.join(_robots())}"
        )
    return family


def _row(family: Robot, num_worlds: int) -> dict[str, Any]:
    model, limits = family.model(), family.limits
    shared, _ = bytes_per_world(model, limits)
    own, together = bytes_per_world(model, limits, randomised_fields(family))
    return {
        "family": family.name,
        "contacts": limits.contacts,
        "constraints": limits.constraints,
        "num_worlds": num_worlds,
        "shared_model": shared,
        "own_model": own,
        "all": num_worlds * own + together,
    }


def randomised_fields(family: Robot) -> tuple[str, ...]:
    """The fields of a robot's model that may differ from world to world.

    Those of the family's tasks, and all that can be randomised besides; where factors act on zeros,
    nothing varies.
    """
    compiled = family.model().compiled

    def values(name: str) -> np.ndarray:
        holder = compiled.opt if name.startswith("opt.") else compiled
        return np.array(getattr(holder, name.removeprefix("opt.")))

    def current(name: str) -> Tensor:
        return torch.from_numpy(values(name))[None]

    task = family.sample_tasks(1, "train", torch.Generator().manual_seed(0))
    of_tasks = family.task_fields(task, current)
    varied = [name for name in MODEL_FIELDS if name == "body_ipos" or values(name).any()]
    return tuple(dict.fromkeys([*varied, *of_tasks]))
