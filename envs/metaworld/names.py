"""The names of Meta-World's skills and benchmarks; importing them imports nothing else.

Words: a *skill* is one of Meta-World's 50 environments, such as `reach`; a *task* is a skill with
its objects and goal in certain places.
"""

from __future__ import annotations

SKILLS: tuple[str, ...] = (
    "assembly",
    "basketball",
    "bin-picking",
    "box-close",
    "button-press-topdown",
    "button-press-topdown-wall",
    "button-press",
    "button-press-wall",
    "coffee-button",
    "coffee-pull",
    "coffee-push",
    "dial-turn",
    "disassemble",
    "door-close",
    "door-lock",
    "door-open",
    "door-unlock",
    "hand-insert",
    "drawer-close",
    "drawer-open",
    "faucet-open",
    "faucet-close",
    "hammer",
    "handle-press-side",
    "handle-press",
    "handle-pull-side",
    "handle-pull",
    "lever-pull",
    "pick-place-wall",
    "pick-out-of-hole",
    "pick-place",
    "plate-slide",
    "plate-slide-side",
    "plate-slide-back",
    "plate-slide-back-side",
    "peg-insert-side",
    "peg-unplug-side",
    "soccer",
    "stick-push",
    "stick-pull",
    "push",
    "push-wall",
    "push-back",
    "reach",
    "reach-wall",
    "shelf-place",
    "sweep-into",
    "sweep",
    "window-open",
    "window-close",
)
"""In the package's own order; its names end in `-v3`."""

SEVERAL: tuple[str, ...] = ("ml10", "ml25", "ml45", "mt10", "mt25", "mt50")
"""Benchmarks of several skills."""

REWARD_VERSIONS: tuple[str, ...] = ("v2", "v1")
"""Meta-World's reward functions; v2 is the one of its second paper and the package's default."""


PREFIX = "metaworld-"
"""What the names of its families begin with."""


def pattern_of(name: str) -> str:
    """A family's name for a list: those of single skills share one, `metaworld-ml1-SKILL`."""
    for kind in ("ml1", "mt1"):
        if name.startswith(f"{PREFIX}{kind}-"):
            return f"{PREFIX}{kind}-SKILL"
    return name


def family_names() -> tuple[str, ...]:
    """All families: `metaworld-ml1-SKILL`, `metaworld-mt1-SKILL` and the benchmarks of several."""
    single = [f"{PREFIX}{kind}-{skill}" for kind in ("ml1", "mt1") for skill in SKILLS]
    return (*single, *(f"{PREFIX}{name}" for name in SEVERAL))
