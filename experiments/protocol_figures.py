"""Bar charts of Meta-World's protocol: success by skill and by episode, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from metarl.experiments.figures import Panel, Series, layout
from metarl.experiments.protocol import ADAPTATION, EPISODES, result_of, rows_of

FEW_SKILLS = 12
"""With more skills than this, bars fill the figure."""
_LABEL: dict[str, Any] = {
    "va": "center",
    "fontsize": 8,
    "color": "#444444",
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
}
"""numbers at the ends of bars, readable on the lines that they lie on"""


def protocol_figure(series: Sequence[Series], title: str = "") -> Figure:
    """Success by skill, a bar for each agent, beside success by episode where there is room."""
    skills, agents = len(set(series[0].curves[0].info["skills"])), len(series)
    panels: list[Panel] = [success_by_skill]
    width, widths = 8.0, None
    if skills <= FEW_SKILLS:
        panels, width, widths = [*panels, success_by_episode], 10.0, [3, 2]
    height = max(3.4, 1.5 + skills * (0.08 + 0.13 * max(agents, 1.6)))
    return layout(series, panels, title, widths=widths, size=(width, height))


def success_by_skill(ax: Axes, series: Sequence[Series]) -> None:
    """Horizontal bars with intervals; on top, and dashed, the mean where there are several."""
    tables = [rows_of(result_of(one.curves)) for one in series]
    # The mean comes last in a table, and first in the figure.
    names = [row["skill"] for row in tables[0]]
    names = names[-1:] + names[:-1]
    places, thick = np.arange(len(names)), 0.8 / len(series)
    for index, (one, rows) in enumerate(zip(series, tables, strict=True)):
        values, low, high = (
            np.roll([row[column] for row in rows], 1) for column in ("success", "low", "high")
        )
        y = places + thick * (index - 0.5 * (len(series) - 1))
        ax.barh(y, values, 0.9 * thick, color=one.colour, alpha=0.55)
        bars = [values - low, high - values]
        ax.errorbar(values, y, xerr=bars, fmt="none", ecolor="#222222", elinewidth=1, capsize=2)
        if len(names) > 1:
            ax.axvline(values[0], color=one.colour, linestyle="--", linewidth=1.2)
        for place, value, end in zip(y, values, high, strict=True):
            ax.text(end + 0.015, place, f"{value:.0%}", **_LABEL)
    ax.set_yticks(places, names, fontsize=9)
    middle, reach = 0.5 * (len(names) - 1), max(0.5 * len(names) + 0.1, 1.2)
    ax.set_ylim(middle + reach, middle - reach)
    ax.set_xlim(0.0, 1.12)
    ax.set_xticks(np.linspace(0.0, 1.0, 6))
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(visible=False, axis="y")
    ax.set(title="Success after adapting", xlabel="episodes that succeed")


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
