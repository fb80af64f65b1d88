"""Handles on a box that are pressed down or pulled up, from the front or from the side."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, caging, distance, tolerance
from metarl.envs.metaworld.skills.reaching import RADIUS

PRESSED = 0.02
"""height above the goal, and distance of the gripper, that counts as there when pressing, m"""


def see_handle(s: Scene, site: str) -> Tensor:
    """The handle, by a site on it; its orientation is not shown."""
    return pose(s.site(site))


def press(s: Scene) -> Outcome:
    """Come to the handle, press it down."""
    handle_start = s.start("_handle_init_pos")
    away = (s.obj[:, 2] - s.target[:, 2]).abs()
    away_margin = ((handle_start[:, 2] - s.target[:, 2]).abs() - PRESSED).abs()
    reach_margin = (distance(handle_start, s.tcp_start) - PRESSED).abs()
    in_place = tolerance(away, PRESSED, away_margin)
    near = tolerance(distance(s.obj, s.tcp), PRESSED, reach_margin)
    success = away <= PRESSED
    return torch.where(success, 10.0, 10.0 * both(near, in_place)), success


def pull(s: Scene, away: Tensor, margin: Tensor, held: Tensor, lifted: Tensor) -> Tensor:
    """The reward `[C]` for holding the handle and pulling it up.

    Args:
        s: the scene.
        away: distance from the goal, m, `[C]`.
        margin: that distance at the start, m, `[C]`.
        held: how well the gripper holds the handle, from 0 to 1, `[C]`.
        lifted: where the handle counts as lifted if the gripper is at it, bool `[C]`.
    """
    in_place = tolerance(away, RADIUS, margin)
    gripped = (distance(s.obj, s.tcp) < 0.035) & (s.opened > 0.0) & lifted
    reward = both(held, in_place) + gripped * (1.0 + 5.0 * in_place)
    return torch.where(away < RADIUS, 10.0, reward)


def pull_side(s: Scene) -> Outcome:
    """Hold the handle from the side and pull it up to the goal."""
    away = distance(s.obj, s.target)
    held = caging(s, s.obj, radius=0.032, pads_within=0.06, xz_within=0.01, density="high")
    lifted = s.obj[:, 2] - 0.01 > s.obj_start[:, 2]
    return pull(s, away, distance(s.obj_start, s.target), held, lifted), away <= 0.08


def pull_front(s: Scene) -> Outcome:
    """Hold the handle from the front and pull it up to the height of the goal."""
    away = (s.target[:, 2] - s.obj[:, 2]).abs()
    margin = (s.target[:, 2] - s.obj_start[:, 2]).abs()
    held = caging(s, s.obj, radius=0.022, pads_within=0.05, xz_within=0.01, density="high")
    # Meta-World compares a y with a z here, so that the handle always counts as lifted.
    lifted = s.obj[:, 1] - 0.01 > s.obj_start[:, 2]
    return pull(s, away, margin, held, lifted), away <= RADIUS


_START = partial(see_handle, site="handleStart")
_KEPT = ("_handle_init_pos",)

SKILLS = (
    Skill("handle-press-side", _START, press, _KEPT),
    Skill("handle-press", _START, press, _KEPT),
    Skill("handle-pull-side", partial(see_handle, site="handleCenter"), pull_side),
    Skill("handle-pull", partial(see_handle, site="handleRight"), pull_front),
)
