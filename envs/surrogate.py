"""A surrogate of the real robot: the same robot in another simulation, with flaws nobody models.

Whether a policy survives the step from its simulator to a machine cannot be measured without the
machine. What can be measured is whether it survives the step to a simulation that differs from its
own as simulations differ from machines: numerically (integrator, time step), in the contacts, and
in what lies between policy and motors (friction in the joints, a delay, imperfect sensors, weight
that the model lacks). No policy has been trained on any of it, and none is told of it.

What the surrogate differs in adds to the family's own randomisation: its tasks can be the nominal
robot or any other.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import mujoco
import torch

from metarl.envs.physics import CpuPhysics, Model
from metarl.envs.randomization import Randomization, Vary
from metarl.envs.robot import Robot
from metarl.envs.robot_worlds import RobotWorlds
from metarl.errors import UsageError

_INTEGRATORS = {
    "euler": mujoco.mjtIntegrator.mjINT_EULER,
    "rk4": mujoco.mjtIntegrator.mjINT_RK4,
    "implicit": mujoco.mjtIntegrator.mjINT_IMPLICIT,
    "implicitfast": mujoco.mjtIntegrator.mjINT_IMPLICITFAST,
}


@dataclass(frozen=True)
class Surrogate:
    """How the surrogate differs from the robot's model; every field is unknown to the policies."""

    integrator: str = "implicit"
    """euler, rk4, implicit or implicitfast; a model that has it already gets RK4, or implicit

    Not implicitfast: where damping of joints is all that depends on velocity, it is MuJoCo's
    Euler."""
    time_step: float = 0.5
    """factor on the duration of a substep; the control step keeps its own"""
    contact_time: float = 1.5
    """factor on the time constant of contacts (solref): above 1 they are softer"""
    contact_width: float = 2.0
    """factor on the depth over which contacts harden (solimp)"""
    elliptic: bool = True
    """friction has an elliptic cone, where the model has a pyramid"""
    impratio: float = 3.0
    """how much stiffer friction is than contact"""
    friction_loss: float = 0.02
    """dry friction in joints with a motor, as a share of the motor's largest torque or force"""
    density: float = 1.05
    """factor on mass and inertia of all bodies"""
    action_delay: int = 1
    """control steps until an action acts"""
    sensor_noise: float = 0.02
    """standard deviation of the noise on each observation, in its own unit"""
    sensor_bias: float = 0.02
    """standard deviation of the constant offsets of the observations, in their own units"""
    seed: int = 0
    """decides on these offsets"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that no simulation takes."""
        if self.integrator not in _INTEGRATORS:
            raise UsageError(
                f"surrogate: integrator must be one of {', '.join(_INTEGRATORS)}, "
                f"got {self.integrator!r}"
            )
        for name in ("time_step", "contact_time", "contact_width", "impratio", "density"):
            if not getattr(self, name) > 0:
                raise UsageError(f"surrogate: {name} must be above 0, got {getattr(self, name)}")
        for name in ("friction_loss", "action_delay", "sensor_noise", "sensor_bias"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"surrogate: {name} must be at least 0, got {getattr(self, name)}")

    def model(self, family: Robot) -> Model:
        """The robot's model with the other integrator, time step, contacts and joints."""
        nominal = family.model()
        compiled = copy.deepcopy(nominal.compiled)
        option = compiled.opt
        choices = [_INTEGRATORS[name] for name in (self.integrator, "rk4", "implicit")]
        option.integrator = next(x for x in choices if x != nominal.compiled.opt.integrator)
        # A whole number of substeps, so that the control step keeps its duration.
        substeps = max(round(family.dt / (self.time_step * option.timestep)), 1)
        option.timestep = family.dt / substeps
        if self.elliptic:
            option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
        option.impratio = self.impratio
        # Where solref is not positive it holds stiffness and damping instead of a time constant.
        compiled.geom_solref[compiled.geom_solref[:, 0] > 0, 0] *= self.contact_time
        compiled.geom_solimp[:, 2] *= self.contact_width
        self._rub(compiled)
        return Model(compiled, f"{nominal.path}, surrogate", nominal.xml)

    def _rub(self, compiled: mujoco.MjModel) -> None:
        """Give joints with a motor dry friction."""
        for actuator in range(compiled.nu):
            if compiled.actuator_trntype[actuator] != mujoco.mjtTrn.mjTRN_JOINT:
                continue
            limited = compiled.actuator_ctrllimited[actuator]
            reach = abs(compiled.actuator_ctrlrange[actuator]).max() if limited else 1.0
            gain = compiled.actuator_gainprm[actuator, 0]
            largest = abs(reach * gain * compiled.actuator_gear[actuator, 0])
            dof = compiled.jnt_dofadr[compiled.actuator_trnid[actuator, 0]]
            compiled.dof_frictionloss[dof] += self.friction_loss * largest

    def hidden(self, family: Robot) -> Randomization:
        """What else differs, as constants of a randomisation."""
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randn(family.observations, dtype=torch.float64, generator=generator)
        biases = (self.sensor_bias * drawn).tolist()
        return Randomization(
            (
                _always("density", self.density),
                _always("action_delay", float(self.action_delay)),
                _always("observation_noise", self.sensor_noise),
                *(_always("observation_bias", x, str(i)) for i, x in enumerate(biases)),
            )
        )

    def differences(self, family: Robot) -> dict[str, str]:
        """What the surrogate differs in, and how, in words."""
        mine, nominal = self.model(family).compiled.opt, family.model().compiled.opt
        names = {int(value): name for name, value in _INTEGRATORS.items()}
        return {
            "integrator": f"{names[mine.integrator]} instead of {names[nominal.integrator]}",
            "time step": f"{1e3 * mine.timestep:g} ms instead of {1e3 * nominal.timestep:g} ms",
            "control step": f"{1e3 * family.dt:g} ms, as in the simulator",
            "contacts": f"time constant x {self.contact_time:g}, width x {self.contact_width:g}",
            "friction of contacts": f"{'elliptic cone, ' * self.elliptic}"
            f"impedance ratio {self.impratio:g}",
            "dry friction in joints": f"{self.friction_loss:.3g} of the motor's largest torque",
            "mass and inertia": f"x {self.density:g}",
            "actions": f"{self.action_delay} control step{'s' * (self.action_delay != 1)} late",
            "sensors": f"noise {self.sensor_noise:g} and bias {self.sensor_bias:g} (standard "
            "deviations, in each observation's unit)",
        }

    def worlds(
        self, family: Robot, num_worlds: int, *, threads: int = 1, seed: int = 0
    ) -> RobotWorlds:
        """Build `num_worlds` surrogates of the family's robot, simulated by `threads` threads."""
        physics = CpuPhysics(self.model(family), num_worlds, threads)
        return RobotWorlds(family, physics, seed=seed, hidden=self.hidden(family))


def _always(quantity: str, value: float, *of: str) -> Vary:
    """A quantity that has the same value in all worlds."""
    return Vary(quantity, value, value, of=of)
