"""Throughput of simulated worlds, and its ratio to a named peer measured in the same run.

Both sides are given the same random actions, which are drawn beforehand, or a policy acts on both.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from statistics import median
from typing import Any, get_args

import torch

from metarl.devices import OutOfMemory, describe_full, is_out_of_memory
from metarl.envs.metaworld.families import MetaWorld
from metarl.envs.physics import PhysicsWorlds
from metarl.errors import UsageError
from metarl.experiments.bench_account import account_of
from metarl.experiments.bench_peers import BUILDERS, PEERS, Peer
from metarl.experiments.bench_worlds import Acting, Setting
from metarl.experiments.timing import (
    Side,
    check_windows,
    measure,
    median_ratio,
    on_device,
    synchronize,
    torch_threads,
)
from metarl.tasks import Family
from metarl.vector import VectorEnv

MOST_ON_CPU = 1024
"""Worlds of a peer whose physics is on the CPU, at most: more are not faster there, and at last a
single step would outlast a window."""


def bench_rollout(
    family: Family,
    num_worlds: int | Sequence[int] = 256,
    threads: int = 1,
    device: torch.device | str = "cpu",
    peer: Peer = "none",
    *,
    randomize: bool = False,
    policy: Acting = "none",
    account: bool = False,
    windows: int = 15,
    seconds: float = 0.5,
) -> dict[str, Any]:
    """Time worlds of `family`: observation, reward and autoreset included.

    Args:
        family: whose worlds to step, each with a training task of its own.
        num_worlds: worlds stepped together, on both sides; several numbers are a sweep.
        threads: threads of the physics on a CPU, on both sides; torch itself uses one.
        device: where observations and rewards go.
        peer: `cpu` is the same on the CPU; `bare` is MuJoCo's batch alone, without observation,
            reward or reset, from the same states; `gymnasium` the faster of its sync and async
            vector modes; `shared-model` our own worlds without randomised models (implies
            `randomize`); `metaworld` the package's own environments, one after the other.
        randomize: give every world its own masses, inertias, damping and friction.
        policy: `none` are random actions; `mlp` or `gru` acts, on both sides.
        account: find out where the time goes, at the best number of worlds.
        windows: timed windows per side.
        seconds: length of a window.

    Returns:
        The settings; of the number of worlds with the most steps a second, `value` and `peer_value`
        (medians, in `unit`), `ratio` and the single windows; `rows` with the same of every number
        of worlds, and `full` where it did not fit into the memory; and the `account`.

    Raises:
        UsageError: for a peer that the family does not have or that is not installed.
        OutOfMemory: if none of the numbers of worlds fits.
    """
    counts = (num_worlds,) if isinstance(num_worlds, int) else tuple(num_worlds)
    _check(family, counts, threads, peer, windows, seconds)
    _check_policy(policy, peer)
    where = torch.device(device)
    setting = Setting(family, threads, where, randomize or peer == "shared-model", policy)
    # The physics owns the cores: torch's threads would wait for each other on a busy machine.
    with torch_threads(1), on_device(where):
        if where.type == "cuda":
            # What the device takes once, such as compiled kernels, counts for no row.
            setting.side(setting.worlds(1)).seconds(1)
        rows = [_row(setting, count, peer, windows, seconds) for count in counts]
        fit = [row for row in rows if row["full"] is None]
        if not fit:
            raise OutOfMemory(f"bench rollout: --num-worlds {min(counts)}: {rows[0]['full']}")
        best = max(fit, key=lambda row: float(row["value"]))
        found = account_of(setting, best["num_worlds"], windows, seconds) if account else None
    return {
        "family": family.name,
        "threads": threads,
        "device": str(where),
        "randomized": setting.randomize,
        "policy": policy,
        "unit": "steps/s",
        "peer": peer,
        **{name: value for name, value in best.items() if name != "full"},
        "rows": rows,
        "account": found,
    }


def _check(
    family: Family,
    counts: Sequence[int],
    threads: int,
    peer: str,
    windows: int,
    seconds: float,
) -> None:
    check_windows("rollout", windows, seconds)
    if not counts:
        raise UsageError("bench rollout: --num-worlds needs at least one number")
    for name, value in (("num-worlds", min(counts)), ("threads", threads)):
        if value < 1:
            raise UsageError(f"bench rollout: --{name} must be at least 1, got {value}")
    if peer not in PEERS:
        raise UsageError(f"bench rollout: unknown peer {peer!r}; choose from {', '.join(PEERS)}")
    known = isinstance(family, MetaWorld) or hasattr(family, "gymnasium_id")
    if peer in ("gymnasium", "envpool") and not known:
        raise UsageError(f"bench rollout: {peer} has no {family.name}; choose --peer none")


def _check_policy(policy: str, peer: str) -> None:
    if policy not in get_args(Acting):
        allowed = ", ".join(get_args(Acting))
        raise UsageError(f"bench rollout: unknown policy {policy!r}; choose from {allowed}")
    if policy != "none" and peer not in ("none", "cpu"):
        raise UsageError(
            f"bench rollout: --peer {peer} is given random actions; with --policy {policy} choose "
            "--peer none or cpu"
        )


def _row(
    setting: Setting, num_worlds: int, peer: Peer, windows: int, seconds: float
) -> dict[str, Any]:
    """What is measured of so many worlds, or that they do not fit."""
    full = None
    before = _used(setting.device)
    try:
        return _timed(setting, num_worlds, peer, windows, seconds, before)
    except OutOfMemory as error:
        full = str(error)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        full = describe_full(error)
    # The worlds are gone with the traceback, and their memory is wanted for the next ones.
    _used(setting.device)
    names = ("value", "peer_value", "peer_mode", "peer_worlds", "ratio", "memory", "memory_a_world")
    nothing = dict.fromkeys((*names, "windows", "peer_windows"))
    return {"num_worlds": num_worlds, **nothing, "full": full}


def _timed(
    setting: Setting,
    num_worlds: int,
    peer: Peer,
    windows: int,
    seconds: float,
    before: int | None,
) -> dict[str, Any]:
    """Both sides, timed in turn; `before` they were made, so much memory was in use."""
    env = setting.worlds(num_worlds)
    ours = setting.side(env)
    theirs = _peer(setting, ours, env, peer)
    try:
        sides = [ours] if theirs is None else [ours, theirs]
        measure(sides, windows, seconds)
        used = _used(setting.device)
    finally:
        for side in (ours, theirs):
            if side is not None:
                side.close()
    return {
        "num_worlds": num_worlds,
        "value": median(ours.rates),
        "peer_mode": None if theirs is None else theirs.name or peer,
        "peer_value": None if theirs is None else median(theirs.rates),
        "peer_worlds": None if theirs is None else theirs.per_step,
        "ratio": None if theirs is None else median_ratio(ours.rates, theirs.rates),
        "memory": used,
        "memory_a_world": None if used is None or before is None else (used - before) / num_worlds,
        "windows": ours.rates,
        "peer_windows": None if theirs is None else theirs.rates,
        "full": None,
    }


def _peer(setting: Setting, ours: Side, env: VectorEnv, peer: Peer) -> Side | None:
    """What is timed beside our worlds."""
    if peer == "none":
        return None
    if peer != "cpu":
        return BUILDERS[peer](ours, env, setting.threads)
    there = setting.on_cpu()
    physics = isinstance(env, PhysicsWorlds)
    return there.side(there.worlds(min(env.num_envs, MOST_ON_CPU) if physics else env.num_envs))


def _used(device: torch.device) -> int | None:
    """Bytes in use on a GPU, after all that can be freed is; None for a CPU."""
    if device.type != "cuda":
        return None
    gc.collect()
    synchronize()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    return total - free
