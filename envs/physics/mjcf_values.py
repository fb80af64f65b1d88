"""Numbers in a model's text that MuJoCo would take and then simulate nonsense with, or for hours.

MuJoCo 4.0 refuses some of them itself (a negative mass), and says nothing of others: an infinite
size, a NaN as position or gear, a time step of 0, a negative armature, a mesh of 10^6 vertices.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from metarl.envs.physics.mjcf_xml import Element, whole_number
from metarl.errors import UsageError

MAX_COUNT = 1_000_000
"""of rows, columns, samples, or numbers of any kind of which a model asks for storage"""
MAX_CELLS = 2**26
"""of a texture or a height field"""
MAX_MESH_PARAMETER = 200
"""of meshes that MuJoCo generates; their vertices grow with its square"""


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


_AT_LEAST_0 = _names(
    "mass density diaginertia size armature damping frictionloss ixx iyy izz radius length"
)
_FINITE = _AT_LEAST_0 | _names(
    "fullinertia pos quat axisangle xyaxes zaxis euler fromto axis ref springref stiffness "
    "springdamper friction solref solimp margin gap gear kp kv gainprm biasprm dynprm timeconst "
    "timestep gravity wind viscosity boundmass boundinertia settotalmass scale offset polycoef "
    "qpos qvel act ctrl mpos mquat xyz rpy ixy ixz iyz vertex elevation extent center znear zfar "
    "impratio tolerance inheritrange dampratio anchor relpose"
)
_NOT_NAN = _names(
    "range ctrlrange forcerange actrange actuatorfrcrange lengthrange lower upper effort velocity"
)
_COUNTS = _names(
    "nrow ncol width height nsample nkey nuserdata nuser_body nuser_jnt nuser_geom nuser_site "
    "nuser_cam nuser_tendon nuser_actuator nuser_sensor"
)


def check_values(element: Element, where: str) -> None:
    """Refuse numbers that are not finite, negative where they cannot be, or far too large.

    Raises:
        UsageError: with `where` at the front.
    """
    for name, value in element.attributes.items():
        problem = next(_problems(element.tag, name, value), None)
        if problem is not None:
            shown = value if len(value) <= 60 else value[:57] + "..."
            raise UsageError(f"{where}: {element.tag} has {name}={shown!r}, {problem}")
    _check_cells(element, where)


def _problems(tag: str, name: str, value: str) -> Iterator[str]:
    numbers = _numbers(value)
    if (tag, name) == ("mass", "value"):  # as URDF writes it
        name = "mass"
    if name in _FINITE and not all(map(math.isfinite, numbers)):
        yield "which must be finite"
    if name in _NOT_NAN and any(map(math.isnan, numbers)):
        yield "which must not be NaN"
    # A damping of several numbers is a polynomial, whose coefficients may have any sign.
    signed = name not in _AT_LEAST_0 or (name == "damping" and len(numbers) > 1)
    if not signed and min(numbers, default=0.0) < 0.0:
        yield "which must not be negative"
    if name == "timestep" and numbers and min(numbers) <= 0.0:
        yield "which must be above 0"
    if name in _COUNTS and max(numbers, default=0) > MAX_COUNT:
        yield f"which must be at most {MAX_COUNT}"
    if name == "params" and max(numbers, default=0) > MAX_MESH_PARAMETER:
        yield f"which must be at most {MAX_MESH_PARAMETER}"


def _numbers(value: str) -> list[float]:
    """The numbers in an attribute; words are left to MuJoCo."""
    numbers = []
    for word in value.split():
        try:
            numbers.append(float(word))
        except ValueError:
            continue
    return numbers


def _check_cells(element: Element, where: str) -> None:
    for rows, columns in (("nrow", "ncol"), ("height", "width")):
        cells = math.prod(whole_number(element.attributes.get(k, "")) for k in (rows, columns))
        if cells > MAX_CELLS:
            raise UsageError(
                f"{where}: {element.tag} has {rows} x {columns} = {cells} cells, "
                f"which must be at most {MAX_CELLS}"
            )
