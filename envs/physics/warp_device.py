"""What MuJoCo Warp needs of a machine, besides what torch needs; told where it is missing."""

from __future__ import annotations

from typing import Any

import torch

from metarl.devices import SPARE, OutOfMemory, find_device, free_memory
from metarl.envs.physics.model import Model
from metarl.envs.physics.warp_memory import bytes_per_world
from metarl.envs.physics.warp_model import Limits, import_warp
from metarl.errors import UsageError

CONDITIONAL_GRAPHS = (12, 4)
"""CUDA that has graphs with conditions, by which a solver in a graph ends when it has converged"""
BESIDES = 0.4
"""Memory that worlds take besides their arrays, as a share of these: models of their own, up to
15 % by `metarl bench memory`, and what kernels need while they run, 12 % on Warp's CPU device. That
may be kept twice, for launches by themselves and for those in a graph."""
OLDEST_GPU = 75
"""compute capability, times ten, of the oldest GPUs that Warp has code for from CUDA 13 on"""


def require_warp(device: torch.device | str) -> torch.device:
    """A device that MuJoCo Warp can simulate on: the CPU, or a GPU with its number.

    Raises:
        UsageError: if the device is not there, MuJoCo Warp is not installed, or its Warp does not
            go with the driver or the GPU.
    """
    found = find_device(str(device))
    warp, _ = import_warp()
    if found.type == "cpu":
        return found
    if found.index is None:
        found = torch.device("cuda", torch.cuda.current_device())
    lacking = _lacking(warp, found)
    if lacking:
        raise UsageError(f"MuJoCo Warp cannot simulate on {found}: {lacking}")
    return found


def _lacking(warp: Any, device: torch.device) -> str | None:
    """What Warp lacks, as a clause; None if nothing."""
    toolkit, driver = warp.get_cuda_toolkit_version(), warp.get_cuda_driver_version()
    if toolkit is None:
        return f"warp {warp.__version__} is built without CUDA, as on all machines but NVIDIA's"
    needed = max(CONDITIONAL_GRAPHS, (toolkit[0], 0))
    if toolkit < CONDITIONAL_GRAPHS:
        return (
            f"warp {warp.__version__} is built for CUDA {_dotted(toolkit)}, and it takes "
            f"{_dotted(needed)} or newer; pip install -U warp-lang"
        )
    if driver is None or driver < needed:
        has = "no driver" if driver is None else f"a driver for CUDA {_dotted(driver)}"
        return (
            f"warp {warp.__version__} finds {has}, and needs one for CUDA {_dotted(needed)} or "
            "newer; update the driver, or install a build of Warp for an older CUDA, from "
            f"{_dotted(CONDITIONAL_GRAPHS)} on"
        )
    major, minor = torch.cuda.get_device_capability(device)
    if toolkit[0] >= 13 and 10 * major + minor < OLDEST_GPU:
        return (
            f"this GPU has compute capability {major}.{minor}, and warp {warp.__version__}, built "
            f"for CUDA {_dotted(toolkit)}, needs {OLDEST_GPU / 10} or more; install a build of "
            "Warp for CUDA 12"
        )
    where = warp.device_from_torch(device)
    if not warp.is_mempool_supported(where):
        return "its driver has no memory pools, which launches in a graph allocate from"
    return None


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def require_memory(model: Model, num_worlds: int, limits: Limits, device: torch.device) -> None:
    """Raise `OutOfMemory` unless worlds of `model` fit into what is free on a CUDA device."""
    each, shared = bytes_per_world(model, limits)
    each = int((1.0 + BESIDES) * each)
    free = free_memory(device)
    needed = each * num_worlds + shared
    fit = int(((1.0 - SPARE) * free - shared) / each)
    if num_worlds > fit:
        raise OutOfMemory(
            f"{num_worlds} worlds of {model.path} take {needed / 1e9:.2f} GB, and {device} has "
            f"{free / 1e9:.2f} GB free: at most {max(fit, 0)} fit"
        )
