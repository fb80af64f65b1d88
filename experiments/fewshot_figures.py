"""Figures of few-shot learners: what they predict, and how well, several methods side by side.

Bars and bands of scores are 95 % intervals over tasks; bands of fits are two standard deviations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from numpy.typing import NDArray

from metarl.experiments.fewshot_pictures import INK, fits_figure, images_figure
from metarl.experiments.figures import STYLE
from metarl.fewshot.evaluation import Scores

__all__ = [
    "Row",
    "comparison_figure",
    "fits_figure",
    "images_figure",
    "shots_figure",
    "steps_figure",
]

Array = NDArray[np.float64]

GROUPS: dict[str, dict[str, str]] = {
    "gradient": {
        "maml": "#0072B2",
        "fomaml": "#56B4E9",
        "reptile": "#009E73",
        "imaml": "#003C6C",
        "meta-sgd": "#54C0C0",
        "maml++": "#006CF0",
        "anil": "#3CC46E",
        "cavia": "#00606C",
        "leo": "#183C24",
    },
    "metric": {
        "prototypical": "#D55E00",
        "matching": "#E69F00",
        "relation": "#603024",
        "siamese": "#D89C90",
    },
    "memory and black box": {
        "mann": "#CC79A7",
        "snail": "#882255",
        "lstm-learner": "#40102E",
        "hypernetwork": "#5D3A9B",
        "film": "#C090FC",
        "cnp": "#D83C60",
        "np": "#8454F0",
        "anp": "#3C00A8",
    },
    "baseline": {"fine-tune": "#3B3B3B", "scratch": "#8F8F8F"},
}
"""The methods of each kind, with their colours: a range of hues for a kind, told apart within it
by lightness, so that colour-blind readers can, too."""
MARKERS = {"gradient": "o", "metric": "s", "memory and black box": "D", "baseline": "X"}
"""One for each kind of method."""
OTHER = "#666666"
"""of anything that is no method"""
METRICS = {
    "accuracy": "accuracy, %",
    "mse": "mean squared error",
    "log_likelihood": "log-likelihood of a point, nats",
}
"""What an axis calls a score; others are called by their names."""
LOWER_IS_BETTER = frozenset({"mse"})
ROOM = 0.2
"""of the width of the axes, for the name of a reference line"""
LOG_SPAN = 8.0
"""Squared errors that span more than this factor share a logarithmic axis."""


@dataclass(frozen=True)
class Row:
    """What one method reached."""

    label: str
    """the method; its name also decides the colour"""
    mean: float
    low: float
    """lower end of the interval"""
    high: float
    """upper end of the interval"""
    group: str = ""
    """its kind, one of `GROUPS`; empty looks the method up"""

    @property
    def kind(self) -> str:
        """The group that was given or found."""
        return self.group or group_of(self.label)


def group_of(method: str) -> str:
    """The kind of a method; a method that is not known has none."""
    return next((group for group, colours in GROUPS.items() if method in colours), "")


def colour_of(method: str) -> str:
    """The colour of a method, the same in every figure."""
    return GROUPS.get(group_of(method), {}).get(method, OTHER)


def steps_figure(series: Mapping[str, Scores], title: str = "") -> Figure:
    """Score against the number of adaptation steps, by method.

    A method that takes no steps is a dashed level, for all numbers of steps alike.

    Args:
        series: the scores of each method, all of one kind of task.
        title: a line above everything.
    """
    metric = next(iter(series.values())).metric
    last = max(max(scores.steps) for scores in series.values())
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        ax = figure.subplots()
        values: list[float] = []
        for method, scores in series.items():
            found = scores.summary()[metric]
            mean, low, high = (_shown(x, metric) for x in (found.mean, found.low, found.high))
            steps = np.asarray(scores.steps, dtype=np.float64)
            if len(steps) == 1:
                steps = np.asarray([0.0, last])
                mean, low, high = (np.repeat(x, 2) for x in (mean, low, high))
            _curve(ax, method, steps, mean, low, high, dashed=len(scores.steps) == 1)
            values.extend(mean)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set(xlabel="steps of adaptation", ylabel=METRICS.get(metric, metric))
        _score_scale(ax, metric, values)
        _method_legend(
            figure, series, title, dashed={m for m, s in series.items() if len(s.steps) == 1}
        )
    return figure


def shots_figure(
    curves: Mapping[str, Mapping[int, tuple[float, float, float]]],
    metric: str = "accuracy",
    title: str = "",
) -> Figure:
    """Score against the number of support points, by method.

    Args:
        curves: of each method, by the number of shots, mean with the bounds of its interval.
        metric: the name of the score.
        title: a line above everything.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        ax = figure.subplots()
        values: list[float] = []
        for method, by_shots in curves.items():
            shots = sorted(by_shots)
            rows = _shown([by_shots[k] for k in shots], metric)
            _curve(ax, method, np.asarray(shots, dtype=np.float64), *rows.T)
            values.extend(rows[:, 0])
        ax.set_xscale("log")
        ticks = sorted({k for by_shots in curves.values() for k in by_shots})
        ax.set_xticks(ticks, [str(k) for k in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
        unit = "support points of each class" if metric == "accuracy" else "support points"
        ax.set(xlabel=unit, ylabel=METRICS.get(metric, metric))
        _score_scale(ax, metric, values)
        _method_legend(figure, curves, title)
    return figure


def comparison_figure(
    rows: Sequence[Row],
    metric: str = "accuracy",
    title: str = "",
    references: Mapping[str, float] | None = None,
) -> Figure:
    """One point with its interval for each method, by kind, the best of each kind on top.

    The baselines are lines from top to bottom, too: what every method must beat.

    Args:
        rows: what each method reached.
        metric: the name of the score.
        title: a line above everything.
        references: further lines with their labels, such as the exact posterior.
    """
    lines = _comparison_lines(rows, metric)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 1.3 + 0.25 * len(lines)), layout="constrained")
        ax = figure.subplots()
        for y, line in enumerate(lines):
            _comparison_line(ax, y, line, metric)
        _label_lines(ax, lines)
        means = [float(_shown(row.mean, metric)) for row in rows]
        _score_scale(ax, metric, means, "x")
        marked = {r.label: r.mean for r in rows if r.kind == "baseline"}
        marked.update(references or {})
        _reference_lines(ax, {name: float(_shown(x, metric)) for name, x in marked.items()})
        ax.set_ylim(len(lines) - 0.4, -0.6)
        ax.grid(axis="y", visible=False)
        ax.spines["left"].set_visible(False)
        better = "lower is better" if metric in LOWER_IS_BETTER else "higher is better"
        ax.set_xlabel(f"{METRICS.get(metric, metric)} ({better})")
        if title:
            figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    return figure


def _comparison_lines(rows: Sequence[Row], metric: str) -> list[Row | str]:
    """The rows in the order in which they are drawn, each kind under its name."""
    sign = 1.0 if metric in LOWER_IS_BETTER else -1.0
    lines: list[Row | str] = []
    for group in (*GROUPS, ""):
        own = [row for row in rows if row.kind == group]
        if own:
            own.sort(key=lambda row: sign * row.mean)
            lines += [group or "other", *own]
    return lines


def _comparison_line(ax: Axes, y: int, line: Row | str, metric: str) -> None:
    """A method's point, its interval and its number; nothing beside the name of a kind."""
    if isinstance(line, str):
        return
    mean, low, high = (float(_shown(x, metric)) for x in (line.mean, line.low, line.high))
    colour = colour_of(line.label)
    bars = [[mean - low], [high - mean]]
    style: dict[str, Any] = {"color": colour, "marker": MARKERS.get(line.kind, "o"), "zorder": 3}
    ax.errorbar([mean], [y], xerr=bars, markersize=6, capsize=3, elinewidth=1.6, **style)
    ax.axhline(y, color="#f0f0f0", linewidth=0.8, zorder=0)
    digits = 1 if metric == "accuracy" else 3
    number = f"{mean:.{digits}f} ± {(high - low) / 2:.{digits}f}"
    beside = ax.get_yaxis_transform()
    ax.text(1.02, y, number, va="center", color=INK, fontsize=9, transform=beside)


def _label_lines(ax: Axes, lines: Sequence[Row | str]) -> None:
    """Names of kinds and methods at the left."""
    names = [line if isinstance(line, str) else line.label for line in lines]
    ax.set_yticks(range(len(lines)), names)
    ax.tick_params(axis="y", length=0)
    for line, label in zip(lines, ax.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if isinstance(line, str) else "normal")


def _reference_lines(ax: Axes, marked: Mapping[str, float]) -> None:
    """Lines from top to bottom, each with its name above."""
    left, level = -math.inf, 0
    for name, x in sorted(marked.items(), key=lambda item: item[1]):
        colour = colour_of(name)
        place = float(ax.transAxes.inverted().transform(ax.transData.transform((x, 0.0)))[0])
        # Names that would run into each other go one above the other.
        level = level + 1 if place - left < ROOM else 0
        left = place
        ax.axvline(x, color=colour, linestyle=(0, (4, 3)), linewidth=1.3, zorder=1)
        ax.annotate(
            name,
            (x, 1.0),
            (0, 3 + 11 * level),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            color=colour,
            ha="center",
            va="bottom",
            fontsize=9,
        )


def _curve(
    ax: Axes, method: str, x: Array, mean: Array, low: Array, high: Array, dashed: bool = False
) -> None:
    """A method's scores with their band."""
    colour, marker = colour_of(method), MARKERS.get(group_of(method), "o")
    ax.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)
    style: dict[str, Any] = {"linestyle": "--"} if dashed else {"marker": marker, "markersize": 5}
    ax.plot(x, mean, color=colour, **style)


def _shown(values: Any, metric: str) -> Array:
    """Scores as an axis shows them: accuracies in per cent."""
    return np.asarray(values, dtype=np.float64) * (100.0 if metric == "accuracy" else 1.0)


def _score_scale(ax: Axes, metric: str, means: Sequence[float], axis: str = "y") -> None:
    """A logarithmic axis for squared errors far apart; accuracies never beyond 100 %."""
    lowest = min(means)
    if metric in LOWER_IS_BETTER and lowest > 0.0 and max(means) > LOG_SPAN * lowest:
        scale = ax.set_xscale if axis == "x" else ax.set_yscale
        scale("log")
        one = ax.xaxis if axis == "x" else ax.yaxis
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        one.set_major_formatter(plain)
        if math.log10(max(means) / lowest) < 1.5:
            one.set_minor_formatter(FuncFormatter(_few_minors))
    elif metric == "accuracy":
        bounds = ax.get_xlim() if axis == "x" else ax.get_ylim()
        limit = ax.set_xlim if axis == "x" else ax.set_ylim
        limit(max(0.0, bounds[0]), min(100.5, bounds[1]))


def _few_minors(value: float, _: int | None = None) -> str:
    """A label at 2 and 5 between the powers of ten."""
    first = round(value / 10.0 ** math.floor(math.log10(value)))
    return f"{value:g}" if first in (2, 5) else ""


def _method_legend(
    figure: Figure, methods: Mapping[str, Any], title: str, dashed: set[str] | None = None
) -> None:
    """The methods beside the axes, where they cover nothing."""
    handles = []
    for method in methods:
        style: dict[str, Any] = {"marker": MARKERS.get(group_of(method), "o"), "markersize": 5}
        if method in (dashed or set()):
            style = {"linestyle": "--"}
        handles.append(Line2D([], [], color=colour_of(method), label=method, **style))
    figure.legend(handles=handles, loc="outside right upper")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
