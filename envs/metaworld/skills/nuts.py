"""Nuts onto and off a peg, and a lid onto a box."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import (
    both,
    caging,
    distance,
    from_above,
    grip,
    hover,
    share,
    tolerance,
)
from metarl.envs.metaworld.skills.tools import along_handle, turned

QUARTER_TURN = (0.707, 0.0, 0.0, 0.707)
"""the quaternion that nuts and lids should have"""


def see_nut(s: Scene) -> Tensor:
    """The nut's handle."""
    return pose(s.site("RoundNut-8"), s.quaternion("RoundNut"))


def hold_nut(s: Scene, density: str) -> Tensor:
    """How well the nut is held at its handle."""
    handle = along_handle(s, 0.01)
    return caging(
        s,
        handle,
        radius=0.015,
        pads_within=0.02,
        xz_within=0.01,
        reach_within=0.01,
        density=density,
    )


def assemble(s: Scene) -> Outcome:
    """Bring the nut over the peg, from above, and let it down."""
    centre = s.site("RoundNut")
    off = s.target - centre
    radius = torch.linalg.vector_norm(off[:, :2], dim=-1)
    success = (radius < 0.02) & (off[:, 2] > 0.0)
    # Away from the peg, the nut should be at a height rather than at the goal's.
    off[:, 2] = 3.0 * (hover(radius, 0.01, 0.02, 0.2) - centre[:, 2])
    near = tolerance(torch.linalg.vector_norm(off, dim=-1), 0.02, 0.4)
    in_place = share((centre[:, 2] > 0.02) | (radius < 0.01), 0.1) + 0.9 * near
    reward = (2.0 * hold_nut(s, "medium") + 6.0 * in_place) * turned(s, QUARTER_TURN, 0.4)
    return torch.where(success, 10.0, reward), success


def disassemble(s: Scene) -> Outcome:
    """Lift the nut off the peg."""
    centre = s.site("RoundNut")
    goal = s.target + s.obj.new_tensor([0.0, 0.0, 0.1])
    in_place = share(centre[:, 2] > 0.02, 0.1) + 0.9 * tolerance(distance(goal, centre), 0.02, 0.2)
    reward = (2.0 * hold_nut(s, "high") + 6.0 * in_place) * turned(s, QUARTER_TURN, 0.4)
    success = s.obj[:, 2] > s.target[:, 2]
    return torch.where(success, 10.0, reward), success


def see_lid(s: Scene) -> Tensor:
    """The box's lid."""
    return pose(s.body("top_link"), s.quaternion("top_link"))


def close_box(s: Scene) -> Outcome:
    """Come to the lid from above, lift it and put it on the box."""
    lid = s.obj + s.obj.new_tensor([0.0, 0.0, 0.02])
    ready = both(from_above(s.hand, lid, 0.02), tolerance(distance(s.hand, lid), 0.02, 0.5))
    scale = s.obj.new_tensor([1.0, 1.0, 3.0])
    near = tolerance(distance(lid * scale, s.target * scale), 0.05, 0.25)
    lifted = share(lid[:, 2] > 0.04, 0.2) + 0.8 * near
    success = distance(s.obj, s.target) < 0.08
    reward = torch.where(success, 10.0, 2.0 * both(grip(s.action), ready) + 8.0 * lifted)
    return reward * turned(s, QUARTER_TURN, 0.2), success


SKILLS = (
    Skill("assembly", see_nut, assemble),
    Skill("disassemble", see_nut, disassemble),
    Skill("box-close", see_lid, close_box),
)
