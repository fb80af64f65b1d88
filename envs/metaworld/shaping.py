"""The functions that Meta-World's rewards are made of, for many worlds at once.

After Yu et al. 2021 (Meta-World, version 2 of the paper) and its package, whose tolerances are
those of Tassa et al. 2018 (the DeepMind Control Suite). All tensors are float64 `[C]` or `[C, 3]`,
C worlds of one skill.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from metarl.envs.metaworld.scene import Scene

TINY = 1e-300
"""stands for 0 where something is divided by it"""
PADS_WITHIN = 0.05
"""distance of a pad from the middle of an object that counts as near in `pinching`, m"""
_AT_MARGIN = math.log(0.1)


def distance(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances `[C]` between points `[C, D]`."""
    apart: Tensor = torch.linalg.vector_norm(a - b, dim=-1)
    return apart


def outside(x: Tensor, upper: float | Tensor, lower: float | Tensor | None = 0.0) -> Tensor:
    """How far `x` is from the interval, 0 within; `lower` None leaves it open below."""
    above = (x - upper).clamp_min(0.0)
    return above if lower is None else torch.maximum(above, lower - x)


def tolerance(
    x: Tensor, upper: float | Tensor, margin: float | Tensor, lower: float | Tensor | None = 0.0
) -> Tensor:
    """1 for x in [lower, upper], 0.1 a `margin` away from it, with a long tail beyond.

    1 / ((3 d / margin)² + 1), where d is the distance from the interval; with a margin of 0, 0
    everywhere outside.
    """
    steepness = 3.0 / (margin.clamp_min(TINY) if isinstance(margin, Tensor) else max(margin, TINY))
    return 1.0 / ((outside(x, upper, lower) * steepness).square() + 1.0)


def gaussian_tolerance(
    x: Tensor, upper: float | Tensor, margin: float | Tensor, lower: float | Tensor | None = 0.0
) -> Tensor:
    """As `tolerance`, with a Gaussian instead of the long tail: 0.1^((d / margin)²)."""
    width = margin.clamp_min(TINY) if isinstance(margin, Tensor) else max(margin, TINY)
    return torch.exp(_AT_MARGIN * (outside(x, upper, lower) / width).square())


def both(a: Tensor, b: Tensor) -> Tensor:
    """The Hamacher product of two numbers in [0, 1]: a b / (a + b - a b), and 0 for 0 and 0."""
    product = a * b
    return product / (a + b - product).clamp_min(TINY)


def share(where: Tensor, much: float) -> Tensor:
    """As much as given where something holds, bool `[C]`, and 0 elsewhere, `[C]`."""
    # A number times truth values would be rounded to float32.
    return much * where.double()


def closing(action: Tensor, effort: float = 1.0) -> Tensor:
    """How much the gripper is asked to close, from 0 to 1 at an `effort` or more, `[C]`."""
    return action[:, 3].clamp(0.0, effort) / effort


def grip(action: Tensor) -> Tensor:
    """What is asked of the gripper, from 0 (open) to 1 (close), `[C]`."""
    return 0.5 * (action[:, 3].clamp(-1.0, 1.0) + 1.0)


def hover(away: Tensor, within: float, scale: float = 0.04, height: float = 0.4) -> Tensor:
    """How high the hand should be at a horizontal distance: 0 near, then a logarithmic funnel."""
    return torch.where(away <= within, 0.0, scale * (away - within).clamp_min(TINY).log() + height)


def from_above(hand: Tensor, at: Tensor, within: float) -> Tensor:
    """1 for hands `[C, 3]` over the funnel around a place, less the deeper they are below it."""
    floor = hover(distance(hand[:, :2], at[:, :2]), within)
    below = floor - hand[:, 2]
    return torch.where(below <= 0.0, 1.0, tolerance(below, 0.01, 0.5 * floor))


def _level(s: Scene, at: Tensor, within: float, start: Tensor) -> Tensor:
    """How near the gripper's centre is in the x-z plane, for an object that was at `start`."""
    margin = distance(start[:, ::2], s.tcp_start[:, ::2]) - within
    return tolerance(distance(s.tcp[:, ::2], at[:, ::2]), within, margin)


def caging(
    s: Scene,
    at: Tensor,
    *,
    radius: float,
    pads_within: float,
    xz_within: float,
    reach_within: float = 0.0,
    effort: float = 1.0,
    density: str = "low",
    start: Tensor | None = None,
) -> Tensor:
    """How well the gripper holds an object: its pads on both sides in y, its centre at it in x, z.

    `_gripper_caging_reward` of the package.

    Args:
        s: the scene.
        at: where the object is taken to be, `[C, 3]`.
        radius: of the object, m.
        pads_within: distance of a pad from the object that counts as near, m.
        xz_within: distance of the gripper's centre in the x-z plane that counts as near, m.
        reach_within: distance of the gripper's centre that counts as there, m; for medium density.
        effort: of the gripper that counts as closed.
        density: low; medium, averaged with how near the gripper is; high, with the caging itself.
        start: where the object was at the start, `[C, 3]`, if not at `obj_start`.
    """
    start = s.obj_start if start is None else start
    pads = torch.stack([s.left_pad[:, 1], s.right_pad[:, 1]], -1)
    away = (pads - at[:, 1:2]).abs()
    margin = ((pads - start[:, 1:2]).abs() - pads_within).abs()
    sides = tolerance(away, pads_within, margin, radius)
    caged = both(both(sides[:, 0], sides[:, 1]), _level(s, at, xz_within, start))
    held = both(caged, torch.where(caged > 0.97, closing(s.action, effort), 0.0))
    if density == "high":
        return 0.5 * (held + caged)
    if density == "medium":
        reach_margin = (distance(start, s.tcp_start) - reach_within).abs()
        return 0.5 * (held + tolerance(distance(at, s.tcp), reach_within, reach_margin))
    return held


def pinching(
    s: Scene, *, radius: float, xz_within: float, slack: float | None = None
) -> tuple[Tensor, Tensor]:
    """How well the first object is between the pads, and how tightly they enclose it; each `[C]`.

    What some skills of the package have instead of `caging`. The margins are those of the pads as
    they are: what the package calls their initial positions are views of the present ones.

    Args:
        s: the scene.
        radius: of the object, m.
        xz_within: distance of the gripper's centre in the x-z plane that counts as near, m.
        slack: distance of a pad from the object's surface that counts as tight, m; None where
            nobody asks, and then nothing is tight.
    """
    left, right, y = s.left_pad[:, 1], s.right_pad[:, 1], s.obj[:, 1]
    away = torch.stack([left - y, y - right], -1)
    margin = (away.abs() - PADS_WITHIN).abs()
    sides = tolerance(away, PADS_WITHIN, margin, radius)
    caged = both(both(sides[:, 0], sides[:, 1]), _level(s, s.obj, xz_within, s.obj_start))
    if slack is None:
        return caged, torch.zeros_like(caged)
    tight = tolerance(away, radius + slack, margin, radius)
    return caged, both(tight[:, 0], tight[:, 1])


def squeezing(s: Scene, *, radius: float, xz_within: float, slack: float) -> Tensor:
    """How well the first object is held, by `pinching`: half for being between the pads."""
    caged, tight = pinching(s, radius=radius, xz_within=xz_within, slack=slack)
    return 0.5 * (caged + torch.where(caged > 0.95, tight, 0.0))
