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
    wanted = f"of at least {low:g}" if high == math.inf else f"in [{low:g}, {high:g}]"
    for name in names:
        value = getattr(config, name)
        if not (math.isfinite(value) and low <= value <= high):
            raise UsageError(f"{where}: {name} must be a finite number {wanted}, got {value}")


def require_positive(config: object, names: Iterable[str], where: str) -> None:
    """Raise `UsageError` unless the fields `names` of `config` are finite and above 0."""
    for name in names:
        value = getattr(config, name)
        if not 0 < value < math.inf:
            raise UsageError(f"{where}: {name} must be a finite number above 0, got {value}")


def require_widths(config: object, names: Iterable[str], where: str) -> None:
    """Raise `UsageError` unless the fields `names` are one or more layer widths above 0."""
    for name in names:
        value = getattr(config, name)
        if not value or min(value) < 1:
            raise UsageError(f"{where}: {name} must be one or more widths above 0, got {value}")
