"""The families by name. Looking at the names imports no family.

A family outside of this package is called by where it lives, `module:Class`.
"""

from __future__ import annotations

import inspect
import os
import sys
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from metarl.envs.metaworld.names import PREFIX as METAWORLD
from metarl.envs.metaworld.names import family_names as metaworld_families
from metarl.envs.metaworld.names import pattern_of
from metarl.errors import UsageError

if TYPE_CHECKING:
    from metarl.tasks import Family

FAMILIES: dict[str, str] = {
    "bandit": "metarl.envs.bandits:Bandit",
    "tabular-mdp": "metarl.envs.tabular:TabularMDP",
    "gridnavi": "metarl.envs.gridnavi:GridNavi",
    "maze": "metarl.envs.maze:Maze",
    "point-dense": "metarl.envs.point_robots:PointDense",
    "point-sparse": "metarl.envs.point_robots:PointSparse",
    "navigation-2d": "metarl.envs.point_robots:Navigation2D",
    "half-cheetah-dir": "metarl.envs.half_cheetah:HalfCheetahDir",
    "half-cheetah-vel": "metarl.envs.half_cheetah:HalfCheetahVel",
    "half-cheetah-rand-params": "metarl.envs.half_cheetah:HalfCheetahRandParams",
    "half-cheetah-crippled": "metarl.envs.crippled:HalfCheetahCrippled",
    "ant-dir": "metarl.envs.ant:AntDir",
    "ant-goal": "metarl.envs.ant:AntGoal",
    "ant-crippled": "metarl.envs.crippled:AntCrippled",
    "humanoid-dir": "metarl.envs.humanoid:HumanoidDir",
    "walker2d-rand-params": "metarl.envs.planar:Walker2dRandParams",
    "walker2d-vel": "metarl.envs.planar:Walker2dVel",
    "hopper-rand-params": "metarl.envs.planar:HopperRandParams",
    "hopper-vel": "metarl.envs.planar:HopperVel",
    "reacher-goal": "metarl.envs.reacher:ReacherGoal",
    "crane": "metarl.envs.robots.crane:Crane",
    **{name: f"metarl.envs.metaworld.families:{name}" for name in metaworld_families()},
}
"""Where each family lives, as "module:class"; a new family adds its line here."""


def _unknown(what: str, name: str, close: list[str], allowed: list[str]) -> UsageError:
    """The error for a name that is not in `allowed`, with the closest ones as a hint."""
    hint = f" (did you mean {' or '.join(close)}?)" if close else ""
    return UsageError(f"unknown {what} {name!r}{hint}; choose from {', '.join(allowed)}")


def listed() -> list[str]:
    """The families for a reader; those of Meta-World's single skills stand together."""
    return list(dict.fromkeys(map(pattern_of, FAMILIES)))


def instead_of(name: str) -> tuple[list[str], list[str]]:
    """What may have been meant by a name that is no family's: the closest, and what there is.

    Of Meta-World's many similar names three are offered, and its own are listed alone.
    """
    benchmarks = name.startswith(METAWORLD)
    close = get_close_matches(name, FAMILIES, n=3 if benchmarks else 1)
    return close, [own for own in listed() if own.startswith(METAWORLD) or not benchmarks]


def family_class(name: str) -> type[Family]:
    """Import and return the class of the family called `name`, or at `module:Class`.

    Raises:
        UsageError: if there is no such family; the sentence says what there is. Also if MuJoCo
            cannot be imported because of what `MUJOCO_GL` is set to.
    """
    if ":" in name:
        return _own_family(name)
    if name not in FAMILIES:
        close, shown = instead_of(name)
        raise _unknown("family", name, close, sorted(shown))
    module, _, attribute = FAMILIES[name].partition(":")
    try:
        family: type[Family] = getattr(import_module(module), attribute)
    except (RuntimeError, AttributeError, OSError) as error:
        # MuJoCo opens what MUJOCO_GL names as soon as it is imported, drawn with or not.
        if "mujoco" in sys.modules or not os.environ.get("MUJOCO_GL"):
            raise
        raise UsageError(
            f"MuJoCo cannot be imported with MUJOCO_GL={os.environ['MUJOCO_GL']} ({error}): unset "
            "it, or set it to egl or osmesa, for which libegl1 or libosmesa6 must be installed"
        ) from None
    return family


def import_own(module: str) -> ModuleType:
    """Import a module that may lie in the present folder, as the user asked for.

    Raises:
        UsageError: if there is none of this name.
    """
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        if not all(part.isidentifier() for part in module.split(".")):
            raise ModuleNotFoundError(name=module)
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise UsageError(
            f"no module {module!r} is installed or in the folder {os.getcwd()}"
        ) from error


def _own_family(name: str) -> type[Family]:
    """The class at `module:Class`."""
    from metarl.tasks import Family

    module, _, attribute = name.partition(":")
    found: Any = getattr(import_own(module), attribute, None)
    if found is None:
        raise UsageError(f"family {name}: module {module} has no {attribute!r}")
    if not (isinstance(found, type) and issubclass(found, Family)) or inspect.isabstract(found):
        raise UsageError(f"family {name}: {attribute} must be a complete subclass of Family")
    return found


def make_family(name: str, **options: Any) -> Family:
    """Build the family called `name`; `options` are its dataclass fields.

    Raises:
        UsageError: for an unknown family, or an option that it does not have or cannot take.
    """
    chosen = family_class(name)
    allowed = [f.name for f in fields(chosen) if f.init]
    for option in options:
        if option not in allowed:
            close = get_close_matches(option, allowed, n=1)
            raise _unknown(f"option of family {name}", option, close, allowed)
    return chosen(**options)
