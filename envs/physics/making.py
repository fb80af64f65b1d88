"""Which physics runs on which device."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from metarl.envs.physics.cpu import CpuPhysics
from metarl.envs.physics.interface import Physics
from metarl.envs.physics.model import Model
from metarl.envs.physics.warp_model import Limits

Backend = Literal["auto", "mujoco", "warp"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def make_physics(
    model: Model,
    num_worlds: int,
    device: torch.device | str,
    threads: int = 1,
    limits: Limits | None = None,
    backend: Backend = "auto",
) -> Physics:
    """Simulations of `model`.

    Args:
        model: shared by all worlds.
        num_worlds: how many.
        device: where observations and rewards go.
        threads: of MuJoCo's own physics, which is on the CPU.
        limits: room for contacts, of MuJoCo Warp.
        backend: `mujoco` is MuJoCo's own, in double precision, whose tensors are copied to the
            device; `warp` is MuJoCo Warp, on the device, be it a GPU or the CPU; `auto` is MuJoCo
            Warp on a GPU, and else MuJoCo's own.

    Raises:
        UsageError: if MuJoCo Warp is not installed, or cannot run the model.
    """
    if backend == "auto":
        backend = "warp" if torch.device(device).type == "cuda" else "mujoco"
    if backend == "mujoco":
        return CpuPhysics(model, num_worlds, threads)
    from metarl.envs.physics.warp import WarpPhysics

    return WarpPhysics(model, num_worlds, device, limits)
