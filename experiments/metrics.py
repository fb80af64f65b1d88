"""Read back what a run has logged in `metrics.jsonl`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

POINTS = 200
"""To how many points a smoothed curve is averaged."""


@dataclass(frozen=True)
class Metrics:
    """The rows of one run, in the order of training."""

    rows: tuple[dict[str, Any], ...]

    @classmethod
    def load(cls, path: Path) -> Metrics:
        """Read `path`; a last line that was cut off by a kill is passed over."""
        rows = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                rows.append(json.loads(line))
            except ValueError:
                continue
        return cls(tuple(rows))

    def column(self, name: str) -> tuple[list[int], list[Any]]:
        """Environment steps, and the values of `name` where it was logged."""
        found = [(row["step"], row[name]) for row in self.rows if row.get(name) is not None]
        return [step for step, _ in found], [value for _, value in found]

    def total(self, name: str) -> float:
        """The sum of `name` over all rows."""
        return float(sum(self.column(name)[1]))

    def smoothed(self, name: str) -> tuple[Array, Array]:
        """Steps and values of `name`, averaged over neighbours to at most `POINTS` points."""
        steps, values = self.column(name)
        parts = np.array_split(np.arange(len(values)), max(1, min(POINTS, len(values))))
        pairs = [
            (np.take(steps, part).mean(), np.take(values, part).mean())
            for part in parts
            if len(part)
        ]
        table = np.asarray(pairs, dtype=np.float64).reshape(-1, 2)
        return table[:, 0], table[:, 1]
