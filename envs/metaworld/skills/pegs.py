"""Putting a peg into a hole in a wall, and pulling one out."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, caging, distance, tolerance

NEAR = 0.07
"""distance from the goal that solves, m"""


def see_grasp(s: Scene) -> Tensor:
    """The peg, where it is to be held."""
    return pose(s.site("pegGrasp"), s.rotation("site", "pegGrasp"))


def see_end(s: Scene) -> Tensor:
    """The peg in the hole, at the end that sticks out."""
    return pose(s.site("pegEnd"), s.quaternion("plug1"))


def outside_block(at: Tensor, zero: Tensor, one: Tensor) -> Tensor:
    """1 outside the block between two corners `[C, 3]`; inside, 0 at the one to 1 at the other.

    `rect_prism_tolerance` of the package.
    """
    share = (at - zero) / (one - zero)
    inside = ((share >= 0.0) & (share <= 1.0)).all(-1)
    return torch.where(inside, share.prod(-1), 1.0)


def insert_side(s: Scene) -> Outcome:
    """Lift the peg and push its head into the hole, around the wall's blocks beside the hole."""
    head = s.site("pegHead")
    scale = s.obj.new_tensor([1.0, 2.0, 2.0])
    away = distance(head * scale, s.target * scale)
    margin = distance(s.start("peg_head_pos_init") * scale, s.target * scale)
    first, second = (
        outside_block(
            head,
            s.site(f"bottom_right_corner_collision_box_{block}"),
            s.site(f"top_left_corner_collision_box_{block}"),
        )
        for block in (1, 2)
    )
    in_place = both(tolerance(away, NEAR, margin), both(second, first))
    lifted = distance(s.obj, s.tcp) < 0.08
    lifted &= (s.opened > 0.0) & (s.obj[:, 2] - 0.01 > s.obj_start[:, 2])
    held = caging(s, s.obj, radius=0.0075, pads_within=0.03, xz_within=0.005, density="high")
    grasped = torch.where(lifted, 1.0, held)
    reward = both(grasped, in_place) + lifted * (1.0 + 5.0 * in_place)
    success = away <= NEAR
    return torch.where(success, 10.0, reward), success


def unplug_side(s: Scene) -> Outcome:
    """Hold the peg's end and pull the peg out of its hole."""
    away = distance(s.obj, s.target)
    in_place = tolerance(away, 0.05, distance(s.obj_start, s.target))
    grasped = caging(
        s, s.obj, radius=0.025, pads_within=0.05, xz_within=0.005, effort=0.8, density="high"
    )
    pulled = (s.opened > 0.5) & (s.obj[:, 0] - s.obj_start[:, 0] > 0.015)
    pulled &= distance(s.obj, s.tcp) < 0.035
    reward = 2.0 * grasped + pulled * (1.0 + 5.0 * in_place)
    return torch.where(away <= 0.05, 10.0, reward), away <= NEAR


SKILLS = (
    Skill("peg-insert-side", see_grasp, insert_side, constants=("peg_head_pos_init",)),
    Skill("peg-unplug-side", see_end, unplug_side),
)
