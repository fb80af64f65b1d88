"""Sliding a plate over the table into a goal and back out of it, forwards or sideways."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, distance, tolerance
from metarl.envs.metaworld.skills.reaching import RADIUS


def see_plate(s: Scene) -> Tensor:
    """The plate."""
    return pose(s.geom("puck"), s.rotation("geom", "puck"))


def slide(s: Scene) -> Outcome:
    """Be at the plate and slide it into the goal."""
    away = distance(s.obj, s.target)
    in_place = tolerance(away, RADIUS, distance(s.obj_start, s.target))
    near = tolerance(distance(s.obj, s.tcp), RADIUS, distance(s.obj_start, s.tcp_start))
    return torch.where(away < RADIUS, 10.0, 8.0 * both(near, in_place)), away <= 0.07


def slide_low(s: Scene) -> Outcome:
    """Come down to the plate; from there on, only how far it is from the goal counts."""
    away, reach = distance(s.obj, s.target), distance(s.obj, s.tcp)
    in_place = tolerance(away, RADIUS, distance(s.obj_start, s.target) - RADIUS)
    near = tolerance(reach, RADIUS, distance(s.obj_start, s.tcp_start) - RADIUS)
    down = (s.tcp[:, 2] <= 0.03) & (reach < 0.07)
    reward = torch.where(down, 2.0 + 7.0 * in_place, 1.5 * near)
    return torch.where(away < RADIUS, 10.0, reward), away <= 0.07


SKILLS = (
    Skill("plate-slide", see_plate, slide),
    Skill("plate-slide-side", see_plate, slide_low),
    Skill("plate-slide-back", see_plate, slide_low),
    Skill("plate-slide-back-side", see_plate, slide_low),
)
