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

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import gymnasium as gym
import torch
from torch import Tensor

from metarl.envs.goals import Direction, TargetSpeed, both_ways, sample_speeds
from metarl.envs.physics import Limits, Model
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.robot import Robot, RobotTask, State, gymnasium_model
from metarl.errors import UsageError
from metarl.tasks import Split, TaskKind
from metarl.vector import box

Preset = Literal["pearl", "promp"]

CONTROL_COST = 0.05
"""reward lost per squared motor command"""
MAX_SPEED = 3.0
"""upper end of the target speeds, m/s"""
OUT_OF_RANGE_SPEED = 4.0
"""upper end of the target speeds of the out-of-range split, m/s"""

_HORIZON: dict[Preset, int] = {"pearl": 200, "promp": 100}
_ACTION_BOUND: dict[Preset, float] = {"pearl": 1.0, "promp": 10.0}


UNCERTAIN_BODY = Randomization(
    (
        Vary("density", 0.5, 2.0, "log-uniform"),
        Vary("friction", 0.3, 1.5),
        Vary("damping", 0.5, 2.0, "log-uniform"),
        Vary("actuator_strength", 0.2, 1.2, each=True),
        Vary("action_delay", 0.0, 1.0),
    )
)
"""What is unknown of the robot in `half-cheetah-rand-params`."""


def control_cost(command: Tensor) -> Tensor:
    """What motor commands `[W, 6]` in [-1, 1] cost, `[W]`."""
    return CONTROL_COST * command.square().sum(-1)


def observation(qpos: Tensor, qvel: Tensor, torso: Tensor | None = None) -> Tensor:
    """Float32 `[W, 17]`, or `[W, 20]` with the torso's position `[W, 3]`; see the families' table.

    Args:
        qpos: joint positions `[W, 9]`, of which the first (distance run) is not shown.
        qvel: joint velocities `[W, 9]`.
        torso: where the torso is, m, if that is shown.
    """
    parts = (qpos[:, 1:], qvel) if torso is None else (qpos[:, 1:], qvel, torso)
    return torch.cat(parts, dim=-1).float()


@dataclass(frozen=True)
class HalfCheetah(Robot):
    """What the families share; their docstrings have the tables."""

    gymnasium_id: ClassVar[str] = "HalfCheetah-v5"
    frame_skip: ClassVar[int] = 5
    reset_noise: ClassVar[float] = 0.1
    normal_velocities: ClassVar[bool] = True
    room: ClassVar[Limits] = Limits(contacts=12, constraints=56)
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

    def model(self) -> Model:
        """The model that gymnasium ships."""
        return gymnasium_model("half_cheetah.xml")

    @property
    def observations(self) -> int:
        """17 numbers."""
        return 17

    @property
    def action_space(self) -> gym.spaces.Box:
        """Six motors, in [-1, 1] (pearl) or [-10, 10] (promp)."""
        bound = _ACTION_BOUND[self.preset]
        return box(-bound, bound, 6)

    def observe(self, state: State) -> Tensor:
        """See the families' tables."""
        return observation(state["qpos"], state["qvel"])

    def velocity(self, before: State, after: State) -> Tensor:
        """The distance that the root moved forward in a control step, by its duration, m/s."""
        return (after["qpos"][:, 0] - before["qpos"][:, 0]) / self.dt

    @abstractmethod
    def run_reward(self, velocity: Tensor, task: RobotTask) -> Tensor:
        """What forward velocities `[W]` (m/s) earn in their tasks, `[W]`."""

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """Reward for the speed, less the cost of the command."""
        return self.run_reward(self.velocity(before, after), task) - control_cost(command)


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
    task_class: ClassVar[type[RobotTask]] = TargetSpeed
    task_kind: ClassVar[TaskKind] = "continuous"
    splits: ClassVar[tuple[Split, ...]] = ("train", "held-out", "out-of-range")

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw speeds from the stripes of [0, 3] that belong to `split`, or from (3, 4]."""
        return {"speed": sample_speeds(n, split, generator, MAX_SPEED, OUT_OF_RANGE_SPEED)}

    def run_reward(self, velocity: Tensor, task: RobotTask) -> Tensor:
        """-|vx - v*|."""
        assert isinstance(task, TargetSpeed)
        return -(velocity - task.speed).abs()


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
    task_class: ClassVar[type[RobotTask]] = Direction
    task_kind: ClassVar[TaskKind] = "continuous"
    shared_splits: ClassVar[bool] = True

    @property
    def shows_torso(self) -> bool:
        """PEARL's definition appends the torso's position."""
        return self.preset == "pearl"

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw directions in random order, as many forward as backward (to within one)."""
        return {"direction": both_ways(n, generator)}

    def run_reward(self, velocity: Tensor, task: RobotTask) -> Tensor:
        """D vx."""
        assert isinstance(task, Direction)
        return task.direction * velocity

    def observe(self, state: State) -> Tensor:
        """See the table."""
        torso = state["xpos"][:, 1] if self.shows_torso else None
        return observation(state["qpos"], state["qvel"], torso)

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """The position of the torso only where it is shown."""
        return ("qpos", "qvel", "xpos") if self.shows_torso else ("qpos", "qvel")

    @property
    def observations(self) -> int:
        """17 numbers, or 20 with the position of the torso."""
        return 20 if self.shows_torso else 17


@dataclass(frozen=True)
class HalfCheetahRandParams(HalfCheetah):
    """Run forward with an unknown body: what simulators get wrong about a robot.

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
    | 0 | mass and inertia of all bodies | x | [0.5, 2] log-uniform |
    | 1 | friction of all surfaces | x | [0.3, 1.5] |
    | 2 | damping of all joints | x | [0.5, 2] log-uniform |
    | 3 to 8 | strength of each motor | x | [0.2, 1.2] |
    | 9 | delay of actions, rounded | steps of 0.05 s | [0, 1] |

    The reward is vx - 0.05 |u|²,
    where vx is the distance that the root moved during the step divided by 0.05 s, and u the
    action, clipped to its range and scaled to [-1, 1].
    """

    name: ClassVar[str] = "half-cheetah-rand-params"
    task_kind: ClassVar[TaskKind] = "continuous"
    randomize: Randomization = UNCERTAIN_BODY

    def run_reward(self, velocity: Tensor, task: RobotTask) -> Tensor:
        """Vx."""
        return velocity
