"""The rewards of a trial as they are decoded from beliefs of a few times, against the true ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from metarl.experiments.belief_latents import EPISODE, mark_episodes, parameters
from metarl.experiments.beliefs import INSIDE, BeliefTrials, decoded_rewards
from metarl.experiments.figures import STYLE
from metarl.tasks import TaskBatch

TRUE, BELIEVED, SEEN = "#9A9A9A", "#0072B2", "#E69F00"
EARLY = 10
"""after how many steps rewards are decoded, beside the prior and the end"""


@dataclass(frozen=True)
class RewardBeliefs:
    """Every reward of the trials, as decoded from beliefs of a few times."""

    trials: BeliefTrials
    """of a run that regresses rewards"""
    after: list[int]
    """numbers of steps that the beliefs had seen; the last is the whole trial"""
    decoded: Tensor
    """`[C, E, T, N]`"""
    figures: dict[str, Any]
    """`decoded_after`; `reward_error`, the root mean squared errors of the means over draws;
    `reward_std`, what a constant would err by"""

    @classmethod
    def of(cls, trials: BeliefTrials) -> RewardBeliefs:
        """Decode at the start, early, and at the end."""
        after = sorted({0, min(EARLY, trials.steps // 2), trials.steps})
        decoded = decoded_rewards(trials, after)
        there, true = trials.there[1:], trials.reward
        errors = (decoded.mean(1) - true).square()
        figures = {
            "decoded_after": after,
            "reward_error": [float(error[there].mean().sqrt()) for error in errors],
            "reward_std": float(true[there].std(correction=0)),
        }
        return cls(trials, after, decoded, figures)


def reward_figure(beliefs: RewardBeliefs, tasks: int) -> Figure:
    """True and decoded rewards of a few tasks, spread over what tells them apart."""
    trials = beliefs.trials
    rows = spread_out(trials.tasks, tasks)
    with matplotlib.rc_context(STYLE):
        size = (4.3 * len(beliefs.after), 2.05 * len(rows) + 1.2)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(
            len(rows), len(beliefs.after), squeeze=False, sharex=True, sharey=True
        )
        for task, ax_row in zip(rows, axes, strict=True):
            for column, ax in enumerate(ax_row):
                _draw_rewards(ax, beliefs, column, task)
            ax_row[0].set_ylabel(f"{_name(trials.tasks, task)}\nreward")
        for ax, t in zip(axes[0], beliefs.after, strict=True):
            error = ax.get_title(loc="left")
            ax.set_title(f"{_when(t, trials.steps)}\n{error}", fontsize=10)
        for ax in axes[-1]:
            ax.set_xlabel("step of the trial")
        axes[0, 0].set_ylim(*_limits(beliefs, rows))
        handles = [
            Line2D([], [], color=TRUE, linewidth=3.0, label="true reward"),
            Line2D([], [], color=BELIEVED, label="decoded: mean over z from the belief"),
            Patch(color=BELIEVED, alpha=0.2, linewidth=0, label="90 % of the draws"),
            Patch(color=SEEN, alpha=0.16, linewidth=0, label="what the belief has seen"),
            Line2D([], [], label="end of an episode", **EPISODE),
        ]
        run = trials.run
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=5,
            title=f"Rewards of {run.config.family} as {run.config.agent} believes them "
            f"({run.step:,} steps of training)",
            alignment="left",
            title_fontproperties={"size": 12, "weight": "bold"},
        )
    return figure


def spread_out(tasks: TaskBatch, count: int) -> list[int]:
    """`count` of the tasks, from the lowest of their first parameter to the highest.

    Fewer where it has fewer values.
    """
    known = parameters(tasks)
    if not known:
        return list(range(min(count, len(tasks))))
    order = np.argsort(known[0].values, kind="stable")
    if known[0].few:
        order = np.unique(known[0].values, return_index=True)[1]
    picked = np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    return [int(task) for task in order[picked]]


def _name(tasks: TaskBatch, task: int) -> str:
    """A task in words."""
    known = parameters(tasks)
    if not known:
        return f"task {task + 1}"
    return "\n".join(p.words(p.values[task]) for p in known)


def _when(t: int, steps: int) -> str:
    """After how many steps a belief is looked at."""
    if t == 0:
        return "decoded before the first step"
    return f"decoded after all {steps} steps" if t == steps else f"decoded after {t} steps"


def _limits(beliefs: RewardBeliefs, rows: Sequence[int]) -> tuple[float, float]:
    """Of the rewards that matter; draws that are far off may leave the panels."""
    there = beliefs.trials.there[1:][:, rows]
    true = beliefs.trials.reward[:, rows][there]
    means = beliefs.decoded.mean(1)[..., rows][:, there].flatten()
    ends = [float(torch.cat([true, means]).quantile(q)) for q in (0.002, 0.998)]
    margin = 0.08 * (ends[1] - ends[0]) + 1e-3
    return ends[0] - margin, ends[1] + margin


def _draw_rewards(ax: Axes, beliefs: RewardBeliefs, column: int, task: int) -> None:
    """One task, as seen from one belief."""
    trials, t = beliefs.trials, beliefs.after[column]
    length = trials.lengths[task]
    steps = np.arange(1, length + 1)
    true = trials.reward[:length, task]
    draws = beliefs.decoded[column, :, :length, task]
    mean = draws.mean(0)
    low, high = (draws.quantile(q, dim=0).numpy() for q in INSIDE)
    if t:
        ax.axvspan(0.5, min(t, length) + 0.5, color=SEEN, alpha=0.16, linewidth=0)
    ax.plot(steps, true.numpy(), color=TRUE, linewidth=2.4)
    ax.fill_between(steps, low, high, color=BELIEVED, alpha=0.2, linewidth=0)
    ax.plot(steps, mean.numpy(), color=BELIEVED, linewidth=1.1)
    mark_episodes(ax, trials, task)
    error = float((mean - true).square().mean().sqrt())
    ax.set_title(f"root mean square error {error:.2g}", fontsize=9.5)
    ax.margins(x=0.01)
