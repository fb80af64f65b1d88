"""Counter-based random numbers: one independent stream per world.

A world's numbers depend on (seed, world, draw counter) and on nothing else, so no world disturbs
another, the whole random state is one counter per world, and every device gives the same uniform
numbers, bit for bit.
The mixing function is splitmix64 (Steele, Lea and Flood 2014).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The 64-bit pattern of `value` as a signed integer, because torch has no uint64 arithmetic."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_STREAM = _signed(0xD1B54A32D192ED03)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _logical_shift(x: Tensor, bits: int) -> Tensor:
    """Shift int64 right by `bits`, filling with zeros (torch's `>>` copies the sign bit)."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """Scramble int64 numbers: neighbouring inputs give unrelated outputs."""
    x = (x ^ _logical_shift(x, 30)) * _MIX_1
    x = (x ^ _logical_shift(x, 27)) * _MIX_2
    return x ^ _logical_shift(x, 31)


def world_keys(seed: int, num_worlds: int, device: torch.device | str = "cpu") -> Tensor:
    """Keys of the streams of `num_worlds` worlds, int64 `[num_worlds]`."""
    worlds = torch.arange(num_worlds, dtype=torch.int64, device=device)
    return _mix(_mix(worlds + 1) + _signed(seed * _GOLDEN))


def uniform(keys: Tensor, draws: Tensor, k: int) -> Tensor:
    """Uniform numbers in the open interval (0, 1), float32 `[W, k]`.

    Args:
        keys: int64 `[W]`, from `world_keys`.
        draws: int64 `[W]`, how many times each world has drawn before.
        k: how many numbers each world gets.
    """
    columns = torch.arange(1, k + 1, dtype=torch.int64, device=keys.device) * _STREAM
    bits = _mix((keys + draws * _GOLDEN).unsqueeze(-1) + columns)
    # 23 bits and half a step: every value is exact in float32 and strictly inside (0, 1).
    return (_logical_shift(bits, 41).float() + 0.5) * 2.0**-23


def normal(keys: Tensor, draws: Tensor, k: int) -> Tensor:
    """Standard normal numbers, float32 `[W, k]`, by inversion of the distribution function."""
    return torch.erfinv(2.0 * uniform(keys, draws, k) - 1.0) * math.sqrt(2.0)
