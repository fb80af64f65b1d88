"""MuJoCo's integration state in the arrays of MuJoCo Warp: all that the next step depends on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mujoco
import torch
from torch import Tensor

_PARTS = (
    "time",
    "qpos",
    "qvel",
    "act",
    "history",
    "plastic",
    "qacc_warmstart",
    "ctrl",
    "qfrc_applied",
    "xfrc_applied",
    "eq_active",
    "mocap_pos",
    "mocap_quat",
    "userdata",
)


def _place(name: str) -> int:
    """What orders the parts of a row."""
    part = "WARMSTART" if name == "qacc_warmstart" else name.upper()
    return int(getattr(mujoco.mjtState, f"mjSTATE_{part}"))


def choose(view: Tensor, mask: Tensor, values: Tensor) -> None:
    """Write `values` into the rows of `view` that are in `mask`, without looking at the mask."""
    chosen = mask.reshape(-1, *[1] * (view.dim() - 1))
    view.copy_(torch.where(chosen, values, view))


class State:
    """Views of the parts of the state, in the order that MuJoCo has them in a row."""

    def __init__(self, data: Any, view: Callable[[str], Tensor]) -> None:
        """Take the parts of `data` that are not empty, as tensors by `view`."""
        sized = [name for name in _PARTS if getattr(data, name).size]
        self.views = {name: view(name) for name in sorted(sized, key=_place)}

    def rows(self) -> Tensor:
        """A copy of the states of all worlds, float32 `[num_worlds, nstate]`."""
        parts = [view.reshape(len(view), -1).float() for view in self.views.values()]
        return torch.cat(parts, -1)

    def write(self, rows: Tensor, mask: Tensor | None = None) -> None:
        """Put worlds, or those in `mask`, into the states of `rows` `[num_worlds or 1, nstate]`."""
        start = 0
        for view in self.views.values():
            width = view[0].numel()
            part = rows[:, start : start + width].reshape(-1, *view.shape[1:]).to(view.dtype)
            if mask is None:
                view.copy_(part)
            else:
                choose(view, mask, part)
            start += width
