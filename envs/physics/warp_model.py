"""A MuJoCo model on a device, whose fields may differ from world to world, by MuJoCo Warp.

MuJoCo Warp reads a field `[R, ...]` of its model at row `world % R`. A field is shared, R = 1,
until it is randomised; then it has a row for each world.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import mujoco
from torch import Tensor

from metarl.envs.physics.model import Model
from metarl.envs.physics.warp_contacts import contact_filter
from metarl.errors import UsageError

_log = logging.getLogger("metarl.physics")

DERIVED_CONSTANTS = (
    "body_subtreemass",
    "body_invweight0",
    "dof_invweight0",
    "tendon_invweight0",
    "tendon_length0",
    "actuator_acc0",
    "geom_aabb",
    "geom_rbound",
    "eq_data",
)
"""What MuJoCo Warp derives from other fields of a model; cameras and lights apart, which move
nothing."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """How much room there is for contacts: MuJoCo Warp allocates it in advance."""

    contacts: int | None = None
    """contacts a world has on average over all worlds, at most; None: MuJoCo Warp's guess"""
    constraints: int | None = None
    """rows of constraints in any one world, at most: each contact has several, each joint at its
    limit one; None: MuJoCo Warp's guess"""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not None and value < 1:
                raise UsageError(f"max_{field.name} must be at least 1, got {value}")


def import_warp() -> tuple[Any, Any]:
    """The modules `warp` and `mujoco_warp`.

    Raises:
        UsageError: if they are not installed.
    """
    try:
        warp = import_module("warp")
        # Which kernels are compiled is of no interest, and what a driver lacks is told in one
        # sentence where a GPU is asked for.
        level = max(warp.config.log_level, warp.LOG_WARNING)
        warp.config.log_level = warp.LOG_ERROR
        try:
            warp.init()
            return warp, import_module("mujoco_warp")
        finally:
            warp.config.log_level = level
    except ImportError as error:
        raise UsageError(
            "physics on a GPU needs MuJoCo Warp, which is not installed; install it with: "
            f"pip install 'metarl[gpu]' ({error})"
        ) from None


def for_warp(model: Model) -> mujoco.MjModel:
    """A model as MuJoCo Warp can run it: it has no PGS solver, for which Newton's is taken."""
    compiled = model.compiled
    if compiled.opt.solver != mujoco.mjtSolver.mjSOL_PGS:
        return compiled
    compiled = copy.copy(compiled)
    compiled.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
    return compiled


def _refusal(model: Model, error: Exception) -> UsageError:
    """One sentence of what MuJoCo Warp says of a model it cannot run."""
    reason = " ".join(str(error).split()).rstrip(".").replace("is unsupported", "not supported")
    return UsageError(
        f"model file {model.path} cannot run on a GPU, whose physics is MuJoCo Warp: {reason}; "
        "take that out of the model, or choose mujoco as the family's backend"
    )


class WarpModel:
    """Constants of `num_worlds` simulations of one model, on the current device of Warp."""

    def __init__(self, model: Model, num_worlds: int) -> None:
        """Put the model on the device.

        Raises:
            UsageError: for features of the model that MuJoCo Warp does not have.
        """
        self._warp, self._mjw = import_warp()
        self.num_worlds = num_worlds
        self.compiled = for_warp(model)
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                self.arrays = self._mjw.put_model(self.compiled)
        except (NotImplementedError, ValueError) as error:
            raise _refusal(model, error) from None
        for warning in said:
            _log.debug("MuJoCo Warp: %s", warning.message)
        # What finds no room is counted on the device; lines from it would be slow.
        self.arrays.opt.warn_overflow = False
        self.arrays.callback.contactfilter = contact_filter(self.compiled.geom_type)
        self._own: dict[str, Tensor] = {}
        self._shared: dict[str, Tensor] = {}

    def _holder(self, name: str) -> tuple[Any, str]:
        """Where a field is, and its name there."""
        inner = name.removeprefix("opt.")
        return (self.arrays.opt if name.startswith("opt.") else self.arrays), inner

    def varies(self, name: str) -> bool:
        """Whether MuJoCo Warp can give every world its own values of a field of `MjModel`."""
        holder, inner = self._holder(name)
        for field in dataclasses.fields(holder):
            if field.name == inner:
                return tuple(getattr(field.type, "shape", ()))[:1] == ("*",)
        return False

    def expand(self, names: Iterable[str]) -> bool:
        """Give every world a row of its own; whether any of the fields moved in memory."""
        moved = False
        for name in names:
            holder, inner = self._holder(name)
            shared = getattr(holder, inner)
            if name in self._own or shared.size == 0:
                continue
            shape = (self.num_worlds, *shared.shape[1:])
            own = self._warp.empty(shape, dtype=shared.dtype)
            self._own[name] = self._warp.to_torch(own)
            self._shared[name] = self._warp.to_torch(shared).clone()
            self._own[name].copy_(self._shared[name])
            setattr(holder, inner, own)
            moved = True
        return moved

    def values(self, name: str) -> Tensor:
        """The rows of a field that has them, live, float32 `[num_worlds, ...]`."""
        return self._own[name]

    def restore(self) -> None:
        """Give all worlds the model's values again; derived constants would differ in their bits.

        They were computed by MuJoCo, in double precision.
        """
        for name, own in self._own.items():
            own.copy_(self._shared[name])

    def derives(self, name: str) -> bool:
        """Whether constants are derived from a field."""
        return name in mujoco.MjModel._setconst_inputs or name.startswith("opt.")

    def derive(self, data: Any) -> bool:
        """Derive constants anew from the fields; whether any of them moved in memory."""
        moved = self.expand(DERIVED_CONSTANTS)
        self._mjw.set_const(self.arrays, data)
        return moved
