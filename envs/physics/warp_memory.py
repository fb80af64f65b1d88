"""How much memory of a device the worlds of MuJoCo Warp take, computed without that device.

What is allocated depends on the model, the limits and the number of worlds, and is the same on
every device. So two small batches on Warp's CPU device tell what a world takes, and what all share.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

import mujoco

from metarl.envs.physics.model import Model
from metarl.envs.physics.warp_model import DERIVED_CONSTANTS, Limits, WarpModel, import_warp

_SPARE_CONTACTS = 64
"""room for contacts besides the average, for few worlds"""
_STATES = 5
"""Copies of a world's state in torch's memory: of before its last unstable step, and while a step
is under way of before it, of before its launch, of what is checked, and of what is written back."""
_COUNTERS = 3
"""numbers of 64 bits that count a world's troubles"""


def allocate(compiled: mujoco.MjModel, num_worlds: int, limits: Limits) -> Any:
    """MuJoCo Warp's data of `num_worlds` worlds, on the current device of Warp."""
    _, mjw = import_warp()
    contacts = limits.contacts
    return mjw.make_data(
        compiled,
        nworld=num_worlds,
        nconmax=contacts,
        naconmax=None if contacts is None else contacts * num_worlds + _SPARE_CONTACTS,
        njmax=limits.constraints,
    )


def bytes_per_world(model: Model, limits: Limits, fields: Iterable[str] = ()) -> tuple[int, int]:
    """How much memory the physics of a model takes on a device.

    What kernels need besides while they run, and what torch and CUDA keep for themselves, comes on
    top. No kernel is compiled or launched to find out.

    Args:
        model: simulated by `WarpPhysics`.
        limits: room for contacts.
        fields: fields of the model that every world has of its own; the constants that follow from
            them are then each world's own, too.

    Returns:
        Bytes for each world, and bytes for all of them together.

    Raises:
        UsageError: if MuJoCo Warp is not installed, or cannot run the model.
    """
    fields = tuple(fields)
    one, two = (_bytes(model, limits, fields, num_worlds) for num_worlds in (1, 2))
    state = mujoco.mj_stateSize(model.compiled, mujoco.mjtState.mjSTATE_INTEGRATION)
    return two - one + 4 * _STATES * state + 8 * _COUNTERS, 2 * one - two


def _bytes(model: Model, limits: Limits, fields: tuple[str, ...], num_worlds: int) -> int:
    """What the arrays of so many worlds take."""
    warp, _ = import_warp()
    with warp.ScopedDevice("cpu"):
        constants = WarpModel(model, num_worlds)
        constants.expand(fields)
        if any(constants.derives(name) for name in fields):
            constants.expand(DERIVED_CONSTANTS)
        data = allocate(constants.compiled, num_worlds, limits)
        kept = {x.ptr: x.capacity for x in _arrays((constants.arrays, data), warp.array)}
    return sum(kept.values())


def _arrays(tree: Any, kind: type) -> Iterator[Any]:
    """All arrays of `kind` in the fields of `tree`, at any depth."""
    if isinstance(tree, kind):
        yield tree
    elif isinstance(tree, tuple | list):
        for part in tree:
            yield from _arrays(part, kind)
    elif dataclasses.is_dataclass(tree):
        for field in dataclasses.fields(tree):
            yield from _arrays(getattr(tree, field.name), kind)
