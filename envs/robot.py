"""Robots: families on MuJoCo, each a handful of torch functions over the fields of the physics.

A robot says which fields it reads, what it shows, what it earns and when it falls; `RobotWorlds`
does the rest for all of them.

Shapes: `W` worlds, `N` tasks, `P` numbers of the randomisation, `O` observation, `U` actuators.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from metarl.configs import NEWER
from metarl.envs.physics import Limits, Model, load_model, make_physics
from metarl.envs.physics.making import BACKENDS, Backend, require_physics
from metarl.envs.randomization import NOTHING, Parameters, Randomization
from metarl.envs.robot_worlds import RobotWorlds
from metarl.errors import UsageError
from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import VectorEnv, box


@cache
def gymnasium_model(file: str) -> Model:
    """One of the models that gymnasium ships."""
    return load_model(Path(gym.__file__).parent / "envs" / "mujoco" / "assets" / file)


State = Mapping[str, Tensor]
"""Fields of the physics by MuJoCo's names, `[W, ...]`."""


@dataclass(frozen=True)
class RobotTask(TaskBatch):
    """Tasks that differ in the robot itself; subclasses add what else is asked of it."""

    dynamics: Tensor = field(kw_only=True, default_factory=lambda: torch.zeros(0, 0))
    """float64 `[N, P]`: the numbers of the family's randomisation, in the units of its quantities;
    P is 0 where none are given"""

    def __post_init__(self) -> None:
        """Fill in the dynamics of robots that are not randomised."""
        others = [x for name, x in self.tensors().items() if name != "dynamics"]
        if others and self.dynamics.numel() == 0:
            nothing = others[0].new_zeros(len(others[0]), 0, dtype=torch.float64)
            object.__setattr__(self, "dynamics", nothing)

    def words(self, index: int) -> str:
        """What a task asks for, in a few words with units; nothing, if only the body differs."""
        return ""


@dataclass(frozen=True)
class Robot(Family):
    """A family of simulated robots; every method works on all worlds at once."""

    gymnasium_id: ClassVar[str]
    """the same robot in gymnasium, for comparisons; families without one leave it out"""
    gymnasium_options: ClassVar[Mapping[str, object]] = {}
    """what gymnasium must be told so that it does the same work"""
    envpool_options: ClassVar[Mapping[str, object]] = {}
    """and what envpool must be told"""
    frame_skip: ClassVar[int]
    """physics steps in a control step"""
    reads: ClassVar[tuple[str, ...]] = ("qpos", "qvel")
    """fields of MuJoCo's data that the functions below are given"""
    remembers: ClassVar[tuple[str, ...]] = ("qpos",)
    """those of them that the reward is also given as they were before the step"""
    reset_noise: ClassVar[float]
    """half-width of the uniform noise on the initial positions (and velocities)"""
    normal_velocities: ClassVar[bool] = False
    """the noise on initial velocities is normal, with that standard deviation"""
    room: ClassVar[Limits] = Limits()
    """what its contacts need on a GPU, with headroom"""
    randomize: Randomization = field(default=NOTHING, metadata=NEWER)
    """what varies from task to task besides the goal: a YAML file of ranges, or none"""
    backend: Backend = field(default="auto", metadata=NEWER)
    """whose physics: mujoco (on the CPU), warp (on the device), or auto: warp on a GPU only"""
    max_contacts: int = field(default=0, metadata=NEWER)
    """on a GPU: room for so many contacts a world, on average; 0 is the robot's own number"""
    max_constraints: int = field(default=0, metadata=NEWER)
    """on a GPU: room for so many rows of constraints in a world; 0 is the robot's own number"""

    def __post_init__(self) -> None:
        """Check the options, and that the robot has what is randomised."""
        super().__post_init__()
        if not isinstance(self.randomize, Randomization):
            what = "randomize must be what load_randomization reads from a file"
            raise UsageError(f"family {self.name}: {what}, got {self.randomize!r}")
        if self.backend not in BACKENDS:
            what = f"unknown backend {self.backend!r}; choose from {', '.join(BACKENDS)}"
            raise UsageError(f"family {self.name}: {what}")
        for option in ("max_contacts", "max_constraints"):
            if getattr(self, option) < 0:
                what = f"{option} must be at least 0, got {getattr(self, option)}"
                raise UsageError(f"family {self.name}: {what}")
        if self.parameters.finite and type(self).sample_goals is Robot.sample_goals:
            object.__setattr__(self, "shared_splits", True)
        if len(self.parameters):
            more = ("out-of-range",) * self.parameters.has_outside + ("nominal",)
            object.__setattr__(self, "splits", tuple(dict.fromkeys((*type(self).splits, *more))))

    # --- what a robot says -----------------------------------------------------------------

    @abstractmethod
    def model(self) -> Model:
        """The robot, loaded from its file."""

    @abstractmethod
    def observe(self, state: State) -> Tensor:
        """What the robot sees, `[W, O]`."""

    @abstractmethod
    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """What a control step earned, `[W]`.

        Args:
            before: the fields in `remembers`, as they were before the step.
            after: the fields in `reads`.
            command: what the policy asked of the actuators, in their units, `[W, U]`.
            task: one task for each world.
        """

    def terminated(self, state: State) -> Tensor | None:
        """Bool `[W]`, where the robot has fallen; None for robots that never do."""
        return None

    def initial_state(self, task: RobotTask, dq: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
        """Positions `[W, nq]` and velocities `[W, nv]` at the start, with noise `dq` and `dv`."""
        return self.rest_pose(dq.device) + dq, dv

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """The other fields of the family's tasks."""
        return {}

    def task_fields(self, task: RobotTask, current: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """Fields of MuJoCo's model that a task sets besides its dynamics, `[W, ...]` by name.

        Args:
            task: one task for each world.
            current: a field as it is without them, `[W, ...]`; not to be written to.
        """
        return {}

    def describe(self, tasks: TaskBatch, index: int) -> str:
        """A task in a few words, with units: what is asked, and what the body is like."""
        assert isinstance(tasks, RobotTask)
        body = self.parameters.describe(tasks.dynamics[index])
        return ", ".join(part for part in (tasks.words(index), body) if part)

    def marker(self, tasks: TaskBatch, index: int) -> tuple[float, float, float] | None:
        """Where a task's goal is, m, for pictures; None where there is no such place."""
        return None

    task_class: ClassVar[type[RobotTask]] = RobotTask
    """what `sample_tasks` returns"""

    # --- what follows from it --------------------------------------------------------------

    @property
    def action_space(self) -> gym.spaces.Box:
        """One number in [-1, 1] for each actuator, from one end of its range to the other."""
        return box(-1.0, 1.0, self.model().compiled.nu)

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Unbounded; the family's table says what each number is."""
        return box(-float("inf"), float("inf"), self.observations)

    @property
    @abstractmethod
    def observations(self) -> int:
        """O."""

    @cached_property
    def dt(self) -> float:
        """Duration of a control step, s."""
        return self.frame_skip * float(self.model().compiled.opt.timestep)

    @cached_property
    def _rest_poses(self) -> dict[torch.device, Tensor]:
        """By device, to which they are copied once only: a copy waits for it."""
        return {}

    def rest_pose(self, device: torch.device) -> Tensor:
        """The positions `[nq]` of the model file, float64; not to be written to."""
        if device not in self._rest_poses:
            pose = torch.from_numpy(self.model().compiled.qpos0)
            self._rest_poses[device] = pose.to(device)
        return self._rest_poses[device]

    @cached_property
    def parameters(self) -> Parameters:
        """The randomisation, bound to the robot."""
        return self.randomize.bind(self.model(), self.observations)

    @property
    def limits(self) -> Limits:
        """Room for contacts on a GPU: the robot's own, or what the options say."""
        own = self.room
        return Limits(self.max_contacts or own.contacts, self.max_constraints or own.constraints)

    def require_device(self, device: torch.device) -> None:
        """See `Family.require_device`: the physics may have needs of its own."""
        require_physics(device, self.backend)

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> RobotTask:
        """Draw goals and dynamics of `split`; nominal tasks have goals that are held out."""
        self.check_split(split)
        goals_from = split if split in type(self).splits else "held-out"
        goals = self.sample_goals(n, goals_from, generator)
        dynamics = self.parameters.sample(n, split, generator)
        return self.task_class(dynamics=dynamics, **goals)

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> VectorEnv:
        """Build `num_worlds` robots, simulated on the device, or on the CPU by threads."""
        physics = make_physics(self.model(), num_worlds, device, threads, self.limits, self.backend)
        return RobotWorlds(self, physics, device=device, seed=seed)
