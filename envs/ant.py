"""Ants that must run in an unknown direction, or to an unknown place.

The robot is gymnasium's `ant.xml` (a free body with four legs, 8 motors), advanced by five substeps
of 0.01 s per control step. An episode begins near the rest pose, positions off by U[-0.1, 0.1] and
velocities by 0.1 N(0, 1). Legs are named as seen from above with x forward; the model file has them
a quarter turn off.

| | observation | reward | ends | steps |
|---|---|---|---|---|
| `ant-dir`, preset `pearl` | 27 | v·d - 0.5 abs(u)² + 1 | torso outside [0.2, 1] m | 200 |
| `ant-dir`, preset `promp` | 111 | as above - 0.0005 abs(f)² | torso outside [0, 1] m | 200 |
| `ant-goal`, both | 113 | -abs(x - g)₁ - 0.1 abs(u)² - 0.0005 abs(f)² | never | 200 |

`pearl` is the definition of Rakelly et al. 2019, `promp` that of Rothfuss et al. 2019; f are the
contact forces on the 14 bodies, each number cut to [-1, 1]. Differences from the papers' code: its
simulators had contact forces (MuJoCo 1.5) or left them at zero (MuJoCo 2), so PEARL's ant-dir has
no cost of them here, as its observation has none; and they are those at the beginning of the last
substep (see `metarl.envs.forces`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarl.envs.forces import with_contact_forces
from metarl.envs.goals import Heading, Place, both_ways, sample_angles, sample_disc
from metarl.envs.physics import Limits, Model
from metarl.envs.robot import Robot, RobotTask, State, gymnasium_model
from metarl.errors import UsageError
from metarl.tasks import Split, TaskBatch, TaskKind

Preset = Literal["pearl", "promp"]
Directions = Literal["two", "all"]

CONTACT_COST = 5e-4
"""reward lost per squared contact force, cut to [-1, 1]"""
MAX_FORCE = 1.0
GOAL_RADIUS = 3.0
"""of the disc that goals lie in, m"""
OUT_OF_RANGE_RADIUS = 4.0
"""of the disc that out-of-range goals lie in, m"""
TORSO = 1
"""id of the body"""


@dataclass(frozen=True)
class Ant(Robot):
    """What all ants share."""

    gymnasium_id: ClassVar[str] = "Ant-v5"
    gymnasium_options: ClassVar[Mapping[str, object]] = {"include_cfrc_ext_in_observation": False}
    envpool_options: ClassVar[Mapping[str, object]] = {"use_contact_force": False}
    frame_skip: ClassVar[int] = 5
    reset_noise: ClassVar[float] = 0.1
    normal_velocities: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("xpos",)
    room: ClassVar[Limits] = Limits(contacts=12, constraints=56)
    episodes: int = 2
    horizon: int = 200

    @property
    def feels(self) -> bool:
        """Whether contact forces are shown, and cost."""
        return False

    @property
    def reads(self) -> tuple[str, ...]:  # type: ignore[override]
        """Contact forces only where they are needed."""
        fields = ("qpos", "qvel", "xpos")
        return (*fields, "cfrc_ext") if self.feels else fields

    def model(self) -> Model:
        """The model that gymnasium ships."""
        model = gymnasium_model("ant.xml")
        return with_contact_forces(model) if self.feels else model

    def forces(self, state: State) -> Tensor:
        """Contact forces and torques on all bodies, cut to [-1, 1], `[W, 84]`."""
        return state["cfrc_ext"].clamp(-MAX_FORCE, MAX_FORCE).flatten(1)

    def contact_cost(self, state: State) -> Tensor | float:
        """What contact forces cost, `[W]`."""
        return CONTACT_COST * self.forces(state).square().sum(-1) if self.feels else 0.0

    def velocity(self, before: State, after: State) -> Tensor:
        """Horizontal velocity of the torso over the control step, `[W, 2]`, m/s."""
        return (after["xpos"][:, TORSO, :2] - before["xpos"][:, TORSO, :2]) / self.dt


@dataclass(frozen=True)
class AntDir(Ant):
    """Run in an unknown direction: forward or backward, or any in the plane.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the torso | m | [0.2, 1] |
    | 1 to 4 | orientation of the torso, quaternion w x y z | - | [-1, 1] |
    | 5 to 12 | hip, ankle: front left, back left, back right, front right | rad | ±0.5, ±1.2 |
    | 13, 14, 15 | velocity of the torso | m/s | unbounded |
    | 16, 17, 18 | angular velocity of the torso | rad/s | unbounded |
    | 19 to 26 | rates of the joints 5 to 12 | rad/s | unbounded |
    | 27 to 110 | torque and force on each of 14 bodies (promp only) | N m, N | [-1, 1] |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | front right hip, ankle motor: 1 is 150 N m | - | [-1, 1] |
    | 2 to 7 | front left, back left, back right hip and ankle | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | heading d: cosine and sine | - | (±1, 0), or the unit circle |

    The reward is v·d - 0.5 |u|² + 1, where v is the torso's horizontal velocity over the step.
    An episode ends when the torso is lower than 0.2 m or higher than 1 m.
    """

    name: ClassVar[str] = "ant-dir"
    task_class: ClassVar[type[RobotTask]] = Heading
    task_kind: ClassVar[TaskKind] = "continuous"
    preset: Preset = "pearl"
    """whose published definition to use: pearl (27 observations) or promp (111, contact forces)"""
    directions: Directions = "two"
    """two: forward and backward, trained on and tested on as published; all: any heading"""

    def __post_init__(self) -> None:
        """Check the options."""
        for option, allowed in (("preset", ("pearl", "promp")), ("directions", ("two", "all"))):
            if getattr(self, option) not in allowed:
                raise UsageError(
                    f"family {self.name}: unknown {option} {getattr(self, option)!r}; "
                    f"choose from {', '.join(allowed)}"
                )
        object.__setattr__(self, "shared_splits", self.directions == "two")
        super().__post_init__()

    @property
    def feels(self) -> bool:
        """With the preset promp."""
        return self.preset == "promp"

    @property
    def observations(self) -> int:
        """27 numbers, and 84 of contact forces."""
        return 111 if self.feels else 27

    def observe(self, state: State) -> Tensor:
        """See the table."""
        parts = [state["qpos"][:, 2:], state["qvel"]]
        return torch.cat([*parts, self.forces(state)] if self.feels else parts, -1)

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """Speed along the heading, a bonus for each step, and costs."""
        assert isinstance(task, Heading)
        speed = (self.velocity(before, after) * task.heading).sum(-1)
        return speed - 0.5 * command.square().sum(-1) - self.contact_cost(after) + 1.0

    def terminated(self, state: State) -> Tensor:
        """Where the torso is too low or too high."""
        height, lowest = state["qpos"][:, 2], 0.0 if self.preset == "promp" else 0.2
        return ~((height >= lowest) & (height <= 1.0))

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Forward and backward in random order, or any heading."""
        if self.directions == "all":
            return {"heading": sample_angles(n, split, generator)}
        signs = both_ways(n, generator)
        return {"heading": torch.stack([signs, torch.zeros_like(signs)], -1)}


@dataclass(frozen=True)
class AntGoal(Ant):
    """Go to an unknown place within 3 m.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | position of the torso | m | unbounded |
    | 3 to 6 | orientation of the torso, quaternion w x y z | - | [-1, 1] |
    | 7 to 14 | hips and ankles | rad | about ±0.5, ±1.2 |
    | 15 to 17 | velocity of the torso | m/s | unbounded |
    | 18 to 28 | angular velocity of the torso, rates of the joints | rad/s | unbounded |
    | 29 to 112 | torque and force on each of 14 bodies | N m, N | [-1, 1] |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0 to 7 | motors of hips and ankles: 1 is 150 N m | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | goal g: x and y | m | disc of 3 m, out-of-range ring to 4 m |

    The reward is -|x - g|₁ - 0.1 |u|² - 0.0005 |f|², with the torso's place x after the step.
    """

    name: ClassVar[str] = "ant-goal"
    task_class: ClassVar[type[RobotTask]] = Place
    task_kind: ClassVar[TaskKind] = "continuous"
    splits: ClassVar[tuple[Split, ...]] = ("train", "held-out", "out-of-range")

    @property
    def feels(self) -> bool:
        """As published."""
        return True

    @property
    def observations(self) -> int:
        """113 numbers."""
        return 113

    def observe(self, state: State) -> Tensor:
        """See the table."""
        return torch.cat([state["qpos"], state["qvel"], self.forces(state)], -1)

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """How near the torso is, and costs."""
        assert isinstance(task, Place)
        away = (after["xpos"][:, TORSO, :2] - task.place).abs().sum(-1)
        return -away - 0.1 * command.square().sum(-1) - self.contact_cost(after)

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Uniform in the disc; out of range in the ring around it."""
        places = sample_disc(n, split, generator, GOAL_RADIUS, OUT_OF_RANGE_RADIUS)
        return {"place": places}

    def marker(self, tasks: TaskBatch, index: int) -> tuple[float, float, float]:
        """The goal, on the floor."""
        assert isinstance(tasks, Place)
        x, y = tasks.place[index].tolist()
        return x, y, 0.0
