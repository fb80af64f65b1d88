"""The coffee machine: its button, and the mug that goes under it."""

from __future__ import annotations

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, caging, distance, tolerance
from metarl.envs.metaworld.skills.buttons import press_forward
from metarl.envs.metaworld.skills.reaching import RADIUS


def see_button(s: Scene) -> Tensor:
    """The machine's button, which does not turn."""
    button = s.site("buttonStart")
    return pose(button, button.new_tensor([1.0, 0.0, 0.0, 0.0]).expand(len(button), 4))


def see_mug(s: Scene) -> Tensor:
    """The mug."""
    return pose(s.body("obj"), s.rotation("geom", "mug"))


def press_button(s: Scene) -> Outcome:
    """Press the machine's button, which moves by 3 cm."""
    return press_forward(s, 0.03)


def move_mug(s: Scene) -> Outcome:
    """Hold the mug and bring it to the goal; horizontal distances count double for the reward."""
    weights = s.obj.new_tensor([2.0, 2.0, 1.0])
    target = weights * s.target
    away = distance(weights * s.obj, target)
    in_place = tolerance(away, RADIUS, distance(weights * s.obj_start, target))
    held = caging(
        s,
        s.obj,
        radius=0.02,
        pads_within=0.05,
        xz_within=0.05,
        reach_within=0.04,
        effort=0.7,
        density="medium",
    )
    gripped = (distance(s.obj, s.tcp) < 0.04) & (s.opened > 0.0)
    reward = both(held, in_place) + gripped * (1.0 + 5.0 * in_place)
    return torch.where(away < RADIUS, 10.0, reward), distance(s.obj, s.target) <= 0.07


SKILLS = (
    Skill("coffee-button", see_button, press_button),
    Skill("coffee-pull", see_mug, move_mug),
    Skill("coffee-push", see_mug, move_mug),
)
