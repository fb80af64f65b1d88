"""Measure trained policies in simulation and on the surrogate: many tasks as one batch of worlds.

Shapes: `N` tasks, `K` episodes of a trial, `P` numbers of the randomisation, `G` grid points, `W`
worlds at each point.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarl.adaptation import AdaptationCurve, evaluate
from metarl.envs.quantities import QUANTITIES
from metarl.envs.randomization import Parameters, Vary
from metarl.envs.robot import Robot, RobotTask
from metarl.envs.surrogate import Surrogate
from metarl.errors import UsageError
from metarl.experiments.loading import LoadedRun
from metarl.oracle import TaskInObservation, TaskInObservationEnv
from metarl.policy import Step, worlds_per_task
from metarl.tasks import Family, TaskBatch
from metarl.vector import VectorEnv

Array = NDArray[np.float64]

MOST_WORLDS = 1024
"""Worlds that are stepped together; more tasks are measured one batch after the other."""
_BY_TASK = ("returns", "lengths", "tasks")
WIDEST = 0.5
"""A sweep leaves the training range by this share of its width on each side, or by more."""


def robot_of(family: Family) -> Robot:
    """The family without what an oracle is shown.

    Raises:
        UsageError: if it is no simulated robot.
    """
    inner = family.family if isinstance(family, TaskInObservation) else family
    if not isinstance(inner, Robot):
        raise UsageError(
            f"study sim2real: {family.name} is no simulated robot; it takes runs on robots whose "
            "body differs from task to task"
        )
    return inner


# --- returns -----------------------------------------------------------------------------------


class BelievedNominal(TaskInObservationEnv):
    """Worlds that tell an oracle their goal, and of the robot what its model file says."""

    def _take_over_tasks(self) -> None:
        super()._take_over_tasks()
        robot, tasks = robot_of(self.family), self.inner.tasks
        assert isinstance(tasks, RobotTask)
        believed = replace(tasks, dynamics=robot.parameters.nominal(len(tasks))).features()
        self._features = believed.repeat_interleave(self.num_envs // self.num_tasks, 0)


def worlds_of(
    run: LoadedRun, count: int, surrogate: Surrogate | None, *, seed: int, threads: int
) -> VectorEnv:
    """Worlds of the run's family, or surrogates of its robot; an oracle takes those for nominal."""
    if surrogate is None:
        return run.family.make_worlds(count, seed=seed, threads=threads)
    robot = robot_of(run.family)
    inner = surrogate.worlds(robot, count, seed=seed, threads=threads)
    seen = run.family
    return BelievedNominal(seen, inner) if isinstance(seen, TaskInObservation) else inner


def curve_of(
    run: LoadedRun,
    tasks: TaskBatch,
    episodes: int,
    *,
    seed: int,
    threads: int,
    surrogate: Surrogate | None = None,
) -> AdaptationCurve:
    """The adaptation curve of a run on given tasks, in batches of at most `MOST_WORLDS` worlds.

    Equal calls give equal curves, and all policies that try a task in one world meet the same luck.
    """
    own, policy = worlds_per_task(run.agent), run.agent.policy()
    size = max(1, MOST_WORLDS // own)
    curves = []
    for start in range(0, len(tasks), size):
        part = tasks[start : start + size]
        where = seed + start
        env = worlds_of(run, len(part) * own, surrogate, seed=where, threads=threads)
        try:
            curves.append(evaluate(policy, env, part, episodes, seed=where))
        finally:
            env.close()
    info = {"agent": run.config.agent, "worlds_per_task": own}
    rows = {name: [row for curve in curves for row in getattr(curve, name)] for name in _BY_TASK}
    return AdaptationCurve(
        **rows, success=None, step_reward=[], step_low=[], step_high=[], info=info
    )


def split_curve(curve: AdaptationCurve, parts: int) -> list[AdaptationCurve]:
    """The curves of `parts` equally many tasks that were measured together."""
    size = len(curve.tasks) // parts
    return [
        replace(
            curve,
            **{name: getattr(curve, name)[i * size : (i + 1) * size] for name in _BY_TASK},
        )
        for i in range(parts)
    ]


def repeats(run: LoadedRun, worlds: int) -> int:
    """How often a task is tried to have seen it in about `worlds` worlds, and at least twice."""
    return max(2, ceil(worlds / worlds_per_task(run.agent)))


def returns_at(
    run: LoadedRun,
    robot: Robot,
    dynamics: Tensor,
    worlds: int,
    *,
    episodes: int,
    seed: int,
    threads: int,
) -> Array:
    """Returns `[G, W, K]` of robots `[G, P]`, each tried in about `worlds` worlds.

    Goals, where the family has some besides the robot, are drawn once and the same for all robots.
    """
    count = repeats(run, worlds)
    goals = robot.sample_tasks(count, "nominal", torch.Generator().manual_seed(seed))
    tasks = replace(
        goals[torch.arange(count).repeat(len(dynamics))],
        dynamics=dynamics.repeat_interleave(count, 0),
    )
    curve = curve_of(run, tasks, episodes, seed=seed, threads=threads)
    return np.asarray(curve.returns).reshape(len(dynamics), count, episodes)


@contextmanager
def unstable_counted() -> Iterator[list[int]]:
    """Count simulations that blow up, which is no news far outside of the training range."""
    count = [0]

    def counted(record: logging.LogRecord) -> bool:
        count[0] += "became unstable" in record.getMessage()
        return False

    logger = logging.getLogger("metarl.physics")
    logger.addFilter(counted)
    try:
        yield count
    finally:
        logger.removeFilter(counted)


# --- grids -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """The values of one `Vary` that are swept; its elements move together."""

    index: int
    """of the `Vary` in the randomisation"""
    label: str
    """the quantity, and what of"""
    unit: str
    """of the values; x for a factor"""
    values: tuple[float, ...]
    """G, ascending"""
    low: float
    """lower end of the training range"""
    high: float
    """upper end"""
    nominal: float
    """the robot as its model file has it"""
    log: bool
    """whether the values are spaced evenly by their logarithm"""

    @property
    def title(self) -> str:
        """Label and unit."""
        unit = {"x": "factor", "": ""}.get(self.unit, self.unit)
        return f"{self.label}, {unit}" if unit else self.label


def label_of(vary: Vary) -> str:
    """What a `Vary` is called in options and figures."""
    return " ".join([vary.quantity.replace("_", " "), *vary.of])


def axis_of(parameters: Parameters, index: int, points: int) -> Axis:
    """The grid of the `Vary` at `index`: from well below to well beyond its training range."""
    vary = parameters.vary[index]
    quantity = QUANTITIES[vary.quantity]
    low, high = replace(vary, beyond=max(vary.beyond, WIDEST)).limits()
    log = vary.distribution == "log-uniform"
    if vary.whole:
        step = max(1, ceil((high - low) / (points - 1)))
        values = np.arange(low, high + 1, step)
    else:
        values = np.geomspace(low, high, points) if log else np.linspace(low, high, points)
    return Axis(
        index,
        label_of(vary),
        quantity.unit,
        tuple(values.tolist()),
        vary.low,
        vary.high,
        quantity.nominal,
        log,
    )


def axes_of(parameters: Parameters, points: int) -> list[Axis]:
    """One axis for each `Vary` whose training range is more than one value."""
    return [
        axis_of(parameters, index, points)
        for index, vary in enumerate(parameters.vary)
        if vary.low < vary.high
    ]


def robots_along(parameters: Parameters, axis: Axis) -> Tensor:
    """The nominal robot with each value of the axis, float64 `[G, P]`."""
    robots = parameters.nominal(len(axis.values))
    robots[:, parameters.slices[axis.index]] = torch.tensor(axis.values).double().unsqueeze(-1)
    return robots


def robots_across(parameters: Parameters, a: Axis, b: Axis) -> Tensor:
    """The nominal robot with each pair of values, float64 `[Ga * Gb, P]`, the first axis slower."""
    robots = robots_along(parameters, a).repeat_interleave(len(b.values), 0)
    second = torch.tensor(b.values).double().repeat(len(a.values)).unsqueeze(-1)
    robots[:, parameters.slices[b.index]] = second
    return robots


# --- latency -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """How long `act` and `observe` take together, for one robot on one core, s."""

    median: float
    p99: float
    """99th percentile"""
    processor_p99: float
    """the same of the time that the processor worked on it, whatever else ran"""
    steps: int
    """that were timed"""


@torch.no_grad()
def latency_of(run: LoadedRun, episodes: int, *, steps: int, seed: int) -> Latency:
    """Time the calls of a policy over at least `steps` steps of trials in one world."""
    threads, warm_up = torch.get_num_threads(), 20
    env = run.family.make_worlds(1, seed=seed, threads=1)
    policy, times = run.agent.policy(), list[tuple[float, float]]()
    torch.set_num_threads(1)
    try:
        env.set_tasks(run.family.sample_tasks(1, "nominal", torch.Generator().manual_seed(seed)))
        while len(times) < steps + warm_up:
            policy.begin(1, 1)
            obs, _ = env.reset()
            finished = 0
            while finished < episodes and len(times) < steps + warm_up:
                begun = _clocks()
                action = policy.act(obs)
                chosen = _clocks()
                obs, reward, terminated, truncated, info = env.step(action)
                step = Step(info["final_obs"], reward, terminated, truncated)
                stepped = _clocks()
                policy.observe(step)
                done = _clocks()
                times.append(
                    (
                        done[0] - stepped[0] + chosen[0] - begun[0],
                        done[1] - stepped[1] + chosen[1] - begun[1],
                    )
                )
                finished += int(terminated | truncated)
    finally:
        torch.set_num_threads(threads)
        env.close()
    timed = np.asarray(times[warm_up:])
    median, p99 = np.percentile(timed, [50.0, 99.0], axis=0)
    return Latency(float(median[0]), float(p99[0]), float(p99[1]), len(timed))


def _clocks() -> tuple[float, float]:
    """Time that has passed, and that this thread has worked, s."""
    return time.perf_counter(), time.thread_time()
