"""Search the whole randomisation space for tasks where a policy fails.

The search sees returns only: a cover of the space by a Sobol sequence, then Gaussian steps from the
worst points that lie apart from each other, which shrink from round to round. Low returns that it
finds are partly bad luck, so the tasks are chosen among its candidates on fresh seeds, and
reported on other seeds again.

Shapes: `N` candidates, `P` numbers of the randomisation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from metarl.envs.randomization import Parameters

Judge = Callable[[Tensor], Tensor]
"""Returns `[N]` at points `[N, P]` of the unit cube; lower is worse."""

COVER = 0.5
"""share of the budget that covers the space; the rest goes to where it is worst"""
ROUNDS = 4
"""of refinement"""
FIRST_RADIUS, SHRINK = 0.2, 0.6
"""standard deviation of the first steps in the unit cube, and what it is multiplied by"""
MOVES = 0.5
"""chance that a step changes a number at all"""
APART = 0.15
"""Tasks that are nearer than this, as `Space.apart` measures it, count as the same."""


@dataclass(frozen=True)
class Space:
    """A box of tasks as a unit cube: the training range, or all that is within the limits."""

    parameters: Parameters
    beyond: bool
    """up to the limits of each `Vary`, rather than within its training range"""

    def ends(self, index: int) -> tuple[float, float]:
        """Least and largest value of a `Vary`."""
        vary = self.parameters.vary[index]
        return vary.limits() if self.beyond else (vary.low, vary.high)

    def values(self, points: Tensor) -> Tensor:
        """The numbers `[N, P]` of tasks at points `[N, P]` of the unit cube."""
        values = points.double().clone()
        for index, (vary, part) in enumerate(
            zip(self.parameters.vary, self.parameters.slices, strict=True)
        ):
            (low, high), share = self.ends(index), values[:, part]
            if vary.whole:
                values[:, part] = (low + (high - low + 1.0) * share).floor().clamp(low, high)
            elif vary.distribution == "log-uniform":
                values[:, part] = low * (high / low) ** share
            else:
                values[:, part] = low + (high - low) * share
        return values


def inside_training_range(parameters: Parameters, values: Tensor) -> Tensor:
    """Bool `[N]`: whether all numbers `[N, P]` lie in their training range."""
    inside = torch.ones(len(values), dtype=torch.bool)
    for vary, part in zip(parameters.vary, parameters.slices, strict=True):
        slack = 1e-9 * max(abs(vary.low), abs(vary.high))
        numbers = values[:, part]
        inside &= ((numbers >= vary.low - slack) & (numbers <= vary.high + slack)).all(-1)
    return inside


def apart(points: Tensor, other: Tensor, parts: list[slice]) -> Tensor:
    """Distance `[N]` of points `[N, P]` from another `[P]`: root mean square over quantities.

    A quantity with a number for each of many elements counts as much as one with a single number.
    """
    squares = (points - other).square()
    return torch.stack([squares[:, part].mean(-1) for part in parts], -1).mean(-1).sqrt()


def worst_apart(
    points: Tensor, returns: Tensor, count: int, parts: list[slice], distance: float = APART
) -> Tensor:
    """Indices of up to `count` points, the worst first, that lie at least `distance` apart."""
    order, chosen = returns.argsort(), list[int]()
    for index in order.tolist():
        near = [apart(points[index : index + 1], points[i], parts)[0] < distance for i in chosen]
        if not any(near):
            chosen.append(index)
        if len(chosen) == count:
            break
    return torch.tensor(chosen, dtype=torch.int64)


def search(
    judge: Judge,
    parts: list[slice],
    *,
    budget: int,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Look for up to `count` points apart from each other where `judge` returns least.

    Args:
        judge: what is minimised; called a few times with many points.
        parts: which numbers belong to one quantity; all numbers together are P.
        budget: points that are judged in all.
        count: how many regions are refined.
        generator: decides on the points.

    Returns:
        All points `[budget, P]` that were judged, and their returns `[budget]`.
    """
    seed = int(torch.randint(2**31, (1,), generator=generator))
    sobol = SobolEngine(parts[-1].stop, scramble=True, seed=seed)
    first = max(1, round(COVER * budget))
    points = sobol.draw(first, dtype=torch.float64)
    returns = judge(points)
    radius = FIRST_RADIUS
    for round_ in range(ROUNDS):
        size = (budget - len(points)) // (ROUNDS - round_)
        if not size:
            continue
        centres = points[worst_apart(points, returns, count, parts)]
        centres = centres[torch.arange(size) % len(centres)]
        step = torch.randn(centres.shape, dtype=torch.float64, generator=generator)
        moves = torch.rand(centres.shape, generator=generator) < MOVES
        new = (centres + radius * step * moves).clamp(0.0, 1.0)
        points, returns = torch.cat([points, new]), torch.cat([returns, judge(new)])
        radius *= SHRINK
    return points, returns
