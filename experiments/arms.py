"""Pictures of Meta-World's arms: each task on the model of its skill, its objects in place."""

from __future__ import annotations

import mujoco
from PIL import Image

from metarl.envs.metaworld.families import MetaWorld, Placement
from metarl.envs.metaworld.skills import skills
from metarl.envs.metaworld.starts import sawyer
from metarl.experiments.robots import SimulatedScene, Stage
from metarl.experiments.scenes import Moment

LOOK_AT = (0.0, 0.65, 0.13)
"""the middle of the part of the table where things happen, m"""
DISTANCE, AZIMUTH, ELEVATION = 1.4, 145.0, -25.0
"""of the camera, m and degrees: the models' own are upside down or far away, and from here neither
arm nor objects hide what happens"""
GOAL_RADIUS = 0.02
"""of the sphere that marks a goal, m"""


class ArmScene(SimulatedScene):
    """Sawyer at its `qpos`, at the left of the picture, with the objects before it."""

    family: MetaWorld
    batch: Placement

    def __init__(self, family: MetaWorld, tasks: Placement) -> None:
        """Open an off-screen renderer for every skill among the tasks.

        Raises:
            UsageError: if this machine has no OpenGL that works without a screen.
        """
        super().__init__(family, tasks)
        self.names = [family.skills[index] for index in tasks.which.argmax(-1).tolist()]
        vectors = tasks.vector.cpu().numpy()
        self.starts = [family.start(*pair) for pair in zip(self.names, vectors, strict=True)]
        self.stages: dict[str, Stage] = {}
        context = None
        for name in dict.fromkeys(self.names):
            model = sawyer(name, skills()[name].constants).model.compiled
            stage = self.stages[name] = Stage(model, context)
            stage.scene.flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = False
            context = stage.context
        self.camera = mujoco.MjvCamera()
        self.camera.lookat[:] = LOOK_AT
        self.camera.distance = DISTANCE
        self.camera.azimuth, self.camera.elevation = AZIMUTH, ELEVATION

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Render the arm, the objects and the goal."""
        stage = self.stages[self.names[world]]
        for name, values in self.starts[world].fields.items():
            getattr(stage.model, name)[:] = values.numpy()
        stage.pose(moment.state[: stage.model.nq])
        return stage.picture(self.camera, self.side, self.markers[world], GOAL_RADIUS)
