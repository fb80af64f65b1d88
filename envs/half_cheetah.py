"""Half-cheetah that must run at an unknown speed, or in an unknown direction.

The robot is gymnasium's `half_cheetah.xml` (planar, 9 degrees of freedom, 6 motors), advanced by
five substeps of 0.01 s per control step. An episode starts near the rest pose, positions off by
U[-0.1, 0.1] and velocities by 0.1 N(0, 1), and never terminates. The two families share everything
but the task and its reward.

Presets: `pearl` is the definition of Rakelly et al. 2019 (200 steps), `promp` that of Rothfuss et
al. 2019 (100 steps, actions in [-10, 10]). One known difference: PEARL's code shows the position of
the torso in half-cheetah-vel too. It is left out there, where it only repeats the height and adds
the distance run so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import gymnasium as gym
import torch
from torch import Tensor

from metarl.envs.physics import CpuPhysics, Model, Physics, PhysicsWorlds, load_model
from metarl.errors import UsageError
from metarl.tasks import Family, Split, TaskBatch, TaskKind, striped
from metarl.vector import Info, VectorEnv, box

Preset = Literal["pearl", "promp"]

FRAME_SKIP = 5
"""substeps per control step"""
CONTROL_COST = 0.05
"""reward lost per squared motor command"""
RESET_NOISE = 0.1
"""half-width of the uniform noise on positions, scale of the normal noise on velocities"""
MAX_SPEED = 3.0
"""upper end of the target speeds, m/s"""
OUT_OF_RANGE_SPEED = 4.0
"""upper end of the target speeds of the out-of-range split, m/s"""

_HORIZON: dict[Preset, int] = {"pearl": 200, "promp": 100}
_ACTION_BOUND: dict[Preset, float] = {"pearl": 1.0, "promp": 10.0}


@dataclass(frozen=True)
class TargetSpeed(TaskBatch):
    """Speeds to run at."""

    speed: Tensor
    """float64 `[N]`, m/s; positive is forward"""


@dataclass(frozen=True)
class Direction(TaskBatch):
    """Directions to run in."""

    direction: Tensor
    """float64 `[N]`, +1 forward or -1 backward"""


def control_cost(command: Tensor) -> Tensor:
    """What motor commands `[W, 6]` in [-1, 1] cost, `[W]`."""
    return CONTROL_COST * command.square().sum(-1)


def running_reward(task: TargetSpeed | Direction, velocity: Tensor) -> Tensor:
    """What forward velocities `[W]` (m/s) earn in their tasks, `[W]`."""
    if isinstance(task, TargetSpeed):
        return -(velocity - task.speed).abs()
    return task.direction * velocity


def observation(qpos: Tensor, qvel: Tensor, torso: Tensor | None = None) -> Tensor:
    """Float32 `[W, 17]`, or `[W, 20]` with the torso's position `[W, 3]`; see the families' table.

    Args:
        qpos: joint positions `[W, 9]`, of which the first (distance run) is not shown.
        qvel: joint velocities `[W, 9]`.
        torso: where the torso is, m, if that is shown.
    """
    parts = (qpos[:, 1:], qvel) if torso is None else (qpos[:, 1:], qvel, torso)
    return torch.cat(parts, dim=-1).float()


def half_cheetah_model() -> Model:
    """The model that gymnasium ships."""
    assets = Path(gym.__file__).parent / "envs" / "mujoco" / "assets"
    return load_model(assets / "half_cheetah.xml")


@dataclass(frozen=True)
class HalfCheetah(Family):
    """What the two families share; their docstrings have the tables."""

    gymnasium_id: ClassVar[str] = "HalfCheetah-v5"
    """the same robot in gymnasium, for comparisons"""
    episodes: int = 2
    if TYPE_CHECKING:
        horizon: int = 200
    else:
        # Not a field: its default would outlive a change of the preset on the command line.
        horizon: ClassVar[property] = property(lambda self: _HORIZON[self.preset])
    preset: Preset = "pearl"
    """whose published definition to use: pearl (200 steps) or promp (100 steps, actions x 10)"""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.preset not in _HORIZON:
            raise UsageError(
                f"family {self.name}: unknown preset {self.preset!r}; "
                f"choose from {', '.join(_HORIZON)}"
            )
        super().__post_init__()

    @property
    def shows_torso(self) -> bool:
        """Whether the position of the torso is part of the observation."""
        return False

    @property
    def observation_space(self) -> gym.spaces.Box:
        """Unbounded, 17 or 20 numbers."""
        return box(-float("inf"), float("inf"), 20 if self.shows_torso else 17)

    @property
    def action_space(self) -> gym.spaces.Box:
        """Six motors, in [-1, 1] (pearl) or [-10, 10] (promp)."""
        bound = _ACTION_BOUND[self.preset]
        return box(-bound, bound, 6)

    def make_worlds(
        self,
        num_worlds: int,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
        threads: int = 1,
    ) -> VectorEnv:
        """Build `num_worlds` cheetahs, simulated on the CPU by `threads` threads."""
        physics = CpuPhysics(half_cheetah_model(), num_worlds, threads)
        return HalfCheetahWorlds(self, physics, device=device, seed=seed)


@dataclass(frozen=True)
class HalfCheetahVel(HalfCheetah):
    """Run at a target speed between 0 and 3 m/s.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the root above its rest height | m | unbounded |
    | 1 | pitch of the root | rad | unbounded |
    | 2, 3, 4 | back thigh, shin, foot | rad | about [-0.52, 1.05], [-0.79, 0.79], [-0.4, 0.79] |
    | 5, 6, 7 | front thigh, shin, foot | rad | about [-1, 0.7], [-1.2, 0.87], [-0.5, 0.5] |
    | 8, 9 | forward and upward velocity of the root | m/s | unbounded |
    | 10 | pitch rate of the root | rad/s | unbounded |
    | 11 to 16 | rates of the joints 2 to 7 | rad/s | unbounded |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | back thigh, shin, foot motor: u = 1 is | 120, 90, 60 N m | [-1, 1] or [-10, 10] |
    | 3, 4, 5 | front thigh, shin, foot motor: u = 1 is | 120, 60, 30 N m | as above |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 | target speed v* | m/s | [0, 3], out-of-range (3, 4] |

    The reward is -|vx - v*| - 0.05 |u|²,
    where vx is the distance that the root moved during the step divided by 0.05 s, and u the
    action, clipped to its range and scaled to [-1, 1].
    """

    name: ClassVar[str] = "half-cheetah-vel"
    task_kind: ClassVar[TaskKind] = "continuous"
    splits: ClassVar[tuple[Split, ...]] = ("train", "held-out", "out-of-range")

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> TargetSpeed:
        """Draw speeds from the stripes of [0, 3] that belong to `split`, or from (3, 4]."""
        self.check_split(split)
        u = torch.rand(n, dtype=torch.float64, generator=generator)
        if split == "out-of-range":
            return TargetSpeed(OUT_OF_RANGE_SPEED - (OUT_OF_RANGE_SPEED - MAX_SPEED) * u)
        return TargetSpeed(MAX_SPEED * striped(u, split))


@dataclass(frozen=True)
class HalfCheetahDir(HalfCheetah):
    """Run forward or backward; both tasks are trained on and tested on, as published.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the root above its rest height | m | unbounded |
    | 1 | pitch of the root | rad | unbounded |
    | 2, 3, 4 | back thigh, shin, foot | rad | about [-0.52, 1.05], [-0.79, 0.79], [-0.4, 0.79] |
    | 5, 6, 7 | front thigh, shin, foot | rad | about [-1, 0.7], [-1.2, 0.87], [-0.5, 0.5] |
    | 8, 9 | forward and upward velocity of the root | m/s | unbounded |
    | 10 | pitch rate of the root | rad/s | unbounded |
    | 11 to 16 | rates of the joints 2 to 7 | rad/s | unbounded |
    | 17, 18, 19 | x, y, z of the torso one substep ago (pearl only) | m | unbounded |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | back thigh, shin, foot motor: u = 1 is | 120, 90, 60 N m | [-1, 1] or [-10, 10] |
    | 3, 4, 5 | front thigh, shin, foot motor: u = 1 is | 120, 60, 30 N m | as above |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 | direction d | - | -1 backward, +1 forward |

    The reward is d vx - 0.05 |u|²,
    where vx is the distance that the root moved during the step divided by 0.05 s, and u the
    action, clipped to its range and scaled to [-1, 1].
    """

    name: ClassVar[str] = "half-cheetah-dir"
    task_kind: ClassVar[TaskKind] = "continuous"
    shared_splits: ClassVar[bool] = True

    @property
    def shows_torso(self) -> bool:
        """PEARL's definition appends the torso's position."""
        return self.preset == "pearl"

    def sample_tasks(self, n: int, split: Split, generator: torch.Generator) -> Direction:
        """Draw directions in random order, as many forward as backward (to within one)."""
        self.check_split(split)
        first = int(torch.randint(2, (1,), generator=generator))
        order = torch.randperm(n, generator=generator)
        return Direction(2.0 * ((order + first) % 2).double() - 1.0)


class HalfCheetahWorlds(PhysicsWorlds):
    """Half-cheetahs stepped together, each with its own task."""

    family: HalfCheetah

    def __init__(
        self,
        family: HalfCheetah,
        physics: Physics,
        *,
        device: torch.device | str = "cpu",
        seed: int = 0,
    ) -> None:
        """Put the worlds of `physics`, a half-cheetah model, behind the vector-env contract."""
        super().__init__(family, physics, FRAME_SKIP, device=device, seed=seed)
        self._qpos, self._qvel = physics.field("qpos"), physics.field("qvel")
        self._torso = physics.field("xpos")[:, 1] if family.shows_torso else None
        self._bound = _ACTION_BOUND[family.preset]
        self._dt = FRAME_SKIP * physics.timestep

    def _reset_worlds(self, mask: Tensor) -> None:
        nq, nv = self._qpos.shape[1], self._qvel.shape[1]
        centred = 2.0 * self._reset_noise(mask, nq + nv) - 1.0
        qpos = RESET_NOISE * centred[:, :nq]
        # Normal numbers from uniform ones on (-1, 1).
        qvel = RESET_NOISE * 2.0**0.5 * torch.erfinv(centred[:, nq:])
        self.physics.reset(mask, qpos, qvel)

    def _advance(self, actions: Tensor) -> tuple[Tensor, Tensor, Info]:
        command = actions.clamp(-self._bound, self._bound)
        if self._bound != 1.0:
            command = command / self._bound
        # Before the physics: what runs after it finds the processor's caches full of other things.
        cost = control_cost(command)
        terminated = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        stable = torch.zeros_like(terminated)
        x_before = self._qpos[:, 0].clone()
        unstable = self._simulate(command)
        velocity = ((self._qpos[:, 0] - x_before) / self._dt).to(self.device)
        assert isinstance(self._world_tasks, (TargetSpeed, Direction))
        reward = (running_reward(self._world_tasks, velocity) - cost).float()
        if unstable is None:
            return reward, terminated, {"unstable": stable}
        # A world that blew up has moved by anything, even by NaN.
        return reward.masked_fill_(unstable, 0.0), terminated, {"unstable": unstable}

    def _observe(self) -> Tensor:
        return observation(self._qpos, self._qvel, self._torso).to(self.device)
