"""Robots of which an unknown joint or leg has no power.

Both run forward as fast as they can with what is left, the tasks of Nagabandi et al. 2019 on
gymnasium's models. The gear of the motors concerned is 0 in the world's own model, so they do
nothing whatever their command.

What differs from the paper's code: a control step lasts 0.05 s (there: one substep of rllab's
models), episodes begin as gymnasium's do and last 200 control steps (there: 1000 substeps, as long
for the half-cheetah), and speeds are differences over a control step, as its planner has them, not
the momentary velocity of the centre of mass.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarl.envs.physics import Limits, Model
from metarl.envs.robot import Robot, RobotTask, State, gymnasium_model
from metarl.tasks import Split, TaskKind

CONTROL_COST = 0.05
"""reward that the half-cheetah loses per squared command to a motor that has power"""
ALIVE_BONUS = 0.05
"""reward of the ant for every step"""
JOINTS = ("back thigh", "back shin", "back foot", "front thigh", "front shin", "front foot")
"""of the half-cheetah, in the order of its motors"""
LEGS = ("front left", "back left", "back right", "front right")
"""of the ant, in the published order, seen from above with x forward (the model file turns them)"""
LEG_MOTORS = ((2, 3), (4, 5), (6, 7), (0, 1))
"""ids of the motors of each leg: hip and ankle"""
LEG_GEOMS = ((3, 4), (6, 7), (9, 10), (12, 13))
"""ids of the geoms of each leg: above and below the ankle"""
TORSO = 1
"""id of the body in both models"""


@dataclass(frozen=True)
class PowerlessJoint(RobotTask):
    """Which joint of a half-cheetah has no power."""

    powerless: Tensor
    """float64 `[N, 6]`: 1 for that joint, 0 for the others"""

    def words(self, index: int) -> str:
        """The joint."""
        return f"no power: {JOINTS[int(self.powerless[index].argmax())]}"


@dataclass(frozen=True)
class PowerlessLeg(RobotTask):
    """Which leg of an ant has no power."""

    powerless: Tensor
    """float64 `[N, 4]`: 1 for that leg, 0 for the others"""

    def words(self, index: int) -> str:
        """The leg."""
        return f"no power: {LEGS[int(self.powerless[index].argmax())]} leg"


@dataclass(frozen=True)
class Crippled(Robot):
    """What the two robots share."""

    frame_skip: ClassVar[int] = 5
    reset_noise: ClassVar[float] = 0.1
    normal_velocities: ClassVar[bool] = True
    remembers: ClassVar[tuple[str, ...]] = ("subtree_com",)
    room: ClassVar[Limits] = Limits(contacts=12, constraints=56)
    parts: ClassVar[int]
    """how many joints or legs there are"""
    trained: ClassVar[tuple[int, ...]]
    """those that have no power in training; the others are held out"""
    episodes: int = 2
    horizon: int = 200

    def __post_init__(self) -> None:
        """Check the options; with dynamics, a task is more than one choice of several."""
        super().__post_init__()
        kind: TaskKind = "continuous" if len(self.parameters) else "one-hot"
        object.__setattr__(self, "task_kind", kind)

    @abstractmethod
    def power(self, task: RobotTask) -> Tensor:
        """Which motors have power, `[W, U]` of 0 and 1."""

    def task_fields(self, task: RobotTask, current: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """No gear for motors without power."""
        return {"actuator_gear": current("actuator_gear") * self.power(task).unsqueeze(-1)}

    def speed(self, before: State, after: State) -> Tensor:
        """Forward velocity of the centre of mass over the control step, `[W]`, m/s."""
        return (after["subtree_com"][:, TORSO, 0] - before["subtree_com"][:, TORSO, 0]) / self.dt

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw joints or legs that belong to `split`."""
        rest = tuple(i for i in range(self.parts) if i not in self.trained)
        choices = torch.tensor(self.trained if split == "train" else rest)
        drawn = choices[torch.randint(len(choices), (n,), generator=generator)]
        return {"powerless": torch.nn.functional.one_hot(drawn, self.parts).double()}


@dataclass(frozen=True)
class HalfCheetahCrippled(Crippled):
    """Run with a joint that has no power; in held-out tasks it is the back thigh, as published.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0 | height of the root above its rest height | m | unbounded |
    | 1 | pitch of the root | rad | unbounded |
    | 2, 3, 4 | back thigh, shin, foot | rad | about [-0.52, 1.05], [-0.79, 0.79], [-0.4, 0.79] |
    | 5, 6, 7 | front thigh, shin, foot | rad | about [-1, 0.7], [-1.2, 0.87], [-0.5, 0.5] |
    | 8, 9 | forward and upward velocity of the root | m/s | unbounded |
    | 10 | pitch rate of the root | rad/s | unbounded |
    | 11 to 16 | rates of the joints 2 to 7 | rad/s | unbounded |
    | 17, 18, 19 | x, y, z of the robot's centre of mass one substep ago | m | unbounded |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | back thigh, shin, foot motor: 1 is 120, 90, 60 N m | - | [-1, 1] |
    | 3, 4, 5 | front thigh, shin, foot motor: 1 is 120, 60, 30 N m | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 to 5 | 1 for the joint without power | - | train: joints 1 to 5, held-out: joint 0 |

    The reward is vx - 0.05 |u|², with the forward velocity vx of the centre of mass over the step
    and the commands u of the motors that have power. An episode never terminates.
    """

    name: ClassVar[str] = "half-cheetah-crippled"
    gymnasium_id: ClassVar[str] = "HalfCheetah-v5"
    task_class: ClassVar[type[RobotTask]] = PowerlessJoint
    task_kind: ClassVar[TaskKind] = "one-hot"
    reads: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "subtree_com")
    parts: ClassVar[int] = len(JOINTS)
    trained: ClassVar[tuple[int, ...]] = (1, 2, 3, 4, 5)

    def model(self) -> Model:
        """The model that gymnasium ships."""
        return gymnasium_model("half_cheetah.xml")

    @property
    def observations(self) -> int:
        """20 numbers."""
        return 20

    def observe(self, state: State) -> Tensor:
        """See the table."""
        centre = state["subtree_com"][:, TORSO]
        return torch.cat([state["qpos"][:, 1:], state["qvel"], centre], -1)

    def power(self, task: RobotTask) -> Tensor:
        """All motors but one, `[W, 6]`."""
        assert isinstance(task, PowerlessJoint)
        return 1.0 - task.powerless

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """Speed, less the cost of commands that do something."""
        cost = CONTROL_COST * (self.power(task) * command).square().sum(-1)
        return self.speed(before, after) - cost


@dataclass(frozen=True)
class AntCrippled(Crippled):
    """Run with a leg that has no power and is short; in held-out tasks the front right one.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0, 1, 2 | position of the torso | m | unbounded |
    | 3 to 6 | orientation of the torso, quaternion w x y z | - | [-1, 1] |
    | 7 to 14 | hip, ankle: front left, back left, back right, front right | rad | ±0.5, ±1.2 |
    | 15 to 17 | velocity of the torso | m/s | unbounded |
    | 18 to 28 | angular velocity of the torso, rates of the joints | rad/s | unbounded |
    | 29 to 37 | orientation of the torso, matrix by rows | - | [-1, 1] |
    | 38, 39, 40 | x, y, z of the robot's centre of mass | m | unbounded |

    29 to 40 are of the last evaluation of the dynamics within the step, as MuJoCo leaves them.

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | front right hip, ankle motor: 1 is 150 N m | - | [-1, 1] |
    | 2 to 7 | front left, back left, back right hip and ankle | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0 to 3 | 1 for the leg without power | - | train: legs 0 to 2, held-out: leg 3 |

    The legs are front left, back left, back right, front right. As published, the two capsules of
    the leg below the hip are half as long and half as thick, and the lower one lies as near to its
    joint as the upper one to its own; their mass stays. The reward is vx + 0.05, with the forward
    velocity vx of the centre of mass over the step. An episode never terminates.
    """

    name: ClassVar[str] = "ant-crippled"
    gymnasium_id: ClassVar[str] = "Ant-v5"
    task_class: ClassVar[type[RobotTask]] = PowerlessLeg
    task_kind: ClassVar[TaskKind] = "one-hot"
    reads: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xmat", "subtree_com")
    parts: ClassVar[int] = len(LEGS)
    trained: ClassVar[tuple[int, ...]] = (0, 1, 2)

    def model(self) -> Model:
        """The model that gymnasium ships."""
        return gymnasium_model("ant.xml")

    @property
    def observations(self) -> int:
        """41 numbers."""
        return 41

    def observe(self, state: State) -> Tensor:
        """See the table."""
        turned, centre = state["xmat"][:, TORSO].flatten(1), state["subtree_com"][:, TORSO]
        return torch.cat([state["qpos"], state["qvel"], turned, centre], -1)

    def power(self, task: RobotTask) -> Tensor:
        """All motors but two, `[W, 8]`."""
        assert isinstance(task, PowerlessLeg)
        power = torch.ones(len(task), 8, dtype=torch.float64, device=task.powerless.device)
        for leg, motors in enumerate(LEG_MOTORS):
            power[:, list(motors)] -= task.powerless[:, leg : leg + 1]
        return power

    def task_fields(self, task: RobotTask, current: Callable[[str], Tensor]) -> dict[str, Tensor]:
        """No gear, and a short leg."""
        assert isinstance(task, PowerlessLeg)
        size, place = current("geom_size").clone(), current("geom_pos").clone()
        for leg, (upper, lower) in enumerate(LEG_GEOMS):
            short = task.powerless[:, leg].bool()
            for geom in (upper, lower):
                size[short, geom] *= 0.5
            place[short, lower] = place[short, upper]
        return {**super().task_fields(task, current), "geom_size": size, "geom_pos": place}

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """Speed, and a bonus for each step."""
        return self.speed(before, after) + ALIVE_BONUS
