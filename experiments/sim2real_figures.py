"""Figures of a sim-to-real study, in the style of `figures`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from metarl.adaptation import pool
from metarl.experiments.figures import STYLE, Series, coloured, returns_by_episode
from metarl.experiments.sim2real import Failure, HeatMap, Study, Sweep
from metarl.experiments.sim2real_measure import Array, Axis
from metarl.statistics import stratified_bootstrap

COLOUR_MAP = "cividis"
"""Told apart by colour-blind readers, and in print; dark is bad."""
COLOUR_ENDS = (2.0, 98.0)
"""percentiles of all cells where the colours end"""
RANGE: dict[str, Any] = {"color": "#E3E3E3", "linewidth": 0, "zorder": 0}
"""How the training range is shaded."""
NOMINAL: dict[str, Any] = {"color": "#6b6b6b", "linestyle": ":", "linewidth": 1.4}
"""How the nominal value is drawn."""


def series_of(study: Study) -> list[Series]:
    """The agents with their colours, and their curves on held-out tasks."""
    return coloured(
        [
            Series(c.label, curves)
            for c, curves in zip(study.contenders, study.settings["held-out"], strict=True)
        ]
    )


def settings_figure(study: Study) -> Figure:
    """Return by episode in every setting, on one scale."""
    series = series_of(study)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 3.7), layout="constrained")
        axes = figure.subplots(1, len(study.settings), sharey=True, squeeze=False)[0]
        for ax, (name, curves) in zip(axes, study.settings.items(), strict=True):
            here = [
                Series(s.label, own, colour=s.colour) for s, own in zip(series, curves, strict=True)
            ]
            returns_by_episode(ax, here)
            ax.set(title=name.replace(", ", ",\n"), xlabel="episode")
        axes[0].set_ylabel("return of an episode")
        _legend(figure, series)
    return figure


def sweeps_figure(study: Study) -> Figure:
    """A row for each axis: the first episode on the left, the last on the right."""
    series, episodes = series_of(study), _episodes(study)
    with matplotlib.rc_context(STYLE):
        rows = len(study.sweeps)
        figure = Figure(figsize=(10.0, 0.7 + 2.3 * rows), layout="constrained")
        grid = figure.subplots(rows, len(episodes), sharey="row", squeeze=False)
        for row, sweep in zip(grid, study.sweeps, strict=True):
            for ax, k in zip(row, episodes, strict=True):
                _sweep_panel(ax, sweep, series, k)
            row[0].set_ylabel("return")
        for ax, k in zip(grid[0], episodes, strict=True):
            ax.set_title(_episode_name(study, k))
        shaded = Patch(label="training range", color=RANGE["color"])
        _legend(figure, series, shaded, Line2D([], [], label="nominal", **NOMINAL))
    return figure


def _sweep_panel(ax: Axes, sweep: Sweep, series: Sequence[Series], k: int) -> None:
    axis, x = sweep.axis, np.asarray(sweep.axis.values)
    whole = 0.25 if axis.unit == "steps" else 0.0
    ax.axvspan(axis.low - whole, axis.high + whole, **RANGE)
    ax.axvline(axis.nominal, **NOMINAL)
    for one, returns in zip(series, sweep.returns, strict=True):
        mean, low, high = interval(np.moveaxis(returns[..., k], 2, 1))
        ax.fill_between(x, low, high, color=one.colour, alpha=0.18, linewidth=0)
        ax.plot(x, mean, color=one.colour, linewidth=1.4, marker="o", markersize=3)
    _scale(ax, axis, "x")
    ax.set_xlabel(axis.title)


def heat_map_figure(study: Study, heat_map: HeatMap) -> Figure:
    """A row for each agent, all on one colour scale, with the training ranges as a rectangle."""
    a, b, episodes = heat_map.a, heat_map.b, _episodes(study)
    everything = np.concatenate([returns.ravel() for returns in heat_map.returns])
    # One robot that slides off backwards must not take the whole scale.
    low, high = np.percentile(everything, COLOUR_ENDS)
    beyond = (everything.min() < low, everything.max() > high)
    extend = {(0, 0): "neither", (1, 0): "min", (0, 1): "max", (1, 1): "both"}[beyond]
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        rows = len(study.contenders)
        figure = Figure(figsize=(8.6, 0.4 + 2.6 * rows), layout="constrained")
        grid = figure.subplots(rows, len(episodes), sharex=True, sharey=True, squeeze=False)
        mesh = None
        for row, contender, returns in zip(grid, study.contenders, heat_map.returns, strict=True):
            for ax, k in zip(row, episodes, strict=True):
                # As pixels: viewers of SVG leave seams between vector cells.
                mesh = ax.pcolormesh(
                    _edges(a), _edges(b), returns[..., k].T,
                    cmap=COLOUR_MAP, vmin=low, vmax=high, rasterized=True,
                )  # fmt: skip
                _rectangle(ax, a, b)
                _scale(ax, a, "x")
                _scale(ax, b, "y")
                ax.set_title(f"{contender.label}: {_episode_name(study, k).lower()}")
            row[0].set_ylabel(b.title)
        for ax in grid[-1]:
            ax.set_xlabel(a.title)
        assert mesh is not None
        figure.colorbar(
            mesh, ax=grid, label="return of the episode", shrink=min(1.0, 2.2 / rows), extend=extend
        )
    return figure


def _rectangle(ax: Axes, a: Axis, b: Axis) -> None:
    """The training ranges, white on black so that it shows on every colour, and the nominal."""
    corner, size = (a.low, b.low), (a.high - a.low, b.high - b.low)
    pads = [0.5 * (axis.unit == "steps") for axis in (a, b)]
    corner = (corner[0] - pads[0], corner[1] - pads[1])
    size = (size[0] + 2 * pads[0], size[1] + 2 * pads[1])
    for colour, style, width in (("black", "-", 2.6), ("white", "-", 1.2)):
        ax.add_patch(
            Rectangle(corner, *size, fill=False, edgecolor=colour, linestyle=style, linewidth=width)
        )
    ax.plot([a.nominal], [b.nominal], "X", color="white", markeredgecolor="black", markersize=8)


def failures_figure(study: Study) -> Figure:
    """Return of the last episode in each failure, beside what is usual on held-out tasks."""
    series = series_of(study)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(10.0, 1.3 + 0.36 * len(study.failures)), layout="constrained")
        ax = figure.subplots()
        for index, (one, curves) in enumerate(zip(series, study.settings["held-out"], strict=True)):
            y = np.arange(1.0, len(study.failures) + 1.0)
            y += 0.16 * (index - 0.5 * (len(series) - 1))
            mean, low, high = interval(_last(study.failures, index))
            bars = [mean - low, high - mean]
            ax.errorbar(
                mean, y, xerr=bars, color=one.colour, marker="o", markersize=5, linestyle="none",
                capsize=2,
            )  # fmt: skip
            ax.axvline(pool(curves).mean[-1], color=one.colour, linestyle="--", linewidth=1.2)
        ax.set_yticks(range(1, len(study.failures) + 1))
        ax.set(xlabel="return of the last episode", ylabel="failure", ylim=(0.4, len(y) + 0.6))
        ax.invert_yaxis()
        usual = Line2D([], [], label="mean on held-out tasks", color="#6b6b6b", linestyle="--")
        _legend(figure, series, usual)
    return figure


def _last(failures: Sequence[Failure], agent: int) -> Array:
    """Returns `[runs, W, failures]` of the last episode."""
    return np.stack([failure.returns[agent][..., -1] for failure in failures], -1)


def interval(scores: Array) -> tuple[Array, Array, Array]:
    """Mean over runs and worlds of `[runs, W, ...]`, and its 95 % bootstrap interval."""
    low, high = stratified_bootstrap(scores)
    return scores.mean(axis=(0, 1)), low, high


def _episodes(study: Study) -> list[int]:
    """The first and the last episode, which may be the same."""
    return sorted({0, study.robot.episodes - 1})


def _episode_name(study: Study, k: int) -> str:
    name = "First episode" if k == 0 else "Last episode"
    return f"{name} (number {k + 1})" if study.robot.episodes > 2 and k else name


def _edges(axis: Axis) -> Array:
    """Borders of the cells around the values of an axis, `[G + 1]`."""
    x = np.log(axis.values) if axis.log else np.asarray(axis.values)
    middles = 0.5 * (x[1:] + x[:-1])
    edges = np.concatenate([[2 * x[0] - middles[0]], middles, [2 * x[-1] - middles[-1]]])
    return np.exp(edges) if axis.log else edges


def _scale(ax: Axes, axis: Axis, which: str) -> None:
    """Ticks that people can read, on a logarithmic scale if the axis is."""
    target = ax.xaxis if which == "x" else ax.yaxis
    if axis.log:
        getattr(ax, f"set_{which}scale")("log")
        low, high = axis.values[0], axis.values[-1]
        count = np.clip(np.log2(high / low), 2, 6)
        octaves = np.unique(np.round(np.linspace(np.log2(low), np.log2(high), int(count) + 1)))
        target.set_major_locator(FixedLocator((2.0**octaves).tolist()))
        target.set_minor_locator(NullLocator())
        target.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    else:
        target.set_major_locator(MaxNLocator(6, integer=axis.unit == "steps"))


def _legend(figure: Figure, series: Sequence[Series], *more: Any) -> None:
    """One legend above all panels."""
    handles = [
        Line2D([], [], color=s.colour, marker="o", markersize=5, label=s.label) for s in series
    ]
    longest = max(len(s.label) for s in series)
    figure.legend(
        handles=[*handles, *more],
        loc="outside upper left",
        ncols=max(1, min(6, 105 // (8 + longest))),
    )
