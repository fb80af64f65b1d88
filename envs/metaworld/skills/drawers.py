"""Things that slide: drawers and windows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from metarl.envs.metaworld.scene import Outcome, Scene, Skill, pose
from metarl.envs.metaworld.shaping import both, closing, distance, gaussian_tolerance, tolerance

_WINDOW_RADIUS = 0.05
_DRAWER_RADIUS = 0.05
_PULL = 0.2
"""how far the drawer is to be pulled out, m"""


def see_handle_of_closing(s: Scene) -> Tensor:
    """A point above the drawer's handle, without orientation."""
    drawer = s.body("drawer_link")
    return pose(drawer + drawer.new_tensor([0.0, -0.16, 0.05]))


def see_handle_of_opening(s: Scene) -> Tensor:
    """The drawer's handle."""
    drawer = s.body("drawer_link")
    return pose(drawer + drawer.new_tensor([0.0, -0.16, 0.0]), s.quaternion("drawer_link"))


def see_site(s: Scene, site: str) -> Tensor:
    """A point on the window's handle, without orientation."""
    return pose(s.site(site))


def close_drawer(s: Scene) -> Outcome:
    """Come to the handle with the gripper closed and push it to the goal."""
    away = distance(s.obj, s.target)
    margin = (distance(s.obj_start, s.target) - _DRAWER_RADIUS).abs()
    in_place = tolerance(away, _DRAWER_RADIUS, margin)
    reach_margin = (distance(s.obj_start, s.tcp_start) - 0.005).abs()
    reach = gaussian_tolerance(distance(s.obj, s.tcp), 0.005, reach_margin)
    success = away <= _DRAWER_RADIUS + 0.015
    reward = both(both(reach, closing(s.action)), in_place)
    return torch.where(success, 10.0, 10.0 * reward), success


def open_drawer(s: Scene) -> Outcome:
    """Bring the hand to the handle and pull it to the goal."""
    away = distance(s.obj, s.target)
    opened = tolerance(away, 0.02, _PULL)
    # Sideways errors weigh more: the hand should come down on the handle from above.
    scale = s.obj.new_tensor([3.0, 3.0, 1.0])
    start = s.target + s.obj.new_tensor([0.0, _PULL, 0.0])
    margin = distance(scale * start, scale * s.tcp_start)
    near = tolerance(distance(scale * s.obj, scale * s.hand), 0.01, margin)
    return 5.0 * (near + opened), away <= 0.03


def slide_window(
    s: Scene, margin: float | Tensor, reaching: Callable[[Tensor, float, Tensor], Tensor]
) -> Outcome:
    """Come to the window's handle and slide it along x to the goal.

    Args:
        s: the scene.
        margin: of the handle's distance from the goal, m.
        reaching: which tolerance the gripper's distance from the handle has.
    """
    away = (s.obj[:, 0] - s.target[:, 0]).abs()
    in_place = tolerance(away, _WINDOW_RADIUS, margin)
    start = s.start("window_handle_pos_init")
    reach_margin = (distance(start, s.tcp_start) - 0.02).abs()
    reach = reaching(distance(s.obj, s.tcp), 0.02, reach_margin)
    return 10.0 * both(reach, in_place), away <= _WINDOW_RADIUS


def open_window(s: Scene) -> Outcome:
    """Slide the window by 20 cm."""
    return slide_window(s, 0.2 - _WINDOW_RADIUS, tolerance)


def close_window(s: Scene) -> Outcome:
    """Slide the window back from where the package takes its handle to be at the start."""
    start = (s.start("window_handle_pos_init")[:, 0] - s.target[:, 0]).abs()
    return slide_window(s, (start - _WINDOW_RADIUS).abs(), gaussian_tolerance)


_WINDOW = ("window_handle_pos_init",)

SKILLS = (
    Skill("drawer-close", see_handle_of_closing, close_drawer),
    Skill("drawer-open", see_handle_of_opening, open_drawer),
    Skill("window-open", partial(see_site, site="handleOpenStart"), open_window, _WINDOW),
    Skill("window-close", partial(see_site, site="handleCloseStart"), close_window, _WINDOW),
)
