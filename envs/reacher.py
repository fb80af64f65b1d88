"""Arm of two links that must find an unknown place with its fingertip.

The robot is gymnasium's `reacher.xml`, advanced by two substeps of 0.01 s per control step. Joint
angles of an episode begin off by U[-0.1, 0.1] from a straight arm, their velocities by
U[-0.005, 0.005]. The task is that of gymnasium's Reacher-v5 with the goal hidden: what is not shown
is where the target is and how far it is away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarl.envs.goals import Place, sample_disc
from metarl.envs.physics import Limits, Model
from metarl.envs.robot import Robot, RobotTask, State, gymnasium_model
from metarl.tasks import Split, TaskBatch, TaskKind

GOAL_RADIUS = 0.2
"""of the disc that goals lie in, m: what the arm reaches"""
GOAL_HEIGHT = 0.01
"""of arm and target above the ground, m"""
VELOCITY_NOISE = 0.005
"""half-width of the uniform noise on the initial velocities, rad/s"""
FINGERTIP = 3
"""id of the body"""


@dataclass(frozen=True)
class ReacherGoal(Robot):
    """Bring the fingertip to a hidden place.

    | observation | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | cosine of the shoulder's and of the elbow's angle | - | [-1, 1] |
    | 2, 3 | sine of the shoulder's and of the elbow's angle | - | [-1, 1] |
    | 4, 5 | rate of the shoulder, of the elbow | rad/s | unbounded |
    | 6, 7 | x, y of the fingertip, as MuJoCo leaves it after the step | m | disc of 0.21 m |

    | action | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | shoulder, elbow motor: 1 is 200 N m (the joints have much inertia) | - | [-1, 1] |

    | task | meaning | unit | range |
    |---|---|---|---|
    | 0, 1 | goal g: x and y | m | disc of 0.2 m |

    The reward is -|x - g| - |u|², with the place x of the fingertip that is shown. An episode never
    terminates.
    """

    name: ClassVar[str] = "reacher-goal"
    gymnasium_id: ClassVar[str] = "Reacher-v5"
    task_class: ClassVar[type[RobotTask]] = Place
    task_kind: ClassVar[TaskKind] = "continuous"
    frame_skip: ClassVar[int] = 2
    reset_noise: ClassVar[float] = 0.1
    reads: ClassVar[tuple[str, ...]] = ("qpos", "qvel", "xpos")
    remembers: ClassVar[tuple[str, ...]] = ()
    room: ClassVar[Limits] = Limits(contacts=1, constraints=8)
    episodes: int = 2
    horizon: int = 50

    def model(self) -> Model:
        """The model that gymnasium ships."""
        return gymnasium_model("reacher.xml")

    @property
    def observations(self) -> int:
        """8 numbers."""
        return 8

    def observe(self, state: State) -> Tensor:
        """See the table."""
        angles, rates = state["qpos"][:, :2], state["qvel"][:, :2]
        return torch.cat([angles.cos(), angles.sin(), rates, state["xpos"][:, FINGERTIP, :2]], -1)

    def reward(self, before: State, after: State, command: Tensor, task: RobotTask) -> Tensor:
        """How near the fingertip is, and the cost of the command."""
        assert isinstance(task, Place)
        away = (after["xpos"][:, FINGERTIP, :2] - task.place).square().sum(-1).sqrt()
        return -away - command.square().sum(-1)

    def initial_state(self, task: RobotTask, dq: Tensor, dv: Tensor) -> tuple[Tensor, Tensor]:
        """The arm nearly straight and at rest, the target at the goal."""
        assert isinstance(task, Place)
        qpos, qvel = super().initial_state(task, dq, dv * (VELOCITY_NOISE / self.reset_noise))
        still = torch.zeros_like(qvel[:, 2:])
        return torch.cat([qpos[:, :2], task.place], -1), torch.cat([qvel[:, :2], still], -1)

    def sample_goals(self, n: int, split: Split, generator: torch.Generator) -> dict[str, Tensor]:
        """Uniform in the disc; what lies outside cannot be reached."""
        return {"place": sample_disc(n, split, generator, GOAL_RADIUS, GOAL_RADIUS)}

    def marker(self, tasks: TaskBatch, index: int) -> tuple[float, float, float]:
        """The goal, at the height of the arm."""
        assert isinstance(tasks, Place)
        x, y = tasks.place[index].tolist()
        return x, y, GOAL_HEIGHT
