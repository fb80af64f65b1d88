"""Updates a second of an agent in its published configuration, beside a named peer."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from metarl.errors import UsageError
from metarl.experiments.bench_gradient import maml, promp
from metarl.experiments.bench_pearl import pearl
from metarl.experiments.bench_varibad import varibad
from metarl.experiments.timing import (
    Side,
    Workload,
    check_windows,
    measure,
    median_ratio,
    on_device,
    torch_threads,
)

WORKLOADS: dict[str, Callable[..., Workload]] = {
    "pearl": pearl,
    "varibad": varibad,
    "maml": maml,
    "promp": promp,
}
"""the agents whose update can be measured, by what builds one on a device, and with which sizes"""


def bench_update(
    agent: str,
    threads: int = 1,
    device: torch.device | str = "cpu",
    peer: str = "none",
    *,
    windows: int = 15,
    seconds: float = 0.5,
    **sizes: Any,
) -> dict[str, Any]:
    """Time updates of `agent`.

    Args:
        agent: one of `WORKLOADS`.
        threads: of torch, on both sides.
        device: where networks and data are.
        peer: `none`, or one of those that the workload has.
        windows: timed windows per side.
        seconds: length of a window, which holds one update at least.
        sizes: further arguments of what builds the workload.

    Returns:
        `value` and `peer_value` (medians, in `unit`), `ratio`, what one update takes (`seconds`,
        `peer_seconds`), `..._share` of its time that a part takes, the single windows, the
        settings, and what the workload says of itself.

    Raises:
        UsageError: for a setting that cannot be measured.
    """
    where = torch.device(device)
    _check(agent, threads, windows, seconds)
    with torch_threads(threads), on_device(where):
        work = WORKLOADS[agent](where, **sizes)
        names = ("none", *work.peers)
        if peer not in names:
            raise UsageError(f"bench update: unknown peer {peer!r}; choose from {', '.join(names)}")
        ours = Side(lambda _: work.run())
        parts = {name: _side(run) for name, run in work.parts.items()}
        theirs = None if peer == "none" else _side(work.peers[peer]())
        measure([ours, *parts.values(), *([theirs] if theirs else [])], windows, seconds)
        further = work.further(windows)
    value, peer_value = median(ours.rates), None if theirs is None else median(theirs.rates)
    return {
        "agent": agent,
        **work.facts,
        "threads": threads,
        "device": str(where),
        "value": value,
        "unit": work.unit,
        "peer": peer,
        "peer_value": peer_value,
        "ratio": None if theirs is None else median_ratio(ours.rates, theirs.rates),
        "seconds": 1.0 / value,
        "peer_seconds": None if peer_value is None else 1.0 / peer_value,
        **{f"{name}_share": median_ratio(ours.rates, side.rates) for name, side in parts.items()},
        **further,
        "windows": ours.rates,
        "peer_windows": None if theirs is None else theirs.rates,
    }


def _side(run: Callable[[], object]) -> Side:
    return Side(lambda _: run())


def _check(agent: str, threads: int, windows: int, seconds: float) -> None:
    check_windows("update", windows, seconds)
    if agent not in WORKLOADS:
        raise UsageError(
            f"bench update: unknown agent {agent!r}; choose from {', '.join(WORKLOADS)}"
        )
    if threads < 1:
        raise UsageError(f"bench update: --threads must be at least 1, got {threads}")
