"""What every result on Meta-World has to say: versions, rewards, benchmark, training.

Figures on Meta-World cannot be compared unless these agree. Its rewards were replaced in its second
version without a new name for its environments, and results on the first and on the second
differ by a factor (McLean et al. 2025, "Meta-World+").
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from metarl.envs.metaworld.names import PREFIX, family_names
from metarl.errors import UsageError
from metarl.oracle import TaskInObservation

if TYPE_CHECKING:
    from metarl.envs.metaworld.families import MetaWorld
    from metarl.experiments.loading import LoadedRun
    from metarl.runs import RunFolder
    from metarl.tasks import Family

KEY = "metaworld"
"""of what `origin` says, in what a curve keeps"""
USUAL_HORIZON = 500
"""steps of Meta-World's own episodes"""


def is_metaworld(family: str) -> bool:
    """Whether the family called `family` is one of Meta-World's."""
    return family in family_names()


def inner(family: Family) -> MetaWorld:
    """A family of Meta-World without what shows oracles their task."""
    own = family.family if isinstance(family, TaskInObservation) else family
    return cast("MetaWorld", own)


def origin(run: LoadedRun) -> dict[str, Any]:
    """What curves of a run on Meta-World keep, by `KEY`; nothing for other runs.

    Raises:
        UsageError: if Meta-World cannot be used, or the run was trained on another version of it.
    """
    found = describe(run.family)
    if found:
        check_version(run.folder, found[KEY]["versions"]["metaworld"])
    return found


def describe(family: Family) -> dict[str, Any]:
    """Versions, rewards and benchmark, by `KEY`; nothing for families that are not Meta-World's.

    Raises:
        UsageError: if Meta-World cannot be used.
    """
    if not is_metaworld(family.name):
        return {}
    import mujoco

    from metarl.envs.metaworld import package

    package.metaworld()
    own = inner(family)
    return {
        KEY: {
            "versions": {"metaworld": package.version(), "mujoco": mujoco.__version__},
            "reward_version": own.reward_version,
            "benchmark": own.name.removeprefix(PREFIX),
            "benchmark_seed": own.benchmark_seed,
            "horizon": own.horizon,
            "backend": own.backend,
        }
    }


def check_version(folder: RunFolder, installed: str) -> None:
    """Raise `UsageError` if a run was trained on Meta-World of another version than `installed`.

    Versions that differ in their last number only count as equal, and what a run does not tell
    cannot differ.
    """
    try:
        then = json.loads((folder.path / "versions.json").read_text(encoding="utf-8"))["metaworld"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if str(then).split(".")[:2] != installed.split(".")[:2] and str(then)[:1].isdigit():
        raise UsageError(
            f"run {folder.path} was trained on Meta-World {then}, and {installed} is installed, "
            "whose tasks and rewards may be others: train it again"
        )


def conditions(info: Mapping[str, Any]) -> str:
    """One sentence about a curve on Meta-World: what else must agree to compare its figures."""
    own = info[KEY]
    versions = own["versions"]
    horizon, seed = f"{own['horizon']} steps", info.get("trained_seed")
    if own["horizon"] != USUAL_HORIZON:
        horizon += f" (Meta-World's have {USUAL_HORIZON})"
    trained_on = info.get("trained_horizon", own["horizon"])
    shorter = "" if trained_on == own["horizon"] else f" in episodes of {trained_on}"
    return (
        f"Meta-World {versions['metaworld']} on MuJoCo {versions['mujoco']}, rewards "
        f"{own['reward_version']}, benchmark {own['benchmark']} of seed {own['benchmark_seed']}, "
        f"episodes of {horizon}; trained for {info['trained_steps']:,} steps{shorter}"
        f"{'' if seed is None else f' with seed {seed}'}; goals of seed {info['seed']}"
    )
