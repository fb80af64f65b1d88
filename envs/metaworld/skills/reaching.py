"""Reaching: bring the gripper to a place, past a wall or not."""

from __future__ import annotations

from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import distance, tolerance

RADIUS = 0.05
"""distance from the goal that counts as there, m"""


def see_puck(s: Scene) -> Tensor:
    """The puck."""
    return pose(s.body("obj"), s.rotation("geom", "objGeom"))


def reach(s: Scene) -> Outcome:
    """10 tolerance of the gripper's distance from the goal."""
    away = distance(s.tcp, s.target)
    margin = distance(s.start("hand_init_pos"), s.target)
    return 10.0 * tolerance(away, RADIUS, margin), away <= RADIUS


SKILLS = (
    Skill("reach", see_puck, reach),
    Skill("reach-wall", see_puck, reach),
)
