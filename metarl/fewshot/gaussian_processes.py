"""Curves drawn from Gaussian processes, with the exact posterior to be compared with.

The protocol is that of the attentive and the transformer neural processes (Lee et al. 2020; Nguyen
and Grover 2022, section 4.1): x in [-2, 2], a kernel whose length scale and amplitude are drawn
anew for each curve, noise of 0.02, and in training a random number of points to learn from. Unlike
there that number is uniform on its logarithm, as small support sets are what matters here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from metarl.errors import UsageError, require_between
from metarl.fewshot.episodes import CurveData, Episodes, Points, Protocol, Split, TaskSpec
from metarl.fewshot.learner import Prediction

Kernel = Literal["rbf", "matern", "periodic"]
EDGE = 2.0
"""curves are drawn on [-EDGE, EDGE]"""
MIN_VARIANCE = 1e-8
"""what the diagonal has at least, so that Cholesky succeeds without noise"""


def kernel_matrix(kernel: Kernel, tasks: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Covariances `[B, M, N]` of the noiseless curves at `a` `[B, M, 1]` and `b` `[B, N, 1]`.

    With d = |a - b|, length l, amplitude s and period p (Rasmussen and Williams 2006, chapter 4):
    rbf s² exp(-d²/2l²), matern (ν = 5/2) s² (1 + √5 d/l + 5d²/3l²) exp(-√5 d/l), and periodic
    s² exp(-2 sin²(πd/p)/l²).
    """
    distance = (a - b.mT).abs()
    if kernel == "periodic":
        wave = torch.sin(math.pi * distance / tasks["period"]) / tasks["length"]
        shape = torch.exp(-2.0 * wave.square())
    elif kernel == "matern":
        d = math.sqrt(5.0) * distance / tasks["length"]
        shape = (1.0 + d + d.square() / 3.0) * torch.exp(-d)
    else:
        shape = torch.exp(-0.5 * (distance / tasks["length"]).square())
    return tasks["amplitude"].square() * shape


@dataclass(frozen=True)
class GPCurves(CurveData):
    """Functions from a Gaussian-process prior, seen with a little noise."""

    name: ClassVar[str] = "gp"

    kernel: Kernel = "rbf"
    """covariance: smooth, twice differentiable (ν = 5/2), or periodic"""
    length: tuple[float, float] = (0.1, 0.6)
    """length scales are uniform between these"""
    amplitude: tuple[float, float] = (0.1, 1.0)
    """standard deviations of the functions are uniform between these"""
    period: tuple[float, float] = (0.1, 0.5)
    """periods are uniform between these; for the periodic kernel only"""
    noise: float = 0.02
    """standard deviation of an observation around the function"""
    context: tuple[int, int] = (3, 47)
    """in training each batch has a number of support points between these, both included, n with a
    probability in proportion to log((n + 1) / n); held-out tasks have as many as shots says"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for options that make no curves."""
        if self.kernel not in ("rbf", "matern", "periodic"):
            raise UsageError(f"gp: kernel must be rbf, matern or periodic, got {self.kernel}")
        for name in ("length", "amplitude", "period", "context"):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise UsageError(
                    f"gp: {name} must be two finite numbers above 0, the smaller one first, "
                    f"got {low} and {high}"
                )
        require_between(self, ("noise",), "gp", 0.0)

    def spec(self, protocol: Protocol) -> TaskSpec:
        """One input and one output."""
        return TaskSpec("regression", (1,), 1)

    def episodes(
        self, protocol: Protocol, tasks: int, split: Split, generator: torch.Generator
    ) -> Episodes:
        """Draw curves; two draws from a continuum are never the same, whatever the split."""
        low, high = self.context
        shots = protocol.shots
        if split == "train":
            # Uniform on the logarithm: a uniform number is seldom small, where most is unknown.
            share = float(torch.rand((), generator=generator))
            shots = min(int(low * ((high + 1) / low) ** share), high)
        ranges = {"length": self.length, "amplitude": self.amplitude}
        if self.kernel == "periodic":
            ranges["period"] = self.period
        drawn = {
            name: low + (high - low) * torch.rand(tasks, 1, 1, generator=generator)
            for name, (low, high) in ranges.items()
        }
        x = EDGE * (2.0 * torch.rand(tasks, shots + protocol.queries, 1, generator=generator) - 1.0)
        normal = torch.randn(x.shape, dtype=torch.float64, generator=generator)
        y = torch.linalg.cholesky(self._observed(drawn, x)) @ normal
        support, query = Points(x, y.to(x.dtype)).split(shots)
        return Episodes(support, query, drawn)

    def truth(self, tasks: Mapping[str, Tensor], x: Tensor) -> None:
        """None: a curve is drawn only at the points of its episode. See `posterior`."""

    def posterior(self, tasks: Mapping[str, Tensor], support: Points, x: Tensor) -> Prediction:
        """What is best said of observations at `x` `[B, Q, 1]` by one who knows the kernel.

        The learners know less: they have to find out length, amplitude and period, too. So this is
        a bound that no learner reaches.

        Args:
            tasks: what `episodes` says of the curves.
            support: the points that are known.
            x: where to predict.

        Returns:
            Mean and standard deviation `[B, Q, 1]` of noisy observations, of the type of `x`
            (Rasmussen and Williams 2006, algorithm 2.1).
        """
        factor = torch.linalg.cholesky(self._observed(tasks, support.x))
        between = self._covariance(tasks, support.x, x)
        whitened = torch.linalg.solve_triangular(
            factor, torch.cat([support.y.double(), between], -1), upper=False
        )
        y, between = whitened[..., :1], whitened[..., 1:]
        prior = tasks["amplitude"].double().square() + self._noise_variance
        variance = prior - between.square().sum(1).unsqueeze(-1)
        std = variance.clamp(min=self._noise_variance).sqrt()
        return Prediction((between.mT @ y).to(x.dtype), std.to(x.dtype))

    @property
    def _noise_variance(self) -> float:
        """Of one observation around the function."""
        return max(self.noise**2, MIN_VARIANCE)

    def _covariance(self, tasks: Mapping[str, Tensor], a: Tensor, b: Tensor) -> Tensor:
        """Of the noiseless curves, in double precision."""
        exact = {name: value.double() for name, value in tasks.items()}
        return kernel_matrix(self.kernel, exact, a.double(), b.double())

    def _observed(self, tasks: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Covariances `[B, M, M]` of noisy observations at `x` `[B, M, 1]`."""
        noise = self._noise_variance * torch.eye(x.shape[1], dtype=torch.float64, device=x.device)
        return self._covariance(tasks, x, x) + noise
