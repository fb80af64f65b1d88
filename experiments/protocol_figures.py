"""Bar charts of Meta-World's protocol: success by skill and by episode, with intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from metarl.experiments.figures import Panel, Series, layout
from metarl.experiments.protocol import ADAPTATION, EPISODES, result_of

FEW_SKILLS = 12
"""With more skills than this, bars fill the figure."""


def protocol_figure(series: Sequence[Series], title: str = "") -> Figure:
    """Success by skill, a bar for each agent, beside success by episode where there is room."""
    skills, agents = len(set(series[0].curves[0].info["skills"])), len(series)
    panels: list[Panel] = [success_by_skill]
    width, widths = 8.0, None
    if skills <= FEW_SKILLS:
        panels, width, widths = [*panels, success_by_episode], 10.0, [3, 2]
    height = max(3.4, 1.5 + skills * (0.1 + 0.16 * max(agents, 1.3)))
    return layout(series, panels, title, widths=widths, size=(width, height))


def success_by_skill(ax: Axes, series: Sequence[Series]) -> None:
    """Horizontal bars with intervals, the first skill on top; dashed is the mean over skills."""
    results = [result_of(one.curves) for one in series]
    names = list(results[0].skills)
    rows, thick = np.arange(len(names)), 0.8 / len(series)
    for index, (one, result) in enumerate(zip(series, results, strict=True)):
        estimates = [skill.success for skill in result.skills.values()]
        values, low, high = (
            np.array([getattr(e, bound) for e in estimates]) for bound in ("mean", "low", "high")
        )
        y = rows + thick * (index - 0.5 * (len(series) - 1))
        ax.barh(y, values, 0.9 * thick, color=one.colour, alpha=0.55)
        bars = [values - low, high - values]
        ax.errorbar(values, y, xerr=bars, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        for place, value, end in zip(y, values, high, strict=True):
            ax.text(end + 0.015, place, f"{value:.0%}", va="center", fontsize=8, color="#444444")
        if len(names) > 1:
            ax.axvline(result.success.mean, color=one.colour, linestyle="--", linewidth=1.4)
            ax.axvspan(result.success.low, result.success.high, color=one.colour, alpha=0.12, lw=0)
    ax.set_yticks(rows, names, fontsize=9)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0.0, 1.12)
    ax.set_xticks(np.linspace(0.0, 1.0, 6))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(visible=False, axis="y")
    dashed = "; dashed: mean over skills" * (len(names) > 1)
    ax.set(title="Success after adapting", xlabel=f"episodes that succeed{dashed}")


def success_by_episode(ax: Axes, series: Sequence[Series]) -> None:
    """Success in each episode of the trial; those right of the dotted line count."""
    x = np.arange(1.0, EPISODES + 1.0)
    for one in series:
        episodes = result_of(one.curves).episodes
        ax.fill_between(
            x, [e.low for e in episodes], [e.high for e in episodes], color=one.colour, alpha=0.18
        )
        ax.plot(x, [e.mean for e in episodes], color=one.colour, marker="o", markersize=3.5)
    ax.axvline(ADAPTATION + 0.5, color="#777777", linewidth=1.0, linestyle=":")
    ax.set_ylim(-0.03, 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(title="Success by episode", xlabel="episode of the trial")
