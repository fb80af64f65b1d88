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

_MT10 = (
    "reach",
    "push",
    "pick-place",
    "door-open",
    "drawer-open",
    "drawer-close",
    "button-press-topdown",
    "peg-insert-side",
    "window-open",
    "window-close",
)
_MT25 = (
    *_MT10,
    "coffee-pull",
    "pick-out-of-hole",
    "disassemble",
    "pick-place-wall",
    "basketball",
    "stick-pull",
    "button-press-wall",
    "faucet-open",
    "door-lock",
    "lever-pull",
    "sweep-into",
    "faucet-close",
    "coffee-button",
    "button-press-topdown-wall",
    "dial-turn",
)
TRAIN_SKILLS: dict[str, tuple[str, ...]] = {
    "ml10": (
        "reach",
        "push",
        "pick-place",
        "door-open",
        "drawer-close",
        "button-press-topdown",
        "peg-insert-side",
        "window-open",
        "sweep",
        "basketball",
    ),
    "ml25": _MT25,
    "mt10": _MT10,
    "mt25": _MT25,
    "mt50": SKILLS,
}
TEST_SKILLS: dict[str, tuple[str, ...]] = {
    "ml10": ("drawer-open", "door-close", "shelf-place", "sweep-into", "lever-pull"),
    "ml25": ("basketball", "door-close", "shelf-place", "sweep", "button-press"),
    "ml45": ("bin-picking", "box-close", "hand-insert", "door-lock", "door-unlock"),
}
"""of the benchmarks that hold skills out, by benchmark; the package's own lists, as a test holds"""
TRAIN_SKILLS["ml45"] = tuple(skill for skill in SKILLS if skill not in TEST_SKILLS["ml45"])


def skills_of(benchmark: str) -> tuple[str, ...]:
    """The skills of a benchmark of several, those of training first, each once."""
    return tuple(dict.fromkeys((*TRAIN_SKILLS[benchmark], *TEST_SKILLS.get(benchmark, ()))))


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
