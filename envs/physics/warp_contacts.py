"""Contacts of MuJoCo Warp with the friction directions that MuJoCo has."""

# Annotations are evaluated here: Warp reads the types of a kernel's arguments from them.
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

PLANE, CAPSULE = 0, 3
"""MuJoCo's numbers for these kinds of geoms (mjtGeom)"""
_PARALLEL = 1e-6
"""a capsule is upright if its axis, laid on the plane, is shorter than this"""


@cache
def _align_capsules() -> Any:
    """The kernel of `align_capsules`, made when Warp is there."""
    wp = import_module("warp")

    @wp.kernel(enable_backward=False)  # type: ignore[untyped-decorator]
    def align(
        geom_type: wp.array(dtype=int),  # type: ignore[valid-type]
        geom_xmat: wp.array2d(dtype=wp.mat33),  # type: ignore[valid-type]
        contacts: wp.array(dtype=int),  # type: ignore[valid-type]
        geom: wp.array(dtype=wp.vec2i),  # type: ignore[valid-type]
        world: wp.array(dtype=int),  # type: ignore[valid-type]
        frame: wp.array(dtype=wp.mat33),  # type: ignore[valid-type]
    ) -> None:
        i = wp.tid()
        if i >= contacts[0]:
            return
        pair = geom[i]
        if pair[0] < 0 or pair[1] < 0:
            return
        if geom_type[pair[0]] != PLANE or geom_type[pair[1]] != CAPSULE:
            return
        turned = geom_xmat[world[i], pair[1]]
        axis = wp.vec3(turned[0, 2], turned[1, 2], turned[2, 2])
        normal = wp.vec3(frame[i][0, 0], frame[i][0, 1], frame[i][0, 2])
        along = axis - normal * wp.dot(normal, axis)
        if wp.length(along) < _PARALLEL:
            return
        along = wp.normalize(along)
        across = wp.cross(normal, along)
        frame[i] = wp.matrix_from_rows(normal, along, across)

    return align


def align_capsules(model: Any, data: Any) -> None:
    """Lay the first friction direction of a capsule on a plane along the capsule, as MuJoCo does.

    MuJoCo Warp does so only if the capsule is less than 60 degrees steep. Pyramids of friction are
    not round: an ant, which stands on steep capsules, would slip otherwise than in MuJoCo.
    """
    contact = data.contact
    import_module("warp").launch(
        _align_capsules(),
        dim=data.naconmax,
        inputs=[model.geom_type, data.geom_xmat, data.nacon, contact.geom, contact.worldid],
        outputs=[contact.frame],
    )


def contact_filter(geom_types: Any) -> Callable[[Any, Any], None] | None:
    """What MuJoCo Warp has to call after it found contacts, for a model with such geoms."""
    kinds = set(geom_types.tolist())
    return align_capsules if {PLANE, CAPSULE} <= kinds else None
