"""Humanoid that must walk in an unknown direction.

The robot is gymnasium's `humanoid.xml` (a free body with 17 joints and as many motors), advanced by
five substeps of 3 ms per control step. Positions and velocities of an episode begin off by
U[-0.01, 0.01].

The task is that of Rakelly et al. 2019 (Rothfuss et al. 2019 have the same). Their code divides the
way of a control step by the duration of one substep, so the weight of the speed is 0.25 x 5 = 1.25,
that of gymnasium's humanoid. One difference: the contact forces are those at the beginning of the
last substep (see `metarl.envs.forces`); their simulator, MuJoCo 1.5, had those of the state shown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarl.envs.forces import with_contact_forces
from metarl.envs.goals import Heading, sample_angles
from metarl.envs.physics import Limits, Model
from metarl.envs.robot import Robot, RobotTask, State, gymnasium_model
from metarl.errors import UsageError
from metarl.tasks import Split, TaskKind

Observation = Literal["pearl", "gymnasium", "proprioception"]

SPEED_WEIGHT = 0.25
"""reward for a metre along the heading, times the duration of a substep, s"""
CONTROL_COST = 0.1
"""reward lost per squared motor command"""
IMPACT_COST = 5e-7
"""reward lost per squared contact force, N² and (N m)²"""
MAX_IMPACT_COST = 10.0
ALIVE_BONUS = 5.0
"""reward for every step, the last one too"""
HEIGHTS = (1.0, 2.0)
"""of the torso, m, between which the humanoid has not fallen"""

_WIDTH: dict[Observation, int] = {"pearl": 376, "gymnasium": 348, "proprioception": 45}


@dataclass(frozen=True)
class HumanoidDir(Robot):
    """Walk in a direction of the plane.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the torso | m | [1, 2] |
    | 1 to 4 | orientation of the torso, quaternion w x y z | - | [-1, 1] |
    | 5, 6, 7 | abdomen z, y, x | rad | about [-1.3, 0.8] |
    | 8 to 11 | right hip x, z, y, knee | rad | about [-2.8, 0.6] |
    | 12 to 15 | left hip x, z, y, knee | rad | about [-2.8, 0.6] |
    | 16 to 21 | right, left shoulder 1, 2, elbow | rad | about ±1.5 |
    | 22, 23, 24 | velocity of the torso | m/s | unbounded |
    | 25 to 44 | angular velocity of the torso, rates of the joints 5 to 21 | rad/s | unbounded |
    | 45 to 184 | inertia of world and 13 bodies, ten each | kg m², kg m, kg | unbounded |
    | 185 to 268 | angular, linear velocity of world and bodies | rad/s, m/s | unbounded |
    | 269 to 291 | forces of the motors on the 23 degrees of freedom | N, N m | unbounded |
    | 292 to 375 | torque and force on world and bodies from outside | N m, N | unbounded |

    45 to 291 are of the last evaluation of the dynamics within the step, as MuJoCo leaves them, and
    the rest of the beginning of its last substep. That is the observation `pearl`; `gymnasium`, 348
    numbers, is the same without the world and the six degrees of freedom that have no motor;
    `proprioception` is the first 45.

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | abdomen y, z, x motor: 1 is 40 N m | - | [-1, 1] |
    | 3 to 6 | right hip x, z, y, knee motor: 1 is 40, 40, 120, 80 N m | - | [-1, 1] |
    | 7 to 10 | left hip x, z, y, knee motor: 1 is 40, 40, 120, 80 N m | - | [-1, 1] |
    | 11 to 16 | right, left shoulder 1, 2, elbow motor: 1 is 10 N m | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | heading d: cosine and sine | - | the unit circle |

    The reward is 0.25 d·(c' - c) / 3 ms - 0.1 |u|² - min(5e-7 |f|², 10) + 5, with the robot's
    centre of mass before and after the step, c and c', the command u = 0.4 times the action, and
    the forces and torques from outside f. An episode ends when the torso is lower than 1 m or
    higher than 2 m.
    """

    name: ClassVar[str] = "humanoid-dir"
    gymnasium_id: ClassVar[str] = "Humanoid-v5"
    task_class: ClassVar[type[RobotTask]] = Heading
    task_kind: ClassVar[TaskKind] = "continuous"
    frame_skip: ClassVar[int] = 5
    reset_noise: ClassVar[float] = 0.01
    remembers: ClassVar[tuple[str, ...]] = ("subtree_com",)
    room: ClassVar[Limits] = Limits(contacts=32, constraints=112)
    episodes: int = 2
    horizon: int = 200
    observation: Observation = "pearl"
    """pearl (376 numbers, as published), gymnasium (348) or proprioception (45)"""

    def __post_init__(self) -> None:
        """Check the options."""
        if self.observation not in _WIDTH:
            raise UsageError(
                f"family {self.name}: unknown observation {self.observation!r}; "
                f"choose from {', '.join(_WIDTH)}"
            )
        super().__post_init__()

    def model(self) -> Model:
        """The model that gymnasium ships, with contact forces."""
        return with_contact_forces(gymnasium_model("humanoid.xml"))

    @property
    def observations(self) -> int:
        """By the observation chosen."""
        return _WIDTH[self.observation]

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Inertias, velocities and motor forces of bodies only where they are shown."""
        fields = ("qpos", "qvel", "subtree_com", "cfrc_ext")
        if self.observation == "proprioception":
            return fields
        return (*fields, "cinert", "cvel", "qfrc_actuator")

    def observe(self, state: State) -> Tensor:
        """See the table."""
        parts = [state["qpos"][:, 2:], state["qvel"]]
        if self.observation != "proprioception":
            body, dof = (0, 0) if self.observation == "pearl" else (1, 6)
            parts += [state[name][:, body:].flatten(1) for name in ("cinert", "cvel")]
            parts.append(state["qfrc_actuator"][:, dof:])
            parts.append(state["cfrc_ext"][:, body:].flatten(1))
        return torch.cat(parts, -1)

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """Way along the heading, a bonus for each step, costs of commands and impacts."""
        assert isinstance(task, Heading)
        moved = after["subtree_com"][:, 0, :2] - before["subtree_com"][:, 0, :2]
        substep = self.dt / self.frame_skip
        earned = SPEED_WEIGHT * (task.heading * moved).sum(-1) / substep
        impact = IMPACT_COST * after["cfrc_ext"].square().sum((-1, -2))
        costs = CONTROL_COST * command.square().sum(-1) + impact.clamp(max=MAX_IMPACT_COST)
        return earned - costs + ALIVE_BONUS

    def terminated(self, state: State) -> Tensor:
        """Where the torso is too low or too high."""
        height = state["qpos"][:, 2]
        return ~((height >= HEIGHTS[0]) & (height <= HEIGHTS[1]))

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw headings from the stripes of the circle that belong to `split`."""
        return {"heading": sample_angles(n, split, generator)}
