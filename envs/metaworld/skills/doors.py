"""Doors on hinges."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import TINY, both, distance, tolerance


def see_handle(s: Scene) -> Tensor:
    """The door's handle."""
    return pose(s.geom("handle"), s.rotation("geom", "handle"))


def hover(away: Tensor, within: float, scale: float, height: float) -> Tensor:
    """How high the hand should be at a horizontal distance: 0 near, then a logarithmic funnel."""
    return torch.where(away <= within, 0.0, scale * (away - within).clamp_min(TINY).log() + height)


def open_door(s: Scene) -> Outcome:
    """Come to the handle from above, then turn the door by 90 degrees."""
    door = s.obj - s.obj.new_tensor([0.05, 0.0, 0.0])
    floor = hover(distance(s.hand[:, :2], door[:, :2]), 0.12, 0.04, 0.4)
    below = floor - s.hand[:, 2]
    above_floor = torch.where(below <= 0.0, 1.0, tolerance(below, 0.01, 0.5 * floor))
    grip = s.obj.new_tensor([0.05, 0.03, -0.01])
    in_place = tolerance(distance(s.hand - door, grip), 0.06, 0.5)
    ready = both(above_floor, in_place)

    angle = s.joint("doorjoint")
    still_to_go = math.pi / 2.0 + math.pi / 6.0 + angle
    opened = 0.2 * (angle < -math.pi / 90.0) + 0.8 * tolerance(still_to_go, 0.5, math.pi / 3.0)
    effort = (s.action[:, 3].clamp(-1.0, 1.0) + 1.0) / 2.0
    success = (s.obj[:, 0] - s.target[:, 0]).abs() <= 0.08
    return torch.where(success, 10.0, 2.0 * both(ready, effort) + 8.0 * opened), success


SKILLS = (Skill("door-open", see_handle, open_door),)
