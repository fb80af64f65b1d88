"""Physics on a CPU: MuJoCo's own batch of simulations on a pool of C++ threads.

Every world is one row of MuJoCo's integration state, in double precision. State fields are views
of those rows, so reading and writing them copies nothing, and a world's trajectory is bit for bit
that of a plain `mj_step` loop, whatever the number of threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import mujoco
import numpy as np
import torch
from mujoco.batch import DATA_FIELDS, MODEL_FIELDS, Batch, SimulationError
from torch import Tensor

from metarl.envs.physics.interface import Physics, Snapshot, Troubles
from metarl.envs.physics.model import Model, capture_warnings
from metarl.errors import UsageError

_NOTHING, _POSITIONS = int(mujoco.mjtStage.mjSTAGE_NONE), int(mujoco.mjtStage.mjSTAGE_POS)
_BAD = slice(mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADCTRL + 1)
_BAD_NAMES = ("BADQPOS", "BADQVEL", "BADQACC", "BADCTRL")
_HUGE = 1e10
"""MuJoCo's own limit (mjMAXVAL): anything beyond counts as unstable."""

MODEL, MOVED, DERIVED = "model.", "moved.", "derived."
"""What names begin with in a saved state: those of a model's fields that were randomised, with the
constants derived from them or without, and those of data that follow from the state."""


def with_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def check_model_field(physics: Physics, name: str, values: Tensor) -> None:
    """Refuse values `[num_worlds, ...]` that no world can have of a field of `MjModel`.

    Raises:
        UsageError: for an unknown field, a wrong shape or values MuJoCo refuses.
    """
    where = f"physics of {physics.model.path}"
    if name not in MODEL_FIELDS:
        raise UsageError(f"{where}: no field named {name!r} in MjModel can be randomised")
    shape = tuple(physics.shared(name).shape)
    if tuple(values.shape) != shape:
        raise UsageError(f"{where}: {name} must have shape {shape}, got {tuple(values.shape)}")
    if not bool(torch.isfinite(values).all()):
        raise UsageError(f"{where}: {name} must be finite")
    # MuJoCo's compiler refuses such bodies, its batch does not.
    # Bodies that are part of another one may have none of their own.
    compiled = physics.model.compiled
    moving = torch.from_numpy((compiled.body_weldid != 0) & (compiled.body_mass > 0))
    positive = name in ("body_mass", "body_inertia")
    if positive and bool((values[:, moving.to(values.device)] <= 0).any()):
        raise UsageError(f"{where}: {name} of bodies that move must be above 0")


class CpuPhysics:
    """`Physics` on `mujoco.batch.Batch`; fields are float64 tensors that share its memory."""

    deferred = False

    def __init__(self, model: Model, num_worlds: int, threads: int = 1) -> None:
        """Make `num_worlds` simulations of `model`, stepped by `threads` threads.

        Raises:
            UsageError: unless both numbers are at least 1.
        """
        for name, value in (("num_worlds", num_worlds), ("threads", threads)):
            if value < 1:
                raise UsageError(f"physics of {model.path}: {name} must be at least 1, got {value}")
        capture_warnings()
        self.model = model
        self.num_worlds = num_worlds
        self.device = torch.device("cpu")
        self.timestep = float(model.compiled.opt.timestep)
        self._batch = Batch(model.compiled, num_worlds, threads)
        self._rows = torch.from_numpy(self._batch.state)
        self._default_row = self._rows[0].clone()
        self._before = self._batch.state.copy()
        self._substeps = 0
        self._counters = self._batch.warning[:, _BAD, 1]
        # Rows begin with time, positions and velocities: one pass checks the latter two.
        self._motion = self._batch.state[:, 1 : 1 + model.compiled.nq + model.compiled.nv]
        self._fields: dict[str, Tensor] = {}
        self._derived: dict[str, Tensor] = {}
        self._randomised: dict[str, str] = {}
        self._reasons: dict[int, str] = {}
        self._copy: tuple[mujoco.MjModel, mujoco.MjData] | None = None
        self._ctrl = self.field("ctrl")

    def field(self, name: str) -> Tensor:
        """See `Physics.field`. `cfrc_ext` is filled only if an acceleration sensor needs it."""
        if name not in self._fields:
            if name not in DATA_FIELDS:
                raise UsageError(f"physics of {self.model.path}: no field named {name!r} in MjData")
            array = self._batch.bind(name)
            with warnings.catch_warnings():
                # Derived fields are read-only arrays, which torch cannot express.
                warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
                self._fields[name] = torch.from_numpy(array)
            if not array.flags.writeable:
                self._derived[name] = self._fields[name]
                # MuJoCo fills a newly bound field at its next call only.
                self._batch.forward()
        return self._fields[name]

    def step(
        self, ctrl: Tensor, n_substeps: int, worlds: Tensor | None = None, *, current: bool = False
    ) -> Tensor | None:
        """See `Physics.step`."""
        self._ctrl.copy_(ctrl)
        # MuJoCo puts a world that blows up back to its start silently, so keep what it came from.
        np.copyto(self._before, self._batch.state)
        self._substeps = n_substeps
        failed = None
        try:
            ids = None if worlds is None else np.flatnonzero(worlds.cpu().numpy())
            self._batch.step(ids, nstep=n_substeps, stage=_POSITIONS if current else _NOTHING)
        except SimulationError as error:
            failed = error.ids
        # `not <` rather than `>=`: a maximum with a NaN in it is NaN.
        if failed is None and not self._counters.any() and np.abs(self._motion).max() < _HUGE:
            return None
        return self._recover(failed)

    def _recover(self, failed: np.ndarray | None) -> Tensor:
        """Name the unstable worlds, note why, and put them into the default state."""
        warned = self._counters > 0
        finite = (np.abs(self._motion) < _HUGE).all(axis=1)
        bad = warned.any(axis=1) | ~finite
        if failed is not None:
            bad[failed] = True
        ids = np.flatnonzero(bad)
        self._reasons = {}
        for world in ids.tolist():
            names = [name for name, hit in zip(_BAD_NAMES, warned[world], strict=True) if hit]
            if not finite[world]:
                names.append("state not finite after the step")
            if failed is not None and world in failed:
                names.append(self._batch.error(world))
            self._reasons[world] = ", ".join(names)
        # The counters add up over steps, and the next step must start from none.
        self._counters[...] = 0
        if len(ids):
            self._rows[ids] = self._default_row
            self._refresh(ids)
        return torch.from_numpy(bad)

    def _refresh(self, ids: np.ndarray) -> None:
        """Recompute the derived fields of worlds whose state was written."""
        if self._derived:
            self._batch.forward(ids)
            self._counters[ids] = 0

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """See `Physics.reset`."""
        ids = mask.to("cpu").nonzero()[:, 0]
        self._rows[ids] = self._default_row
        self.field("qpos")[ids] = qpos.to("cpu", torch.float64)[ids]
        self.field("qvel")[ids] = qvel.to("cpu", torch.float64)[ids]
        self._refresh(ids.numpy())

    def put(self, mask: Tensor, states: Tensor) -> None:
        """See `Physics.put`."""
        ids = mask.to("cpu").nonzero()[:, 0]
        self._rows[ids] = states.to("cpu", torch.float64)[ids]

    def randomise(self, fields: Mapping[str, Tensor], *, derive: bool = True) -> None:
        """See `Physics.randomise`; one `set_const` for all fields of the call."""
        for name, values in fields.items():
            check_model_field(self, name, values)
        for name, values in fields.items():
            self._batch.expand(name)[...] = values.to("cpu").numpy()
            self._randomised[name] = MODEL if derive else MOVED
        inputs = mujoco.MjModel._setconst_inputs
        if derive and any(name in inputs or name.startswith("opt.") for name in fields):
            self._batch.set_const()

    def look(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """See `Physics.look`."""
        if self._copy is None:
            self._copy = self._batch.get_model(world), self._batch.get_data(world)
        else:
            # Into the ones that are there: to make new ones takes a hundred times as long.
            self._batch.get_model(world, self._copy[0])
            self._batch.get_data(world, self._copy[1])
        mujoco.mj_forward(*self._copy)
        return self._copy

    def snapshot(self, world: int) -> Snapshot:
        """See `Physics.snapshot`."""
        fields = {k: values[world].copy() for k, values in self._own_fields().items()}
        reason = self._reasons.get(world, "")
        return Snapshot(self._before[world].copy(), fields, self._substeps, reason)

    def troubles(self) -> Troubles:
        """See `Physics.troubles`: none, since each step tells its own, and memory grows."""
        return Troubles(torch.zeros(self.num_worlds, dtype=torch.int64), {})

    def state_dict(self) -> dict[str, Tensor]:
        """See `Physics.state_dict`."""
        return {
            "rows": self._rows.clone(),
            **{k: torch.from_numpy(values.copy()) for k, values in self._own_fields().items()},
            **{DERIVED + name: values.clone() for name, values in self._derived.items()},
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """See `Physics.load_state_dict`."""
        if state["rows"].shape != self._rows.shape:
            raise UsageError(
                f"physics of {self.model.path}: the saved state has shape "
                f"{tuple(state['rows'].shape)}, expected {tuple(self._rows.shape)}"
            )
        # Fields that were shared when the state was saved get the model's values again.
        shared = {name: self.shared(name) for name in self._randomised}
        saved, moved = with_prefix(state, MODEL), with_prefix(state, MOVED)
        self.randomise({**shared, **saved})
        if moved:
            self.randomise(moved, derive=False)
        self._randomised = {**dict.fromkeys(saved, MODEL), **dict.fromkeys(moved, MOVED)}
        for name, values in with_prefix(state, DERIVED).items():
            self.field(name).copy_(values)
        self._rows.copy_(state["rows"])

    def _own_fields(self) -> dict[str, np.ndarray]:
        """The worlds' own values of the model's fields, by their names in a saved state."""
        return {how + name: self._batch.expand(name) for name, how in self._randomised.items()}

    def shared(self, name: str) -> Tensor:
        """See `Physics.shared`."""
        holder = self.model.compiled.opt if name.startswith("opt.") else self.model.compiled
        values = torch.as_tensor(np.array(getattr(holder, name.removeprefix("opt."))))
        return values.expand(self.num_worlds, *values.shape)
