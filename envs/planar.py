"""Walker2d and hopper: planar legs that fall, with unknown bodies or an unknown target speed.

The robots are gymnasium's `walker2d_v5.xml` and `hopper.xml`, advanced by four substeps of 2 ms per
control step. Positions and velocities of an episode begin off by U[-0.005, 0.005]. An episode ends
when the robot falls.

- `*-rand-params` (Rothfuss et al. 2019; Rakelly et al. 2019): run forward with a body of unknown
  dynamics. Masses, inertias and frictions are multiplied by 1.5^U[-3, 3], joint dampings by
  1.3^U[-3, 3], element by element.
- `*-vel`: run at an unknown speed, with a bonus for every step. The default, `reachable`, asks for
  up to 2 m/s and pays enough for standing still never to be worse than falling. The preset `promp`
  of `walker2d-vel` is the task of Rothfuss et al. 2019: speeds up to 10 m/s, a bonus of 15, and
  eight substeps per control step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from metarl.envs.goals import TargetSpeed, sample_speeds
from metarl.envs.physics import Limits, Model
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.robot import Robot, RobotTask, State, gymnasium_model
from metarl.errors import UsageError
from metarl.tasks import Split, TaskKind

CONTROL_COST = 1e-3
"""reward lost per squared motor command"""
ALIVE_BONUS = 1.0
"""reward for every step, the last one too"""
MAX_OBSERVED_VELOCITY = 10.0
"""velocities are shown cut to this, m/s and rad/s"""

Preset = Literal["reachable", "promp"]


@dataclass(frozen=True)
class SpeedPreset:
    """What differs between definitions of running at an unknown speed."""

    fastest: float
    """upper end of the target speeds, m/s"""
    out_of_range: float
    """upper end of those of the out-of-range split, m/s"""
    bonus: float
    """reward for every step, the last one too"""
    frame_skip: int
    """substeps in a control step"""


SPEED_PRESETS: dict[Preset, SpeedPreset] = {
    "reachable": SpeedPreset(fastest=2.0, out_of_range=3.0, bonus=2.0, frame_skip=4),
    "promp": SpeedPreset(fastest=10.0, out_of_range=12.0, bonus=15.0, frame_skip=8),
}

PUBLISHED_DYNAMICS = Randomization(
    tuple(
        Vary(quantity, base**-3, base**3, "log-uniform", each=True, beyond=1 / 6)
        for quantity, base in (
            ("body_mass", 1.5),
            ("body_inertia", 1.5),
            ("damping", 1.3),
            ("friction", 1.5),
        )
    )
)
"""The factors of Rothfuss et al. 2019; out-of-range ones reach 1.5^4 and 1.3^4."""


@dataclass(frozen=True)
class PlanarLegs(Robot):
    """What walker2d and hopper share: observation, forward speed, cost and bonus."""

    frame_skip: ClassVar[int] = 4
    reset_noise: ClassVar[float] = 5e-3
    episodes: int = 2
    horizon: int = 200

    def observe(self, state: State) -> Tensor:
        """Positions but the distance run, and velocities cut to ±10."""
        bound = MAX_OBSERVED_VELOCITY
        return torch.cat([state["qpos"][:, 1:], state["qvel"].clamp(-bound, bound)], -1)

    @property
    def observations(self) -> int:
        """Positions but one, and velocities."""
        compiled = self.model().compiled
        return int(compiled.nq - 1 + compiled.nv)

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """What the speed earns and being alive, less the cost of the command."""
        speed = (after["qpos"][:, 0] - before["qpos"][:, 0]) / self.dt
        return self.earned(speed, task) - CONTROL_COST * command.square().sum(-1)

    def earned(self, speed: Tensor, task: RobotTask) -> Tensor:
        """What forward speeds `[W]`, m/s, earn on legs: speed and bonus."""
        return speed + ALIVE_BONUS


class Walker2d(PlanarLegs):
    """The two-legged robot, 17 observations, 6 motors."""

    gymnasium_id: ClassVar[str] = "Walker2d-v5"
    room: ClassVar[Limits] = Limits(contacts=20, constraints=88)

    def model(self) -> Model:
        """The model that gymnasium ships."""
        return gymnasium_model("walker2d_v5.xml")

    def terminated(self, state: State) -> Tensor:
        """Below 0.8 m, above 2 m, or leaning by more than 1 rad."""
        height, lean = state["qpos"][:, 1], state["qpos"][:, 2]
        return ~((height > 0.8) & (height < 2.0) & (lean.abs() < 1.0))


class Hopper(PlanarLegs):
    """The one-legged robot, 11 observations, 3 motors."""

    gymnasium_id: ClassVar[str] = "Hopper-v5"
    room: ClassVar[Limits] = Limits(contacts=12, constraints=48)

    def model(self) -> Model:
        """The model that gymnasium ships."""
        return gymnasium_model("hopper.xml")

    def terminated(self, state: State) -> Tensor:
        """Below 0.7 m, leaning by more than 0.2 rad, or with anything else beyond 100."""
        height, lean = state["qpos"][:, 1], state["qpos"][:, 2]
        other = torch.cat([state["qpos"][:, 2:], state["qvel"]], -1)
        return ~((height > 0.7) & (lean.abs() < 0.2) & (other.abs() < 100.0).all(-1))


@dataclass(frozen=True)
class Walker2dRandParams(Walker2d):
    """Run forward on two legs with an unknown body.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the torso | m | (0.8, 2) |
    | 1 | pitch of the torso | rad | (-1, 1) |
    | 2, 3, 4 | right thigh, leg, foot | rad | about [-2.6, 0], [-2.6, 0], [-0.8, 0.8] |
    | 5, 6, 7 | left thigh, leg, foot | rad | as above |
    | 8, 9 | forward and upward velocity of the torso | m/s | [-10, 10] |
    | 10 to 16 | pitch rate, and rates of the joints 2 to 7 | rad/s | [-10, 10] |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | right thigh, leg, foot motor: 1 is 100 N m | - | [-1, 1] |
    | 3, 4, 5 | left thigh, leg, foot motor: 1 is 100 N m | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 to 6 | mass of each of the 7 bodies | x | 1.5^[-3, 3], out-of-range 1.5^±4 |
    | 7 to 27 | three principal inertias of each body | x | as above |
    | 28 to 33 | damping of each of the 6 joints | x | 1.3^[-3, 3] |
    | 34 to 57 | three frictions of each of the 8 geoms | x | 1.5^[-3, 3] |

    The reward is vx + 1 - 0.001 |u|², where vx is the distance that the torso moved during the step
    divided by its 8 ms. An episode ends when the torso is below 0.8 m or above 2 m, or leans by 1
    rad.
    """

    name: ClassVar[str] = "walker2d-rand-params"
    task_kind: ClassVar[TaskKind] = "continuous"
    randomize: Randomization = PUBLISHED_DYNAMICS


@dataclass(frozen=True)
class HopperRandParams(Hopper):
    """Hop forward with an unknown body.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the torso | m | above 0.7 |
    | 1 | pitch of the torso | rad | (-0.2, 0.2) |
    | 2, 3, 4 | thigh, leg, foot | rad | about [-2.6, 0], [-2.6, 0], [-0.8, 0.8] |
    | 5, 6 | forward and upward velocity of the torso | m/s | [-10, 10] |
    | 7 to 10 | pitch rate, and rates of the joints 2 to 4 | rad/s | [-10, 10] |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | thigh, leg, foot motor: 1 is 200 N m | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 to 3 | mass of each of the 4 bodies | x | 1.5^[-3, 3], out-of-range 1.5^±4 |
    | 4 to 15 | three principal inertias of each body | x | as above |
    | 16 to 18 | damping of each of the 3 joints | x | 1.3^[-3, 3] |
    | 19 to 33 | three frictions of each of the 5 geoms | x | 1.5^[-3, 3] |

    The reward is vx + 1 - 0.001 |u|², where vx is the distance that the torso moved during the step
    divided by its 8 ms. An episode ends when the torso is below 0.7 m or leans by 0.2 rad.
    """

    name: ClassVar[str] = "hopper-rand-params"
    task_kind: ClassVar[TaskKind] = "continuous"
    randomize: Randomization = PUBLISHED_DYNAMICS


@dataclass(frozen=True)
class LegsVel(PlanarLegs):
    """What walker2d-vel and hopper-vel share."""

    task_class: ClassVar[type[RobotTask]] = TargetSpeed
    task_kind: ClassVar[TaskKind] = "continuous"
    splits: ClassVar[tuple[Split, ...]] = ("train", "held-out", "out-of-range")

    @property
    def definition(self) -> SpeedPreset:
        """Speeds, bonus and frame skip."""
        return SPEED_PRESETS["reachable"]

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw speeds from the stripes of the range that belong to `split`, or from beyond it."""
        chosen = self.definition
        speeds = sample_speeds(n, split, generator, chosen.fastest, chosen.out_of_range)
        return {"speed": speeds}

    def earned(self, speed: Tensor, task: RobotTask) -> Tensor:
        """How near speeds `[W]`, m/s, are to those asked for, and the bonus."""
        assert isinstance(task, TargetSpeed)
        return self.definition.bonus - (speed - task.speed).abs()


@dataclass(frozen=True)
class Walker2dVel(LegsVel, Walker2d):
    """Run at a target speed on two legs.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the torso | m | (0.8, 2) |
    | 1 | pitch of the torso | rad | (-1, 1) |
    | 2, 3, 4 | right thigh, leg, foot | rad | about [-2.6, 0], [-2.6, 0], [-0.8, 0.8] |
    | 5, 6, 7 | left thigh, leg, foot | rad | as above |
    | 8, 9 | forward and upward velocity of the torso | m/s | [-10, 10] |
    | 10 to 16 | pitch rate, and rates of the joints 2 to 7 | rad/s | [-10, 10] |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | right thigh, leg, foot motor: 1 is 100 N m | - | [-1, 1] |
    | 3, 4, 5 | left thigh, leg, foot motor: 1 is 100 N m | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 | target speed v* (preset reachable) | m/s | [0, 2], out-of-range (2, 3] |
    | 0 | target speed v* (preset promp) | m/s | [0, 10], out-of-range (10, 12] |

    The reward is -|vx - v*| + 2 - 0.001 |u|² (promp: + 15), where vx is the distance that the torso
    moved during the step divided by its 8 ms (promp: 16 ms). An episode ends when the torso is
    below 0.8 m or above 2 m, or leans by 1 rad.
    """

    name: ClassVar[str] = "walker2d-vel"
    preset: Preset = "reachable"
    """which definition: reachable (speeds up to 2 m/s) or promp (as published, up to 10 m/s)"""
    if not TYPE_CHECKING:
        frame_skip: ClassVar[property] = property(lambda self: self.definition.frame_skip)

    def __post_init__(self) -> None:
        """Check the options."""
        if self.preset not in SPEED_PRESETS:
            raise UsageError(
                f"family {self.name}: unknown preset {self.preset!r}; "
                f"choose from {', '.join(SPEED_PRESETS)}"
            )
        super().__post_init__()

    @property
    def definition(self) -> SpeedPreset:
        """That of the preset."""
        return SPEED_PRESETS[self.preset]

    @property
    def gymnasium_options(self) -> dict[str, Any]:  # type: ignore[override]
        """As long control steps as ours."""
        return {"frame_skip": self.frame_skip}


@dataclass(frozen=True)
class HopperVel(LegsVel, Hopper):
    """Hop at a target speed.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the torso | m | above 0.7 |
    | 1 | pitch of the torso | rad | (-0.2, 0.2) |
    | 2, 3, 4 | thigh, leg, foot | rad | about [-2.6, 0], [-2.6, 0], [-0.8, 0.8] |
    | 5, 6 | forward and upward velocity of the torso | m/s | [-10, 10] |
    | 7 to 10 | pitch rate, and rates of the joints 2 to 4 | rad/s | [-10, 10] |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | thigh, leg, foot motor: 1 is 200 N m | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 | target speed v* | m/s | [0, 2], out-of-range (2, 3] |

    The reward is -|vx - v*| + 2 - 0.001 |u|², where vx is the distance that the torso moved during
    the step divided by its 8 ms. An episode ends when the torso is below 0.7 m or leans by 0.2 rad.
    """

    name: ClassVar[str] = "hopper-vel"
