"""Pressing a button, from above or from the front, past a wall or not."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, distance, tolerance

Y, Z = 1, 2
"""the directions in which buttons move"""


def see_button(s: Scene, shift: tuple[float, float, float]) -> Tensor:
    """The button, by a point of it that lies `shift` from its body's origin."""
    button = s.body("button")
    return pose(button + button.new_tensor(shift), s.quaternion("button"))


def approach(s: Scene, within: float) -> tuple[Tensor, Tensor]:
    """Distance of the gripper from the object, and how near that is, `[C]` each."""
    reach = distance(s.obj, s.tcp)
    return reach, tolerance(reach, within, distance(s.obj, s.tcp_start))


def depth(s: Scene, axis: int, margin: float | Tensor) -> tuple[Tensor, Tensor]:
    """How far the button still has to go along an axis, and how good that is, `[C]` each."""
    to_go = (s.target[:, axis] - s.obj[:, axis]).abs()
    return to_go, tolerance(to_go, 0.005, margin)


def press_down(s: Scene) -> Outcome:
    """Come to the button with a closed gripper, then press it down."""
    reach, near = approach(s, 0.01)
    to_go, pressed = depth(s, Z, s.start("_obj_to_target_init"))
    reward = 5.0 * both(1.0 - s.opened, near) + 5.0 * (reach <= 0.03) * pressed
    return reward, to_go <= 0.024


def press_forward(s: Scene, margin: float | Tensor) -> Outcome:
    """Come to the button with an open gripper, then press it away from the robot.

    Args:
        s: the scene.
        margin: how far the button moves, m.
    """
    reach, near = approach(s, 0.05)
    to_go, pressed = depth(s, Y, margin)
    reward = 2.0 * both(s.opened, near) + 8.0 * (reach <= 0.05) * pressed
    return reward, to_go <= 0.02


def press_button(s: Scene) -> Outcome:
    """Press the button on the box, see `press_forward`."""
    return press_forward(s, s.start("_obj_to_target_init"))


def press_behind_wall(s: Scene) -> Outcome:
    """Come to the button with a closed gripper, open it there and press."""
    reach, near = approach(s, 0.01)
    to_go, pressed = depth(s, Y, s.start("_obj_to_target_init"))
    coming = 2.0 * both((1.0 - s.opened) / 2.0, near)
    there = 2.0 + 2.0 * (1.0 + s.opened) + 4.0 * pressed.square()
    return torch.where(reach > 0.07, coming, there), to_go <= 0.03


_TOP = partial(see_button, shift=(0.0, 0.0, 0.193))
_FRONT = partial(see_button, shift=(0.0, -0.193, 0.0))
_KEPT = ("_obj_to_target_init",)

SKILLS = (
    Skill("button-press-topdown", _TOP, press_down, _KEPT),
    Skill("button-press-topdown-wall", _TOP, press_down, _KEPT),
    Skill("button-press", _FRONT, press_button, _KEPT),
    Skill("button-press-wall", _FRONT, press_behind_wall, _KEPT),
)
