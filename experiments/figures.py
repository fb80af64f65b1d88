"""Figures of adaptation and of learning, several agents and seeds side by side.

Panels draw on axes that they are given, figures lay panels out. Bars and bands are 95 % intervals
over tasks; where an agent has several seeds, tasks are resampled within each seed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator
from numpy.typing import NDArray

from metarl.adaptation import AdaptationCurve, Summary, pool, summarize
from metarl.envs.bayes_optimal import Reference
from metarl.experiments.metrics import Metrics
from metarl.experiments.printing import write_file

Array = NDArray[np.float64]

COLOURS = {
    "rl2": "#0072B2",
    "non-adaptive": "#D55E00",
    "oracle": "#009E73",
    "varibad": "#117733",
    "pearl": "#CC79A7",
    "pearl-paper": "#8C564B",
    "maml": "#6A51A3",
    "promp": "#B22222",
    "maml-paper": "#9E9AC8",
    "promp-paper": "#E6A0A0",
    "sb3-ppo": "#56B4E9",
    "sb3-sac": "#E69F00",
    "sb3-td3": "#000000",
}
"""Okabe and Ito's colours, which colour-blind readers can tell apart; one for each agent."""
OTHER_COLOURS = ("#7F7F7F", "#882255", "#5D3A9B", "#B8A200", "#40B0A6", "#9E2A2B")
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#777777",
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "grid.color": "#e8e8e8",
    "xtick.color": "#777777",
    "ytick.color": "#777777",
    "xtick.labelcolor": "#222222",
    "ytick.labelcolor": "#222222",
    "font.size": 10,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "savefig.dpi": 150,
}
"""Matplotlib settings of all figures."""
LEGEND_WIDTH = 105
"""letters that fit into a line of the legend"""
LOG_RATIO = 4
"""Training budgets that differ by more than this share a logarithmic axis."""
REFERENCE: dict[str, Any] = {"color": "#6b6b6b", "linestyle": "--", "linewidth": 1.4}
"""How the best possible policy is drawn."""
MANY_EPISODES = 12
"""With more episodes than this, a line with a band replaces points with bars."""


@dataclass(frozen=True)
class Series:
    """One agent in a figure."""

    label: str
    """what the legend calls it; an agent's name also decides the colour"""
    curves: Sequence[AdaptationCurve]
    """one for each seed, with equal numbers of tasks and episodes"""
    metrics: Sequence[Metrics] = ()
    """what was logged while training, for each seed"""
    colour: str = ""
    """of lines and points; empty takes the agent's own"""


Panel = Callable[[Axes, Sequence[Series]], None]


def adaptation_figure(
    series: Sequence[Series], title: str = "", reference: Reference | None = None
) -> Figure:
    """Return by episode, beside what shows adaptation in more detail.

    That is the steps that an episode takes where these differ, else the reward by step; where an
    episode is a single step, that would be the same picture again. A dashed line shows what the
    best possible policy reaches, where the `reference` tells.
    """
    curves = [curve for one in series for curve in one.curves]
    panels: list[Panel] = [partial(returns_by_episode, reference=reference)]
    widths = None
    if lengths_vary(curves):
        panels.append(steps_by_episode)
    elif any(len(curve.step_reward) > curve.episodes for curve in curves):
        panels, widths = [*panels, reward_by_step], [2, 3]
    return layout(series, panels, title, widths=widths, reference=reference)


def lengths_vary(curves: Sequence[AdaptationCurve]) -> bool:
    """Whether some episodes end before others."""
    return len({steps for curve in curves for row in curve.lengths for steps in row}) > 1


def layout(
    series: Sequence[Series],
    panels: Sequence[Panel],
    title: str = "",
    *,
    widths: Sequence[float] | None = None,
    size: tuple[float, float] = (10.0, 3.9),
    reference: Reference | None = None,
) -> Figure:
    """Panels in a row under one legend.

    Args:
        series: the agents; those without a colour get one.
        panels: functions that draw the series on axes.
        title: a line above everything.
        widths: of the panels, relative to each other.
        size: inches of the figure.
        reference: what a panel shows dashed, for the legend.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=widths)[0]
        shown = coloured(series)
        for ax, panel in zip(axes, panels, strict=True):
            panel(ax, shown)
        handles = [
            Line2D([], [], color=s.colour, marker="o", markersize=5, label=s.label) for s in shown
        ]
        if reference is not None:
            handles.append(Line2D([], [], label=reference.name, **REFERENCE))
        # An outside legend takes its room from the layout and never covers data or the title.
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=max(
                1, min(4, LEGEND_WIDTH // (6 + max((len(s.label) for s in shown), default=0)))
            ),
            title=title or None,
            alignment="left",
            title_fontproperties={"size": 12, "weight": "bold"},
        )
    return figure


def coloured(series: Sequence[Series]) -> list[Series]:
    """The same series, each with a colour: the agent's own for its first, else the next free."""
    own = dict(COLOURS)
    others = iter(OTHER_COLOURS * (1 + len(series) // len(OTHER_COLOURS)))
    return [
        replace(s, colour=s.colour or own.pop(s.label.partition(",")[0], "") or next(others))
        for s in series
    ]


def returns_by_episode(
    ax: Axes, series: Sequence[Series], reference: Reference | None = None
) -> None:
    """Mean return of episode 1, 2, ... K with its interval, and dashed the best possible one."""
    first = _by_episode(ax, [(pool(one.curves), one) for one in series if one.curves])
    if reference is not None and len(reference.returns) > 1:
        x = first + np.arange(len(reference.returns))
        ax.plot(x, reference.returns, zorder=2.5, **REFERENCE)
    elif reference is not None:
        ax.axhline(reference.returns[0], zorder=2.5, **REFERENCE)
    ax.set(title="Return per episode")


def steps_by_episode(ax: Axes, series: Sequence[Series]) -> None:
    """Mean number of steps of episode 1, 2, ... K with its interval."""
    _by_episode(ax, [(pool_lengths(one.curves), one) for one in series if one.curves])
    ax.set(title="Steps per episode")


def pool_lengths(curves: Sequence[AdaptationCurve]) -> Summary:
    """Steps by episode over several runs."""
    return summarize(np.stack([np.asarray(curve.lengths) for curve in curves]))


def _by_episode(ax: Axes, summaries: Sequence[tuple[Summary, Series]]) -> float:
    """Draw means with intervals, `[K]` each: points with bars, or a line with a band if K is large.

    Against the number of the episode; where agents try a task in several worlds at once, against
    how many episodes of it they have seen before, so that all are compared at equal experience.

    Returns:
        Where the first episode is: at 1, or at 0 in the second case.
    """
    plain = all(one.curves[0].worlds_per_task == 1 for _, one in summaries)
    first = 1.0 if plain else 0.0
    apart = 0.05 * (1 if plain else max(one.curves[0].worlds_per_task for _, one in summaries))
    for index, (summary, one) in enumerate(summaries):
        mean, low, high = (
            np.asarray(x) for x in (summary.mean, summary.mean_low, summary.mean_high)
        )
        x = np.asarray(one.curves[0].seen, dtype=np.float64) + first
        if len(x) > MANY_EPISODES:
            _band(ax, x, mean, low, high, one.colour)
            continue
        # A little apart, so that bars of equal height can be told from each other.
        x += apart * (index - 0.5 * (len(summaries) - 1))
        bars = [mean - low, high - mean]
        ax.errorbar(x, mean, bars, color=one.colour, marker="o", markersize=5, capsize=3)
        if plain:
            ax.set_xlim(0.5, len(x) + 0.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("episode of the trial" if plain else "episodes of the task seen before")
    return first


def reward_by_step(ax: Axes, series: Sequence[Series]) -> None:
    """Mean reward at each step of the trial, with its interval; dotted lines part the episodes."""
    for one in series:
        if not one.curves:
            continue
        steps = min(len(curve.step_reward) for curve in one.curves)
        mean = np.mean([curve.step_reward[:steps] for curve in one.curves], axis=0)
        half = [
            np.subtract(curve.step_high[:steps], curve.step_reward[:steps]) for curve in one.curves
        ]
        # Seeds are independent: the variance of their mean is that of one over their number.
        spread = np.sqrt(np.square(half).sum(axis=0)) / len(half)
        _band(ax, np.arange(1.0, steps + 1.0), mean, mean - spread, mean + spread, one.colour)
    for end in _episode_ends([curve for one in series for curve in one.curves]):
        ax.axvline(end + 0.5, color="#777777", linewidth=1.0, linestyle=":")
    ax.set(xlabel="step within the trial", title="Reward per step")


def _episode_ends(curves: Sequence[AdaptationCurve]) -> list[float]:
    """The steps after which an episode but the last ends, if that is the same everywhere."""
    lengths = np.asarray([row for curve in curves for row in curve.lengths])
    if not len(lengths) or not (lengths == lengths[0]).all() or lengths.shape[1] > MANY_EPISODES:
        return []
    ends: list[float] = np.cumsum(lengths[0])[:-1].tolist()
    return ends


def learning_curves(ax: Axes, series: Sequence[Series]) -> None:
    """Return of the last episode against environment steps.

    Thin lines are trials of training, points evaluations on held-out tasks; dashed is the first
    episode of these.
    """
    for one in series:
        for metrics in one.metrics:
            steps, last = metrics.smoothed("return_last")
            ax.plot(steps, last, color=one.colour, alpha=0.3, linewidth=1.0)
            at, held_out = metrics.column("evaluation/mean")
            style: dict[str, Any] = {"color": one.colour, "linewidth": 1.4}
            ax.plot(at, [row[-1] for row in held_out], marker="o", markersize=3.5, **style)
            ax.plot(at, [row[0] for row in held_out], linestyle="--", alpha=0.7, **style)
    budgets = [m.rows[-1]["step"] for one in series for m in one.metrics if m.rows]
    if budgets and max(budgets) > LOG_RATIO * min(budgets):
        ax.set_xscale("log")
    ax.xaxis.set_major_formatter(EngFormatter(sep=""))
    ax.set(xlabel="environment steps", title="Return of an episode while training")


def returns_by_task(ax: Axes, series: Sequence[Series]) -> None:
    """Return in every task, of the last episode, or of one on average if there are many.

    Against the task where that is one number, else from the worst task to the best.
    """
    plain = all(len(row) == 1 for one in series for curve in one.curves for row in curve.tasks)
    many = any(curve.episodes > 5 for one in series for curve in one.curves)
    for one in series:
        for curve in one.curves:
            returns = np.asarray(curve.returns)
            y = returns.mean(axis=1) if many else returns[:, -1]
            x = np.asarray([row[0] for row in curve.tasks])
            if not plain:
                x, y = np.linspace(0.0, 100.0, len(y)), np.sort(y)
            ax.scatter(x, y, s=11, color=one.colour, alpha=0.55, linewidths=0)
    xlabel = "the task's parameter" if plain else "tasks from worst to best, %"
    which = "mean return of an episode" if many else "return of the last episode"
    ax.set(xlabel=xlabel, title=f"Task by task: {which}")


def _band(ax: Axes, x: Array, mean: Array, low: Array, high: Array, colour: str) -> None:
    ax.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    ax.plot(x, mean, color=colour, linewidth=1.4)


def render(figure: Figure, kind: str = "png") -> bytes:
    """The figure as a PNG or SVG file."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        # Without a date the same figure gives the same bytes.
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def save(figure: Figure, path: Path) -> None:
    """Write the figure to `path`; the ending decides on PNG, SVG or PDF.

    Raises:
        UsageError: if it cannot be written.
    """
    write_file(path, render(figure, path.suffix.lstrip(".") or "png"))
