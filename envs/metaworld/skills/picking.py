"""Picking something up and putting it somewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill
from metarl.envs.metaworld.shaping import both, closing, distance, tolerance
from metarl.envs.metaworld.skills.reaching import RADIUS, see_puck


def pinching(s: Scene, at: Tensor, radius: float, xz_within: float) -> tuple[Tensor, Tensor]:
    """How well the pads are on both sides of an object, and how near in x and z as well, `[C]`.

    The margins are those of the pads as they are: what the package calls their initial positions
    are views of the present ones.

    Args:
        s: the scene.
        at: where the object is taken to be, `[C, 3]`.
        radius: of the object, m.
        xz_within: distance in the x-z plane that counts as near, m.
    """
    left = s.left_pad[:, 1] - at[:, 1]
    right = at[:, 1] - s.right_pad[:, 1]
    sides = both(
        tolerance(left, 0.05, (left.abs() - 0.05).abs(), radius),
        tolerance(right, 0.05, (right.abs() - 0.05).abs(), radius),
    )
    margin = distance(s.obj_start[:, ::2], s.tcp_start[:, ::2]) - xz_within
    near = tolerance(distance(s.tcp[:, ::2], at[:, ::2]), xz_within, margin)
    return sides, both(sides, near)


def pick_place(s: Scene) -> Outcome:
    """Hold the puck, lift it, bring it to the goal in the air."""
    away, reach = distance(s.obj, s.target), distance(s.obj, s.tcp)
    in_place = tolerance(away, RADIUS, distance(s.obj_start, s.target))
    _, caged = pinching(s, s.obj, 0.015, 0.005)
    gripping = torch.where(caged > 0.97, closing(s.action), 0.0)
    grasped = 0.5 * (both(caged, gripping) + caged)
    lifted = (reach < 0.02) & (s.opened > 0.0) & (s.obj[:, 2] - 0.01 > s.obj_start[:, 2])
    reward = both(grasped, in_place) + lifted * (1.0 + 5.0 * in_place)
    return torch.where(away < RADIUS, 10.0, reward), away <= 0.07


SKILLS = (Skill("pick-place", see_puck, pick_place),)
