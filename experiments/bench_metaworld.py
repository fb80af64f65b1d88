"""The peers of Meta-World's worlds: what gymnasium, envpool and the package call the same work."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym

from metarl.envs.metaworld import package
from metarl.envs.metaworld.families import MetaWorld
from metarl.errors import UsageError
from metarl.vector import VectorEnv

GOALS = 50
"""goals of each skill in the package's benchmarks"""


def package_worlds(family: MetaWorld, num_worlds: int) -> VectorEnv:
    """The package's own environments: one process, one world after the other."""
    return replace(family, backend="python").make_worlds(num_worlds)


def envpool_task(family: MetaWorld) -> tuple[str, dict[str, Any]]:
    """What envpool calls the family's skill, and the options that make it the same.

    Raises:
        UsageError: for a family of several skills; envpool steps one skill at a time.
    """
    if family.skill is None:
        raise UsageError(
            f"bench rollout: envpool steps worlds of one skill; {family.name} has several: choose "
            "--peer gymnasium or metaworld"
        )
    name = "".join(part.capitalize() for part in family.skill.split("-"))
    return f"MetaWorld/{name}-v3", {"partially_observable": family.goal_hidden}


def gymnasium_worlds(
    family: MetaWorld, num_worlds: int, mode: str
) -> gym.vector.VectorEnv[Any, Any, Any]:
    """The vector env that the package registers for a benchmark, at tasks of its own, just reset.

    Args:
        family: a meta-learning family, or a multi-task one of several skills.
        num_worlds: as many of each skill as of the others.
        mode: `sync` or `async`.

    Raises:
        UsageError: if the package has no such vector env.
    """
    package.metaworld()
    make = _meta_learning if family.goal_hidden else _multi_task
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        worlds: Any = gym.make_vec(
            **make(family, num_worlds),
            vector_strategy=mode,
            seed=family.benchmark_seed,
            max_episode_steps=family.horizon,
        )
    # What the package registers as the training split of ML1 is the one for tests.
    worlds.call("toggle_terminate_on_success", False)
    worlds.call("sample_tasks")
    worlds.reset()
    made: gym.vector.VectorEnv[Any, Any, Any] = worlds
    return made


def _meta_learning(family: MetaWorld, num_worlds: int) -> dict[str, Any]:
    """What `make_vec` must be told for a benchmark that hides the goal."""
    skills = len(family.vectors("train"))
    each = num_worlds // skills
    if num_worlds % skills or each > GOALS:
        raise UsageError(
            f"bench rollout: gymnasium steps as many worlds of each of the {skills} skills of "
            f"{family.name}, and at most {GOALS}: --num-worlds must be a multiple of {skills} up "
            f"to {skills * GOALS}, got {num_worlds}"
        )
    chosen = {} if family.skill is None else {"env_name": f"{family.skill}-v3"}
    return {
        "id": f"Meta-World/{family.benchmark.upper()}-train",
        "meta_batch_size": num_worlds,
        # The package shares a skill's goals evenly among its worlds, or refuses.
        "total_tasks_per_cls": GOALS // each * each,
        **chosen,
    }


def _multi_task(family: MetaWorld, num_worlds: int) -> dict[str, Any]:
    """What `make_vec` must be told for a benchmark that shows the goal and the skill."""
    if family.skill is not None or num_worlds != len(family.skills):
        raise UsageError(
            f"bench rollout: gymnasium has multi-task benchmarks of several skills only, with one "
            f"world of each, not {num_worlds} worlds of {family.name}; choose --peer metaworld"
        )
    return {"id": f"Meta-World/{family.benchmark.upper()}", "use_one_hot": True}
