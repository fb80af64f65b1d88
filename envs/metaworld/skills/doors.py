"""Doors on hinges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import (
    both,
    distance,
    from_above,
    gaussian_tolerance,
    grip,
    share,
    tolerance,
)


def see_handle(s: Scene) -> Tensor:
    """The door's handle."""
    return pose(s.geom("handle"), s.rotation("geom", "handle"))


def open_door(s: Scene) -> Outcome:
    """Come to the handle from above, then turn the door by 90 degrees."""
    door = s.obj - s.obj.new_tensor([0.05, 0.0, 0.0])
    off = s.obj.new_tensor([0.05, 0.03, -0.01])
    in_place = tolerance(distance(s.hand - door, off), 0.06, 0.5)
    ready = both(from_above(s.hand, door, 0.12), in_place)

    angle = s.joint("doorjoint")
    still_to_go = math.pi / 2.0 + math.pi / 6.0 + angle
    opened = share(angle < -math.pi / 90.0, 0.2) + 0.8 * tolerance(still_to_go, 0.5, math.pi / 3.0)
    success = (s.obj[:, 0] - s.target[:, 0]).abs() <= 0.08
    return torch.where(success, 10.0, 2.0 * both(ready, grip(s.action)) + 8.0 * opened), success


def close_door(s: Scene) -> Outcome:
    """Bring the handle to the goal, and the gripper with it."""
    away = distance(s.obj, s.target)
    in_place = gaussian_tolerance(away, 0.05, distance(s.obj_start, s.target))
    margin = distance(s.start("hand_init_pos"), s.obj) + 0.1
    hand_in_place = gaussian_tolerance(distance(s.tcp, s.target), 0.25 * 0.05, margin)
    reward = torch.where(away < 0.05, 10.0, 3.0 * hand_in_place + 6.0 * in_place)
    return reward, away <= 0.08


def see_lock(s: Scene, site: str) -> Tensor:
    """A point on the door's lock, with the orientation of the door."""
    return pose(s.site(site), s.quaternion("door_link"))


def shoulder_near(s: Scene, at: Tensor, start: Tensor, scale: Sequence[float]) -> Tensor:
    """How near the gripper's shoulder, above and behind the fingers, is to something, `[C]`.

    Args:
        s: the scene.
        at: where it should be, `[C, 3]`.
        start: where it should have been at the start, `[C, 3]`; sets the margin.
        scale: weights of the distances in x, y and z.
    """
    shoulder, weight = s.hand.new_tensor([[0.0, 0.055, 0.07], scale])
    margin = distance(weight * (s.tcp_start + shoulder), weight * start)
    return tolerance(distance(weight * (s.hand + shoulder), weight * at), 0.02, margin)


def turned(away: Tensor) -> Tensor:
    """How far the lock has come, by its distance from the goal along one axis, `[C]`."""
    return tolerance(away, 0.005, 0.1)


def lock_door(s: Scene) -> Outcome:
    """Bring the left pad to the lock with the gripper open and press it down."""
    away = (s.target[:, 2] - s.obj[:, 2]).abs()
    scale = s.obj.new_tensor([0.25, 1.0, 0.5])
    reach = distance(scale * s.obj, scale * s.left_pad)
    # The margin is the pad's present distance: its initial place, as the package calls it, is a
    # view of the present one.
    near = tolerance(reach, 0.01, reach)
    return 2.0 * both(s.opened, near) + 8.0 * turned(away), away <= 0.02


def unlock_door(s: Scene) -> Outcome:
    """Bring the gripper's shoulder to the lock and push it sideways."""
    away = (s.target[:, 0] - s.obj[:, 0]).abs()
    # What the package calls the lock's initial place is a view of the present one.
    ready = shoulder_near(s, s.obj, s.body("lock_link"), (0.25, 1.0, 0.5))
    return 2.0 * ready + 8.0 * turned(away), away <= 0.02


SKILLS = (
    Skill("door-open", see_handle, open_door),
    Skill("door-close", see_handle, close_door),
    Skill("door-lock", partial(see_lock, site="lockStartLock"), lock_door),
    Skill("door-unlock", partial(see_lock, site="lockStartUnlock"), unlock_door),
)
