"""The 50 skills: what each shows of its objects, and what it rewards; `skill(name)` finds one.

A module for each kind of movement. The rewards are version 2 of Meta-World's (Yu et al. 2021), in
the package's own numbers.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module

from metarl.envs.metaworld.scene import Skill

MODULES = (
    "reaching",
    "pushing",
    "picking",
    "doors",
    "drawers",
    "turning",
    "buttons",
    "coffee",
    "handles",
    "plates",
    "pegs",
    "tools",
    "nuts",
)


@cache
def skills() -> dict[str, Skill]:
    """All skills by name."""
    modules = [import_module(f"{__name__}.{name}") for name in MODULES]
    return {skill.name: skill for module in modules for skill in module.SKILLS}
