"""Pictures of simulated robots, rendered by MuJoCo without a screen."""

from __future__ import annotations

import copy
import os
import sys
from importlib import import_module
from typing import Any

import mujoco
import numpy as np
from PIL import Image

from metarl.errors import UsageError
from metarl.experiments.scenes import SHARP, SIDE, Moment, Scene
from metarl.tasks import Family, TaskBatch


class RobotScene(Scene):
    """A robot at its `qpos`, seen by the model's first camera or a free one."""

    frames_per_second = 20

    def __init__(self, family: Family, tasks: TaskBatch, model: mujoco.MjModel) -> None:
        """Open an off-screen renderer.

        Raises:
            UsageError: if this machine has no OpenGL that works without a screen.
        """
        super().__init__(family, tasks)
        # The simulation goes on with its own model; this one is only looked at.
        self.model = model = copy.copy(model)
        self.data = mujoco.MjData(model)
        self.context = _gl_context()
        # Without a graphics card smooth edges come cheaper from a larger picture, and shadows
        # would take most of the time.
        model.vis.quality.offsamples = 0
        self.renderer = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_resizeOffscreen(SHARP * SIDE, SHARP * SIDE, self.renderer)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.renderer)
        self.scene = mujoco.MjvScene(model, maxgeom=2000)
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        self.camera = mujoco.MjvCamera()
        if model.ncam:
            self.camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            self.camera.fixedcamid = 0
        else:
            mujoco.mjv_defaultFreeCamera(model, self.camera)

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Render the robot."""
        self.data.qpos[:] = moment.state
        mujoco.mj_forward(self.model, self.data)
        mujoco.mjv_updateScene(
            self.model,
            self.data,
            mujoco.MjvOption(),
            None,
            self.camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self.scene,
        )
        viewport = mujoco.MjrRect(0, 0, SHARP * SIDE, SHARP * SIDE)
        pixels = np.empty((SHARP * SIDE, SHARP * SIDE, 3), dtype=np.uint8)
        mujoco.mjr_render(viewport, self.scene, self.renderer)
        mujoco.mjr_readPixels(pixels, None, viewport, self.renderer)
        return Image.fromarray(np.flipud(pixels)).reduce(SHARP)


def _gl_context() -> Any:
    """Make an OpenGL context current that needs no screen, by the first way that works here."""
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    usual = ("cgl",) if sys.platform == "darwin" else ("egl", "osmesa")
    problems = []
    for name in (wanted,) if wanted in ("egl", "osmesa", "glfw", "cgl") else usual:
        try:
            context = import_module(f"mujoco.{name}").GLContext(SIDE, SIDE)
            context.make_current()
        except Exception as error:  # each library fails in its own way
            problems.append(f"{name}: {' '.join(str(error).split())[:80]}")
        else:
            return context
    raise UsageError(
        f"cannot render without a screen ({'; '.join(problems)}); install libegl1 or libosmesa6, "
        "or set MUJOCO_GL"
    )
