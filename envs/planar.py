"""Walker2d and hopper: planar legs that fall, with unknown bodies or an unknown target speed.

The robots are gymnasium's `walker2d_v5.xml` and `hopper.xml`, advanced by four substeps of 2 ms per
control step. Positions and velocities of an episode begin off by U[-0.005, 0.005]. An episode ends
when the robot falls.

- `*-rand-params` (Rothfuss et al. 2019; Rakelly et al. 2019): run forward with a body of unknown
  dynamics. Masses, inertias and frictions are multiplied by 1.5^U[-3, 3], joint dampings by
  1.3^U[-3, 3], element by element.
- `*-vel`: run at an unknown speed. `walker2d-vel` is the task of Rothfuss et al. with its range and
  frame skip as the preset `promp`; the default has speeds that a walker reaches within an episode.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarl.envs.physics import Model
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.robot import Robot, RobotTask, State, gymnasium_model
from metarl.tasks import TaskKind

CONTROL_COST = 1e-3
"""reward lost per squared motor command"""
ALIVE_BONUS = 1.0
"""reward for every step, the last one too"""
MAX_OBSERVED_VELOCITY = 10.0
"""velocities are shown cut to this, m/s and rad/s"""

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
