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
        UsageError: if MuJoCo Warp is not installed, or cannot run the model, or so many worlds.
    """
    if not _by_warp(backend, device):
        return CpuPhysics(model, num_worlds, threads)
    from metarl.envs.physics.warp import WarpPhysics

    return WarpPhysics(model, num_worlds, device, limits)


def require_physics(device: torch.device | str, backend: Backend = "auto") -> None:
    """Raise `UsageError` if something is missing here for the physics of a backend on `device`."""
    if _by_warp(backend, device):
        from metarl.envs.physics.warp_device import require_warp

        require_warp(device)


def _by_warp(backend: Backend, device: torch.device | str) -> bool:
    on_gpu = torch.device(device).type == "cuda"
    return backend == "warp" or (backend == "auto" and on_gpu)
