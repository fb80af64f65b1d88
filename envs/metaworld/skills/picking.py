"""Picking something up and putting it somewhere."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import (
    both,
    caging,
    closing,
    distance,
    hover,
    pinching,
    tolerance,
)
from metarl.envs.metaworld.skills.pushing import (
    NEAR,
    hold_puck,
    holding,
    past_wall,
    progress,
    see_cube,
    see_geom,
)
from metarl.envs.metaworld.skills.reaching import RADIUS, see_puck

BASKET = 0.08
"""distance of the ball from the place above the basket that solves, m"""


def see_basketball(s: Scene) -> Tensor:
    """The ball."""
    return pose(s.body("bsktball"), s.quaternion("bsktball"))


def lifted(s: Scene, by: float) -> Tensor:
    """Whether the object is more than `by` above its start, bool `[C]`."""
    return s.obj[:, 2] - by > s.obj_start[:, 2]


def over_rim(hand: Tensor, floor: Tensor, margin: float) -> Tensor:
    """1 for hands `[C, 3]` no more than 1 cm below a floor `[C]`, 0.1 a `margin` further down."""
    return tolerance(floor - hand[:, 2], 0.01, margin, None)


def pick_place(s: Scene) -> Outcome:
    """Hold the puck, lift it, bring it to the goal in the air."""
    away = distance(s.obj, s.target)
    in_place = progress(s, away)
    caged, _ = pinching(s, radius=0.015, xz_within=0.005)
    gripping = torch.where(caged > 0.97, closing(s.action), 0.0)
    grasped = 0.5 * (both(caged, gripping) + caged)
    carried = holding(s, 0.02) & lifted(s, 0.01)
    reward = both(grasped, in_place) + carried * (1.0 + 5.0 * in_place)
    return torch.where(away < RADIUS, 10.0, reward), away <= NEAR


def pick_place_wall(s: Scene) -> Outcome:
    """Hold the puck, lift it over the wall and bring it to the goal in the air behind."""
    away = distance(s.obj, s.target)
    middle = s.target.clone()
    middle[:, 1], middle[:, 2] = 0.77, 0.25
    first, worth = past_wall(s, middle, (1.0, 1.0, 3.0), away)
    grasped = caging(s, s.obj, radius=0.015, pads_within=0.05, xz_within=0.005)
    carried = holding(s, 0.02) & lifted(s, 0.015)
    reward = both(grasped, first) + carried * worth
    return torch.where(away < RADIUS, 10.0, reward), away <= NEAR


def basketball(s: Scene) -> Outcome:
    """Hold the ball, lift it and bring it above the basket; heights count twice."""
    axes = s.obj.new_tensor([1.0, 1.0, 2.0])
    above = s.target.clone()
    above[:, 2] = 0.3
    above *= axes
    away = distance(s.obj * axes, above)
    in_place = tolerance(away, BASKET, distance(s.obj_start * axes, above))
    caged = caging(s, s.obj, radius=0.025, pads_within=0.06, xz_within=0.005, density="high")
    carried = holding(s, 0.035) & lifted(s, 0.01)
    reward = torch.where(carried, 1.0 + 6.0 * in_place, both(caged, in_place))
    return torch.where(away < BASKET, 10.0, reward), away <= BASKET


def shelf_place(s: Scene) -> Outcome:
    """Hold the cube, lift it and put it on the shelf, past what is below the shelf."""
    off = s.obj - s.target
    away: Tensor = torch.linalg.vector_norm(off, dim=-1)
    in_place = progress(s, away)
    grasped = caging(s, s.obj, radius=0.02, pads_within=0.05, xz_within=0.01)
    reward = both(grasped, in_place)

    z, depth = s.obj[:, 2], off[:, 1]
    low = (z > 0.0) & (z < 0.24) & (off[:, 0].abs() < 0.15)
    front = low & (depth > -0.15) & (depth < 0.0)
    inside = ((depth + 0.15) / 0.15).clamp(0.0, 1.0)
    hit = both(inside, ((0.24 - z) / 0.24).clamp(0.0, 1.0))
    free = torch.where(front, (in_place - hit).clamp_min(0.0), in_place)
    free = free.masked_fill(low & (depth > 0.0), 0.0)
    carried = holding(s, 0.025) & lifted(s, 0.01)
    reward = reward + carried * (1.0 + 5.0 * free)
    return torch.where(away < RADIUS, 10.0, reward), away <= NEAR


def hand_insert(s: Scene) -> Outcome:
    """Hold the cube and put it into the hole."""
    away = distance(s.obj, s.target)
    in_place = progress(s, away)
    reward = both(hold_puck(s), in_place) + holding(s, 0.02) * (1.0 + 7.0 * in_place)
    return torch.where(away < RADIUS, 10.0, reward), away <= RADIUS


def bin_picking(s: Scene) -> Outcome:
    """Take the cube out of one bin and put it into the other, above the rims between."""
    away = distance(s.obj, s.target)
    in_place = tolerance(away, RADIUS, s.start("_target_to_obj_init"))
    xy = s.hand[:, :2]
    beside = torch.minimum(distance(xy, s.obj_start[:, :2]), distance(xy, s.target[:, :2]))
    above = over_rim(s.hand, hover(beside, 0.03, 0.02, 0.2), 0.05)
    grasped = caging(
        s, s.obj, radius=0.015, pads_within=0.05, xz_within=0.01, effort=0.7, density="high"
    )
    carried = (distance(s.obj, s.hand) < 0.04) & (s.opened >= 0.43) & lifted(s, 0.02)
    reward = both(grasped, in_place) + carried * (1.0 + 5.0 * both(above, in_place))
    return torch.where(away < RADIUS, 10.0, reward), away <= RADIUS


def pick_out_of_hole(s: Scene) -> Outcome:
    """Take the cube out of the hole and bring it to the goal in the air."""
    away = distance(s.obj, s.target)
    in_place = tolerance(away, 0.02, distance(s.obj_start, s.target))
    beside = distance(s.tcp[:, :2], s.obj_start[:, :2])
    above = over_rim(s.tcp, hover(beside, 0.03, 0.015, 0.15), 0.02)
    grasped = caging(
        s, s.obj, radius=0.015, pads_within=0.02, xz_within=0.03, effort=0.1, density="high"
    )
    carried = (distance(s.obj, s.tcp) < 0.04) & (s.opened >= 0.33) & lifted(s, 0.02)
    reward = both(grasped, in_place) + carried * (1.0 + 5.0 * both(above, in_place))
    return torch.where(away < RADIUS, 10.0, reward), away <= NEAR


SKILLS = (
    Skill("pick-place", see_puck, pick_place),
    Skill("pick-place-wall", see_geom, pick_place_wall),
    Skill("basketball", see_basketball, basketball),
    Skill("shelf-place", see_puck, shelf_place),
    Skill("hand-insert", see_cube, hand_insert),
    Skill("bin-picking", see_cube, bin_picking, ("_target_to_obj_init",)),
    Skill("pick-out-of-hole", see_cube, pick_out_of_hole),
)
