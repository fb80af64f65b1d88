"""A sim-to-real study of trained policies: what they would do on a robot unlike their simulator.

All agents meet the same tasks, worlds and luck. Five settings (held-out, out of range, nominal, and
a surrogate of the real robot with nominal and with drawn dynamics), sweeps of one and of two
parameters, a search for tasks where the first agent fails, and the time that a step takes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from metarl.adaptation import AdaptationCurve
from metarl.envs.robot import Robot
from metarl.envs.surrogate import Surrogate
from metarl.experiments.sim2real_agents import Contender, Plan, choose_pair
from metarl.experiments.sim2real_measure import (
    Array,
    Axis,
    Latency,
    axes_of,
    curve_of,
    latency_of,
    returns_at,
    robots_across,
    robots_along,
    split_curve,
    unstable_counted,
)
from metarl.experiments.sim2real_search import Space, inside_training_range, search, worst_apart
from metarl.tasks import Split

CANDIDATE_WORLDS = 4
"""worlds that a candidate of the search is judged in"""
LATENCY_STEPS = 1000
"""steps that are timed at least"""


@dataclass(frozen=True)
class Setting:
    """Where all agents are compared."""

    name: str
    split: Split
    surrogate: bool
    meaning: str


SETTINGS = (
    Setting("held-out", "held-out", False, "the training range, tasks never trained on"),
    Setting("out-of-range", "out-of-range", False, "outside of the range in one quantity"),
    Setting("nominal", "nominal", False, "the robot as its model file has it"),
    Setting("surrogate, nominal", "nominal", True, "the surrogate, nominal but for its flaws"),
    Setting("surrogate, drawn", "held-out", True, "surrogates from within the training range"),
)


@dataclass(frozen=True)
class Sweep:
    """Returns along one axis."""

    axis: Axis
    returns: list[Array]
    """for each agent `[runs, G, W, K]`"""


@dataclass(frozen=True)
class HeatMap:
    """Returns over two axes."""

    a: Axis
    b: Axis
    returns: list[Array]
    """for each agent `[Ga, Gb, K]`, means over runs and worlds"""


@dataclass(frozen=True)
class Failure:
    """A task where the first agent does badly."""

    dynamics: tuple[float, ...]
    """P numbers"""
    inside: bool
    """within the training range"""
    returns: list[Array]
    """for each agent `[runs, W, K]`, on seeds that the search did not see"""


@dataclass(frozen=True)
class Study:
    """Everything that was measured."""

    plan: Plan
    robot: Robot
    surrogate: Surrogate
    contenders: list[Contender]
    settings: dict[str, list[list[AdaptationCurve]]]
    """by name: for each agent its runs"""
    sweeps: list[Sweep]
    heat_map: HeatMap | None
    failures: list[Failure]
    candidates: int
    """that the search judged"""
    latencies: list[Latency]
    unstable: int
    """simulations that blew up"""
    seconds: dict[str, float]
    """by part"""


# --- measuring ---------------------------------------------------------------------------------


def run_study(
    contenders: list[Contender],
    robot: Robot,
    plan: Plan,
    surrogate: Surrogate,
    say: Callable[[str], None] = lambda line: None,
) -> Study:
    """Measure everything; `say` is told after each part how long it took."""
    seconds, begun = dict[str, float](), perf_counter()

    def done(part: str) -> None:
        nonlocal begun
        seconds[part] = perf_counter() - begun
        say(f"{part}: {seconds[part]:.0f} s")
        begun = perf_counter()

    choose_pair(robot.parameters, plan.pair)
    with unstable_counted() as unstable:
        settings = measure_settings(contenders, robot, plan, surrogate)
        done("settings")
        sweeps = measure_sweeps(contenders, robot, plan)
        done("sweeps")
        heat_map = measure_heat_map(contenders, robot, plan, sweeps)
        done("heat maps")
        failures, candidates = find_failures(contenders, robot, plan)
        done("search for failures")
        latencies = [
            latency_of(c.runs[0], robot.episodes, steps=LATENCY_STEPS, seed=plan.seed)
            for c in contenders
        ]
        done("latency")
    return Study(
        plan,
        robot,
        surrogate,
        contenders,
        settings,
        sweeps,
        heat_map,
        failures,
        candidates,
        latencies,
        unstable[0],
        seconds,
    )


def measure_settings(
    contenders: Sequence[Contender], robot: Robot, plan: Plan, surrogate: Surrogate
) -> dict[str, list[list[AdaptationCurve]]]:
    """Adaptation curves in all settings that the robot has."""
    own = [setting for setting in SETTINGS if setting.split in robot.splits]
    curves: dict[str, list[list[AdaptationCurve]]] = {setting.name: [] for setting in own}
    for where in (None, surrogate):
        here = [setting for setting in own if setting.surrogate == (where is not None)]
        drawn = [
            robot.sample_tasks(plan.tasks, s.split, torch.Generator().manual_seed(plan.seed))
            for s in here
        ]
        # All settings in one batch: worlds are cheap when there are many of them.
        tasks = type(drawn[0]).concatenate(drawn)
        same = {"seed": plan.seed, "threads": plan.threads}
        for contender in contenders:
            found = [
                split_curve(
                    curve_of(run, tasks, robot.episodes, surrogate=where, **same), len(here)
                )
                for run in contender.runs
            ]
            for setting, of_runs in zip(here, zip(*found, strict=True), strict=True):
                curves[setting.name].append(list(of_runs))
    return curves


def _returns(
    contenders: Sequence[Contender],
    robot: Robot,
    plan: Plan,
    dynamics: Tensor,
    worlds: int,
    seed: int,
) -> list[Array]:
    """For each agent `[runs, G, W, K]` at robots `[G, P]`."""
    same = {"episodes": robot.episodes, "seed": seed, "threads": plan.threads}
    return [
        np.stack([returns_at(run, robot, dynamics, worlds, **same) for run in c.runs])
        for c in contenders
    ]


def measure_sweeps(contenders: Sequence[Contender], robot: Robot, plan: Plan) -> list[Sweep]:
    """Returns along every axis, the other quantities nominal."""
    axes = axes_of(robot.parameters, plan.grid)
    robots = [robots_along(robot.parameters, axis) for axis in axes]
    found = _returns(contenders, robot, plan, torch.cat(robots), plan.worlds, plan.seed + 1_000_000)
    ends = np.cumsum([len(part) for part in robots])[:-1]
    split = [np.split(returns, ends, axis=1) for returns in found]
    return [Sweep(axis, [parts[i] for parts in split]) for i, axis in enumerate(axes)]


def effects(sweeps: Sequence[Sweep]) -> list[float]:
    """How much each sweep changes the return of the last episode, mean over agents."""
    last = [[r[..., -1].mean(axis=(0, 2)) for r in sweep.returns] for sweep in sweeps]
    return [float(np.mean([np.ptp(curve) for curve in curves])) for curves in last]


def measure_heat_map(
    contenders: Sequence[Contender], robot: Robot, plan: Plan, sweeps: Sequence[Sweep]
) -> HeatMap | None:
    """Returns over the pair of axes that were asked for, or that matter most; None for one axis."""
    if len(sweeps) < 2:
        return None
    if plan.pair:
        wanted = choose_pair(robot.parameters, plan.pair)
    else:
        order = np.argsort(effects(sweeps))[::-1][:2]
        wanted = [sweeps[i].axis.index for i in order]
    axes = {sweep.axis.index: sweep.axis for sweep in sweeps}
    a, b = (axes[index] for index in wanted)
    robots = robots_across(robot.parameters, a, b)
    worlds = max(2, plan.worlds // 4)
    found = _returns(contenders, robot, plan, robots, worlds, plan.seed + 2_000_000)
    shape = (len(a.values), len(b.values), robot.episodes)
    return HeatMap(a, b, [returns.mean(axis=(0, 2)).reshape(shape) for returns in found])


def find_failures(
    contenders: Sequence[Contender], robot: Robot, plan: Plan
) -> tuple[list[Failure], int]:
    """Tasks where the first run fails, and how many candidates were judged.

    Half of the budget looks within the training range, half up to the limits. Twice as many tasks
    as are reported are tried again on fresh seeds, and the worst of them measured on others still,
    with all agents.
    """
    judge_run, parameters = contenders[0].runs[0], robot.parameters
    fresh = count(plan.seed + 10_000_000, 1_000_000)
    same = {"episodes": robot.episodes, "threads": plan.threads}
    generator = torch.Generator().manual_seed(plan.seed)
    spaces = [Space(parameters, beyond) for beyond in (False, True)]
    spaces = spaces[: 1 + parameters.has_outside]
    chosen = []
    for space in spaces:

        def last(points: Tensor, worlds: int = CANDIDATE_WORLDS, space: Space = space) -> Tensor:
            dynamics = space.values(points)
            found = returns_at(judge_run, robot, dynamics, worlds, seed=next(fresh), **same)
            return torch.from_numpy(found[..., -1].mean(1))

        points, returns = search(
            last,
            parameters.slices,
            budget=plan.budget // len(spaces),
            count=plan.failures,
            generator=generator,
        )
        worst = points[worst_apart(points, returns, 2 * plan.failures, parameters.slices)]
        again = last(worst, plan.worlds)
        chosen.append(space.values(worst[again.argsort()[: plan.failures]]))
    dynamics = torch.cat(chosen)
    found = _returns(contenders, robot, plan, dynamics, plan.worlds, next(fresh))
    inside = inside_training_range(parameters, dynamics).tolist()
    failures = [
        Failure(tuple(dynamics[i].tolist()), inside[i], [returns[:, i] for returns in found])
        for i in range(len(dynamics))
    ]
    return failures, plan.budget // len(spaces) * len(spaces)
