"""Sinusoids of random amplitude and phase (Finn, Abbeel and Levine 2017, section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from metarl.fewshot.episodes import CurveData, Episodes, Points, Protocol, Split, TaskSpec


@dataclass(frozen=True)
class Sinusoids(CurveData):
    """y = amplitude sin(x - phase); amplitude in [0.1, 5], phase in [0, π], x in [-5, 5]."""

    name: ClassVar[str] = "sinusoid"

    def spec(self, protocol: Protocol) -> TaskSpec:
        """One input and one output."""
        return TaskSpec("regression", (1,), 1)

    def episodes(
        self, protocol: Protocol, tasks: int, split: Split, generator: torch.Generator
    ) -> Episodes:
        """Draw sinusoids; two draws from a continuum are never the same, whatever the split."""
        amplitude, phase = torch.rand(2, tasks, 1, 1, generator=generator)
        drawn = {"amplitude": 0.1 + 4.9 * amplitude, "phase": math.pi * phase}
        count = protocol.shots + protocol.queries
        x = 10.0 * torch.rand(tasks, count, 1, generator=generator) - 5.0
        support, query = Points(x, self.truth(drawn, x)).split(protocol.shots)
        return Episodes(support, query, drawn)

    def truth(self, tasks: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The sinusoids at `x`."""
        return tasks["amplitude"] * torch.sin(x - tasks["phase"])
