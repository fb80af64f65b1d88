"""Where the time of a control step goes, and what bounds each part of it.

A part takes as long as the device needs at least to move its bytes, to multiply its matrices, or to
launch its kernels, whichever takes longest. What the device can do is measured beside it.

A part may be faster than its bound by bytes, where caches hold what it moves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from metarl.envs.physics import Physics
from metarl.envs.physics.warp_model import import_warp
from metarl.experiments.bench_traffic import Parts, Traffic
from metarl.experiments.bench_worlds import Player, Setting, acting, random_actions
from metarl.experiments.timing import Side, measure, steps_for
from metarl.vector import VectorEnv

PHYSICS, AROUND, REWARD = "physics", "around physics", "command, reward"
OBSERVATION, RESET, REST, POLICY = "observation", "reset", "flags, checks", "policy"
ORDER = (PHYSICS, AROUND, REWARD, OBSERVATION, RESET, REST, POLICY)
"""the parts: what the simulator itself does; what is saved and checked around it; what actions ask
for and earn; what is shown; new episodes; ends of episodes; what acts"""
MOVES = "moves, reward"
"""of worlds without physics of one model, instead of the first three"""

_ENGINES = {"_launcher": "launch", "_batch": "step"}
"""what steps the worlds of a `Physics`, and its method"""
_COPIED = {"cuda": 2**28, "cpu": 2**26}
"""bytes of the tensor that is copied to find out how fast memory is"""
_SQUARE = {"cuda": 4096, "cpu": 512}
"""rows of the matrices that are multiplied to find out how fast that is"""
_LAUNCHES = 200
"""operators, or kernels of a graph, that are launched to find out how long one takes"""
_PROBES, _PROBE_SECONDS = 5, 0.1


def account_of(
    setting: Setting, num_worlds: int, windows: int = 15, seconds: float = 0.5
) -> dict[str, Any]:
    """Find out where the time of a control step goes.

    Args:
        setting: which worlds, and what acts in them.
        num_worlds: how many.
        windows: timed windows; a part's time is the median of their means.
        seconds: length of a window.

    Returns:
        `parts`, each with its `seconds` a step, its `share` of them, the `bytes` that it moves at
        least, its `launches` and its floating-point operations (`flops`), how long these take at
        least (`bound`) and which of them it is (`bound_by`), and which share of its time that is
        (`reached`); `seconds` a step; and the `device`: bytes a second, flops a second, seconds a
        launch, of an operator of torch and of a kernel in a graph.
    """
    env = setting.worlds(num_worlds)
    parts = Parts()
    step, flops = _watched(setting, env, parts)
    traffic, kernels = _count(env, parts, step)
    side = Side(lambda _: step(), begin=parts.clear)
    side.steps = steps_for(side, seconds)
    spent: list[dict[str, float]] = []
    for _ in range(windows):
        side.begin()
        side.seconds(side.steps)
        spent.append({name: x / side.steps for name, x in parts.seconds().items()})
    names = [name for name in (MOVES, *ORDER) if any(name in each for each in spent)]
    times = {name: median([each.get(name, 0.0) for each in spent]) for name in names}
    device = _abilities(setting.device, getattr(env, "physics", None))
    total = sum(times.values())
    rows = [
        _row(
            name,
            time,
            total,
            device,
            bytes=traffic.bytes[name],
            launches=traffic.launches[name] if name != PHYSICS else kernels,
            flops=flops if name == POLICY else 0,
        )
        for name, time in times.items()
    ]
    return {"num_worlds": num_worlds, "seconds": total, "parts": rows, "device": device}


def _row(
    name: str, seconds: float, total: float, device: dict[str, float], **counts: int
) -> dict[str, Any]:
    """What is known of a part."""
    launch = device["kernel_seconds" if name == PHYSICS else "launch_seconds"]
    bounds = {
        "bytes": counts["bytes"] / device["bytes_per_second"],
        "flops": counts["flops"] / device["flops_per_second"],
        "launches": counts["launches"] * launch,
    }
    by = max(bounds, key=lambda what: bounds[what])
    return {
        "part": name,
        "seconds": seconds,
        "share": seconds / total,
        **counts,
        "bound": bounds[by],
        "bound_by": by,
        "reached": bounds[by] / seconds if seconds else 0.0,
    }


# --- the parts of a step ---------------------------------------------------------------------


def _watched(setting: Setting, env: VectorEnv, parts: Parts) -> tuple[Callable[[], object], int]:
    """Something that makes one step, whose parts are watched, and the policy's flops in it."""
    physics: Physics | None = getattr(env, "physics", None)
    if physics is not None:
        for engine, method in _ENGINES.items():
            if hasattr(physics, engine):
                parts.watch(getattr(physics, engine), method, PHYSICS, within=AROUND)
        parts.watch(physics, "step", AROUND)
    parts.watch(env, "_advance", MOVES if physics is None else REWARD)
    parts.watch(env, "_observe", OBSERVATION, within=REST)
    parts.watch(env, "_reset_worlds", RESET, within=REST)
    parts.watch(env, "step", REST)
    if setting.policy == "none":
        actions = cycle(random_actions(setting.family, env.num_envs, setting.device))
        return lambda: env.step(next(actions)), 0
    policy = acting(setting.policy, env)
    player = Player(env, policy)
    flops = _policy_flops(policy, player.obs)
    parts.watch(policy, "act", POLICY)
    parts.watch(policy, "observe", POLICY)
    return player.step, flops


def _policy_flops(policy: Any, obs: Tensor) -> int:
    """Floating-point operations of an action for every world, counted for one world on the CPU."""
    network: nn.Module = copy.deepcopy(policy.network).cpu()
    alone = type(policy)(network, True, torch.Generator(), policy.horizon)
    alone.begin(1, 1)
    with FlopCounterMode(display=False) as counter:
        alone.act(obs[:1].cpu())
    return len(obs) * int(counter.get_total_flops())


def _count(env: VectorEnv, parts: Parts, step: Callable[[], object]) -> tuple[Traffic, int]:
    """What the parts of one step do, and how many kernels its physics has."""
    step()
    physics: Any = getattr(env, "physics", None)
    kernels = _kernels(physics, step)
    with Traffic(parts) as traffic:
        step()
    if physics is not None:
        # The simulator itself is not seen: states in and out, and each world's own model.
        state = physics.state_dict()
        sizes = {name: x.numel() * x.element_size() for name, x in state.items()}
        traffic.bytes[PHYSICS] = sum(sizes.values()) + sizes["rows"]
    return traffic, kernels


def _kernels(physics: Any, step: Callable[[], object]) -> int:
    """How many kernels of MuJoCo Warp a step launches, one by one; 0 where it has none."""
    launcher = getattr(physics, "_launcher", None)
    if launcher is None:
        return 0
    warp, _ = import_warp()
    counts: list[int] = []
    launch = launcher.launch

    def counted(name: Any, launches: Callable[[], None], undo: Callable[[], None]) -> None:
        with launcher.in_order(), _counted(warp) as launched:
            launches()
            undo()
        counts.append(len(launched))
        launch(name, launches, undo)

    with patch.object(launcher, "launch", counted):
        step()
    return counts[0]


@contextmanager
def _counted(warp: Any) -> Iterator[list[None]]:
    """Within the context, every kernel that is launched adds an entry."""
    launched: list[None] = []

    def counting(launch: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            launched.append(None)
            return launch(*args, **options)

        return run

    alone, tiled = counting(warp.launch), counting(warp.launch_tiled)
    with patch.object(warp, "launch", alone), patch.object(warp, "launch_tiled", tiled):
        yield launched


# --- what the device can do --------------------------------------------------------------------


def _abilities(device: torch.device, physics: Any) -> dict[str, float]:
    """How fast the device moves memory, multiplies matrices and launches work."""
    source = torch.zeros(_COPIED.get(device.type, 2**26) // 4, device=device)
    target = torch.empty_like(source)
    number = torch.zeros(1, device=device)
    matrix = torch.ones(2 * [_SQUARE.get(device.type, 512)], device=device)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            number.add_(1.0)

    launch = 1.0 / (_LAUNCHES * _rate(launches))
    launcher = getattr(physics, "_launcher", None)
    return {
        "bytes_per_second": 2.0 * source.nbytes * _rate(lambda: target.copy_(source)),
        "flops_per_second": 2.0 * len(matrix) ** 3 * _rate(lambda: matrix @ matrix),
        "launch_seconds": launch,
        "kernel_seconds": launch if launcher is None else _kernel_seconds(launcher),
    }


def _rate(run: Callable[[], object]) -> float:
    """Runs a second, at best: what bounds others must not be slowed itself."""
    side = Side(lambda _: run())
    measure([side], _PROBES, _PROBE_SECONDS)
    return max(side.rates)


def _kernel_seconds(launcher: Any) -> float:
    """How long a kernel that does nothing takes in a graph."""
    warp, _ = import_warp()

    def nothing() -> None:
        pass

    kernel = warp.kernel(nothing, enable_backward=False)

    def launches() -> None:
        for _ in range(_LAUNCHES):
            warp.launch(kernel, dim=1)

    return 1.0 / (_LAUNCHES * _rate(lambda: launcher.launch(nothing, launches, lambda: None)))
