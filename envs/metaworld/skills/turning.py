"""Things that turn: a lever, faucets, a dial."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, closing, distance, gaussian_tolerance, tolerance
from metarl.envs.metaworld.skills.doors import shoulder_near

_FAUCET_RADIUS = 0.07
_DIAL_RADIUS = 0.07


def see_lever(s: Scene) -> Tensor:
    """The end of the lever."""
    return pose(s.site("leverStart"), s.rotation("geom", "objGeom"))


def see_faucet(s: Scene, site: str) -> Tensor:
    """A point on the faucet's handle, with the orientation of its base."""
    handle = s.site(site)
    return pose(handle - handle.new_tensor([0.0, 0.0, 0.01]), s.quaternion("faucetBase"))


def see_dial(s: Scene) -> Tensor:
    """The dial's mark, with the orientation of what the dial is mounted on."""
    angle = s.joint("knob_Joint_1")
    mark = torch.stack([angle.sin(), -angle.cos(), torch.zeros_like(angle)], -1)
    return pose(s.body("dial") + 0.05 * mark, s.quaternion("dial"))


def pull_lever(s: Scene) -> Outcome:
    """Bring the gripper's shoulder under the lever and turn it up by 90 degrees."""
    start = s.start("_lever_pos_init")
    ready = shoulder_near(s, s.obj, start, (4.0, 1.0, 4.0))
    in_place = tolerance(distance(s.obj, s.target), 0.04, distance(start, s.target))
    still_to_go = (s.joint("LeverAxis") + math.pi / 2.0).abs()
    return 10.0 * both(ready, in_place), still_to_go <= math.pi / 24.0


def turn_faucet(s: Scene, offset: Sequence[float]) -> Outcome:
    """Come to the handle and turn it to the goal.

    Args:
        s: the scene.
        offset: of the place to push from the place observed, m.
    """
    handle = s.obj + s.obj.new_tensor(offset)
    away = distance(handle, s.target)
    margin = (distance(s.obj_start, s.target) - _FAUCET_RADIUS).abs()
    in_place = tolerance(away, _FAUCET_RADIUS, margin)
    reach_margin = (distance(s.obj_start, s.tcp_start) - 0.01).abs()
    reach = gaussian_tolerance(distance(handle, s.tcp), 0.01, reach_margin)
    success = away <= _FAUCET_RADIUS
    return torch.where(success, 10.0, 4.0 * reach + 6.0 * in_place), success


def turn_dial(s: Scene) -> Outcome:
    """Come to the dial's side with the gripper closed and turn its mark to the goal."""
    away = distance(s.obj, s.target)
    start = s.start("dial_push_position")
    margin = (distance(start, s.target) - _DIAL_RADIUS).abs()
    in_place = tolerance(away, _DIAL_RADIUS, margin)
    side = s.obj + s.obj.new_tensor([0.05, 0.02, 0.09])
    reach_margin = (distance(start, s.tcp_start) - 0.005).abs()
    reach = gaussian_tolerance(distance(side, s.tcp), 0.005, reach_margin)
    reward = both(both(reach, closing(s.action)), in_place)
    return 10.0 * reward, away <= _DIAL_RADIUS


SKILLS = (
    Skill("lever-pull", see_lever, pull_lever, ("_lever_pos_init",)),
    Skill(
        "faucet-open",
        partial(see_faucet, site="handleStartOpen"),
        partial(turn_faucet, offset=(-0.04, 0.0, 0.03)),
    ),
    Skill(
        "faucet-close",
        partial(see_faucet, site="handleStartClose"),
        partial(turn_faucet, offset=(0.0, 0.0, 0.0)),
    ),
    Skill("dial-turn", see_dial, turn_dial, ("dial_push_position",)),
)
