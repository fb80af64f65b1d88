"""Pushing something along the table to a place, past a wall or not."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, caging, distance, squeezing, tolerance
from metarl.envs.metaworld.skills.reaching import RADIUS, see_puck

NEAR = 0.07
"""distance of the object from the goal that solves some skills, m"""
WALL = 0.75
"""y of the wall's front, m"""


def see_geom(s: Scene) -> Tensor:
    """The puck, by its geom."""
    return pose(s.geom("objGeom"), s.rotation("geom", "objGeom"))


def see_cube(s: Scene) -> Tensor:
    """The cube."""
    return pose(s.body("obj"), s.quaternion("obj"))


def see_ball(s: Scene) -> Tensor:
    """The ball."""
    return pose(s.body("soccer_ball"), s.rotation("body", "soccer_ball"))


def progress(s: Scene, away: Tensor) -> Tensor:
    """Tolerance of the object's distance from the goal; 0.1 is 5 cm worse than the start."""
    return tolerance(away, RADIUS, distance(s.obj_start, s.target))


def hold_puck(s: Scene) -> Tensor:
    """`caging` with the numbers that most skills have for a puck or a cube."""
    return caging(s, s.obj, radius=0.015, pads_within=0.05, xz_within=0.005, density="high")


def holding(s: Scene, within: float) -> Tensor:
    """Whether the gripper is at the object and not all closed, bool `[C]`."""
    return (distance(s.obj, s.tcp) < within) & (s.opened > 0.0)


def past_wall(
    s: Scene, middle: Tensor, scale: tuple[float, float, float], away: Tensor
) -> tuple[Tensor, Tensor]:
    """How near the object is to the place on the way, and what it is worth to have it there.

    Both are `[C]`, and the second from 1 to 5 in front of the wall and from 5 to 8 behind it.

    Args:
        s: the scene.
        middle: the place beside or above the wall to go to first, `[C, 3]`.
        scale: of the axes in distances to it.
        away: distance of the object from the goal `[C]`.
    """
    axes = s.obj.new_tensor(scale)
    margin = distance(s.obj_start * axes, middle * axes)
    first = tolerance(distance(s.obj * axes, middle * axes), RADIUS, margin)
    last = progress(s, away)
    return first, torch.where(s.obj[:, 1] > WALL, 5.0 + 3.0 * last, 1.0 + 4.0 * first)


def push(s: Scene) -> Outcome:
    """Hold the puck and slide it to the goal."""
    away = distance(s.obj, s.target)
    grasped = 2.0 * hold_puck(s)
    reward = grasped + holding(s, 0.02) * (1.0 + grasped + 5.0 * progress(s, away))
    return torch.where(away < RADIUS, 10.0, reward), away <= RADIUS


def push_back(s: Scene) -> Outcome:
    """Hold the puck and pull it to the goal."""
    away, margin = distance(s.obj, s.target), distance(s.obj_start, s.target)
    in_place = tolerance(away, RADIUS, margin)
    grasped = squeezing(s, radius=0.007, xz_within=0.01, slack=0.003)
    pulled = holding(s, 0.01) & (s.opened < 0.55) & (margin - away > 0.01)
    reward = both(grasped, in_place) + pulled * (1.0 + 5.0 * in_place)
    return torch.where(away < RADIUS, 10.0, reward), away <= NEAR


def push_wall(s: Scene) -> Outcome:
    """Hold the puck, slide it past the wall and then to the goal behind it."""
    away = distance(s.obj, s.target)
    middle = s.obj.clone()
    middle[:, 0], middle[:, 1] = -0.05, 0.77
    _, worth = past_wall(s, middle, (3.0, 1.0, 1.0), away)
    reward = 2.0 * hold_puck(s) + holding(s, 0.02) * worth
    return torch.where(away < RADIUS, 10.0, reward), away <= NEAR


def swept(grasped: Tensor, in_place: Tensor, away: Tensor) -> Outcome:
    """The outcome of sweeping, of how well the cube is held and how far it is from the goal."""
    reward = 2.0 * grasped + 6.0 * both(grasped, in_place)
    return torch.where(away < RADIUS, 10.0, reward), away <= RADIUS


def sweep(s: Scene) -> Outcome:
    """Hold the cube and bring it off the table's side."""
    away = distance(s.obj, s.target)
    grasped = squeezing(s, radius=0.02, xz_within=0.005, slack=0.01)
    return swept(grasped, progress(s, away), away)


def sweep_into(s: Scene) -> Outcome:
    """Hold the cube and bring it over the hole; heights do not count, but for the margin."""
    above = s.obj.clone()
    above[:, :2] = s.target[:, :2]
    away = distance(s.obj, above)
    in_place = tolerance(away, RADIUS, distance(s.obj_start, above))
    return swept(squeezing(s, radius=0.02, xz_within=0.01, slack=0.005), in_place, away)


def soccer(s: Scene) -> Outcome:
    """Bring the ball into the goal, less for passing it by; x counts three times in the reward."""
    axes = s.obj.new_tensor([3.0, 1.0, 1.0])
    off = s.obj - s.target
    away: Tensor = torch.linalg.vector_norm(off * axes, dim=-1)
    # The margin grows with the way that the ball has come.
    in_place = tolerance(away, NEAR, distance(s.obj * axes, s.obj_start * axes))
    beyond = off[:, 1] + 0.1
    missed = (beyond > 0.0) & (off[:, 0].abs() > 0.1)
    passed = 2.0 * beyond / (1.1 - s.target[:, 1])
    in_place = torch.where(missed, (in_place - passed).clamp(0.0, 1.0), in_place)
    reward = 3.0 * squeezing(s, radius=0.013, xz_within=0.005, slack=0.01) + 6.5 * in_place
    success = torch.linalg.vector_norm(off, dim=-1) <= NEAR
    return torch.where(away < NEAR, 10.0, reward), success


SKILLS = (
    Skill("push", see_puck, push),
    Skill("push-back", see_geom, push_back),
    Skill("push-wall", see_geom, push_wall),
    Skill("sweep", see_cube, sweep),
    Skill("sweep-into", see_puck, sweep_into),
    Skill("soccer", see_ball, soccer),
)
