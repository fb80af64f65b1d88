"""What is found out about a robot's functions and goals before anything is simulated.

Each function is called once, for a few worlds that are in the model's default state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import make_dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from metarl.envs.physics import CpuPhysics
from metarl.envs.robot import Robot, RobotTask
from metarl.errors import UsageError

_DRAWN = 400
"""tasks of each split that are drawn to see whether they differ"""


class _Fields(dict[str, Tensor]):
    """Fields of the physics; asking for one that is not there is the user's mistake."""

    def __init__(self, fields: Mapping[str, Tensor], where: str, option: str) -> None:
        super().__init__(fields)
        self.where, self.option = where, option

    def __missing__(self, name: str) -> Tensor:
        raise UsageError(
            f"{self.where} uses the field {name!r}, which is not in {self.option} "
            f"({', '.join(self)})"
        )


def check_goals(
    where: str,
    inside: Mapping[str, tuple[float, float]],
    outside: Mapping[str, tuple[float, float]],
) -> None:
    """Raise `UsageError` for intervals of goals that cannot be drawn from, or that overlap."""
    for option, intervals in (("goals", inside), ("out_of_range", outside)):
        for name, interval in intervals.items():
            _check_name(f"{where}: {option}", name)
            two = isinstance(interval, tuple | list) and len(interval) == 2
            if not two or not all(math.isfinite(x) for x in interval) or interval[0] >= interval[1]:
                raise UsageError(
                    f"{where}: {option} {name!r} must be an interval (low, high) of finite numbers "
                    f"with low below high, got {interval!r}"
                )
    for name, (low, high) in outside.items():
        if name not in inside:
            raise UsageError(
                f"{where}: out_of_range names {name!r}, which is no goal; "
                f"goals are {', '.join(inside) or 'not given'}"
            )
        if low < inside[name][1] and high > inside[name][0]:
            raise UsageError(
                f"{where}: out_of_range {name!r} must not overlap with its goals "
                f"{inside[name]}, got {(low, high)}"
            )


def _check_name(where: str, name: object) -> None:
    if not (isinstance(name, str) and name.isidentifier()) or name in ("dynamics", "words"):
        raise UsageError(f"{where} must have names that Python takes, got {name!r}")


def check_functions(robot: Any) -> tuple[type[RobotTask], int]:
    """Call the functions of a class of `MjcfRobot` once.

    Returns:
        The class of its tasks, and the length of an observation.

    Raises:
        UsageError: for what they must not return, or for fields that they are not given.
    """
    where = f"robot {robot.name}"
    compiled = robot.loaded.compiled
    # Unlike all other lengths, so that sums over the wrong dimension are found out.
    worlds = int(compiled.nq + compiled.nv + compiled.nu + 3)
    physics = CpuPhysics(robot.loaded, worlds)
    state = {name: physics.field(name) for name in robot.reads}
    before = {name: state[name].clone() for name in robot.remembers}
    option = "reads"

    def call(name: str, *arguments: Any) -> Any:
        try:
            return robot.functions[name](*arguments)
        except UsageError:
            raise
        except Exception as error:
            error.add_note(f"in the function {name} of {where}, called for {worlds} worlds")
            raise

    seen = call("observation", _Fields(state, f"{where}: observation", option))
    if not isinstance(seen, Tensor) or seen.dim() != 2 or len(seen) != worlds or not seen.shape[1]:
        raise UsageError(
            f"{where}: observation must return a tensor [W, O], which for {worlds} worlds is "
            f"({worlds}, O), got {_words(seen)}"
        )
    _check_float(f"{where}: observation", seen)
    task_class = _check_tasks(robot, call)
    goals = _goals(robot, worlds, "train", call)
    earned = call(
        "reward",
        _Fields(before, f"{where}: reward", "remembers"),
        _Fields(state, f"{where}: reward", option),
        torch.zeros(worlds, compiled.nu),
        task_class(**goals, dynamics=torch.zeros(worlds, 0, dtype=torch.float64)),
    )
    _check_column(f"{where}: reward", earned, worlds)
    _check_float(f"{where}: reward", earned)
    if "terminated" in robot.functions:
        ends = call("terminated", _Fields(state, f"{where}: terminated", option))
        _check_column(f"{where}: terminated", ends, worlds)
        if ends.dtype != torch.bool:
            raise UsageError(f"{where}: terminated must return booleans, got {_words(ends)}")
    _check_untouched(where, robot, state)
    return task_class, int(seen.shape[1])


def _words(value: object) -> str:
    """What a function returned, in words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    return " ".join(repr(value).split())[:80]


def _check_column(where: str, value: object, worlds: int) -> None:
    if not isinstance(value, Tensor) or value.shape != (worlds,):
        raise UsageError(
            f"{where} must return a tensor [W], which for {worlds} worlds is ({worlds},), "
            f"got {_words(value)}"
        )


def _check_float(where: str, value: Tensor) -> None:
    if not value.is_floating_point():
        raise UsageError(f"{where} must return floating-point numbers, got {_words(value)}")
    if not bool(value.isfinite().all()):
        raise UsageError(f"{where} is not finite in the model's default state")


def _check_untouched(where: str, robot: Any, state: Mapping[str, Tensor]) -> None:
    """Refuse functions that write to the fields, which are the simulation itself."""
    fresh = CpuPhysics(robot.loaded, 1)
    for name, field in state.items():
        if not torch.equal(field, fresh.field(name).expand_as(field)):
            raise UsageError(f"{where}: a function changes the field {name!r} in place; clone it")


def _goals(robot: Any, n: int, split: str, call: Callable[..., Any]) -> dict[str, Tensor]:
    """Goals of `n` tasks, checked."""
    where = f"robot {robot.name}: as_task"
    drawn = robot.drawn(n, split, torch.Generator().manual_seed(0))
    if "as_task" not in robot.functions:
        return dict(drawn)
    goals = call("as_task", drawn)
    if not isinstance(goals, dict):
        raise UsageError(f"{where} must return tensors by name, got {_words(goals)}")
    for name, goal in goals.items():
        _check_name(where, name)
        if not isinstance(goal, Tensor) or goal.dim() == 0 or len(goal) != n:
            raise UsageError(
                f"{where} must return tensors [N, ...], which for {n} tasks is ({n}, ...), "
                f"got {name} = {_words(goal)}"
            )
        _check_float(where, goal)
    return goals


def _check_tasks(robot: Any, call: Callable[..., Any]) -> type[RobotTask]:
    """A class for the robot's tasks, of which those of two splits are not the same."""
    where, rows = f"robot {robot.name}", {}
    made: Any = None
    for split in robot.splits:
        goals = _goals(robot, _DRAWN, split, call)
        if made is None:
            made = _task_class(robot, list(goals))
        if goals:
            rows[split] = set(map(tuple, made(**goals).features().tolist()))
    for one, two in combinations(rows, 2):
        allowed = robot.shared_splits and two == "held-out"
        if rows[one] & rows[two] and not allowed:
            raise UsageError(
                f"{where}: as_task gives {one} and {two} tasks that are the same; keep apart what "
                "was apart, or set shared_splits=True if train and held-out tasks shall be the same"
            )
    return made  # type: ignore[no-any-return]


def _task_class(robot: type[Robot], goals: list[str]) -> type[RobotTask]:
    """Tasks with these goals."""

    def words(self: RobotTask, index: int) -> str:
        """What a task asks for."""
        parts = []
        for name in goals:
            numbers = getattr(self, name)[index].flatten().tolist()
            parts.append(f"{name} = {' '.join(f'{x:.3g}' for x in numbers)}")
        return ", ".join(parts)

    return make_dataclass(
        f"{robot.__name__}Task",
        [(name, Tensor) for name in goals],
        bases=(RobotTask,),
        namespace={"__module__": robot.__module__, "words": words},
        frozen=True,
    )
