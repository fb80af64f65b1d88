"""What a MuJoCo family stands on: many simulations of one model, stepped together.

Observation, reward and termination of a family are torch functions of the fields named here, so
that they are written once and run on every implementation of `Physics`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import mujoco
import numpy as np
import torch
from torch import Tensor

from metarl.envs.physics.model import Model


@dataclass(frozen=True)
class Snapshot:
    """All that is needed to repeat the last step of one world."""

    state: np.ndarray
    """float64 `[nstate]`: MuJoCo's integration state before the step, its control included"""
    fields: Mapping[str, np.ndarray]
    """the world's own values of the model's fields, by their names in a saved state"""
    substeps: int
    """physics steps that were taken"""
    reason: str
    """what MuJoCo or the finiteness check complained about"""


@dataclass(frozen=True)
class Troubles:
    """What went wrong in worlds whose steps were not looked at one by one."""

    unstable: Tensor
    """int64 `[num_worlds]`, on the CPU: control steps in which a world became unstable"""
    overflow: Mapping[str, Tensor]
    """by the limit that is too low, `contacts` or `constraints`, int64 `[num_worlds]`, on the CPU:
    control steps in which a world had more of them than there is room for"""


class Physics(Protocol):
    """Worlds `[num_worlds, ...]` that share one MuJoCo model, apart from randomised fields."""

    model: Model
    num_worlds: int
    device: torch.device
    """where the fields live"""
    timestep: float
    """duration of one substep, s"""
    deferred: bool
    """whether what goes wrong is kept on the device until `troubles` asks for it"""

    def field(self, name: str) -> Tensor:
        """A live view `[num_worlds, ...]` of an MjData field such as `qpos`, `xpos`, `sensordata`.

        State fields (`qpos`, `qvel`, `ctrl`, `mocap_pos`, ...) may be written in place. Derived
        fields (`xpos`, `sensordata`, ...) are read-only and, after `step`, describe the state
        before the last substep, as they do after `mj_step`.

        Raises:
            UsageError: for a name that is not such a field.
        """
        ...

    def step(
        self, ctrl: Tensor, n_substeps: int, worlds: Tensor | None = None, *, current: bool = False
    ) -> Tensor | None:
        """Advance worlds by `n_substeps` under `ctrl` `[num_worlds, nu]`.

        All of them, or those in `worlds` bool `[num_worlds]`; the others stay as they are. With
        `current`, derived positions (`xpos`, `site_xpos`, ...) describe the new state.

        Returns:
            bool `[num_worlds]`, true for worlds whose simulation became unstable. They have been
            put back into the model's default state, so that every field stays finite. None if all
            worlds are stable, where that is known without waiting for a device.
        """
        ...

    def reset(self, mask: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Put the worlds in `mask` `[num_worlds]` at `qpos` `[num_worlds, nq]` and `qvel`.

        All other state of these worlds (time, activations, forces, solver warm start) goes back
        to the model's defaults; worlds outside `mask` are not touched.
        """
        ...

    def put(self, mask: Tensor, states: Tensor) -> None:
        """Put the worlds in `mask` into `states` `[num_worlds, nstate]`.

        These are MuJoCo's integration states: all that the next step depends on. Derived fields
        of the worlds follow at that step only.
        """
        ...

    def randomise(self, fields: Mapping[str, Tensor], *, derive: bool = True) -> None:
        """Give worlds their own model: MjModel field name to values `[num_worlds, ...]`.

        Constants that MuJoCo derives from the fields (inverse weights and the like) follow, unless
        `derive` is false: for things that are only moved to another place.

        Raises:
            UsageError: for an unknown field, a wrong shape or values MuJoCo refuses.
        """
        ...

    def shared(self, name: str) -> Tensor:
        """The model's own values of a field, repeated for every world: `[num_worlds, ...]`."""
        ...

    def look(self, world: int) -> tuple[mujoco.MjModel, mujoco.MjData]:
        """A copy of one world's model and data after `mj_forward`: for what is no field.

        Contacts and their forces, for example. It is good until the next call, and takes a few
        times as long as a substep of the world.
        """
        ...

    def troubles(self) -> Troubles:
        """What went wrong since the last call, if that is `deferred`; waits for the device."""
        ...

    def snapshot(self, world: int) -> Snapshot:
        """How the last step of an unstable `world` began, so that it can be replayed."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Everything needed to go on bit for bit from here."""
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` returned for physics of the same model and size."""
        ...
