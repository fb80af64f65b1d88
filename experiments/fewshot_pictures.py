"""What a few-shot learner predicts on held-out tasks: fits of curves, classes of images.

Both take the tasks that a seed draws, so that two learners can be looked at side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from metarl.errors import UsageError
from metarl.experiments.figures import STYLE
from metarl.fewshot.episodes import Data, Episodes, Points, Protocol
from metarl.fewshot.evaluation import own_luck
from metarl.fewshot.learner import Learner, Prediction

Array = NDArray[np.float64]

INK = "#222222"
TRUTH = "#B9B9B9"
FIT = "#0072B2"
POSTERIOR = "#009E73"
GRID = 200
"""points at which curves are drawn"""
FITS: tuple[tuple[str, Any], ...] = (
    ("#E69F00", ":"),
    ("#CC79A7", "--"),
    ("#56B4E9", "-."),
    ("#8C564B", (0, (3, 1, 1, 1, 1, 1))),
)
"""of the fits after fewer steps than the last; those after still more are not drawn"""
CLASSES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#5D3A9B", "#8C564B")
"""of classes, which have letters too; they come again after the last"""
WIDEST = 20
"""classes of a task that are drawn"""
SUPPORT_ROWS = 2
QUERY_ROWS = 3
"""images of a class that are drawn"""


def fits_figure(
    learner: Learner, data: Data, protocol: Protocol, seed: int = 0, tasks: int = 4
) -> Figure:
    """Held-out functions of one number, and what the learner makes of them step by step.

    A band of two standard deviations goes with the last fit, where the learner has one, and lines
    of as many with the exact posterior, where the data have that.

    Args:
        learner: what adapts; it is left as it was.
        data: where the functions are from.
        protocol: how many points they have.
        seed: of the functions, and of the learner's own luck.
        tasks: how many functions.

    Raises:
        UsageError: if the functions are of something else than one number.
    """
    if data.spec(protocol).input_shape != (1,):
        raise UsageError(f"{data.name}: fits can be drawn for functions of one number only")
    episodes = data.episodes(protocol, tasks, "held-out", torch.Generator().manual_seed(seed))
    fits = _Fits.of(learner, data, episodes, seed)
    with matplotlib.rc_context(STYLE):
        rows = -(-tasks // 2)
        columns = min(tasks, 2)
        size = (max(5.8, 4.9 * columns), 2.5 * rows + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
        for task, ax in enumerate(axes[:tasks]):
            _draw_fits(ax, fits, task)
        for ax in axes[tasks:]:
            ax.set_axis_off()
        axes[0].set_ylim(*_span(fits))
        axes[0].xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        for ax in axes[tasks - columns : tasks]:
            ax.tick_params(labelbottom=True)
        handles = _fit_handles(fits)
        most = 3 if columns == 1 else 6 + (fits.posterior is None)
        lines = -(-len(handles) // most)
        figure.legend(
            handles=handles,
            loc="outside upper left",
            ncols=-(-len(handles) // lines),
            fontsize=9,
        )
    return figure


@dataclass(frozen=True)
class _Fits:
    """Some functions on a grid, and what is predicted there; all on the CPU."""

    episodes: Episodes
    x: Array
    """`[GRID]`"""
    truth: Tensor | None
    """`[B, GRID, D]`"""
    posterior: Prediction | None
    by_steps: Mapping[int, Prediction]
    """predictions after each number of steps"""
    errors: Mapping[int, Tensor]
    """mean squared error for the query points `[B]`"""

    @classmethod
    def of(cls, learner: Learner, data: Any, episodes: Episodes, seed: int) -> _Fits:
        """Adapt to the functions, and predict on the grid and for the query points."""
        known = torch.cat([episodes.support.x, episodes.query.x], 1)
        x = torch.linspace(float(known.min()), float(known.max()), GRID)
        grid = x.view(1, -1, 1).expand(len(episodes), -1, -1)
        both = Points(torch.cat([grid, episodes.query.x], 1), episodes.query.y)
        asked = Episodes(episodes.support, both, episodes.tasks).to(learner.device)
        by_steps, errors = {}, {}
        with own_luck(learner, seed):
            for steps in learner.steps_shown:
                found = learner.predict(asked, steps)
                value = found.value.cpu()
                std = None if found.std is None else found.std.cpu()[:, :GRID]
                by_steps[steps] = Prediction(value[:, :GRID], std)
                missed = value[:, GRID:] - episodes.query.y
                errors[steps] = missed.square().flatten(1).mean(1)
        posterior = getattr(data, "posterior", None)
        best = None if posterior is None else posterior(episodes.tasks, episodes.support, grid)
        truth = data.truth(episodes.tasks, grid)
        return cls(episodes, x.double().numpy(), truth, best, by_steps, errors)

    @property
    def last(self) -> int:
        """The number of steps that counts."""
        return max(self.by_steps)

    def styles(self) -> dict[int, dict[str, Any]]:
        """How the fit after each number of steps is drawn."""
        before = [steps for steps in self.by_steps if steps != self.last]
        chosen = dict(zip(before, FITS, strict=False))
        found: dict[int, dict[str, Any]] = {
            steps: {"color": colour, "linestyle": line, "linewidth": 1.4}
            for steps, (colour, line) in chosen.items()
        }
        return {**found, self.last: {"color": FIT, "linewidth": 2.0}}


def _draw_fits(ax: Axes, fits: _Fits, task: int) -> None:
    """One function."""
    points = fits.episodes[task : task + 1]
    support, query = (
        (p.x[0, :, 0].numpy(), p.y[0, :, 0].numpy()) for p in (points.support, points.query)
    )
    if fits.truth is not None:
        truth = fits.truth[task, :, 0].numpy()
        ax.plot(fits.x, truth, color=TRUTH, linewidth=5.0, solid_capstyle="round")
    else:
        ax.scatter(*query, s=14, facecolors="white", edgecolors="#8a8a8a", linewidths=0.9, zorder=4)
    if fits.posterior is not None and fits.posterior.std is not None:
        mean, std = (z[task, :, 0].numpy() for z in (fits.posterior.value, fits.posterior.std))
        ax.plot(fits.x, mean, color=POSTERIOR, linewidth=1.4, linestyle="--")
        for edge in (mean - 2.0 * std, mean + 2.0 * std):
            ax.plot(fits.x, edge, color=POSTERIOR, linewidth=0.9, linestyle=":")
    last = fits.by_steps[fits.last]
    value = last.value[task, :, 0].numpy()
    if last.std is not None:
        spread = 2.0 * last.std[task, :, 0].numpy()
        low, high = value - spread, value + spread
        ax.fill_between(fits.x, low, high, color=FIT, alpha=0.18, linewidth=0)
    for steps, style in fits.styles().items():
        ax.plot(fits.x, fits.by_steps[steps].value[task, :, 0].numpy(), **style)
    ax.scatter(*support, s=38, color=INK, edgecolors="white", linewidths=0.8, zorder=5)
    ax.margins(x=0.015)
    ax.set_title(_errors(fits, task), fontsize=9.5)


def _span(fits: _Fits) -> tuple[float, float]:
    """Bounds of the values that matter; fits that are far off may leave the panels."""
    values = [fits.episodes.support.y, fits.episodes.query.y]
    values += [] if fits.truth is None else [fits.truth]
    bottom, top = (
        float(f(torch.cat([v[..., 0].flatten() for v in values]))) for f in (torch.min, torch.max)
    )
    margin = 0.2 * (top - bottom) + 1e-3
    return bottom - margin, top + margin


def _errors(fits: _Fits, task: int) -> str:
    """The errors before and after adaptation."""
    steps = sorted(fits.by_steps)
    shown = [float(fits.errors[k][task]) for k in dict.fromkeys((steps[0], steps[-1]))]
    return "squared error " + " → ".join(f"{x:.2f}" if x >= 0.01 else f"{x:.1g}" for x in shown)


def _fit_handles(fits: _Fits) -> list[Line2D | Patch]:
    """What the legend names."""
    dot: dict[str, Any] = {"linestyle": "", "marker": "o"}
    handles: list[Line2D | Patch] = [
        Line2D([], [], color=INK, markersize=6, label="support", **dot)
    ]
    if fits.truth is not None:
        handles.append(Line2D([], [], color=TRUTH, linewidth=5.0, label="true function"))
    else:
        hollow: dict[str, Any] = {
            "markerfacecolor": "white",
            "markeredgecolor": "#8a8a8a",
            "markersize": 4.5,
        }
        handles.append(Line2D([], [], label="query", **dot, **hollow))
    if fits.posterior is not None:
        line = Line2D([], [], color=POSTERIOR, linewidth=1.4, linestyle="--")
        line.set_label("exact posterior ± 2 std")
        handles.append(line)
    stepwise = len(fits.by_steps) > 1
    for steps, style in fits.styles().items():
        label = f"after {steps} step{'' if steps == 1 else 's'}" if stepwise else "prediction"
        handles.append(Line2D([], [], label=label, **style))
    if fits.by_steps[fits.last].std is not None:
        handles.append(Patch(color=FIT, alpha=0.18, linewidth=0, label="its ± 2 std"))
    return handles


def images_figure(
    learner: Learner, data: Data, protocol: Protocol, seed: int = 0, tasks: int = 3
) -> Figure:
    """Held-out tasks: support images by class, and what query images are taken for.

    A column is a class with its letter and colour. Under a query image stands the class that it
    was taken for, with the probability; what is wrong has a cross and a heavy dashed frame.

    Args:
        learner: what adapts; it is left as it was.
        data: where the images are from.
        protocol: classes and images of a task.
        seed: of the tasks, and of the learner's own luck.
        tasks: how many.
    """
    episodes = data.episodes(protocol, tasks, "held-out", torch.Generator().manual_seed(seed))
    with own_luck(learner, seed):
        logits = learner.predict(episodes.to(learner.device), max(learner.steps_shown)).value.cpu()
    probabilities = logits.softmax(-1)
    ways = min(protocol.ways, WIDEST)
    rows = min(protocol.shots, SUPPORT_ROWS) + min(protocol.queries, QUERY_ROWS)
    across, down = (tasks, 1) if ways <= 6 else (1, tasks)
    cell = min(0.62, 10.6 / (across * (ways + 0.6)))
    size = (across * (ways + 0.6) * cell + 0.3, down * (1.3 * rows + 0.9) * cell + 0.4)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(max(size[0], 7.0), size[1]), layout="constrained")
        axes = figure.subplots(down, across, squeeze=False).ravel()
        for task, ax in enumerate(axes):
            _draw_task(ax, episodes[task : task + 1], probabilities[task], protocol)
        note = (
            "Columns are classes. Under a query image: what it is taken for, and how probable.\n"
            "✓ right   ✗ wrong, in a dashed frame"
        )
        figure.suptitle(note, x=0.01, ha="left", fontsize=9.5, color=INK)
    return figure


def _draw_task(ax: Axes, episode: Episodes, probabilities: Tensor, protocol: Protocol) -> None:
    """One task, `probabilities` `[Q, ways]`."""
    ways = min(protocol.ways, WIDEST)
    shots, queries = min(protocol.shots, SUPPORT_ROWS), min(protocol.queries, QUERY_ROWS)
    best, guess = probabilities.max(-1)
    right = guess == episode.query.y[0]
    pitch = 1.3
    small = 8.0 if ways <= 12 else 6.5
    for way in range(ways):
        ax.text(
            way + 0.46, -0.12, _letter(way), ha="center", va="bottom", fontweight="bold", size=10
        )
        own = (episode.support.y[0] == way).nonzero().flatten()[:shots]
        for row, index in enumerate(own.tolist()):
            _picture(ax, episode.support.x[0, index], way, row * 1.0, _colour(way))
        asked = (episode.query.y[0] == way).nonzero().flatten()[:queries]
        for row, index in enumerate(asked.tolist()):
            top = shots + 0.25 + row * pitch
            taken, ok = int(guess[index]), bool(right[index])
            _picture(ax, episode.query.x[0, index], way, top, _colour(taken), wrong=not ok)
            text = f"{'✓' if ok else '✗'} {_letter(taken)} {100 * float(best[index]):.0f}%"
            weight = "normal" if ok else "bold"
            ax.text(
                way + 0.46, top + 1.08, text, ha="center", va="center", size=small, weight=weight
            )
    side: dict[str, Any] = {
        "rotation": 90,
        "ha": "right",
        "va": "center",
        "color": INK,
        "size": small,
    }
    ax.text(-0.12, shots / 2, "support", **side)
    ax.text(-0.12, shots + 0.25 + queries * pitch / 2, "query", **side)
    ax.set_xlim(-0.5, ways)
    ax.set_ylim(shots + 0.25 + queries * pitch + 0.05, -0.95)
    ax.set_aspect("equal")
    ax.set_axis_off()
    total = len(right)
    ax.text(0.0, -0.62, f"{int(right.sum())} of {total} right", color=INK, size=10)


def _letter(way: int) -> str:
    """The name of a class: A, B, ... or, beyond Z, its number."""
    return chr(ord("A") + way) if way < 26 else str(way + 1)


def _colour(way: int) -> str:
    """Of a class."""
    return CLASSES[way % len(CLASSES)]


def _picture(ax: Axes, image: Tensor, x: float, y: float, colour: str, wrong: bool = False) -> None:
    """An image `[C, H, W]` in a frame, its upper left corner at (x, y); one-channel ink is dark."""
    shown = image.clamp(0.0, 1.0).movedim(0, -1).numpy()
    extent = (x, x + 0.92, y + 0.92, y)
    if shown.shape[-1] == 3:
        ax.imshow(shown, extent=extent, interpolation="nearest")
    else:
        grey = shown.mean(-1)
        colours = "gray_r" if grey.mean() < 0.5 else "gray"
        ax.imshow(grey, cmap=colours, vmin=0.0, vmax=1.0, extent=extent, interpolation="nearest")
    frame: dict[str, Any] = (
        {"linewidth": 2.6, "linestyle": (0, (1.6, 1.0))} if wrong else {"linewidth": 1.8}
    )
    ax.add_patch(Rectangle((x, y), 0.92, 0.92, fill=False, edgecolor=colour, **frame))
