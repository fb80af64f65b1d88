"""The errors that metarl raises on purpose, each with one sentence a person can act on."""

from __future__ import annotations

import math
from collections.abc import Iterable


class UsageError(ValueError):
    """Bad input: the message names what is wrong, where, and the allowed values."""


class TrainingError(RuntimeError):
    """Training cannot go on: a loss, a gradient or a parameter is no longer finite."""


def require_between(
    config: object, names: Iterable[str], where: str, low: float, high: float = math.inf
) -> None:
    """Raise `UsageError` unless the fields `names` of `config` are finite and in [low, high]."""
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and low <= value <= high):
            wanted = f"at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
            raise UsageError(f"{where}: {name} must be a finite number {wanted}, got {value}")
