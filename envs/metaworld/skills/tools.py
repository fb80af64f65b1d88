"""Using a tool: a hammer on a nail, a stick on a bottle."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, caging, distance, share, tolerance

BOTTLE = 0.12
"""distance of the bottle from the goal that solves, m"""


def turned(s: Scene, ideal: tuple[float, ...], most: float) -> Tensor:
    """1 for an object turned as it should be, 0 for a quaternion `most` away from it, `[C]`."""
    error = distance(s.seen[:, 3:7], s.obj.new_tensor(ideal))
    return (1.0 - error / most).clamp_min(0.0)


def along_handle(s: Scene, reach: float) -> Tensor:
    """The object, or the place on its handle that the hand is at, if less than `reach` beside."""
    at = s.obj.clone()
    x = s.hand[:, 0]
    at[:, 0] = torch.where((at[:, 0] - x).abs() < reach, x, at[:, 0])
    return at


# --- hammer ---------------------------------------------------------------------------------


def see_hammer(s: Scene) -> Tensor:
    """The hammer and the nail."""
    hammer = pose(s.body("hammer"), s.quaternion("hammer"))
    return torch.cat([hammer, pose(s.body("nail_link"), s.quaternion("nail_link"))], -1)


def hammer(s: Scene) -> Outcome:
    """Hold the hammer upright, bring its head to the nail and drive the nail in."""
    head = s.obj + s.obj.new_tensor([0.16, 0.06, 0.0])
    in_place = share(head[:, 2] > 0.02, 0.1) + 0.9 * tolerance(distance(head, s.target), 0.02, 0.2)
    handle = along_handle(s, 0.07)
    grasped = caging(s, handle, radius=0.015, pads_within=0.02, xz_within=0.01, density="high")
    reward = (2.0 * grasped + 6.0 * in_place) * turned(s, (1.0, 0.0, 0.0, 0.0), 0.4)
    success = s.joint("NailSlideJoint") > 0.09
    return torch.where(success & (reward > 5.0), 10.0, reward), success


# --- sticks ---------------------------------------------------------------------------------


def see_stick_and_handle(s: Scene) -> Tensor:
    """The stick, and the bottle's handle."""
    return torch.cat([pose(s.body("stick"), s.rotation("body", "stick")), s.site("insertion")], -1)


def see_stick_and_bottle(s: Scene) -> Tensor:
    """The stick, and the middle of the bottle."""
    seen = see_stick_and_handle(s)
    seen[:, 8] += 0.09
    return seen


def stick_lifted(s: Scene, at: Tensor) -> Tensor:
    """Where the stick, held at a place `[C, 3]`, is off the table."""
    off = s.obj[:, 2] - 0.01 > s.start("stick_init_pos")[:, 2]
    return off & (s.opened > 0.0) & (distance(at, s.tcp) < 0.02)


def push_with_stick(s: Scene) -> Outcome:
    """Lift the stick and push the bottle with it, without letting go."""
    stick, bottle = s.obj + s.obj.new_tensor([0.015, 0.0, 0.0]), s.seen[:, 7:10]
    start = s.start("stick_init_pos")
    away = distance(bottle, s.target)
    stick_in_place = tolerance(
        distance(stick, s.target), BOTTLE, distance(start, s.target) - BOTTLE
    )
    bottle_in_place = tolerance(away, BOTTLE, distance(s.obj_start, s.target) - BOTTLE)
    grasped = caging(
        s, stick, radius=0.04, pads_within=0.05, xz_within=0.01, density="high", start=start
    )
    there = away <= BOTTLE
    lifted_reward = torch.where(there, 10.0, 2.0 + 5.0 * stick_in_place + 3.0 * bottle_in_place)
    reward = torch.where(stick_lifted(s, stick), lifted_reward, grasped)
    off = (s.opened > 0.0) & (s.obj[:, 2] - 0.01 > start[:, 2])
    return reward, s.squeezed("objGeom", there & off)


def pull_with_stick(s: Scene) -> Outcome:
    """Put the stick through the bottle's handle and pull the bottle with it."""
    handle, start = s.seen[:, 7:10], s.start("stick_init_pos")
    beside = s.obj.new_tensor([0.05, 0.0, 0.0])
    scale = s.obj.new_tensor([1.0, 1.0, 2.0])
    bottle = handle + beside
    stick_in_place = tolerance(
        distance(s.obj * scale, bottle * scale),
        0.05,
        distance(start * scale, (s.obj_start + beside) * scale),
    )
    stick_pulled = tolerance(distance(s.obj, s.target), 0.05, distance(start, s.target))
    bottle_pulled = tolerance(distance(bottle, s.target), 0.05, distance(s.obj_start, s.target))
    held = caging(s, s.obj, radius=0.014, pads_within=0.05, xz_within=0.01, density="high")
    lifted = stick_lifted(s, s.obj)
    reward = both(torch.where(lifted, 1.0, held), stick_in_place)

    past = s.site("stick_end") - handle
    inserted = (past[:, 0] >= 0.0) & (past[:, 1].abs() <= 0.04) & (past[:, 2].abs() <= 0.06)
    success = inserted & (distance(handle, s.target) <= BOTTLE)
    pulling = torch.where(inserted, 5.0 + 2.0 * stick_pulled + bottle_pulled, 5.0 * stick_in_place)
    reward = reward + lifted * (1.0 + pulling)
    return torch.where(lifted & success, 10.0, reward), success


SKILLS = (
    Skill("hammer", see_hammer, hammer),
    Skill("stick-push", see_stick_and_bottle, push_with_stick, constants=("stick_init_pos",)),
    Skill("stick-pull", see_stick_and_handle, pull_with_stick, constants=("stick_init_pos",)),
)
