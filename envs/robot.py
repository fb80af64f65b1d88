"""Robots: families on MuJoCo, each a handful of torch functions over the fields of the physics.

A robot says which fields it reads, what it shows, what it earns and when it falls; `RobotWorlds`
does the rest for all of them: resets, autoreset, unstable simulations, domain randomisation.

Shapes: `W` worlds, `N` tasks, `P` numbers of the randomisation, `O` observation, `U` actuators.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

import gymnasium as gym
import torch
from torch import Tensor

from metarl import random
from metarl.configs import NEWER
from metarl.envs.disturbances import Disturbances, Settings, model_fields
from metarl.envs.physics import CpuPhysics, Model, Physics, PhysicsWorlds, load_model
from metarl.envs.randomization import NOTHING, Parameters, Randomization
from metarl.errors import UsageError
from metarl.tasks import Family, Split, TaskBatch
from metarl.vector import Info, VectorEnv, box


@cache
def gymnasium_model(file: str) -> Model:
    """One of the models that gymnasium ships."""
    return load_model(Path(gym.__file__).parent / "envs" / "mujoco" / "assets" / file)


State = Mapping[str, Tensor]
"""Fields of the physics by MuJoCo's names, `[W, ...]`."""

_DISTURBANCES = "disturbances."
_SALTS = (0x5851F42D4C957F2D, 0x14057B7EF767814F)


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
    randomize: Randomization = field(default=NOTHING, metadata=NEWER)
    """what varies from task to task besides the goal: a YAML file of ranges, or none"""

    def __post_init__(self) -> None:
        """Check the options, and that the robot has what is randomised."""
        super().__post_init__()
        if not isinstance(self.randomize, Randomization):
            what = "randomize must be what load_randomization reads from a file"
            raise UsageError(f"family {self.name}: {what}, got {self.randomize!r}")
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
        return torch.from_numpy(self.model().compiled.qpos0) + dq, dv

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
    def parameters(self) -> Parameters:
        """The randomisation, bound to the robot."""
        return self.randomize.bind(self.model(), self.observations)

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
        """Build `num_worlds` robots, simulated on the CPU by `threads` threads."""
        physics = CpuPhysics(self.model(), num_worlds, threads)
        return RobotWorlds(self, physics, device=device, seed=seed)


class RobotWorlds(PhysicsWorlds):
    """Robots stepped together, each with its own task and, if they are randomised, its own body."""

    family: Robot

    def __init__(
        self,
        family: Robot,
        physics: Physics,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        hidden: Randomization | None = None,
    ) -> None:
        """Put the worlds of `physics`, of the family's model or one like it, behind the contract.

        Args:
            family: the robot.
            physics: its simulations; a control step takes as long as the family's.
            device: of observations and rewards.
            seed: of the worlds' randomness.
            hidden: what else is unlike the model file, and unknown to all: constants and
                disturbances at the middle of their ranges.
        """
        n_substeps = max(round(family.dt / physics.timestep), 1)
        super().__init__(family, physics, n_substeps, device=device, seed=seed)
        self._state = {name: physics.field(name) for name in family.reads}
        compiled = physics.model.compiled
        ranges = torch.from_numpy(compiled.actuator_ctrlrange.copy())
        ranges[~torch.from_numpy(compiled.actuator_ctrllimited.astype(bool))] = torch.tensor(
            [-1.0, 1.0], dtype=ranges.dtype
        )
        self._centre, self._half = ranges.mean(1), 0.5 * (ranges[:, 1] - ranges[:, 0])
        self._plain = not bool((self._centre != 0).any() or (self._half != 1).any())
        self._bound = float(family.action_space.high[0])
        self._hidden = None if hidden is None else hidden.bind(physics.model, family.observations)
        self._disturbances: Disturbances | None = None
        self._spread = torch.ones(self.num_envs, 1, dtype=torch.float64)

    def _apply_tasks(self, tasks: Any) -> None:
        self._task: RobotTask = tasks.to(self.physics.device)
        drawn = [(self.family.parameters, self._task.dynamics)]
        if self._hidden is not None:
            drawn.append((self._hidden, self._hidden.middle(self.num_envs)))
        shared = self.physics.shared
        fields = model_fields(drawn, self.physics.model, shared)

        def current(name: str) -> Tensor:
            return fields[name] if name in fields else shared(name)

        fields |= self.family.task_fields(self._task, current)
        if fields:
            self.physics.randomise(fields)
        if not any(len(parameters) for parameters, _ in drawn):
            return
        settings = Settings.of(drawn, self.num_envs, self.family.observations)
        self._spread = settings.initial_state.unsqueeze(-1)
        self._disturbances = None
        if settings.any:
            actuators = self.physics.model.compiled.nu
            self._disturbances = Disturbances(settings, actuators, self.family.dt)

    def _reset_worlds(self, mask: Tensor) -> None:
        nq, nv = (self.physics.field(name).shape[1] for name in ("qpos", "qvel"))
        centred = 2.0 * self._reset_noise(mask, nq + nv) - 1.0
        noise = self.family.reset_noise
        dq, dv = noise * centred[:, :nq], noise * centred[:, nq:]
        if self.family.normal_velocities:
            # Normal numbers from uniform ones on (-1, 1).
            dv = noise * 2.0**0.5 * torch.erfinv(centred[:, nq:])
        where = self.physics.device
        spread = self._spread
        qpos, qvel = self.family.initial_state(
            self._task, spread * dq.to(where), spread * dv.to(where)
        )
        self.physics.reset(mask, qpos, qvel)
        if self._disturbances is not None:
            first = self._readings(self._disturbances, step=-1)
            self._disturbances.reset(mask.to(where), *first)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        family, command = self.family, self.commands(actions)
        before = {name: self._state[name].clone() for name in family.remembers}
        unstable = self._simulate(self._executed(command))
        reward = family.reward(before, self._state, command, self._task)
        fallen = family.terminated(self._state)
        if self._disturbances is not None:
            self._disturbances.sense(*self._readings(self._disturbances, self._elapsed))
        terminated = torch.zeros_like(reward, dtype=torch.bool) if fallen is None else fallen
        reward, terminated = reward.float().to(self.device), terminated.to(self.device)
        if unstable is None:
            return reward, terminated, {"unstable": torch.zeros_like(terminated)}
        # A world that blew up has moved by anything, even by NaN.
        reward = reward.masked_fill(unstable, 0.0)
        return reward, terminated & ~unstable, {"unstable": unstable}

    def commands(self, actions: Tensor) -> Tensor:
        """What actions `[W, U]` ask of the actuators, in their units, on the physics' device."""
        command = actions.to(self.physics.device).clamp(-self._bound, self._bound)
        if self._bound != 1.0:
            command = command / self._bound
        return command if self._plain else self._centre + self._half * command

    def _executed(self, command: Tensor) -> Tensor:
        """What the actuators get."""
        disturbances = self._disturbances
        if disturbances is None:
            return command
        u = self._noise(random.uniform, disturbances.draws, self._elapsed)
        executed = disturbances.command(command, u)
        if disturbances.pushes:
            self.physics.field("xfrc_applied")[:, disturbances.settings.pushed] = disturbances.force
        return executed

    def _noise(
        self, draw: Callable[[Tensor, Tensor, int], Tensor], k: int, step: Tensor | int
    ) -> Tensor:
        """`k` numbers for every world at a step, of a stream that resets do not draw from.

        So a robot that is not disturbed begins its episodes as one that is.
        """
        draws = (self._draws << 20) + step
        salt = _SALTS[draw is random.normal]
        return draw(self._keys ^ salt, draws, k).to(self.physics.device)

    def _readings(
        self, disturbances: Disturbances, step: Tensor | int
    ) -> tuple[Tensor, Tensor | None]:
        """What there is to see, and standard normal numbers for the noise on it."""
        obs = self.family.observe(self._state).float()
        return obs, self._noise(random.normal, obs.shape[1], step) if disturbances.noisy else None

    def _observe(self) -> Tensor:
        if self._disturbances is not None:
            return self._disturbances.observation().to(self.device)
        return self.family.observe(self._state).float().to(self.device)

    def _world_state(self) -> dict[str, Tensor]:
        under_way = {} if self._disturbances is None else self._disturbances.state_dict()
        return super()._world_state() | {_DISTURBANCES + k: x for k, x in under_way.items()}

    def _load_world_state(self, state: dict[str, Tensor]) -> None:
        mine = {k: v for k, v in state.items() if k.startswith(_DISTURBANCES)}
        super()._load_world_state({k: v for k, v in state.items() if k not in mine})
        if self._disturbances is not None:
            self._disturbances.load_state_dict(
                {k.removeprefix(_DISTURBANCES): v for k, v in mine.items()}
            )
