"""Which physics runs on which device."""

from __future__ import annotations

import torch

from metarl.envs.physics.cpu import CpuPhysics
from metarl.envs.physics.interface import Physics
from metarl.envs.physics.model import Model
from metarl.envs.physics.warp_model import Limits


def make_physics(
    model: Model,
    num_worlds: int,
    device: torch.device | str,
    threads: int = 1,
    limits: Limits | None = None,
) -> Physics:
    """Simulations of `model`: MuJoCo Warp's on a CUDA device, else MuJoCo's own on the CPU.

    Args:
        model: shared by all worlds.
        num_worlds: how many.
        device: where observations and rewards go.
        threads: of the physics on the CPU.
        limits: room for contacts, of the physics on a GPU.

    Raises:
        UsageError: if MuJoCo Warp is not installed, or cannot run the model.
    """
    if torch.device(device).type != "cuda":
        return CpuPhysics(model, num_worlds, threads)
    from metarl.envs.physics.warp import WarpPhysics

    return WarpPhysics(model, num_worlds, device, limits)
