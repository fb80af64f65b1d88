"""The one evaluation: K episodes in each of N held-out tasks, and the adaptation curve."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.errors import UsageError
from metarl.policy import AdaptivePolicy
from metarl.rollout import Rollout, run_trials
from metarl.statistics import iqm, mean, stratified_bootstrap
from metarl.tasks import TaskBatch
from metarl.vector import VectorEnv

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Summary:
    """A quantity by episode of the trial, `[K]` each, over tasks."""

    mean: list[float]
    mean_low: list[float]
    mean_high: list[float]
    iqm: list[float]
    iqm_low: list[float]
    iqm_high: list[float]


def summarize(scores: Array) -> Summary:
    """Mean and IQM over tasks with 95 % stratified-bootstrap intervals.

    Args:
        scores: `[runs, tasks, K]`; tasks are resampled within each run.
    """
    pooled = scores.reshape(-1, scores.shape[-1])
    mean_low, mean_high = stratified_bootstrap(scores, mean)
    iqm_low, iqm_high = stratified_bootstrap(scores, iqm)
    arrays = (mean(pooled), mean_low, mean_high, iqm(pooled), iqm_low, iqm_high)
    return Summary(*(np.asarray(x).tolist() for x in arrays))


@dataclass(frozen=True)
class AdaptationCurve:
    """How a policy does in episode 1, 2, ... K of a trial, over tasks it has not seen."""

    returns: list[list[float]]
    """`[tasks][K]`: return of each episode, averaged over the worlds of a task"""
    lengths: list[list[float]]
    """`[tasks][K]`: steps of each episode"""
    success: list[list[float]] | None
    """`[tasks][K]`: share of worlds that solved the task in the episode, where defined"""
    tasks: list[list[float]]
    """`[tasks][F]`: the features of each task"""
    step_reward: list[float]
    """`[T]`: reward at each step of the trial, mean over tasks; only while all worlds are active"""
    step_low: list[float]
    """`[T]`: lower 95 % bound of it"""
    step_high: list[float]
    """`[T]`: upper 95 % bound of it"""
    info: dict[str, Any] = field(default_factory=dict)
    """where the curve is from: family, agent, split, seed, steps of training"""

    @property
    def episodes(self) -> int:
        """K."""
        return len(self.returns[0])

    @property
    def worlds_per_task(self) -> int:
        """In how many worlds a task was tried at once, and its return averaged."""
        return int(self.info.get("worlds_per_task", 1))

    @property
    def figures(self) -> dict[str, float]:
        """What is of interest for this family alone, by name."""
        return dict(self.info.get("figures", {}))

    @property
    def seen(self) -> list[int]:
        """`[K]`: how many episodes of the task went before each, in all of its worlds."""
        return [k * self.worlds_per_task for k in range(self.episodes)]

    def summary(self) -> Summary:
        """Returns by episode, over tasks."""
        return summarize(np.asarray(self.returns)[None])

    def success_summary(self) -> Summary | None:
        """Success by episode, over tasks; None where it is not defined."""
        return None if self.success is None else summarize(np.asarray(self.success)[None])

    def save(self, path: Path) -> None:
        """Write the curve and its summary as JSON."""
        success = self.success_summary()
        record = {
            **asdict(self),
            "summary": asdict(self.summary()),
            "success_summary": None if success is None else asdict(success),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record) + "\n")

    @classmethod
    def load(cls, path: Path) -> AdaptationCurve:
        """Read what `save` wrote.

        Raises:
            UsageError: if the file is not an adaptation curve.
        """
        try:
            record = json.loads(path.read_text())
            names = cls.__dataclass_fields__
            return cls(**{name: record[name] for name in names})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{path}: not an adaptation curve ({error})") from error


def pool(curves: Sequence[AdaptationCurve]) -> Summary:
    """Summary over several runs: tasks are resampled within each run."""
    return summarize(np.stack([np.asarray(curve.returns) for curve in curves]))


def join(curves: Sequence[AdaptationCurve]) -> AdaptationCurve:
    """The curve over the tasks of all `curves`: parts of one evaluation that ran in turn.

    What it is from is said by the first; figures of the family alone are left out.
    """
    if any(curve.success is None for curve in curves):
        success = None
    else:
        success = [row for curve in curves for row in curve.success or ()]
    steps = min(len(curve.step_reward) for curve in curves)
    means, highs = (
        np.array([getattr(curve, name)[:steps] for curve in curves])
        for name in ("step_reward", "step_high")
    )
    counts = np.array([[len(curve.tasks)] for curve in curves], dtype=np.float64)
    total = float(counts.sum())
    centre = (counts * means).sum(0) / total
    # The squares of what tasks are off their mean: within the parts, and of the parts' means.
    within = np.square((highs - means) / 1.96) * counts * (counts - 1.0)
    squares = (within + counts * np.square(means - centre)).sum(0)
    half = 1.96 * np.sqrt(squares / max(total - 1.0, 1.0) / total)
    return AdaptationCurve(
        returns=[row for curve in curves for row in curve.returns],
        lengths=[row for curve in curves for row in curve.lengths],
        success=success,
        tasks=[row for curve in curves for row in curve.tasks],
        step_reward=centre.tolist(),
        step_low=(centre - half).tolist(),
        step_high=(centre + half).tolist(),
        info={name: value for name, value in curves[0].info.items() if name != "figures"},
    )


def evaluate(
    policy: AdaptivePolicy,
    env: VectorEnv,
    tasks: TaskBatch,
    episodes: int,
    *,
    seed: int = 0,
    info: dict[str, Any] | None = None,
) -> AdaptationCurve:
    """Run one trial of `episodes` episodes in every world and record the adaptation.

    Args:
        policy: any adaptive policy.
        env: worlds, a multiple of the number of tasks.
        tasks: N tasks, usually held out.
        episodes: K.
        seed: restarts the worlds' random streams, so that equal calls give equal curves.
        info: kept with the curve, beside the family's own `figures` of these trials if it has any.
    """
    env.set_tasks(tasks)
    env.reset(seed=seed)
    rollout = run_trials(policy, env, episodes)
    success = rollout.per_episode(rollout.success.nan_to_num(0.0), episodes).clamp(max=1.0)
    defined = not bool(rollout.success.isnan().any())
    lengths = rollout.per_episode(torch.ones_like(rollout.reward), episodes)
    steps, low, high = _reward_by_step(rollout)
    figures = env.family.figures(rollout)
    return AdaptationCurve(
        returns=rollout.per_episode(rollout.reward, episodes).double().mean(1).tolist(),
        lengths=lengths.double().mean(1).tolist(),
        success=success.double().mean(1).tolist() if defined else None,
        tasks=tasks.features().tolist(),
        step_reward=steps.tolist(),
        step_low=low.tolist(),
        step_high=high.tolist(),
        info={**(info or {}), **({"figures": figures} if figures else {})},
    )


def _reward_by_step(rollout: Rollout) -> tuple[Array, Array, Array]:
    """Mean reward `[T]` over tasks at each step all worlds live to see, and its interval."""
    common = int(rollout.active.all(-1).all(-1).sum())
    rewards = rollout.reward[:common].double().mean(-1).T.cpu().numpy()
    centre = mean(rewards)
    # The normal interval: with hundreds of steps and tasks a bootstrap would only cost time.
    half = 1.96 * rewards.std(axis=0, ddof=1 if len(rewards) > 1 else 0) / np.sqrt(len(rewards))
    return centre, centre - half, centre + half
