"""One quantity with its training range: the values inside of it, and those beyond.

A value lies at a share of the way from the lower end of its range (0) to the upper one (1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metarl.envs.quantities import QUANTITIES
from metarl.errors import UsageError

Distribution = Literal["uniform", "log-uniform", "gaussian"]


@dataclass(frozen=True)
class Vary:
    """One quantity that differs from task to task."""

    quantity: str
    """a name in `QUANTITIES`"""
    low: float
    """lower end of the training range, in the unit of the quantity"""
    high: float
    """upper end"""
    distribution: Distribution = "uniform"
    """a Gaussian has its mean in the middle of the range, which ends two deviations from it"""
    of: tuple[str, ...] = ()
    """names of bodies, geoms, joints or actuators, or indices of observations; empty for all"""
    each: bool = False
    """draw a number for each element, rather than one for all of them"""
    beyond: float = 0.5
    """how far out-of-range tasks lie outside on each side, as a share of the range's width"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for ranges that cannot be."""
        if self.quantity not in QUANTITIES:
            raise UsageError(
                f"randomisation: unknown quantity {self.quantity!r}; choose from "
                f"{', '.join(QUANTITIES)}"
            )
        if self.distribution not in get_args(Distribution):
            raise UsageError(
                f"{self._where}: distribution must be one of {', '.join(get_args(Distribution))}, "
                f"got {self.distribution!r}"
            )
        numbers = (self.low, self.high, self.beyond)
        if not all(math.isfinite(x) for x in numbers):
            raise UsageError(f"{self._where}: low, high and beyond must be finite, got {numbers}")
        if self.low > self.high:
            raise UsageError(
                f"{self._where}: the range is reversed: low {self.low:g} is above "
                f"high {self.high:g}"
            )
        self._check_bounds()
        if self.distribution == "log-uniform" and self.low <= 0:
            raise UsageError(
                f"{self._where}: low of a log-uniform range must be above 0, got {self.low:g}"
            )
        if self.beyond < 0:
            raise UsageError(f"{self._where}: beyond must be at least 0, got {self.beyond:g}")
        if isinstance(self.of, str):
            raise UsageError(f"{self._where}: of must be a list of names, got {self.of!r}")

    def _check_bounds(self) -> None:
        """Raise `UsageError` for values that the quantity cannot have."""
        quantity = QUANTITIES[self.quantity]
        if self.low < quantity.least:
            raise UsageError(
                f"{self._where}: low must be at least {quantity.least:g}, got {self.low:g}"
            )
        if self.high > quantity.most:
            raise UsageError(
                f"{self._where}: high must be at most {quantity.most:g}, got {self.high:g}"
            )
        if quantity.whole and not (self.low == round(self.low) and self.high == round(self.high)):
            raise UsageError(
                f"{self._where}: low and high must be whole numbers of control steps, "
                f"got {self.low:g} and {self.high:g}"
            )

    @property
    def _where(self) -> str:
        return f"randomisation of {self.quantity}"

    @property
    def whole(self) -> bool:
        """Whether the values are whole numbers."""
        return QUANTITIES[self.quantity].whole

    def value(self, share: Tensor) -> Tensor:
        """The value at a `share` of the way from `low` (0) to `high` (1), also outside of it.

        Whole numbers have equal parts of the way each.
        """
        low, high = self.low, self.high + 1.0 if self.whole else self.high
        log = self.distribution == "log-uniform"
        value = low * (high / low) ** share if log else low + (high - low) * share
        return value.floor().clamp(self.low, self.high) if self.whole else value

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """How far values are from each other, as a share of the range's width."""
        if self.distribution == "log-uniform":
            return (a / b).log().abs() / max(math.log(self.high / self.low), 1e-9)
        return (a - b).abs() / max(self.high - self.low, 1e-9)

    def inside(self, u: Tensor) -> Tensor:
        """Values of the range for uniform numbers `u` in [0, 1): the quantile function."""
        if self.distribution == "gaussian":
            # Cut off at two deviations, which are the ends of the range.
            tail = 0.5 * math.erfc(2.0 / math.sqrt(2.0))
            z = torch.special.ndtri(tail + (1.0 - 2.0 * tail) * u)
            u = 0.5 + 0.25 * z
        return self.value(u)

    def limits(self) -> tuple[float, float]:
        """The furthest values that are out of range, no further than makes sense."""
        quantity = QUANTITIES[self.quantity]
        if self.whole:
            reach = max(round(self.beyond * (self.high - self.low)), 1) if self.beyond else 0
            low, high = self.low - reach, self.high + reach
        else:
            low, high = (
                float(self.value(torch.tensor(x))) for x in (-self.beyond, 1.0 + self.beyond)
            )
        return max(low, quantity.least), min(high, quantity.most)

    @property
    def has_outside(self) -> bool:
        """Whether there is anything out of range; not if the range is one value, or has it all."""
        low, high = self.limits()
        return low < self.low or high > self.high

    def outside(self, u: Tensor) -> Tensor:
        """Values out of range for uniform numbers in [0, 1), half of them on each side.

        Where there is nothing below (or above) the range, all are on the other side.
        """
        low, high = self.limits()
        one_sided = low >= self.low or high <= self.high
        down, up = (u, 1.0 - u) if one_sided else (2.0 * u, 2.0 - 2.0 * u)
        below = low + (self.low - low) * down
        above = self.high + (high - self.high) * up
        if self.whole:
            below = below.floor().clamp(low, self.low - 1.0)
            above = above.ceil().clamp(self.high + 1.0, high)
        if one_sided:
            return above if low >= self.low else below
        return torch.where(u < 0.5, below, above)
