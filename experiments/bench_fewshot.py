"""Iterations a second of MAML, second order, beside the same learner as a loop over the tasks."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any, Literal

import torch

from metarl.errors import UsageError
from metarl.experiments.plain_maml import PlainMAML
from metarl.experiments.timing import (
    Side,
    check_windows,
    measure,
    median_ratio,
    on_device,
    torch_threads,
)
from metarl.fewshot.episodes import Data, Protocol
from metarl.fewshot.maml import MAML, MAMLConfig
from metarl.inner_loop import Executor

FewShotPeer = Literal["none", "loop"]


def bench_fewshot(
    data: Data,
    *,
    inner_steps: int = 1,
    shots: int = 0,
    executor: Executor = "auto",
    compiled: bool = False,
    threads: int = 1,
    device: torch.device | str = "cpu",
    peer: FewShotPeer = "none",
    windows: int = 15,
    seconds: float = 0.5,
) -> dict[str, Any]:
    """Time iterations of MAML in its published sizes: drawing tasks and the outer step included.

    Args:
        data: curves: 25 tasks of 10 support and 10 query points, an MLP of 2 x 40; images: 16 tasks
            of 5 ways, 1 shot and 5 queries a class, 4 convolutions of 64 filters.
        inner_steps: gradient steps on each support set.
        shots: support points, of each class for images; 0 takes what was said above.
        executor: how the tasks are computed.
        compiled: let torch compile the meta-gradient.
        threads: of torch, on both sides.
        device: where the learner is; the loop is beside it.
        peer: `loop` is the same learner in torch's own layers, one task after the other.
        windows: timed windows per side.
        seconds: length of a window.

    Returns:
        `value` and `peer_value` (medians, in `unit`), `ratio`, the executor that was used, the
        single windows and the settings.

    Raises:
        UsageError: for a setting that cannot be measured.
    """
    check_windows("fewshot", windows, seconds)
    if threads < 1:
        raise UsageError(f"bench fewshot: --threads must be at least 1, got {threads}")
    learner, protocol = _learner(data, inner_steps, shots, executor, compiled, device)
    with torch_threads(threads), on_device(torch.device(device)):
        ours = Side(lambda _: learner.train_step(data, protocol, 0.0))
        sides = [ours]
        if peer == "loop":
            sides.append(Side(_loop(learner, data, protocol)))
        measure(sides, windows, seconds)
    theirs = sides[1].rates if peer == "loop" else None
    return {
        "data": data.name,
        "inner_steps": inner_steps,
        "shots": protocol.shots,
        "meta_batch": learner.config.meta_batch,
        "executor": learner.executor,
        "compiled": compiled,
        "threads": threads,
        "device": str(device),
        "value": median(ours.rates),
        "unit": "iterations/s",
        "peer": peer,
        "peer_value": None if theirs is None else median(theirs),
        "ratio": None if theirs is None else median_ratio(ours.rates, theirs),
        "windows": ours.rates,
        "peer_windows": theirs,
    }


def _learner(
    data: Data,
    inner_steps: int,
    shots: int,
    executor: Executor,
    compiled: bool,
    device: torch.device | str,
) -> tuple[MAML, Protocol]:
    """MAML and the tasks of its published experiments."""
    curves = data.kind == "regression"
    config = MAMLConfig(
        meta_batch=25 if curves else 16,
        inner_rate=0.01 if curves else 0.4,
        inner_steps=inner_steps,
        executor=executor,
        compile=compiled,
    )
    protocol = Protocol(5, shots or (10 if curves else 1), 10 if curves else 5)
    return MAML(config, data.spec(protocol), device=device), protocol


def _loop(learner: MAML, data: Data, protocol: Protocol) -> Callable[[Any], None]:
    """One iteration of the peer, on tasks that are drawn alike."""
    peer, generator = PlainMAML(learner), torch.Generator().manual_seed(0)
    peer.network.to(learner.device)
    count = learner.config.meta_batch

    def step(_: Any) -> None:
        episodes = data.episodes(protocol, count, "train", generator)
        peer.update(episodes.to(learner.device))

    return step
