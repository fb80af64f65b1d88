"""What is believed of the arms of a bandit, against what should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metarl.agents.task_inference import RewardHeads
from metarl.experiments.beliefs import (
    INSIDE,
    BeliefTrials,
    arm_posterior,
    pay_chances,
    reward_decoder,
)
from metarl.experiments.figures import STYLE

BELIEVED, TRUE, EXACT, INK = "#0072B2", "#9A9A9A", "#009E73", "#222222"
SHOWN_ARMS = 6


@dataclass(frozen=True)
class ArmBeliefs:
    """What is believed of every arm of a bandit, and what should be."""

    trials: BeliefTrials
    """of a run on bandits whose rewards are decoded by heads"""
    draws: Tensor
    """`[E, T + 1, N, S]`: chance to pay given each z"""
    exact: Tensor
    """`[T + 1, N, S]`: mean of the exact posterior"""
    figures: dict[str, float]
    """means over arms, tasks and times: `from_exact`, the distance of the believed chance from the
    exact posterior mean; `without_learning`, that of one half"""

    @classmethod
    def of(cls, trials: BeliefTrials) -> ArmBeliefs:
        """Decode the beliefs of `trials` and work out the exact ones."""
        heads = reward_decoder(trials.run)
        assert isinstance(heads, RewardHeads)
        draws = pay_chances(heads, trials.belief, trials.generator())
        exact = arm_posterior(trials.rollout.action[..., 0], trials.reward > 0, heads.sites)
        figures = {
            "from_exact": trials.mean((draws.mean(0) - exact).abs().mean(-1)),
            "without_learning": trials.mean((exact - 0.5).abs().mean(-1)),
        }
        return cls(trials, draws, exact, figures)


def arm_figure(beliefs: ArmBeliefs, tasks: int) -> Figure:
    """The first `tasks` bandits, a panel for each arm, or for those pulled most."""
    arms = beliefs.exact.shape[-1]
    columns = min(arms, SHOWN_ARMS)
    with matplotlib.rc_context(STYLE):
        size = (2.3 * columns + 0.5, 2.1 * tasks + 1.3)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(tasks, columns, squeeze=False, sharex=True, sharey=True)
        for task, ax_row in enumerate(axes):
            pulls = beliefs.trials.rollout.action[:, task, 0].bincount(minlength=arms)
            most = pulls.argsort(descending=True, stable=True)[:columns].sort().values
            for arm, ax in zip(most.tolist(), ax_row, strict=True):
                _draw_arm(ax, beliefs, task, arm)
            ax_row[0].set_ylabel(f"bandit {task + 1}\nchance to pay")
        axes[0, 0].set(ylim=(-0.09, 1.04), yticks=[0.0, 0.25, 0.5, 0.75, 1.0])
        axes[0, 0].xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10], integer=True))
        for ax in axes[-1]:
            ax.set_xlabel("pulls so far, of all arms")
        _explain_arms(figure, beliefs)
    return figure


def _draw_arm(ax: Axes, beliefs: ArmBeliefs, task: int, arm: int) -> None:
    """One arm: what it pays, what is believed, what should be, and when it was pulled."""
    trials = beliefs.trials
    draws = beliefs.draws[..., task, arm]
    steps = np.arange(draws.shape[1])
    low, high = (draws.quantile(q, dim=0).numpy() for q in INSIDE)
    chance = float(trials.tasks.tensors()["probability"][task, arm])
    ax.axhline(chance, color=TRUE, linewidth=3.0)
    ax.fill_between(steps, low, high, color=BELIEVED, alpha=0.15, linewidth=0)
    ax.plot(steps, draws.mean(0).numpy(), color=BELIEVED)
    ax.plot(steps, beliefs.exact[:, task, arm].numpy(), color=EXACT, linestyle="--", linewidth=1.5)
    pulled = trials.rollout.action[:, task, 0] == arm
    paid = trials.reward[:, task] > 0
    for which, fill in ((pulled & paid, INK), (pulled & ~paid, "white")):
        at = which.nonzero().flatten().numpy() + 1
        ax.scatter(
            at, np.full(len(at), -0.04), s=13, facecolors=fill, edgecolors=INK, linewidths=0.7
        )
    ax.set_title(f"arm {arm + 1}: pulled {int(pulled.sum())}x", fontsize=9.5)


def _explain_arms(figure: Figure, beliefs: ArmBeliefs) -> None:
    """Add title and legend."""
    run = beliefs.trials.run
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4.5, "color": INK}
    handles = [
        Line2D([], [], color=TRUE, linewidth=3.0, label="true chance"),
        Line2D([], [], color=BELIEVED, label="believed: mean over z"),
        Patch(color=BELIEVED, alpha=0.15, linewidth=0, label="90 % of the draws"),
        Line2D([], [], color=EXACT, linestyle="--", label="exact posterior mean"),
        Line2D([], [], label="pulled, paid", **dot),
        Line2D([], [], label="pulled, did not", markerfacecolor="white", **dot),
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=6,
        title=f"What {run.config.agent} believes of the arms of {run.config.family} "
        f"({run.step:,} steps of training)",
        alignment="left",
        title_fontproperties={"size": 12, "weight": "bold"},
    )
