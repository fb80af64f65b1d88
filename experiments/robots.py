"""Pictures of simulated robots, rendered by MuJoCo without a screen."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from importlib import import_module
from textwrap import shorten
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from metarl.errors import UsageError
from metarl.experiments.scenes import SHARP, SIDE, Moment, Scene
from metarl.tasks import Family, TaskBatch

MARKER = (0.0, 0.62, 0.45, 1.0)
"""colour of a goal"""
_BACKENDS = ("egl", "osmesa", "glfw", "cgl")
_PROBE = (
    "import mujoco, mujoco.{0}; context = mujoco.{0}.GLContext(8, 8); context.make_current(); "
    "mujoco.MjrContext(mujoco.MjModel.from_xml_string('<mujoco/>'), 100)"
)
_DISTANCE = 3.2
"""of a free camera, in radii of the robot: what fits into MuJoCo's usual field of view"""
_PATIENCE = 60.0
"""for a library that does not answer, s"""


class Stage:
    """A model that is only looked at, and what renders it in any pose."""

    def __init__(self, model: mujoco.MjModel, context: Any = None) -> None:
        """Open an off-screen renderer for a copy of `model`; stages may share an OpenGL context.

        Raises:
            UsageError: if this machine has no OpenGL that works without a screen.
        """
        # The simulation goes on with its own model.
        self.model = model = copy.copy(model)
        self.data = mujoco.MjData(model)
        # Without a graphics card smooth edges come cheaper from a larger picture, and shadows
        # would take most of the time.
        model.vis.quality.offsamples = 0
        self.context, self.renderer = open_renderer(model, context)
        mujoco.mjr_resizeOffscreen(SHARP * SIDE, SHARP * SIDE, self.renderer)
        self.scene = mujoco.MjvScene(model, maxgeom=model.ngeom + 2000)
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SHADOW] = False
        mujoco.mj_forward(model, self.data)

    def pose(self, qpos: NDArray[np.float64]) -> None:
        """Bring the model into a pose `[nq]`."""
        self.data.qpos[:] = qpos
        mujoco.mj_forward(self.model, self.data)

    def picture(
        self,
        camera: mujoco.MjvCamera,
        side: int,
        marker: NDArray[np.float64] | None = None,
        radius: float = 0.0,
    ) -> Image.Image:
        """What a camera sees, `side` pixels square, with a sphere of `radius` m at the marker."""
        mujoco.mjv_updateScene(
            self.model,
            self.data,
            mujoco.MjvOption(),
            None,
            camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self.scene,
        )
        if marker is not None:
            self._add_sphere(marker, radius)
        side = SHARP * side
        viewport = mujoco.MjrRect(0, 0, side, side)
        pixels = np.empty((side, side, 3), dtype=np.uint8)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self.renderer)
        mujoco.mjr_render(viewport, self.scene, self.renderer)
        mujoco.mjr_readPixels(pixels, None, viewport, self.renderer)
        return Image.fromarray(np.flipud(pixels)).reduce(SHARP)

    def _add_sphere(self, place: NDArray[np.float64], radius: float) -> None:
        mujoco.mjv_initGeom(
            self.scene.geoms[self.scene.ngeom],
            mujoco.mjtGeom.mjGEOM_SPHERE,
            np.full(3, radius),
            place,
            np.eye(3).ravel(),
            np.array(MARKER, dtype=np.float32),
        )
        self.scene.ngeom += 1


class SimulatedScene(Scene):
    """What has states of MuJoCo and perhaps goals in space."""

    frames_per_second = 20
    most_pixels = 400_000  # without a graphics card every one takes its time

    def __init__(self, family: Family, tasks: TaskBatch) -> None:
        """Ask the family where the goals are."""
        super().__init__(family, tasks)
        self.markers = [self._marker(world) for world in range(len(tasks))]

    def _marker(self, world: int) -> NDArray[np.float64] | None:
        """Where a task's goal is, `[3]`, if the family knows such a place."""
        ask = getattr(self.family, "marker", None)
        place = None if ask is None else ask(self.batch, world)
        return None if place is None else np.asarray(place, dtype=np.float64)


class RobotScene(SimulatedScene):
    """A robot at its `qpos`, seen by a camera that stays with it."""

    def __init__(self, family: Family, tasks: TaskBatch, model: mujoco.MjModel) -> None:
        """Open an off-screen renderer.

        Raises:
            UsageError: if this machine has no OpenGL that works without a screen.
        """
        super().__init__(family, tasks)
        self.stage = Stage(model)
        self.model = self.stage.model
        self.view = View(self.model, self.stage.data)

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Render the robot, and the goal where there is one."""
        self.stage.pose(moment.state)
        marker = self.markers[world]
        camera = self.view.camera(self.stage.data, marker)
        return self.stage.picture(camera, self.side, marker, 0.12 * self.view.radius)


class View:
    """Where a robot is looked at from.

    Models bring cameras for many purposes. One that stays with the robot is taken, or one that is
    fixed to the world if the robot is, too; else a free one that looks at the robot. It is a free
    one, too, if a goal must be in the picture.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData) -> None:
        """Look at a model in the pose of `data`, which is the one that it begins in."""
        self.model = model
        moving = model.njnt > 0
        self.root = int(model.jnt_bodyid[0]) if moving else 0
        travels = (mujoco.mjtJoint.mjJNT_FREE, mujoco.mjtJoint.mjJNT_SLIDE)
        self.travels = moving and mujoco.mjtJoint(model.jnt_type[0]) in travels
        self.radius = self._radius(data)
        self.fixed = next((i for i in range(model.ncam) if self._suits(i)), None)

    def _radius(self, data: mujoco.MjData) -> float:
        """How far the robot reaches from its middle, or from where it is fixed, m."""
        own = (self.model.body_rootid == self.model.body_rootid[self.root])[self.model.geom_bodyid]
        own &= self.model.geom_rbound > 0  # those of planes are 0
        if not own.any():
            return float(self.model.stat.extent)
        away = np.linalg.norm(data.geom_xpos[own] - self._middle(data), axis=1)
        return float((away + self.model.geom_rbound[own]).max())

    def _middle(self, data: mujoco.MjData) -> NDArray[np.float64]:
        places = data.subtree_com if self.travels else data.xpos
        return np.array(places[self.root], dtype=np.float64)

    def _suits(self, index: int) -> bool:
        stays = (mujoco.mjtCamLight.mjCAMLIGHT_TRACK, mujoco.mjtCamLight.mjCAMLIGHT_TRACKCOM)
        if mujoco.mjtCamLight(self.model.cam_mode[index]) in stays:
            return True
        return not self.travels and self.model.cam_bodyid[index] == 0

    def camera(
        self, data: mujoco.MjData, marker: NDArray[np.float64] | None = None
    ) -> mujoco.MjvCamera:
        """The camera for a robot in the pose of `data`, and its goal `[3]` if it has one."""
        camera = mujoco.MjvCamera()
        if marker is None and self.fixed is not None:
            camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
            camera.fixedcamid = self.fixed
            return camera
        mujoco.mjv_defaultFreeCamera(self.model, camera)
        camera.lookat[:] = self._middle(data)
        camera.distance = _DISTANCE * self.radius
        if marker is not None and self.travels:
            apart = marker - camera.lookat
            camera.lookat[:] += 0.5 * apart
            camera.distance += float(np.linalg.norm(apart))
        return camera


def open_renderer(model: mujoco.MjModel, context: Any = None) -> tuple[Any, Any]:
    """An OpenGL context that needs no screen, made current, and MuJoCo's renderer in it.

    Unless one is given, it is made by the library that `MUJOCO_GL` names, or by the first that
    works here.

    Raises:
        UsageError: if none does; the sentence says what to install.
    """
    if context is not None:
        context.make_current()
        return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
    wanted = os.environ.get("MUJOCO_GL", "").lower().strip()
    usual = ("cgl",) if sys.platform == "darwin" else ("egl", "osmesa")
    problems = []
    for name in (wanted,) if wanted in _BACKENDS else usual:
        try:
            if name != wanted:
                _probe(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what fails is said below
                context = import_module(f"mujoco.{name}").GLContext(SIDE, SIDE)
                context.make_current()
            return context, mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # each library fails in its own way
            problems.append(f"{name}: {shorten(str(error), 100, placeholder='...')}")
    how = f"MUJOCO_GL={wanted}; " if wanted in _BACKENDS else ""
    raise UsageError(
        f"cannot render without a screen ({how}{'; '.join(problems)}); install libegl1 or "
        "libosmesa6 and set MUJOCO_GL to egl or osmesa, or leave it unset"
    )


def _probe(name: str) -> None:
    """Try a library in another process: in this one a failed attempt would spoil the next."""
    environment = {**os.environ, "MUJOCO_GL": name}
    attempt = subprocess.run(
        [sys.executable, "-c", _PROBE.format(name)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    if attempt.returncode != 0:
        lines = attempt.stderr.strip().splitlines() or [f"ended with code {attempt.returncode}"]
        raise RuntimeError(lines[-1])
