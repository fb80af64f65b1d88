"""The physical quantities that can be varied, and which numbers of a model each of them means.

Shapes: a quantity that is bound to a model has one number for all of its elements, one for each
element, or one for each axis of each element.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from metarl.envs.physics.model import Model
from metarl.errors import UsageError

Elements = Literal["body", "geom", "joint", "actuator", "observation", "robot"]


@dataclass(frozen=True)
class Quantity:
    """A physical quantity that can be varied."""

    unit: str
    """x: a factor on the model's own value; steps: a whole number of control steps"""
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
    most: float = math.inf
    """values above make no sense"""

    @property
    def whole(self) -> bool:
        """Whether its values are whole numbers."""
        return self.unit == "steps"


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
    "action_dropout": Quantity(
        "", "robot", 0.0, 0.0, "chance that an action is lost and the last one goes on", most=1.0
    ),
    "observation_noise": Quantity(
        "", "observation", 0.0, 0.0, "standard deviation at each step, in the observation's unit"
    ),
    "observation_bias": Quantity(
        "",
        "observation",
        0.0,
        _ANY,
        "offset that stays, in the observation's unit",
        separate=True,
    ),
    "observation_delay": Quantity("steps", "robot", 0.0, 0.0, "age of what is shown"),
    "push_force": Quantity(
        "N", "body", 0.0, 0.0, "pushes of 0.1 s from any side, about one a second"
    ),
    "initial_state": Quantity("x", "robot", 1.0, 0.0, "spread of the states at the start"),
}
"""What can be varied. Observations are named by their index; joints stand for their degrees of
freedom; `of` nothing means all (all that move, for bodies; the first that moves, for payloads and
pushes)."""


@dataclass(frozen=True)
class Columns:
    """Where the numbers of one quantity act."""

    ids: tuple[int, ...]
    """the elements"""
    names: tuple[str, ...]
    """one for each number"""


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


def find_columns(
    name: str, of: Sequence[str], each: bool, model: Model, observations: int
) -> Columns:
    """Find the elements that have the quantity `name`.

    Args:
        name: of `QUANTITIES`.
        of: names of elements, or none for all.
        each: whether every element has its own numbers.
        model: the robot.
        observations: how many numbers the robot shows.

    Raises:
        UsageError: for a name that the model does not have, the message lists those it has; and for
            elements that cannot have the quantity.
    """
    quantity = QUANTITIES[name]
    if quantity.elements == "robot":
        if of:
            raise _error(name, "it belongs to the whole robot, so that of must be empty")
        return Columns((), (name,))
    names = element_names(model, quantity.elements, observations)
    for wanted in of:
        if wanted not in names:
            raise _error(
                name,
                f"{model.path} has no {quantity.elements} {wanted!r}; "
                f"choose from {', '.join(names)}",
            )
    if len(set(of)) < len(of):
        raise _error(name, f"of names an element twice: {', '.join(of)}")
    ids = [names.index(wanted) for wanted in of]
    ids = _checked(name, ids, names, model) if of else _all(name, len(names), model)
    if not ids:
        raise _error(name, f"{model.path} has no {quantity.elements} that has it")
    if not (each or quantity.separate):
        return Columns(tuple(ids), (" ".join([name, *of]),))
    numbers = _numbers(name, ids, model)
    return Columns(tuple(ids), tuple(f"{name} {names[i]}{k}" for i, k in numbers))


def _error(quantity: str, complaint: str) -> UsageError:
    return UsageError(f"randomisation of {quantity}: {complaint}")


def _has(quantity: str, element: int, model: Model) -> bool:
    """Whether there is anything that a factor on the quantity of an element would change."""
    compiled = model.compiled
    if quantity in ("damping", "armature"):
        dofs = compiled.dof_jntid == element
        kinds = [f"dof_{quantity}"] + ["dof_dampingpoly"] * (quantity == "damping")
        return any(getattr(compiled, kind)[dofs].any() for kind in kinds)
    if quantity in ("body_mass", "body_inertia", "density", "com_offset"):
        return bool(compiled.body_mass[element] > 0)
    return True


def _all(quantity: str, count: int, model: Model) -> list[int]:
    """The elements that `of` nothing means."""
    compiled, ids = model.compiled, list(range(count))
    if QUANTITIES[quantity].elements == "body":
        ids = [i for i in ids if compiled.body_weldid[i] != 0 and compiled.body_mass[i] > 0]
        ids = ids[:1] if quantity in ("payload", "push_force") else ids
        ids = [i for i in ids if quantity != "com_offset" or not _fixed_centre(i, model)]
    return [i for i in ids if _has(quantity, i, model)]


def _fixed_centre(body: int, model: Model) -> bool:
    """Whether MuJoCo has simplified the body's equations so that its centre cannot be moved.

    It does so for a body that moves with no others on it, about its own centre of mass.
    """
    return bool(model.compiled.body_simple[body] != 0)


def _checked(quantity: str, ids: list[int], names: list[str], model: Model) -> list[int]:
    """The ids of the elements named by `of`, which all can have the quantity."""
    elements = QUANTITIES[quantity].elements
    for i in ids:
        if elements == "body" and model.compiled.body_weldid[i] == 0:
            raise _error(quantity, f"body {names[i]!r} cannot move")
        if not _has(quantity, i, model):
            what = "mass" if elements == "body" else quantity
            raise _error(quantity, f"{elements} {names[i]!r} has no {what} that could be varied")
        if quantity == "com_offset" and _fixed_centre(i, model):
            raise _error(
                quantity,
                f"MuJoCo takes the centre of mass of body {names[i]!r} as fixed; give the body "
                f"simple='false' in {model.path}",
            )
    if quantity == "push_force" and len(ids) > 1:
        raise _error(quantity, f"of must name one body, got {', '.join(names[i] for i in ids)}")
    return ids


def _numbers(quantity: str, ids: list[int], model: Model) -> list[tuple[int, str]]:
    """The element and a suffix for every number: some elements have three."""
    if quantity in ("damping", "armature"):
        dofs = model.compiled.dof_jntid.tolist()
        return [(j, f".{k}" * (dofs.count(j) > 1)) for j in ids for k in range(dofs.count(j))]
    k = QUANTITIES[quantity].per_element
    suffixes = [f".{axis}" for axis in range(k)] if k > 1 else [""]
    return [(i, suffix) for i in ids for suffix in suffixes]
