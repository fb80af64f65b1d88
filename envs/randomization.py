"""Domain randomisation: which physical quantities of a robot differ from task to task.

A `Randomization` is a list of `Vary`, each a quantity of `QUANTITIES` with its training range. It
says nothing of a particular robot until it is bound to a model, where names become columns: P
numbers `[N, P]` in the units of their quantities describe N tasks.

Regions: `train` and `held-out` tasks fill the range in alternating stripes; an `out-of-range` task
lies outside of it in one `Vary`, drawn at random, and inside in all others; the `nominal` task is
the robot as its model file has it. Delays are whole numbers of steps, all in the range equally
likely, so that they alone cannot tell train from held-out tasks.

The quantities follow Peng et al. 2018 (dynamics randomisation) and Tan et al. 2018 (delays, pushes
and sensors of legged robots).
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass, field, replace
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from metarl.configs import NEWER, from_plain
from metarl.envs.physics.model import Model
from metarl.envs.quantities import QUANTITIES, Columns, find_columns
from metarl.envs.ranges import Vary
from metarl.errors import UsageError
from metarl.tasks import Split, striped

__all__ = [
    "NOTHING",
    "QUANTITIES",
    "Columns",
    "Parameters",
    "Randomization",
    "Vary",
    "load_randomization",
]


@dataclass(frozen=True)
class Randomization:
    """What varies from task to task; nothing, if it is empty."""

    vary: tuple[Vary, ...] = ()
    extra: tuple[tuple[float, ...], ...] = field(default=(), metadata=NEWER)
    """training tasks besides, wherever they lie, such as those where a policy failed: P numbers
    each, in order of `vary`"""
    extra_share: float = field(default=0.0, metadata=NEWER)
    """share of the training tasks that are drawn from these"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for a share that cannot be drawn."""
        most = 1.0 if self.extra else 0.0
        if not 0.0 <= self.extra_share <= most:
            raise UsageError(
                f"randomisation: extra_share must lie between 0 and {most:g} "
                f"with {len(self.extra)} extra tasks, got {self.extra_share:g}"
            )

    @classmethod
    def from_file(cls, path: str) -> Randomization:
        """Read a file; see `load_randomization`. Its text is taken, too, and `none` is nothing."""
        if path == "none":
            return cls()
        if path.lstrip().startswith(("[", "{")):
            return _from_text(path, "randomisation on the command line")
        return load_randomization(path)

    def __str__(self) -> str:
        """What varies, in one word."""
        return ",".join(v.quantity for v in self.vary) or "nothing"

    def bind(self, model: Model, observations: int) -> Parameters:
        """What this means for `model` and observations of a length.

        Raises:
            UsageError: for a name that the model does not have; the message lists those it has.
        """
        if [v.quantity for v in self.vary].count("push_force") > 1:
            raise UsageError("randomisation of push_force: only one body can be pushed")
        columns = [find_columns(v.quantity, v.of, v.each, model, observations) for v in self.vary]
        return Parameters(self, columns)


_EXAMPLE = "{quantity: friction, low: 0.5, high: 1.5}"

NOTHING = Randomization()
"""Every robot is as its model file has it."""


class Parameters:
    """A randomisation bound to a model: P numbers a task, in order of its `Vary`."""

    def __init__(self, randomization: Randomization, columns: list[Columns]) -> None:
        """Number the columns."""
        self.vary, self.columns = randomization.vary, columns
        self.names = tuple(name for one in columns for name in one.names)
        ends = list(accumulate((len(one.names) for one in columns), initial=0))
        self.slices = [slice(a, b) for a, b in pairwise(ends)]
        self.extra_share = randomization.extra_share
        for row in randomization.extra:
            self._check(row)
        self.extra = torch.tensor(randomization.extra, dtype=torch.float64)

    def _check(self, row: tuple[float, ...]) -> None:
        """Raise `UsageError` unless the numbers of an extra task make sense."""
        if len(row) != len(self):
            raise UsageError(
                f"randomisation: an extra task must have {len(self)} numbers, got {len(row)}"
            )
        for vary, part in zip(self.vary, self.slices, strict=True):
            least = QUANTITIES[vary.quantity].least
            if not all(math.isfinite(x) and x >= least for x in row[part]):
                raise UsageError(
                    f"randomisation: the {vary.quantity} of an extra task must be at least "
                    f"{least:g}, got {min(row[part]):g}"
                )

    def __len__(self) -> int:
        """P."""
        return len(self.names)

    @property
    def has_outside(self) -> bool:
        """Whether there are tasks out of range."""
        return any(vary.has_outside for vary in self.vary)

    @property
    def finite(self) -> bool:
        """Whether there are so few tasks that train and held-out ones are the same."""
        return all(vary.whole or vary.low == vary.high for vary in self.vary)

    def nominal(self, n: int) -> Tensor:
        """The robot as its model file has it, float64 `[n, P]`."""
        values = [QUANTITIES[v.quantity].nominal for v in self.vary]
        parts = [
            torch.full((n, len(c.names)), x) for x, c in zip(values, self.columns, strict=True)
        ]
        return torch.cat([torch.zeros(n, 0), *parts], -1).double()

    def middle(self, n: int) -> Tensor:
        """The middles of all ranges, float64 `[n, P]`."""
        half = torch.tensor(0.5, dtype=torch.float64)
        parts = [
            v.value(half).expand(n, len(c.names))
            for v, c in zip(self.vary, self.columns, strict=True)
        ]
        return torch.cat([torch.zeros(n, 0, dtype=torch.float64), *parts], -1)

    def sample(self, n: int, split: Split, generator: torch.Generator) -> Tensor:
        """Numbers of `n` tasks of a region, float64 `[n, P]`."""
        if split == "nominal" or not self.vary:
            return self.nominal(n)
        u = torch.rand(n, len(self), dtype=torch.float64, generator=generator)
        can_leave = torch.tensor([i for i, v in enumerate(self.vary) if v.has_outside] or [-1])
        away = can_leave[torch.randint(len(can_leave), (n, 1), generator=generator)]
        inner = u if split == "out-of-range" else striped(u, split)
        parts = [u[:, :0]]
        for index, (vary, part) in enumerate(zip(self.vary, self.slices, strict=True)):
            values = vary.inside(inner[:, part])
            if split == "out-of-range":
                values = torch.where(away == index, vary.outside(u[:, part]), values)
            parts.append(values)
        drawn = torch.cat(parts, -1)
        if split == "train" and self.extra_share:
            instead = torch.rand(n, 1, generator=generator) < self.extra_share
            which = torch.randint(len(self.extra), (n,), generator=generator)
            drawn = torch.where(instead, self.extra[which], drawn)
        return drawn

    def of(self, quantity: str, values: Tensor) -> list[tuple[Vary, Columns, Tensor]]:
        """The parts of `values` `[W, P]` that concern a quantity."""
        return [
            (vary, columns, values[:, part])
            for vary, columns, part in zip(self.vary, self.columns, self.slices, strict=True)
            if vary.quantity == quantity
        ]

    def describe(self, values: Tensor, most: int = 3) -> str:
        """Numbers `[P]` of one task in words: those that are farthest from nominal."""
        values, nominal = values.double().cpu(), self.nominal(1)[0]
        distance = torch.zeros(len(self), dtype=torch.float64)
        for vary, part in zip(self.vary, self.slices, strict=True):
            distance[part] = vary.distance(values[part], nominal[part])
        order = distance.argsort(descending=True, stable=True)[:most].tolist()
        words = [
            f"{self.names[i]} = {float(values[i]):.3g}{self._unit(i)}" for i in order if distance[i]
        ]
        return ", ".join(words)

    def _unit(self, column: int) -> str:
        for vary, part in zip(self.vary, self.slices, strict=True):
            if part.start <= column < part.stop:
                unit = QUANTITIES[vary.quantity].unit
                return {"": "", "x": "x"}.get(unit, f" {unit}")
        raise IndexError(column)


def load_randomization(path: str | Path) -> Randomization:
    """Read a YAML file: a list of mappings with the fields of `Vary`.

    Or a mapping with the fields of `Randomization`, of which `vary` is that list, and `notes` that
    are not read: what a study of failures leaves behind.

    Raises:
        UsageError: if it cannot be read, or is neither.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UsageError(f"randomisation {path} cannot be read: {reason}") from None
    return _from_text(text, f"randomisation {path}")


def _from_text(text: str, where: str) -> Randomization:
    try:
        values = yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"{where} cannot be read: {reason}") from None
    whole = values if isinstance(values, dict) else {"vary": values}
    more = {name: value for name, value in whole.items() if name not in ("vary", "notes")}
    values = whole.get("vary")
    if not isinstance(values, list):
        raise UsageError(f"{where} must be a list of quantities with their ranges")
    place = where.removeprefix("randomisation ")
    vary = [_entry(value, f"{place}, entry {index + 1}") for index, value in enumerate(values)]
    return replace(from_plain(Randomization, {"vary": [], **more}, where), vary=tuple(vary))


def _entry(value: Any, where: str) -> Vary:
    """One quantity of a file."""
    if not isinstance(value, dict):
        raise UsageError(f"{where} must be a mapping such as {_EXAMPLE}, got {value!r}")
    plain = {"distribution": "uniform", "of": [], "each": False, "beyond": 0.5, **value}
    for name in ("low", "high", "beyond"):
        # YAML takes 1e-3 for a text.
        if isinstance(plain.get(name), str):
            with contextlib.suppress(ValueError):
                plain[name] = float(plain[name])
    if isinstance(plain["of"], list):
        # Observations are named by their index.
        plain["of"] = [str(x) if type(x) is int else x for x in plain["of"]]
    try:
        return from_plain(Vary, plain, where)
    except UsageError as error:
        if str(error).startswith(where):
            raise
        raise UsageError(f"{where}: {error}") from None
