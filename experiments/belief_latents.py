"""The belief over the latent task: where its mean goes in each task, and how sure it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator
from torch import Tensor

from metarl.experiments.beliefs import BeliefTrials
from metarl.experiments.figures import STYLE, Array
from metarl.tasks import TaskBatch

INK = "#222222"
EPISODE: dict[str, Any] = {"color": "#777777", "linewidth": 1.0, "linestyle": ":"}
"""of the lines where episodes end"""
SEVERAL = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000", "#8C564B")
"""of latent dimensions, and of tasks that no number tells apart"""
NAMES = {
    "speed": [("target speed", "m/s")],
    "direction": [("direction", "")],
    "goal": [("goal's x", "m"), ("goal's y", "m")],
}
"""what the features of tasks are called, and their units, by the name of the field"""
FEW = 4
"""Up to so many values of a parameter have an entry of their own in the legend."""


@dataclass(frozen=True)
class Parameter:
    """A number that tells tasks apart, and its colours."""

    name: str
    unit: str
    """empty where it has none"""
    values: Array
    """float64 `[N]`"""

    @property
    def label(self) -> str:
        """Of an axis."""
        return f"{self.name}, {self.unit}" if self.unit else self.name

    def words(self, value: float) -> str:
        """A value of it in words."""
        return f"{self.name} {round(value, 2):g} {self.unit}".strip()

    @property
    def few(self) -> list[float]:
        """The values, if they are only a few."""
        found: list[float] = np.unique(self.values).tolist()
        return found if len(found) <= FEW else []

    @property
    def scale(self) -> ScalarMappable:
        """From values to colours; without the palest yellow, which is lost on paper."""
        whole: Colormap = matplotlib.colormaps["viridis"]
        colours = LinearSegmentedColormap.from_list("tasks", whole(np.linspace(0.0, 0.9, 256)))
        return ScalarMappable(Normalize(self.values.min(), self.values.max()), colours)

    def colours(self) -> list[Any]:
        """Of every task."""
        if self.few:
            return [SEVERAL[self.few.index(value)] for value in self.values]
        return list(self.scale.to_rgba(self.values))


def parameters(tasks: TaskBatch) -> list[Parameter]:
    """The features of tasks where these are one or two numbers, else nothing."""
    features = tasks.features().double().cpu().numpy()
    if features.shape[1] > 2:
        return []
    names: list[tuple[str, str]] = []
    for name, x in tasks.tensors().items():
        count = x[:1].numel()
        plain = [(name if count == 1 else f"{name} {i + 1}", "") for i in range(count)]
        names += NAMES.get(name, plain)
    return [Parameter(*name, features[:, i]) for i, name in enumerate(names)]


def plane(mean: Tensor, there: Tensor) -> tuple[Array, list[str]]:
    """Points `[T + 1, N, 2]` that show means `[T + 1, N, Z]`, and what their axes are.

    The latent itself if it has two dimensions, else its first two principal components over all
    tasks and all times that are `there`; of a single dimension, how it changes with the steps.
    """
    size = mean.shape[-1]
    if size == 1:
        steps = torch.arange(len(mean), dtype=mean.dtype).view(-1, 1, 1).expand_as(mean)
        return torch.cat([steps, mean], -1).numpy(), ["step of the trial", "μ"]
    if size == 2:
        return mean.numpy(), ["μ, first dimension", "μ, second dimension"]
    cloud = mean[there].double()
    centre = cloud.mean(0)
    _, lengths, axes = torch.linalg.svd(cloud - centre, full_matrices=False)
    # An axis has no sign of its own: its largest entry is positive.
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))
    points = (mean.double() - centre) @ (axes * largest.sign())[:2].T
    share = lengths.square() / lengths.square().sum().clamp(min=1e-12)
    names = [
        f"{which} principal component of μ ({100 * float(part):.1f} % of variance)"
        for which, part in zip(("first", "second"), share, strict=False)
    ]
    return points.numpy(), names


def latent_figure(trials: BeliefTrials) -> Figure:
    """Where the mean of the belief goes in each task, and how sure the belief is, by step."""
    known: list[Parameter | None] = list(parameters(trials.tasks)) or [None]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.4 * len(known) + 5.0, 4.7), layout="constrained")
        axes = figure.subplots(1, len(known) + 1, width_ratios=[*[1.15] * len(known), 1])
        points, names = plane(trials.belief.mean, trials.there)
        for parameter, ax in zip(known, axes, strict=False):
            _draw_paths(ax, trials, points, parameter)
            ax.set(xlabel=names[0], ylabel=names[1])
        _draw_spread(axes[-1], trials)
        dot: dict[str, Any] = {"linestyle": "", "color": INK}
        handles = [
            Line2D([], [], marker="*", markersize=13, label="start, before the first step", **dot),
            Line2D([], [], marker="o", markersize=7, label="end of the trial", **dot),
            Line2D([], [], label="end of an episode", **EPISODE),
        ]
        for parameter in known:
            for value, colour in zip(parameter.few if parameter else [], SEVERAL, strict=False):
                words = cast(Parameter, parameter).words(value)
                handles.append(Line2D([], [], color=colour, linewidth=3, label=words))
        run = trials.run
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=len(handles),
            title=f"Beliefs of {run.config.agent} over the latent of {len(trials.tasks)} tasks of "
            f"{run.config.family} ({run.step:,} steps of training)",
            alignment="left",
            title_fontproperties={"size": 12, "weight": "bold"},
        )
    return figure


def _draw_paths(ax: Axes, trials: BeliefTrials, points: Array, parameter: Parameter | None) -> None:
    """The way of every belief from its start, which is the same for all, to its end."""
    count = len(trials.tasks)
    colours = (
        parameter.colours() if parameter else [SEVERAL[i % len(SEVERAL)] for i in range(count)]
    )
    for task, length in enumerate(trials.lengths):
        x, y = points[: length + 1, task].T
        ax.plot(x, y, color=colours[task], linewidth=0.8, alpha=0.5)
    ends = np.stack([points[length, task] for task, length in enumerate(trials.lengths)])
    ax.scatter(
        ends[:, 0], ends[:, 1], s=50, color=colours, edgecolors=INK, linewidths=0.7, zorder=4
    )
    ax.plot(*points[0, 0], marker="*", markersize=17, color=INK, markeredgecolor="white", zorder=5)
    if parameter and not parameter.few:
        bar = ax.figure.colorbar(parameter.scale, ax=ax, aspect=30, pad=0.02)
        bar.set_label(parameter.label)
    which = "coloured by the true task" if parameter else "one for each task"
    ax.set_title(f"Path of its mean μ, {which}")


def _draw_spread(ax: Axes, trials: BeliefTrials) -> None:
    """Standard deviation of the belief in every dimension, at each time."""
    std = trials.belief.log_std.exp().masked_fill(~trials.there.unsqueeze(-1), float("nan"))
    size = std.shape[-1]
    learned = std[0].mean(0) - std.nanmean((0, 1))
    shown = sorted(learned.argsort(descending=True)[: len(SEVERAL)].tolist())
    for dim, colour in zip(shown, SEVERAL, strict=False):
        middle, low, high = (std[..., dim].nanquantile(q, dim=1).numpy() for q in (0.5, 0.1, 0.9))
        ax.fill_between(range(len(std)), low, high, color=colour, alpha=0.13, linewidth=0)
        ax.plot(middle, color=colour, linewidth=1.4, label=f"z{dim + 1}")
    mark_episodes(ax, trials)
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="step of the trial", ylabel="σ: median of the tasks, band 80 % of them")
    which = "" if size <= len(SEVERAL) else f", {len(SEVERAL)} of {size} dimensions"
    ax.set_title(f"Its standard deviation σ{which}")
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), handlelength=1.2)


def mark_episodes(ax: Axes, trials: BeliefTrials, task: int | None = None) -> None:
    """Dotted lines where episodes end, of one task or, if that is the same for all, of all."""
    done = (trials.rollout.done & trials.rollout.active)[..., 0]
    if task is not None:
        done = done[:, task : task + 1]
    if not bool((done == done[:, :1]).all()) or int(done[:, 0].sum()) > 12:
        return
    for end in done[:, 0].nonzero().flatten().tolist()[:-1]:
        ax.axvline(end + 1, **EPISODE)
