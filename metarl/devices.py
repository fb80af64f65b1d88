"""Devices: what is missing where one cannot be had, and what would fit where its memory is full."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from metarl.errors import UsageError

NAMES = "cpu, cuda or cuda:N"
SPARE = 0.1
"""share of a device's memory that is left free, for what kernels need while they run"""
_GB = 1e9
_FULL = ("out of memory", "can't allocate memory", "Failed to allocate")
"""what torch says of a GPU and of a CPU, and Warp of both"""
_UNITS = {"bytes": 1.0, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30, "TiB": 2.0**40}
_ASKED = re.compile(rf"allocate ([\d.]+) ({'|'.join(_UNITS)})")


class OutOfMemory(UsageError):
    """The memory of a device is full; the message says what would fit."""


# --- finding a device ----------------------------------------------------------------------------


def find_device(name: str) -> torch.device:
    """Return the device called `name`, after a trial of it.

    Raises:
        UsageError: if there is no such device here, with what is missing.
    """
    if name == "cpu":
        return torch.device("cpu")
    if name.partition(":")[0] == "mps":
        raise UsageError(
            f"device {name} has no float64, in which metarl keeps running means and tasks; choose "
            f"{NAMES}"
        )
    number = re.fullmatch(r"cuda(?::(0|[1-9]\d*))?", name)
    if number is None:
        raise UsageError(f"unknown device {name!r}; choose {NAMES}")
    missing = missing_cuda()
    if missing:
        raise UsageError(f"device {name} cannot be had: {missing}")
    count = torch.cuda.device_count()
    if int(number[1] or 0) >= count:
        there = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
        raise UsageError(f"device {name} cannot be had: this machine has {there}")
    device = torch.device(name)
    try:
        # Waits for the result: a build without code for this GPU fails here, and not in training.
        float(torch.ones(1, device=device) + 1.0)
    except RuntimeError as error:
        raise UsageError(f"device {name} cannot be used: {_first_line(error)}") from error
    return device


def missing_cuda() -> str | None:
    """What torch lacks for a CUDA device here, as a clause; None if it has one."""
    build = f"torch {torch.__version__}"
    if torch.version.cuda is None and torch.version.hip is None:
        plain = torch.__version__.partition("+")[0]
        return (
            f"{build} is built without CUDA; on Linux, pip takes a build with it unless it is told "
            f"where else to look: pip install --force-reinstall torch=={plain}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.cuda.init()
    except (AssertionError, RuntimeError) as error:
        return _told_by_torch(_first_line(error), build)
    return None


def _told_by_torch(said: str, build: str) -> str:
    """What torch says of a driver or a device that is missing, in our words."""
    if "no NVIDIA driver" in said:
        return "this machine has no NVIDIA driver; with one, nvidia-smi lists its GPUs"
    old = re.search(r"driver on your system is too old \(found version (\d+)\)", said)
    if old:
        return (
            f"the NVIDIA driver is made for CUDA {cuda_version(int(old[1]))}, and {build} for CUDA "
            f"{torch.version.cuda}; update the driver, or install a build of torch that is as old"
        )
    if "No CUDA GPUs" in said:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hidden = "" if visible is None else f"; CUDA_VISIBLE_DEVICES is {visible!r}"
        return f"there is an NVIDIA driver, but no GPU that it shows (see nvidia-smi){hidden}"
    return f"torch says: {said}"


def cuda_version(number: int) -> str:
    """A version of CUDA as NVIDIA's driver counts it, such as 12040, in the usual form: 12.4."""
    return f"{number // 1000}.{number % 1000 // 10}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(".")


# --- memory that is full -------------------------------------------------------------------------


def free_memory(device: torch.device) -> int:
    """Bytes free for torch on a CUDA device, with those that it keeps unused; 0 for others."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return 0
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch, Warp or numpy found no memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)


def bytes_asked(error: BaseException) -> float:
    """How much was asked for in vain; 0 where the error does not say."""
    found = _ASKED.search(str(error))
    return float(found[1]) * _UNITS[found[2]] if found else 0.0


def describe_full(error: BaseException) -> str:
    """One clause about a memory that is full, without figures of whose it was."""
    asked = bytes_asked(error)
    return "the memory is full" + (f", where {asked / _GB:.2f} GB more are needed" if asked else "")


class Room:
    """Memory of a device for worlds, from before they are made."""

    def __init__(
        self, device: torch.device | str, tasks: int, worlds_per_task: int, option: str
    ) -> None:
        """Look at what is free.

        Args:
            device: of the worlds, and of what is kept of them.
            tasks: so many are tried at once; in training, worlds.
            worlds_per_task: worlds that try each.
            option: what says how many tasks, as on the command line.
        """
        self.device = torch.device(device)
        self.tasks, self.worlds_per_task, self.option = tasks, worlds_per_task, option
        self.free = free_memory(self.device)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within the context, a memory that is full gets a sentence that says what would fit.

        Raises:
            OutOfMemory: it is full.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise OutOfMemory(self._sentence(error)) from error

    def _sentence(self, error: BaseException) -> str:
        each = self.worlds_per_task
        which = f"{self.tasks} worlds" if each == 1 else f"{self.tasks} tasks x {each} worlds"
        if not self.free:
            return f"{describe_full(error)}: {which} are too many; lower {self.option}"
        # What torch still keeps was in use when it asked for more.
        taken = max(self.free - torch.cuda.mem_get_info(self.device)[0], 0)
        asked = bytes_asked(error)
        share = (1.0 - SPARE) * min(self.free / max(taken + asked, 1.0), 1.0)
        fits = int(self.tasks * share)
        advice = f"{self.option} {fits} would fit" if fits else "not a single one would fit"
        return (
            f"the memory of {self.device} is full: {which} took {taken / _GB:.2f} of the "
            f"{self.free / _GB:.2f} GB that were free and needed {asked / _GB:.2f} GB more; by "
            f"that measure {advice}"
        )
