"""Any robot that there is a model file of, as a family of tasks: `from_mjcf`.

`envs/robots/crane.py` is a whole robot in thirty lines.

Shapes: `W` worlds, `O` observation, `U` actuators.
"""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from mujoco.batch import DATA_FIELDS
from torch import Tensor

from metarl.envs.mjcf_checks import check_functions, check_goals
from metarl.envs.physics import Model, load_model
from metarl.envs.physics.model import check_controllable
from metarl.envs.randomization import NOTHING, Randomization
from metarl.envs.robot import Robot, RobotTask, State
from metarl.errors import UsageError
from metarl.tasks import Split, TaskKind, striped

Interval = tuple[float, float]
Goals = dict[str, Tensor]
"""What is asked of the robot, `[N, ...]` by name."""


@dataclass(frozen=True)
class MjcfRobot(Robot):
    """What the families that `from_mjcf` makes have in common."""

    task_kind: ClassVar[TaskKind] = "continuous"
    loaded: ClassVar[Model]
    """the robot"""
    width: ClassVar[int]
    """O"""
    intervals: ClassVar[Mapping[str, Interval]]
    """where the goals of train and held-out tasks lie"""
    intervals_outside: ClassVar[Mapping[str, Interval]]
    """where those of out-of-range tasks do, for the goals that can"""
    functions: ClassVar[Mapping[str, Callable[..., Any]]]
    """observation, reward, terminated and as_task, those that there are"""

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if not self.intervals and self.parameters.finite:
            object.__setattr__(self, "shared_splits", True)

    def model(self) -> Model:
        """The robot, loaded from its file."""
        return self.loaded

    @property
    def observations(self) -> int:
        """As many numbers as the function for the observation gives."""
        return self.width

    def observe(self, state: State) -> Tensor:
        """What the robot sees, `[W, O]`."""
        seen: Tensor = self.functions["observation"](state)
        return seen

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """What a control step earned, `[W]`."""
        earned: Tensor = self.functions["reward"](before, after, command, task)
        return earned

    def terminated(self, state: State) -> Tensor | None:
        """Where the episode ends, if it can before its time."""
        ends = self.functions.get("terminated")
        return None if ends is None else ends(state)

    @classmethod
    def drawn(cls, n: int, split: Split, generator: torch.Generator) -> Goals:
        """Goals from their intervals, in stripes of which every fifth is held out."""
        drawn = {}
        for name, inside in cls.intervals.items():
            u = torch.rand(n, dtype=torch.float64, generator=generator)
            away = split == "out-of-range"
            low, high = cls.intervals_outside.get(name, inside) if away else inside
            drawn[name] = low + (high - low) * (u if away else striped(u, split))
        return drawn

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> Goals:
        """Goals as drawn, or what `as_task` makes of them."""
        goals, as_task = self.drawn(n, split, generator), self.functions.get("as_task")
        return goals if as_task is None else as_task(goals)


def from_mjcf(
    path: str | Path,
    *,
    name: str,
    observation: Callable[[State], Tensor],
    reward: Callable[[State, State, Tensor, Any], Tensor],
    terminated: Callable[[State], Tensor] | None = None,
    goals: Mapping[str, Interval] | None = None,
    as_task: Callable[[Goals], Goals] | None = None,
    out_of_range: Mapping[str, Interval] | None = None,
    shared_splits: bool = False,
    randomize: Randomization = NOTHING,
    frame_skip: int = 1,
    horizon: int = 200,
    episodes: int = 2,
    reset_noise: float = 0.0,
    reads: Sequence[str] = ("qpos", "qvel"),
    remembers: Sequence[str] = ("qpos",),
    doc: str | None = None,
) -> type[MjcfRobot]:
    """A family of tasks for the robot in a model file.

    The class that is returned belongs into a module: `Crane = from_mjcf("crane.xml", ...)` in
    `my_robots.py` is trained by `metarl train rl2 my_robots:Crane`, and `Crane(horizon=100)` is the
    family in Python. Its options are `horizon`, `episodes` and `randomize`.

    The functions work on all worlds at once. They get fields of MuJoCo's data by name, float64
    `[W, ...]`, which they must not write to.

    Args:
        path: the MJCF file; if it is relative, to the folder of the module that calls.
        name: of the family; letters, digits, - and _.
        observation: from the fields in `reads` to what the robot sees, `[W, O]`.
        reward: from the fields in `remembers` before a control step, those in `reads` after it, the
            command `[W, U]` in the actuators' units and the tasks (`task.speed` is the goal
            "speed", `[W]`) to what the step earned, `[W]`.
        terminated: from the fields in `reads` to bool `[W]`; None for episodes of full length.
        goals: what is asked of the robot: name to the interval that it is drawn from. Train and
            held-out tasks have disjoint parts of it, all uniform.
        as_task: from the goals as drawn, `[N]` by name, to those that `reward` is given, such as
            the cosine and sine of an angle; tasks that were different must stay so.
        out_of_range: name to another interval, for the goals that out-of-range tasks have there.
        shared_splits: train and held-out tasks are the same; for goals such as left and right.
        randomize: what differs in the robot itself, unless the option says otherwise.
        frame_skip: physics steps in a control step.
        horizon: steps of an episode.
        episodes: of a trial.
        reset_noise: positions and velocities begin off by U[-reset_noise, reset_noise].
        reads: fields of MuJoCo's data that the functions are given.
        remembers: those of them that `reward` is given as they were before the step.
        doc: docstring of the class, whose first line introduces it on the command line.

    Raises:
        UsageError: if any of this cannot be, found out before anything is simulated.
    """
    caller = sys._getframe(1).f_globals
    where = f"robot {name}"
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][\w-]*", name):
        raise UsageError(f"from_mjcf: name must be letters, digits, - and _, got {name!r}")
    _check_numbers(where, frame_skip, reset_noise)
    _check_fields(where, tuple(reads), tuple(remembers))
    check_goals(where, goals or {}, out_of_range or {})
    model = load_model(Path(caller.get("__file__", "")).parent / path)
    check_controllable(model)
    functions = {
        "observation": observation,
        "reward": reward,
        "terminated": terminated,
        "as_task": as_task,
    }
    splits = ("train", "held-out") + ("out-of-range",) * bool(out_of_range)
    namespace = {
        "__module__": caller.get("__name__", __name__),
        "__doc__": doc or f"The robot of {path}.",
        "name": name,
        "splits": splits,
        "shared_splits": shared_splits,
        "frame_skip": frame_skip,
        "reset_noise": reset_noise,
        "reads": tuple(reads),
        "remembers": tuple(remembers),
        "loaded": model,
        "width": 0,
        "intervals": dict(goals or {}),
        "intervals_outside": dict(out_of_range or {}),
        "functions": {k: f for k, f in functions.items() if f is not None},
    }
    options = [
        ("episodes", int, episodes),
        ("horizon", int, horizon),
        ("randomize", Randomization, randomize),
    ]
    title = "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", name))
    made: Any = make_dataclass(title, options, bases=(MjcfRobot,), namespace=namespace, frozen=True)
    made.task_class, made.width = check_functions(made)
    made()  # checks the options
    return made  # type: ignore[no-any-return]


def _check_numbers(where: str, frame_skip: int, reset_noise: float) -> None:
    if type(frame_skip) is not int or frame_skip < 1:
        raise UsageError(
            f"{where}: frame_skip must be a whole number of at least 1, got {frame_skip!r}"
        )
    if not (math.isfinite(reset_noise) and reset_noise >= 0.0):
        raise UsageError(
            f"{where}: reset_noise must be a finite number of at least 0, got {reset_noise!r}"
        )


def _check_fields(where: str, reads: tuple[str, ...], remembers: tuple[str, ...]) -> None:
    for field in reads:
        if field not in DATA_FIELDS:
            close = difflib.get_close_matches(str(field), sorted(DATA_FIELDS), n=3)
            examples = close or ["qpos", "qvel", "xpos", "site_xpos", "sensordata"]
            raise UsageError(
                f"{where}: reads names {field!r}, which is no array of MuJoCo's data; "
                f"there are {', '.join(examples)} and others"
            )
    for field in remembers:
        if field not in reads:
            raise UsageError(
                f"{where}: remembers names {field!r}, which is not in reads ({', '.join(reads)})"
            )
