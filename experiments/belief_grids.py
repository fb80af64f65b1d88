"""The belief over the cells of a grid beside the agent's path: a picture and a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image, ImageDraw

from metarl.agents.task_inference import RewardHeads
from metarl.envs.gridnavi import CELLS, GOALS, SIZE, GridNavi
from metarl.experiments.beliefs import (
    BeliefTrials,
    goal_posterior,
    pay_chances,
    reward_decoder,
    total_variation,
)
from metarl.experiments.figures import STYLE
from metarl.experiments.scenes import (
    AGENT,
    GOAL,
    GROUND,
    INK,
    PAPER,
    SIDE,
    SOFT,
    Array,
    Canvas,
    GridScene,
    between,
    font,
)
from metarl.experiments.video import GAP, HEAD, STRIP, Frame, Panel, Recording

HEAT = "#e8752a"
"""of a cell that is sure to pay; darker than the paper in every kind of colour vision"""
HATCH = "#d5dae1"
LATER_EPISODES = 4
"""most episodes after the first of which the picture shows the end"""


@dataclass(frozen=True)
class GridBeliefs:
    """What is believed of every cell, and what should be."""

    trials: BeliefTrials
    """of a run on a grid whose rewards are decoded by heads"""
    shares: Array
    """float32 `[T + 1, N, 25]`: how probable a reward is in each cell, the posterior predictive,
    brought to a sum of 1"""
    sums: Array
    """float32 `[T + 1, N]`: what these chances added up to before"""
    exact: Array
    """float32 `[T + 1, N, 25]`: the exact posterior over the goal's cell"""
    apart: Array
    """float32 `[T + 1, N]`: total variation between the two"""
    figures: dict[str, float]
    """means over tasks and times: `total_variation`; `without_learning`, the same of a belief that
    stays uniform; `goals_believed`, the sums"""

    @classmethod
    def of(cls, trials: BeliefTrials) -> GridBeliefs:
        """Decode the beliefs of `trials` and work out the exact ones."""
        family, heads = trials.run.family, reward_decoder(trials.run)
        assert isinstance(family, GridNavi) and isinstance(heads, RewardHeads)
        chances = pay_chances(heads, trials.belief, trials.generator()).mean(0)
        sums = chances.sum(-1)
        candidates = torch.zeros(CELLS, dtype=torch.bool)
        candidates[list(GOALS)] = True
        entered = family.cells(trials.rollout.final_obs[..., 0, :])
        exact = goal_posterior(entered, trials.reward > 0, candidates)
        shares = chances / sums.unsqueeze(-1)
        apart = total_variation(shares, exact)
        figures = {
            "total_variation": trials.mean(apart),
            "without_learning": trials.mean(total_variation(exact[:1].expand_as(exact), exact)),
            "goals_believed": trials.mean(sums),
        }
        return cls(trials, shares.numpy(), sums.numpy(), exact.numpy(), apart.numpy(), figures)

    def panels(self, tasks: int) -> list[Panel]:
        """What `metarl video` shows of the first `tasks` tasks."""
        trials = self.trials
        states = np.zeros((trials.steps, len(trials.tasks), 0))
        recording = Recording(trials.rollout, states, trials.tasks, trials.run.family.episodes)
        scene = GridScene(trials.run.family, trials.tasks)
        return [Panel(recording, scene, task) for task in range(tasks)]

    def goal(self, task: int) -> int:
        """The cell of a task's goal."""
        return int(self.trials.tasks.tensors()["goal"][task])


def heat_map(shares: Array, goal: int, path: Sequence[tuple[float, float]]) -> Image.Image:
    """The grid, each cell the darker the more probable it is; `SIDE` pixels square.

    Args:
        shares: `[25]` in [0, 1], written into the cells in percent.
        goal: the cell to outline.
        path: where the agent has been in this episode, the present place last.
    """
    canvas = Canvas(-0.55, SIZE - 0.45, GROUND)
    for cell in range(CELLS):
        x, y = divmod(cell, SIZE)
        canvas.cell((x, y), between(PAPER, HEAT, float(shares[cell]) ** 0.5), inset=0.03)
        for low in (-0.4, 0.0, 0.4) if cell not in GOALS else ():
            ends = np.clip([low - 0.4, low + 0.4], -0.4, 0.4)
            canvas.line([(x + e, y + e - low) for e in ends], HATCH, 1.5)
    x, y = divmod(goal, SIZE)
    corners = [(-0.43, -0.43), (0.43, -0.43), (0.43, 0.43), (-0.43, 0.43)]
    canvas.line([(x + dx, y + dy) for dx, dy in corners + corners[:2]], GOAL, 6)
    points = [(px, py - 0.16) for px, py in path]
    canvas.line(points, AGENT, 4)
    canvas.disc(points[-1], 0.15, AGENT, PAPER)
    for cell, share in enumerate(shares):
        x, y = divmod(cell, SIZE)
        if share >= 0.005:
            canvas.text((x, y + 0.2), f"{100 * share:.0f}", 20)
    return canvas.finish()


def _map(beliefs: GridBeliefs, shares: Array, panel: Panel, step: int, after: bool) -> Image.Image:
    """The heat map of `shares` `[T + 1, N, 25]` in a panel's world at a moment of its trial."""
    family = beliefs.trials.run.family
    assert isinstance(family, GridNavi)
    cells = family.cells(torch.from_numpy(panel.moment(step, after).path)).tolist()
    path = [(float(x), float(y)) for x, y in (divmod(cell, SIZE) for cell in cells)]
    return heat_map(shares[step + after, panel.world], beliefs.goal(panel.world), path)


# --- the picture ---------------------------------------------------------------------------------


def shown_times(episodes: int, horizon: int) -> list[tuple[int, str]]:
    """Which times of a trial the picture shows: how many steps are over, and what that is called.

    The start, four times in the first episode, its end, and the ends of the next.
    """
    stride = max(horizon // 5, 1)
    within = [(t, f"after {t} step{'s' * (t > 1)}") for t in range(stride, horizon, stride)]
    ends = range(1, min(episodes, 1 + LATER_EPISODES) + 1)
    return [
        (0, "at the start"),
        *within[:4],
        *((k * horizon, f"after episode {k}") for k in ends),
    ]


def grid_figure(beliefs: GridBeliefs, tasks: int) -> Figure:
    """The first `tasks` tasks, a row for what is believed and one for what should be."""
    family = beliefs.trials.run.family
    times = shown_times(family.episodes, family.horizon)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        size = (1.25 * len(times) + 1.3, 2.8 * tasks + 1.3)
        figure = Figure(figsize=size, layout="constrained")
        heights = ([1.0, 1.0, 0.1] * tasks)[:-1]
        grid = figure.add_gridspec(len(heights), len(times), height_ratios=heights)
        for panel in beliefs.panels(tasks):
            for kind in (0, 1):
                axes = [
                    figure.add_subplot(grid[3 * panel.world + kind, i]) for i in range(len(times))
                ]
                _draw_row(axes, beliefs, panel, kind, [time for time, _ in times])
                if panel.world == kind == 0:
                    for ax, (_, name) in zip(axes, times, strict=True):
                        ax.set_title(name, fontsize=9.5, loc="center")
        _explain(figure, beliefs)
    return figure


def _draw_row(
    axes: Sequence[Axes], beliefs: GridBeliefs, panel: Panel, kind: int, times: Sequence[int]
) -> None:
    """What is believed (`kind` 0) or should be (1) in one task at a few times."""
    for ax, time in zip(axes, times, strict=True):
        shares = (beliefs.shares, beliefs.exact)[kind]
        ax.imshow(np.asarray(_map(beliefs, shares, panel, max(time - 1, 0), time > 0)))
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if kind == 0:
            total = f"sum {beliefs.sums[time, panel.world]:.1f}"
            ax.set_xlabel(total, fontsize=7.5, color=SOFT, labelpad=1.5)
    names = f"task {panel.world + 1}\nbelieved", "\nexact"
    axes[0].set_ylabel(names[kind], fontsize=9.5)


def _explain(figure: Figure, beliefs: GridBeliefs) -> None:
    """Add title, legend, scale and what the numbers are."""
    colours = LinearSegmentedColormap.from_list("heat", [PAPER, HEAT])
    scale = ScalarMappable(PowerNorm(0.5, 0.0, 1.0), colours)
    bar = figure.colorbar(scale, ax=figure.axes, shrink=0.4, aspect=25, pad=0.01)
    bar.set_ticks([0.0, 0.05, 0.2, 0.5, 1.0], labels=["0 %", "5 %", "20 %", "50 %", "100 %"])
    bar.set_label("chance that the goal is in the cell")
    square: dict[str, Any] = {"linestyle": "", "marker": "s", "markerfacecolor": "none"}
    handles = [
        Line2D([], [], color=GOAL, markersize=10, markeredgewidth=2.5, label="goal", **square),
        Line2D([], [], color=AGENT, marker="o", label="path in the episode"),
        Patch(facecolor="white", edgecolor="#9aa3b0", hatch="////", label="never a goal here"),
    ]
    run, figures = beliefs.trials.run, beliefs.figures
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=3,
        title=f"Where {run.config.agent} believes the goal of {run.config.family} to be "
        f"({run.step:,} steps of training)",
        alignment="left",
        title_fontproperties={"size": 12, "weight": "bold"},
    )
    figure.supxlabel(
        "believed: mean over many z of the belief of the decoded chance that a cell pays, in %, "
        "divided by the sum over all cells, which stands below (heads learn\nfrom visits, and a "
        "goal once found is visited again and again: what they say of cells not seen yet is too "
        "high alike). exact: uniform over the cells not ruled out.\n"
        f"Total variation between the two: {figures['total_variation']:.2f}, mean over all steps "
        f"of {len(beliefs.trials.tasks)} tasks; of a belief that stays uniform: "
        f"{figures['without_learning']:.2f}.",
        x=0.008,
        ha="left",
        fontsize=9,
    )


# --- the video -----------------------------------------------------------------------------------


def grid_frames(beliefs: GridBeliefs, tasks: int) -> Iterator[Frame]:
    """The trials of the first `tasks` tasks one after the other; uint8 `[height, width, 3]`.

    Each shows the world, the belief and the exact posterior side by side.
    """
    run = beliefs.trials.run
    for panel in beliefs.panels(tasks):
        title = f"{run.config.agent} on {run.config.family}: task {panel.world + 1} of {tasks}"
        for index, (step, after) in enumerate(panel.moments):
            picture = Image.new("RGB", (3 * SIDE + 8 * GAP, 36 + HEAD + SIDE + STRIP), PAPER)
            ImageDraw.Draw(picture).text((GAP, 10), title, INK, font(15, bold=True))
            parts = (
                panel.draw(index),
                _believed(beliefs, panel, step, after),
                _exact(beliefs, panel, step, after),
            )
            for column, part in enumerate(parts):
                picture.paste(part, (GAP + column * (SIDE + 3 * GAP), 36))
            yield np.asarray(picture)


def _headed(
    picture: Image.Image, first: str, second: str
) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A panel with words above the picture and room below."""
    panel = Image.new("RGB", (SIDE, HEAD + SIDE + STRIP), PAPER)
    panel.paste(picture, (0, HEAD))
    pen = ImageDraw.Draw(panel)
    pen.text((0, 6), first, INK, font(17, bold=True))
    pen.text((0, 34), second, INK, font(13))
    return panel, pen


def _believed(beliefs: GridBeliefs, panel: Panel, step: int, after: bool) -> Image.Image:
    """What is believed, and below it how far that has been from the exact posterior."""
    picture = _map(beliefs, beliefs.shares, panel, step, after)
    total = f"{beliefs.sums[step + after, panel.world]:.1f}"
    words = f"chance to pay in %, divided by their sum of {total}"
    picture, pen = _headed(picture, "belief", words)
    apart = beliefs.apart[: step + after + 1, panel.world]
    top, bottom = HEAD + SIDE + 26, HEAD + SIDE + STRIP - 10
    pen.rectangle((0, top, SIDE - 1, bottom), fill=GROUND)
    pen.text((0, top - 20), "total variation from the exact one, 0 to 1", SOFT, font(11))
    pen.text((SIDE, top - 20), f"{apart[-1]:.2f}", INK, font(12), anchor="ra")
    width = SIDE / panel.limit
    points = [(t * width, float(bottom - 3 - y * (bottom - top - 6))) for t, y in enumerate(apart)]
    if len(points) > 1:
        pen.line(points, fill=AGENT, width=2)
    for end in (np.flatnonzero(panel.done[: step + after]) + 1).tolist():
        pen.line((end * width, top, end * width, bottom), fill=SOFT)
    return picture


def _exact(beliefs: GridBeliefs, panel: Panel, step: int, after: bool) -> Image.Image:
    """What should be believed."""
    picture = _map(beliefs, beliefs.exact, panel, step, after)
    left = int((beliefs.exact[step + after, panel.world] > 0).sum())
    words = f"uniform over the {left} cells not ruled out" if left > 1 else "the goal is known"
    return _headed(picture, "exact posterior", words)[0]
