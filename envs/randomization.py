"""Domain randomisation: which physical quantities of a robot differ from task to task.

A `Randomization` is a list of `Vary`, each a quantity of `QUANTITIES` with its training range. It
says nothing of a particular robot until it is bound to a model, where names become columns: P
numbers `[N, P]` in the units of their quantities describe N tasks.

Regions: `train` and `held-out` tasks fill the range in alternating stripes; an `out-of-range` task
lies outside of it in one `Vary`, drawn at random, and inside in all others; the `nominal` task is
the robot as its model file has it.

The quantities follow Peng et al. 2018 (dynamics randomisation) and Tan et al. 2018 (delays, pushes
and sensors of legged robots).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import yaml
from torch import Tensor

from metarl.configs import from_plain
from metarl.envs.physics.model import Model
from metarl.errors import UsageError
from metarl.tasks import Split, striped

Elements = Literal["body", "geom", "joint", "actuator", "observation", "robot"]
Distribution = Literal["uniform", "log-uniform", "gaussian"]


@dataclass(frozen=True)
class Quantity:
    """A physical quantity that can be varied."""

    unit: str
    """x: a factor on the model's own value"""
    elements: Elements
    """what has it: `of` picks some of them by name, and `each` gives every one its own number"""
    nominal: float
    """the value that leaves the robot as it is"""
    least: float
    """values below make no sense"""
    meaning: str
    """in words, for documentation"""
    per_element: int = 1
    """numbers that one element has if each has its own"""
    separate: bool = False
    """elements have their own numbers always"""


_ANY = -math.inf
QUANTITIES: dict[str, Quantity] = {
    "body_mass": Quantity("x", "body", 1.0, 1e-3, "mass, the inertia unchanged"),
    "body_inertia": Quantity("x", "body", 1.0, 1e-3, "principal moments of inertia", 3),
    "density": Quantity("x", "body", 1.0, 1e-3, "mass and inertia together"),
    "com_offset": Quantity("m", "body", 0.0, _ANY, "shift of the centre of mass", 3, True),
    "payload": Quantity("kg", "body", 0.0, 0.0, "mass added at the centre of mass"),
    "friction": Quantity("x", "geom", 1.0, 0.0, "sliding, torsional, rolling friction", 3),
    "damping": Quantity("x", "joint", 1.0, 0.0, "damping of joints"),
    "armature": Quantity("x", "joint", 1.0, 0.0, "inertia of rotors"),
    "actuator_strength": Quantity("x", "actuator", 1.0, 0.0, "gear; 0 disables the actuator"),
    "actuator_gain": Quantity("x", "actuator", 1.0, 0.0, "gain, and stiffness of servos"),
    "gravity": Quantity("x", "robot", 1.0, 0.0, "gravity"),
    "action_delay": Quantity("steps", "robot", 0.0, 0.0, "control steps until an action acts"),
    "action_dropout": Quantity("", "robot", 0.0, 0.0, "chance that an action is lost"),
    "observation_noise": Quantity("", "observation", 0.0, 0.0, "standard deviation at each step"),
    "observation_bias": Quantity("", "observation", 0.0, _ANY, "constant offset", separate=True),
    "observation_delay": Quantity("steps", "robot", 0.0, 0.0, "age of what is shown"),
    "push_force": Quantity("N", "body", 0.0, 0.0, "pushes of 0.1 s, about one a second"),
    "initial_state": Quantity(
        "x", "robot", 1.0, 0.0, "spread of the states that episodes begin in"
    ),
}
"""What can be varied. Observations are named by their index; joints stand for their degrees of
freedom; `of` nothing means all (all that move, for bodies; the first that moves, for payloads and
pushes)."""


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
        least = QUANTITIES[self.quantity].least
        if self.low < least:
            raise UsageError(f"{self._where}: low must be at least {least:g}, got {self.low:g}")
        if self.distribution == "log-uniform" and self.low <= 0:
            raise UsageError(
                f"{self._where}: low of a log-uniform range must be above 0, got {self.low:g}"
            )
        if self.quantity == "action_dropout" and self.high > 1:
            raise UsageError(f"{self._where}: high must be at most 1, got {self.high:g}")
        if self.beyond < 0:
            raise UsageError(f"{self._where}: beyond must be at least 0, got {self.beyond:g}")

    @property
    def _where(self) -> str:
        return f"randomisation of {self.quantity}"

    def value(self, share: Tensor) -> Tensor:
        """The value at a `share` of the way from `low` (0) to `high` (1), also outside of it."""
        if self.distribution == "log-uniform":
            return self.low * (self.high / self.low) ** share
        return self.low + (self.high - self.low) * share

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
        """The furthest values that are out of range, no less than makes sense."""
        low, high = (float(self.value(torch.tensor(x))) for x in (-self.beyond, 1.0 + self.beyond))
        most = 1.0 if self.quantity == "action_dropout" else math.inf
        return max(low, QUANTITIES[self.quantity].least), min(high, most)

    def outside(self, u: Tensor) -> Tensor:
        """Values out of range for uniform numbers in [0, 1), half of them on each side.

        Where there is nothing below (or above) the range, all are on the other side.
        """
        low, high = self.limits()
        below = low + (self.low - low) * (2.0 * u)
        above = self.high + (high - self.high) * (2.0 - 2.0 * u)
        if low >= self.low:
            return self.high + (high - self.high) * (1.0 - u)
        if high <= self.high:
            return low + (self.low - low) * u
        return torch.where(u < 0.5, below, above)


@dataclass(frozen=True)
class Randomization:
    """What varies from task to task; nothing, if it is empty."""

    vary: tuple[Vary, ...] = ()

    def bind(self, model: Model, observations: int) -> Parameters:
        """What this means for `model` and observations of a length.

        Raises:
            UsageError: for a name that the model does not have; the message lists those it has.
        """
        return Parameters(self, [(_columns(v, model, observations)) for v in self.vary])


NOTHING = Randomization()
"""Every robot is as its model file has it."""


@dataclass(frozen=True)
class Columns:
    """Where the numbers of one `Vary` act."""

    ids: tuple[int, ...]
    """the elements"""
    names: tuple[str, ...]
    """one for each number"""


class Parameters:
    """A randomisation bound to a model: P numbers a task, in order of its `Vary`."""

    def __init__(self, randomization: Randomization, columns: list[Columns]) -> None:
        """Number the columns."""
        self.vary, self.columns = randomization.vary, columns
        self.names = tuple(name for one in columns for name in one.names)
        ends = list(accumulate((len(one.names) for one in columns), initial=0))
        self.slices = [slice(a, b) for a, b in pairwise(ends)]

    def __len__(self) -> int:
        """P."""
        return len(self.names)

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
        away = torch.randint(len(self.vary), (n, 1), generator=generator)
        inner = u if split == "out-of-range" else striped(u, split)
        parts = [u[:, :0]]
        for index, (vary, part) in enumerate(zip(self.vary, self.slices, strict=True)):
            values = vary.inside(inner[:, part])
            if split == "out-of-range":
                values = torch.where(away == index, vary.outside(u[:, part]), values)
            parts.append(values)
        return torch.cat(parts, -1)

    def of(self, quantity: str, values: Tensor) -> list[tuple[Vary, Columns, Tensor]]:
        """The parts of `values` `[W, P]` that concern a quantity."""
        return [
            (vary, columns, values[:, part])
            for vary, columns, part in zip(self.vary, self.columns, self.slices, strict=True)
            if vary.quantity == quantity
        ]

    def describe(self, values: Tensor, most: int = 3) -> str:
        """Numbers `[P]` of one task in words: those that are farthest from nominal."""
        if not self.names:
            return ""
        values, nominal = values.double().cpu(), self.nominal(1)[0]
        distance = torch.zeros(len(self), dtype=torch.float64)
        for vary, part in zip(self.vary, self.slices, strict=True):
            distance[part] = vary.distance(values[part], nominal[part])
        order = distance.argsort(descending=True)[:most]
        words = [f"{self.names[i]} {float(values[i]):.3g}{self._unit(i)}" for i in order.tolist()]
        return ", ".join(words)

    def _unit(self, column: int) -> str:
        for vary, part in zip(self.vary, self.slices, strict=True):
            if part.start <= column < part.stop:
                unit = QUANTITIES[vary.quantity].unit
                return {"": "", "x": "x"}.get(unit, f" {unit}")
        raise IndexError(column)


def element_names(model: Model, elements: Elements, observations: int = 0) -> list[str]:
    """The names of a model's bodies, joints, ... by id; those without a name get their number."""
    if elements == "robot":
        return []
    if elements == "observation":
        return [str(i) for i in range(observations)]
    compiled = model.compiled
    count = {"body": "nbody", "geom": "ngeom", "joint": "njnt", "actuator": "nu"}[elements]
    get: Any = getattr(compiled, elements)
    return [get(i).name or str(i) for i in range(getattr(compiled, count))]


def _columns(vary: Vary, model: Model, observations: int) -> Columns:
    """Find the elements that a `Vary` is about."""
    quantity, compiled = QUANTITIES[vary.quantity], model.compiled
    if quantity.elements == "robot":
        if vary.of:
            raise UsageError(
                f"randomisation of {vary.quantity}: it belongs to the whole robot, of must be empty"
            )
        return Columns((), (vary.quantity,))
    names = element_names(model, quantity.elements, observations)
    for name in vary.of:
        if name not in names:
            raise UsageError(
                f"randomisation of {vary.quantity}: {model.path} has no {quantity.elements} "
                f"{name!r}; choose from {', '.join(names)}"
            )
    ids = [names.index(name) for name in vary.of] or list(range(len(names)))
    if quantity.elements == "body" and not vary.of:
        ids = [i for i in ids if compiled.body_weldid[i] != 0 and compiled.body_mass[i] > 0]
        ids = ids[:1] if vary.quantity in ("payload", "push_force") else ids
    if quantity.elements == "body" and any(compiled.body_weldid[i] == 0 for i in ids):
        fixed = next(names[i] for i in ids if compiled.body_weldid[i] == 0)
        raise UsageError(f"randomisation of {vary.quantity}: body {fixed!r} cannot move")
    if vary.quantity in ("damping", "armature") and not vary.of:
        # A factor on nothing would be a number without meaning.
        field = getattr(compiled, f"dof_{vary.quantity}")
        ids = [i for i in ids if field[compiled.dof_jntid == i].any()]
    if not ids:
        raise UsageError(
            f"randomisation of {vary.quantity}: {model.path} has no {quantity.elements}"
        )
    if not (vary.each or quantity.separate):
        return Columns(tuple(ids), (" ".join([vary.quantity, *vary.of]),))
    numbers = _numbers(vary.quantity, ids, model)
    return Columns(tuple(ids), tuple(f"{vary.quantity} {names[i]}{k}" for i, k in numbers))


def _numbers(quantity: str, ids: list[int], model: Model) -> list[tuple[int, str]]:
    """The element and a suffix for every number: some elements have three."""
    if quantity in ("damping", "armature"):
        dofs = model.compiled.dof_jntid.tolist()
        return [(j, f".{k}" * (dofs.count(j) > 1)) for j in ids for k in range(dofs.count(j))]
    k = QUANTITIES[quantity].per_element
    return [(i, f".{axis}" if k > 1 else "") for i in ids for axis in range(k)]


def load_randomization(path: str | Path) -> Randomization:
    """Read a YAML file: a list of mappings with the fields of `Vary`.

    Raises:
        UsageError: if it cannot be read, or is no such list.
    """
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise UsageError(f"randomisation {path} cannot be read: {reason}") from None
    if not isinstance(values, list):
        raise UsageError(f"randomisation {path} must be a list of quantities with their ranges")
    vary = []
    for index, value in enumerate(values):
        where = f"{path}: entry {index + 1}"
        if not isinstance(value, dict):
            raise UsageError(f"{where} must be a mapping, got {value!r}")
        defaults = {"distribution": "uniform", "of": [], "each": False, "beyond": 0.5}
        vary.append(from_plain(Vary, {**defaults, **value}, where))
    return Randomization(tuple(vary))
