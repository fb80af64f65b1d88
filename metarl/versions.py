"""Versions of what decides on results."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

_PACKAGES = (
    "metarl",
    "torch",
    "numpy",
    "scipy",
    "gymnasium",
    "mujoco",
    "metaworld",
    "stable-baselines3",
)


@cache
def software_versions() -> dict[str, str]:
    """Return the versions of Python, the platform and the packages that decide on results."""
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions
