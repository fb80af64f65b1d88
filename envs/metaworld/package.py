"""The installed Meta-World: its environments, their tasks, and what MuJoCo 4 needs of them.

Everything that knows the package's insides is here. Meta-World 3.0 was written for MuJoCo 3.0: its
method that sets the weld between hand and mocap body writes 11 numbers into a row of MuJoCo's
`eq_data`, which has 12 since MuJoCo 3.17. `reset_mocap_welds` below writes the same 11 numbers.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import mujoco
import numpy as np

from metarl.envs.physics.model import capture_warnings
from metarl.errors import UsageError

WELD = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 5.0)
"""anchor, relative position and quaternion, and torque scale of the weld that moves the hand"""
VERSIONS = ("3.0",)
"""versions of the package whose definitions are the ones built here"""

Vectors = dict[str, np.ndarray]
"""skill to float64 `[goals, V]`: the vectors that place objects and goals"""


def reset_mocap_welds(env: Any) -> None:
    """Set the welds of an environment's model, as Meta-World does; rows may be longer than 11."""
    model = env.model
    welds = model.eq_type == mujoco.mjtEq.mjEQ_WELD
    if model.nmocap > 0:
        model.eq_data[welds, : len(WELD)] = WELD


@cache
def metaworld() -> Any:
    """The package, made to run on the installed MuJoCo.

    Raises:
        UsageError: if it is not installed, or its version is not known here.
    """
    try:
        import metaworld as package
        from metaworld.sawyer_xyz_env import SawyerMocapBase
    except ImportError as error:
        raise UsageError(
            f"Meta-World cannot be imported ({error}): install it by pip install 'metaworld==3.0.*'"
        ) from None
    if version().rsplit(".", 1)[0] not in VERSIONS:
        raise UsageError(
            f"Meta-World {version()} is installed, but its definitions are known here for "
            f"{', '.join(f'{known}.*' for known in VERSIONS)} only: "
            "pip install 'metaworld==3.0.*'"
        )
    capture_warnings()
    base: Any = SawyerMocapBase
    base.reset_mocap_welds = reset_mocap_welds
    return package


def version() -> str:
    """The installed version of Meta-World."""
    from importlib.metadata import version as installed

    return installed("metaworld")


def make_env(skill: str, reward_version: str = "v2") -> Any:
    """One of Meta-World's own environments; it needs `set_task` before `reset`."""
    return metaworld().ALL_V3_ENVIRONMENTS[f"{skill}-v3"](reward_function_version=reward_version)


def set_task(env: Any, vector: np.ndarray, *, goal_hidden: bool) -> None:
    """Give one of Meta-World's environments a task, as its benchmarks do."""
    data = {"rand_vec": vector, "env_cls": type(env), "partially_observable": goal_hidden}
    env.set_task(metaworld().Task(env_name="", data=pickle.dumps(data)))


@contextmanager
def _hand_at_rest() -> Iterator[None]:
    """Meanwhile resets leave the hand where it is: where objects go does not depend on it."""
    from metaworld.sawyer_xyz_env import SawyerXYZEnv

    def stay(env: Any, steps: int = 50) -> None:
        # Some resets look at orientations, which are all zeros before anything is computed.
        mujoco.mj_kinematics(env.model, env.data)
        env.init_tcp = env.tcp_center

    base: Any = SawyerXYZEnv
    simulated, base._reset_hand = base._reset_hand, stay
    try:
        yield
    finally:
        base._reset_hand = simulated


@cache
def benchmark(name: str, skill: str | None, seed: int) -> tuple[Vectors, Vectors]:
    """Train and test vectors of one of Meta-World's benchmarks; multi-task ones have no test.

    The package's benchmark objects draw them. While they do, the 50 simulated steps that bring the
    hand to its start at every reset are left out, which changes nothing about the draws (a test
    holds that) and makes them ten times as fast.

    Args:
        name: `ml1`, `mt1`, `ml10`, `ml25`, `ml45`, `mt10`, `mt25` or `mt50`.
        skill: of `ml1` and `mt1`.
        seed: of the benchmark.
    """
    kind = getattr(metaworld(), name.upper())
    with _hand_at_rest():
        drawn = kind(seed=seed) if skill is None else kind(f"{skill}-v3", seed=seed)
    return _vectors(drawn.train_tasks), _vectors(drawn.test_tasks)


def _vectors(tasks: list[Any]) -> Vectors:
    """The vectors of the package's tasks, by skill."""
    found: dict[str, list[np.ndarray]] = {}
    for task in tasks:
        skill = task.env_name.removesuffix("-v3")
        found.setdefault(skill, []).append(pickle.loads(task.data)["rand_vec"])
    return {skill: np.array(vectors, dtype=np.float64) for skill, vectors in found.items()}
