"""Physics on a GPU: MuJoCo Warp steps thousands of worlds, and nothing of them leaves the device.

Fields are float32 tensors that share Warp's memory. The launches of a control step are recorded
once, as a graph, and then launched as one. Nothing is looked at in between: which worlds became
unstable, and where contacts found no room, is kept on the device until `troubles` asks for it.

On Warp's CPU device the same code runs on a CPU, at a fifth to two fifths of `CpuPhysics`' speed.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping

import mujoco
import numpy as np
import torch
from torch import Tensor

from metarl.envs.physics.cpu import DERIVED, MODEL, MOVED, check_model_field, with_prefix
from metarl.envs.physics.interface import Snapshot, Troubles
from metarl.envs.physics.model import Model
from metarl.envs.physics.warp_device import require_memory, require_warp
from metarl.envs.physics.warp_launch import Launcher
from metarl.envs.physics.warp_memory import allocate
from metarl.envs.physics.warp_model import Limits, WarpModel, import_warp
from metarl.envs.physics.warp_state import State, choose
from metarl.errors import UsageError

_KINEMATIC = frozenset(
    {"xpos", "xquat", "xmat", "xipos", "ximat", "xanchor", "xaxis", "geom_xpos", "geom_xmat"}
    | {"site_xpos", "site_xmat", "cam_xpos", "cam_xmat", "subtree_com", "cinert", "cdof"}
)
"""derived fields that follow from positions without the rest of the dynamics"""
_HUGE = 1e10
_log = logging.getLogger("metarl.physics")
_UNSTABLE = "state not finite after the step"

_NO_ROOM = {
    "constraints": ("NEFC", "NJMAX_NNZ"),
    "contacts": ("BROADPHASE", "NARROWPHASE", "CCD", "HFIELD", "EPA_HORIZON"),
}
"""MuJoCo Warp's flags of overflow, by the limit that is too low"""


class WarpPhysics:
    """`Physics` on MuJoCo Warp."""

    deferred = True

    def __init__(
        self,
        model: Model,
        num_worlds: int,
        device: torch.device | str = "cuda",
        limits: Limits | None = None,
    ) -> None:
        """Make `num_worlds` simulations of `model` on `device`: a CUDA device, or Warp's CPU.

        Raises:
            UsageError: unless there is at least one world, Warp is installed and goes with the
                device, the model has only features that MuJoCo Warp has, and so many worlds fit.
        """
        if num_worlds < 1:
            raise UsageError(
                f"physics of {model.path}: num_worlds must be at least 1, got {num_worlds}"
            )
        self.device = require_warp(device)
        self._warp, self._mjw = import_warp()
        self.model, self.num_worlds = model, num_worlds
        self.timestep = float(model.compiled.opt.timestep)
        self.limits = limits or Limits()
        if self.device.type == "cuda":
            if torch.are_deterministic_algorithms_enabled():
                _log.warning(
                    "physics of %s: MuJoCo Warp adds up contacts in the order in which its threads "
                    "find them, so that the same seed does not give the same bits; MuJoCo's own "
                    "does, by the family's option backend",
                    model.path,
                )
            require_memory(model, num_worlds, self.limits, self.device)
        self._launcher = Launcher(self._warp, self.device)
        with self._launcher.in_order():
            self._model = WarpModel(model, num_worlds)
            self._data = allocate(self._model.compiled, num_worlds, self.limits)
            self._mjw.forward(self._model.arrays, self._data)
        self._state = State(self._data, self._view)
        self._fields = dict(self._state.views)
        self._derived: dict[str, Tensor] = {}
        self._default_derived: dict[str, Tensor] = {}
        self._randomised: dict[str, str] = {}
        self._substeps = 0
        self._default = self._state.rows()[:1]
        self._before = self._state.rows()
        self._qacc, self._flags = self._view("qacc"), self._view("overflow")
        self._unstable = torch.zeros(num_worlds, dtype=torch.int64, device=self.device)
        self._overflow = {limit: self._unstable for limit in _NO_ROOM}
        flags = self._mjw.OverflowType
        self._bits = {limit: sum(int(flags[k]) for k in names) for limit, names in _NO_ROOM.items()}

    # --- fields ----------------------------------------------------------------------------

    def _view(self, name: str) -> Tensor:
        """A field of MuJoCo's data as a tensor that shares its memory."""
        array = getattr(self._data, name)
        inner = tuple(getattr(array.dtype, "_shape_", ()))
        if array.size:
            view: Tensor = self._warp.to_torch(array)
        else:
            view = torch.empty(*array.shape, *inner, device=self.device)
        # A matrix is nine numbers in a row, as MuJoCo has it.
        return view.flatten(-2) if len(inner) == 2 else view

    def field(self, name: str) -> Tensor:
        """See `Physics.field`; float32."""
        if name in self._fields:
            return self._fields[name]
        array = getattr(self._data, name, None)
        if not isinstance(array, self._warp.array) or array.shape[:1] != (self.num_worlds,):
            raise UsageError(
                f"physics of {self.model.path}: no field named {name!r} for each world in the "
                "data of MuJoCo Warp"
            )
        self._fields[name] = self._view(name)
        if array.size:
            self._derived[name] = self._fields[name]
            self._remember_default(name)
        return self._fields[name]

    def _remember_default(self, name: str) -> None:
        """Keep what a derived field is in the model's default state, for unstable worlds."""
        now = self._state.rows()
        with self._launcher.in_order():
            self._state.write(self._default)
            self._mjw.forward(self._model.arrays, self._data)
            self._default_derived[name] = self._derived[name][:1].clone()
            self._state.write(now)
            self._mjw.forward(self._model.arrays, self._data)
            self._state.write(now)

    # --- stepping --------------------------------------------------------------------------

    def _launch(self, name: tuple[object, ...], launches: Callable[[], None]) -> None:
        """Launch something that may change the state; see `Launcher.launch`."""
        now = self._state.rows()

        def undo() -> None:
            self._state.write(now)
            self._flags.zero_()

        self._launcher.launch(name, launches, undo)

    def step(
        self, ctrl: Tensor, n_substeps: int, worlds: Tensor | None = None, *, current: bool = False
    ) -> Tensor | None:
        """See `Physics.step`; never None, since that would have to wait for the device."""
        self._fields["ctrl"].copy_(ctrl)
        before = self._state.rows()
        derived = self._copy_derived() if worlds is not None else {}
        model, data = self._model.arrays, self._data

        def substeps() -> None:
            for _ in range(n_substeps):
                self._mjw.step(model, data)

        self._launch(("step", n_substeps), substeps)
        self._substeps = n_substeps
        self._count_overflow(worlds)
        # MuJoCo Warp cuts a control that is NaN to its range, and goes on.
        fields = [self._fields[name] for name in ("ctrl", "qpos", "qvel")]
        # A comparison with NaN is false.
        unstable = ~(torch.cat([*fields, self._qacc], -1).abs() < _HUGE).all(-1)
        if worlds is not None:
            unstable = unstable & worlds
            self._state.write(before, ~worlds)
            for name, view in self._derived.items():
                choose(view, ~worlds, derived[name])
        self._before = torch.where(unstable.unsqueeze(-1), before, self._before)
        self._unstable = self._unstable + unstable
        if current:
            self._refresh(torch.ones_like(unstable) if worlds is None else worlds, kinematic=True)
        self._state.write(self._default, unstable)
        for name, view in self._derived.items():
            choose(view, unstable, self._default_derived[name])
        return unstable

    def _count_overflow(self, worlds: Tensor | None) -> None:
        """Count the steps in which something found no room, by world and limit."""
        for limit, bits in self._bits.items():
            over = (self._flags & bits) != 0
            if worlds is not None:
                over = over & worlds
            self._overflow[limit] = self._overflow[limit] + over
        self._flags.zero_()

    def _copy_derived(self) -> dict[str, Tensor]:
        return {name: view.clone() for name, view in self._derived.items()}

    def _refresh(self, mask: Tensor, *, kinematic: bool = False) -> None:
        """Compute derived fields of the worlds in `mask` from their present state.

        The dynamics are computed for all worlds, which is cheaper than to look who needs it;
        what others have stays as it is.

        Args:
            mask: bool `[num_worlds]`.
            kinematic: only positions.
        """
        names = [name for name in self._derived if not kinematic or name in _KINEMATIC]
        if not names:
            return
        kinematic = kinematic or _KINEMATIC.issuperset(names)
        before, rows = self._copy_derived(), self._state.rows()
        model, data, mjw = self._model.arrays, self._data, self._mjw

        def positions() -> None:
            mjw.fwd_kinematics(model, data)

        def everything() -> None:
            mjw.forward(model, data)

        self._launch(("refresh", kinematic), positions if kinematic else everything)
        self._state.write(rows)
        for name, view in self._derived.items():
            keep = ~mask if name in names else torch.ones_like(mask)
            choose(view, keep, before[name])
        self._flags.zero_()

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """See `Physics.reset`."""
        mask = mask.to(self.device)
        self._state.write(self._default, mask)
        for name, values in (("qpos", qpos), ("qvel", qvel)):
            choose(self._fields[name], mask, values.to(self._fields[name]))
        self._refresh(mask)

    def put(self, mask: Tensor, states: Tensor) -> None:
        """See `Physics.put`."""
        self._state.write(states.to(self.device, torch.float32), mask.to(self.device))

    # --- models ----------------------------------------------------------------------------

    def randomise(self, fields: Mapping[str, Tensor], *, derive: bool = True) -> None:
        """See `Physics.randomise`; values are rounded to float32."""
        for name, values in fields.items():
            check_model_field(self, name, values)
            if not self._model.varies(name):
                raise UsageError(
                    f"physics of {self.model.path}: MuJoCo Warp cannot give every world its own "
                    f"{name}; leave it as it is, or choose mujoco as the family's backend"
                )
        with self._launcher.in_order():
            moved = self._model.expand(fields)
            for name, values in fields.items():
                if values.numel():
                    own = self._model.values(name)
                    own.copy_(values.reshape(own.shape))
                    self._randomised[name] = MODEL if derive else MOVED
            if derive and any(self._model.derives(name) for name in fields):
                rows, derived = self._state.rows(), self._copy_derived()
                moved = self._model.derive(self._data) or moved
                self._state.write(rows)
                for name, view in self._derived.items():
                    view.copy_(derived[name])
        if moved:
            self._launcher.forget()

    def shared(self, name: str) -> Tensor:
        """See `Physics.shared`; float64 on the device."""
        compiled = self._model.compiled
        holder = compiled.opt if name.startswith("opt.") else compiled
        values = torch.as_tensor(np.array(getattr(holder, name.removeprefix("opt."))))
        return values.to(self.device).expand(self.num_worlds, *values.shape)

    def look(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """See `Physics.look`; computed on the CPU, in double precision."""
        model = copy.copy(self._model.compiled)
        for name in self._randomised:
            holder = model.opt if name.startswith("opt.") else model
            inner = name.removeprefix("opt.")
            values = self._model.values(name)[world].double().cpu().numpy()
            if np.ndim(getattr(holder, inner)):
                field = getattr(holder, inner)
                field[...] = values.reshape(field.shape)
            else:
                setattr(holder, inner, float(values))
        data = mujoco.MjData(model)
        if MODEL in self._randomised.values():
            mujoco.mj_setConst(model, data)
        row = self._state.rows()[world].double().cpu().numpy()
        mujoco.mj_setState(model, data, row, mujoco.mjtState.mjSTATE_INTEGRATION)
        mujoco.mj_forward(model, data)
        return model, data

    # --- what is told, saved and restored ----------------------------------------------------

    def troubles(self) -> Troubles:
        """See `Physics.troubles`: waits for the device."""
        found = Troubles(
            self._unstable.cpu(),
            {name: counts.cpu() for name, counts in self._overflow.items()},
        )
        self._unstable = torch.zeros_like(self._unstable)
        self._overflow = {name: torch.zeros_like(x) for name, x in self._overflow.items()}
        return found

    def snapshot(self, world: int) -> Snapshot:
        """See `Physics.snapshot`; the step is the last one in which the world became unstable."""
        fields = {how + name: self._own(name, world) for name, how in self._randomised.items()}
        before = self._before[world].double().cpu().numpy()
        return Snapshot(before, fields, self._substeps, _UNSTABLE)

    def _own(self, name: str, world: int) -> np.ndarray:
        values: np.ndarray = self._model.values(name)[world].double().cpu().numpy()
        return values.reshape(tuple(self.shared(name).shape[1:]))

    def state_dict(self) -> dict[str, Tensor]:
        """See `Physics.state_dict`."""
        return {
            "rows": self._state.rows(),
            **{how + k: self._model.values(k).clone() for k, how in self._randomised.items()},
            **{DERIVED + name: values.clone() for name, values in self._derived.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Physics.load_state_dict`."""
        rows = state["rows"].to(self.device, torch.float32)
        if rows.shape != self._before.shape:
            raise UsageError(
                f"physics of {self.model.path}: the saved state has shape {tuple(rows.shape)}, "
                f"expected {tuple(self._before.shape)}"
            )
        saved, moved = with_prefix(state, MODEL), with_prefix(state, MOVED)
        self._model.restore()
        self.randomise(self._shaped(saved))
        if moved:
            self.randomise(self._shaped(moved), derive=False)
        self._randomised = {**dict.fromkeys(saved, MODEL), **dict.fromkeys(moved, MOVED)}
        for name, values in with_prefix(state, DERIVED).items():
            self.field(name).copy_(values)
        self._state.write(rows)

    def _shaped(self, fields: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: x.reshape(self.shared(name).shape) for name, x in fields.items()}
