"""`metarl families`: what there is to train on."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from metarl.envs.metaworld.names import SKILLS, pattern_of
from metarl.envs.registry import FAMILIES, make_family
from metarl.experiments.options import parse
from metarl.experiments.printing import print_json, print_table


@dataclass(frozen=True)
class Options:
    """List the task families with their default options."""

    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl families`."""
    options = parse(Options, args, "metarl families")
    rows = [describe(name) for name in FAMILIES]
    # Meta-World's single skills look alike: the first stands for the others.
    shown: dict[str, dict[str, Any]] = {}
    for row in rows:
        shown.setdefault(pattern_of(row["family"]), row)
    print_table([{**row, "family": pattern} for pattern, row in shown.items()])
    skills = textwrap.fill(", ".join(SKILLS), 100, break_on_hyphens=False)
    print(f"\nSKILL is one of Meta-World's\n{skills}")
    if options.json:
        print_json({"families": rows})
    return 0


def describe(name: str) -> dict[str, Any]:
    """What a family with its default options looks like from outside."""
    family = make_family(name)
    return {
        "family": name,
        "observation": _space(family.observation_space),
        "action": _space(family.action_space),
        "horizon": family.horizon,
        "episodes": family.episodes,
        "splits": ", ".join(family.splits) + (" (the same tasks)" * family.shared_splits),
    }


def _space(space: Any) -> str:
    """How many numbers in which range, or how many choices."""
    if not space.shape:
        return f"one of {space.n}"
    low, high = space.low.min(), space.high.max()
    return f"{space.shape[0]} numbers in [{low:g}, {high:g}]"
