"""What rewards and observations of a skill read: places of things, in C worlds at once.

All tensors are float64 with leading dimension C, positions in metres.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
import torch
from torch import Tensor

from metarl.envs.physics import Physics

Outcome = tuple[Tensor, Tensor]
"""reward `[C]` and success, bool `[C]`"""

_KINDS = {
    "body": mujoco.mjtObj.mjOBJ_BODY,
    "geom": mujoco.mjtObj.mjOBJ_GEOM,
    "site": mujoco.mjtObj.mjOBJ_SITE,
    "joint": mujoco.mjtObj.mjOBJ_JOINT,
}
_MATRICES = {"body": "xmat", "geom": "geom_xmat", "site": "site_xmat"}
_PADS = ("leftpad_geom", "rightpad_geom")


@dataclass(frozen=True)
class Skill:
    """One of Meta-World's 50 environments."""

    name: str
    """without the `-v3`"""
    see: Callable[[Scene], Tensor]
    """what is observed of its objects, `[C, 7]` or `[C, 14]`: place and orientation of each"""
    reward: Callable[[Scene], Outcome]
    """version 2 of its reward, and where it is solved"""
    constants: tuple[str, ...] = ()
    """what else the reward needs of how an episode began: attributes of the package's env"""


class Scene:
    """The worlds of one skill after a control step."""

    action: Tensor
    """`[C, 4]`: what the policy asked for, as it is"""
    hand: Tensor
    """`[C, 3]`: the hand, as observed"""
    opened: Tensor
    """`[C]`: how far the gripper is open, from 0 to 1, as observed"""
    obj: Tensor
    """`[C, 3]`: the first object, as observed"""
    seen: Tensor
    """`[C, 14]`: everything observed of the objects; what there is none of is 0"""
    tcp: Tensor
    """`[C, 3]`: the middle between the fingers"""
    left_pad: Tensor
    """`[C, 3]`"""
    right_pad: Tensor
    """`[C, 3]`"""

    def __init__(self, physics: Physics) -> None:
        """Look at the worlds of `physics`."""
        self._physics = physics
        self._views: dict[tuple[str, str], Tensor] = {}
        self._constants: Mapping[str, Tensor] = {}

    # --- how the episode began --------------------------------------------------------------

    def begin(self, constants: Mapping[str, Tensor]) -> None:
        """Keep how the episodes of all worlds begin, `[C, ...]` by name."""
        self._constants = constants

    def start(self, name: str) -> Tensor:
        """A constant of the episode, by the name of the attribute in the package's env."""
        return self._constants[name]

    @property
    def target(self) -> Tensor:
        """Where the goal is, `[C, 3]`."""
        return self._constants["_target_pos"]

    @property
    def obj_start(self) -> Tensor:
        """Where the package says that the object was at the start, `[C, 3]`."""
        return self._constants["obj_init_pos"]

    @property
    def tcp_start(self) -> Tensor:
        """Where the middle between the fingers was at the start, `[C, 3]`."""
        return self._constants["init_tcp"]

    # --- where things are now ---------------------------------------------------------------

    def _view(self, field: str, kind: str, name: str) -> Tensor:
        """The part of a field that belongs to a named thing, `[C, ...]`, live."""
        if (field, name) not in self._views:
            model = self._physics.model.compiled
            index = mujoco.mj_name2id(model, _KINDS[kind], name)
            assert index >= 0, f"{self._physics.model.path} has no {kind} {name}"
            self._views[field, name] = self._physics.field(field)[:, index]
        return self._views[field, name]

    def body(self, name: str) -> Tensor:
        """Position of a body `[C, 3]`."""
        return self._view("xpos", "body", name)

    def geom(self, name: str) -> Tensor:
        """Position of a geom `[C, 3]`."""
        return self._view("geom_xpos", "geom", name)

    def site(self, name: str) -> Tensor:
        """Position of a site `[C, 3]`."""
        return self._view("site_xpos", "site", name)

    def quaternion(self, body: str) -> Tensor:
        """Orientation of a body as MuJoCo has it, `[C, 4]`: w, x, y, z."""
        return self._view("xquat", "body", body)

    def rotation(self, kind: str, name: str) -> Tensor:
        """Orientation of a body, geom or site by way of its matrix, `[C, 4]`: x, y, z, w."""
        return quaternions(self._view(_MATRICES[kind], kind, name))

    def joint(self, name: str) -> Tensor:
        """Position of a hinge or slide `[C]`."""
        if ("qpos", name) not in self._views:
            model = self._physics.model.compiled
            address = int(model.joint(name).qposadr[0])
            self._views["qpos", name] = self._physics.field("qpos")[:, address]
        return self._views["qpos", name]

    def squeezed(self, geom: str, worlds: Tensor) -> Tensor:
        """Where both pads of the gripper press on a geom, bool `[C]`, false outside `worlds`.

        Contacts are looked up world by world, so `worlds`, bool `[C]`, should be few.
        """
        found = torch.zeros_like(worlds)
        for world in worlds.nonzero()[:, 0].tolist():
            model, data = self._physics.look(world)
            pads = [model.geom(pad).id for pad in _PADS]
            found[world] = all(_pressing(data, pad, model.geom(geom).id) for pad in pads)
        return found


def _pressing(data: mujoco.MjData, one: int, other: int) -> bool:
    """Whether two geoms push each other apart."""
    between = (np.sort(data.contact.geom, axis=-1) == sorted((one, other))).all(axis=-1)
    return bool(data.efc_force[data.contact.efc_address[between]].sum() > 0.0)


def quaternions(matrices: Tensor) -> Tensor:
    """Quaternions `[C, 4]` (x, y, z, w) of rotation matrices `[C, 9]`.

    Of the two that describe a rotation, the one that scipy's `Rotation.from_matrix` returns: its
    largest component is taken to be positive, w only if the trace is larger than the diagonal.
    """
    m = matrices.reshape(-1, 3, 3)
    diagonal = m.diagonal(dim1=1, dim2=2)
    trace = diagonal.sum(-1, keepdim=True)
    # Row i is 4 q_i q: the outer product of the quaternion with itself, scaled.
    sums = m + m.transpose(1, 2)
    differences = torch.stack(
        [m[:, 2, 1] - m[:, 1, 2], m[:, 0, 2] - m[:, 2, 0], m[:, 1, 0] - m[:, 0, 1]], -1
    )
    rows = m.new_empty(len(m), 4, 4)
    rows[:, :3, :3] = sums
    rows[:, :3, :3].diagonal(dim1=1, dim2=2).copy_(1.0 - trace + 2.0 * diagonal)
    rows[:, :3, 3] = rows[:, 3, :3] = differences
    rows[:, 3, 3] = 1.0 + trace[:, 0]
    chosen = torch.cat([diagonal, trace], -1).argmax(-1)
    q = rows[torch.arange(len(m), device=m.device), chosen]
    norm: Tensor = torch.linalg.vector_norm(q, dim=-1, keepdim=True)
    return q / norm


def pose(position: Tensor, orientation: Tensor | None = None) -> Tensor:
    """What is observed of one object, `[C, 7]`; objects without an orientation show zeros."""
    if orientation is None:
        orientation = position.new_zeros(len(position), 4)
    return torch.cat([position, orientation], -1)
