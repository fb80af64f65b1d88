"""What robots are asked to do: speeds, headings and places, drawn region by region.

Continuous goals fill their interval in stripes, of which every fifth is held out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarl.envs.robot import RobotTask
from metarl.tasks import Split, striped


@dataclass(frozen=True)
class TargetSpeed(RobotTask):
    """Speeds to run at."""

    speed: Tensor
    """float64 `[N]`, m/s; positive is forward"""

    def words(self, index: int) -> str:
        """The speed."""
        return f"speed {float(self.speed[index]):.2f} m/s"


@dataclass(frozen=True)
class Direction(RobotTask):
    """Directions to run in."""

    direction: Tensor
    """float64 `[N]`, +1 forward or -1 backward"""

    def words(self, index: int) -> str:
        """Which way."""
        return "forward" if float(self.direction[index]) > 0 else "backward"


@dataclass(frozen=True)
class Heading(RobotTask):
    """Headings in the plane to run in."""

    heading: Tensor
    """float64 `[N, 2]`: unit vectors [cos, sin]"""

    def words(self, index: int) -> str:
        """The angle to the x axis, anticlockwise."""
        x, y = self.heading[index].tolist()
        return f"heading {round(math.degrees(math.atan2(y, x))) % 360} deg"


@dataclass(frozen=True)
class Place(RobotTask):
    """Places in the plane to go to."""

    place: Tensor
    """float64 `[N, 2]`: x and y, m"""

    def words(self, index: int) -> str:
        """The place."""
        x, y = self.place[index].tolist()
        return f"goal ({x:.2f}, {y:.2f}) m"


def both_ways(n: int, generator: torch.Generator) -> Tensor:
    """`n` signs in random order, float64, as many +1 as -1 (to within one)."""
    first = int(torch.randint(2, (1,), generator=generator))
    order = torch.randperm(n, generator=generator)
    return 2.0 * ((order + first) % 2).double() - 1.0


def sample_speeds(
    n: int, split: Split, generator: torch.Generator, most: float, beyond: float
) -> Tensor:
    """Speeds of [0, most], or of (most, beyond] out of range, float64 `[n]`."""
    u = torch.rand(n, dtype=torch.float64, generator=generator)
    if split == "out-of-range":
        return beyond - (beyond - most) * u
    return most * striped(u, split)


def sample_angles(n: int, split: Split, generator: torch.Generator) -> Tensor:
    """Unit vectors in all directions of the plane, float64 `[n, 2]`."""
    angle = 2.0 * math.pi * striped(torch.rand(n, dtype=torch.float64, generator=generator), split)
    return torch.stack([angle.cos(), angle.sin()], -1)


def sample_disc(
    n: int, split: Split, generator: torch.Generator, radius: float, beyond: float
) -> Tensor:
    """Points of a disc, or of the ring around it out of range, float64 `[n, 2]`, uniform by area.

    Which points are held out is decided by the angle.
    """
    u = torch.rand(2, n, dtype=torch.float64, generator=generator)
    inner = u[0] if split == "out-of-range" else striped(u[0], split)
    angle = 2.0 * math.pi * inner
    square = radius**2 * u[1]
    if split == "out-of-range":
        square = beyond**2 - (beyond**2 - radius**2) * u[1]
    return square.sqrt().unsqueeze(-1) * torch.stack([angle.cos(), angle.sin()], -1)
