"""Pictures of worlds, drawn from what a rollout recorded: nothing is asked of the families.

A scene draws one world at one moment, from the task, the observation and the path since the episode
began; simulated robots are in `metarl.experiments.robots`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from metarl.tasks import Family, TaskBatch

Array = NDArray[Any]
Point = tuple[float, float]

SIDE = 360
"""of a picture, pixels"""
SHARP = 2
"""Pictures are drawn this much larger and then reduced, which smooths edges."""
INK, SOFT, PAPER, GROUND = "#1c2430", "#8a94a3", "#ffffff", "#eef1f4"
AGENT, TRAIL, GOAL, WALL, KEY, DOOR = (
    "#0072b2",
    "#9cc9e3",
    "#009e73",
    "#3b4452",
    "#e69f00",
    "#a0522d",
)


@cache
def font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """The font that matplotlib brings along, so that text looks the same everywhere."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", name)), size)


@dataclass(frozen=True)
class Moment:
    """What a scene may show of one world."""

    path: Array
    """float32 `[t + 1, O]`: observations since the episode began, the present one last"""
    actions: Array
    """`[T, ...]`: actions since the trial began"""
    rewards: Array
    """float32 `[T]`: what they brought"""
    state: Array
    """float64 `[nq]`: `qpos` of a simulated robot, else empty"""


class Canvas:
    """A picture of the square [low, high]², y upwards."""

    def __init__(self, low: float, high: float, ground: str = PAPER) -> None:
        """Start with an empty square."""
        self.low, self.scale = low, SIDE * SHARP / (high - low)
        self.image = Image.new("RGB", (SIDE * SHARP, SIDE * SHARP), ground)
        self.pen = ImageDraw.Draw(self.image)

    def pixel(self, point: Point) -> Point:
        """Where a point of the plane is in the picture."""
        x, y = point
        return (x - self.low) * self.scale, self.image.height - (y - self.low) * self.scale

    def box(self, low: Point, high: Point, fill: str, outline: str | None = None) -> None:
        """A rectangle between two corners."""
        (left, bottom), (right, top) = self.pixel(low), self.pixel(high)
        self.pen.rectangle((left, top, right, bottom), fill=fill, outline=outline, width=SHARP)

    def cell(self, at: Point, fill: str, inset: float = 0.0) -> None:
        """A square of side 1, less the inset, around a point."""
        half = 0.5 - inset
        self.box((at[0] - half, at[1] - half), (at[0] + half, at[1] + half), fill)

    def disc(self, at: Point, radius: float, fill: str, outline: str | None = None) -> None:
        """A disc with its radius in units of the plane."""
        (x, y), r = self.pixel(at), radius * self.scale
        self.pen.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline=outline, width=2 * SHARP)

    def line(self, points: Iterable[Point], colour: str, width: float = 3.0) -> None:
        """A line through points; its width is in pixels."""
        pixels = [self.pixel(point) for point in points]
        if len(pixels) > 1:
            self.pen.line(pixels, fill=colour, width=round(width * SHARP), joint="curve")

    def text(self, at: Point, words: str, size: int = 12, colour: str = INK) -> None:
        """Words in the middle of a point."""
        self.pen.text(self.pixel(at), words, colour, font(size * SHARP), anchor="mm")

    def finish(self) -> Image.Image:
        """The smoothed picture, `SIDE` pixels square."""
        return self.image.resize((SIDE, SIDE), Image.Resampling.LANCZOS)


class Scene(ABC):
    """Draws the worlds of one family."""

    frames_per_second: ClassVar[int] = 6
    """how fast a video should run"""
    most_pixels: ClassVar[int] = 1_500_000
    """of all pictures that are shown at once"""
    side: int = SIDE
    """of the pictures that are wanted; a scene may leave it to others to make them smaller"""

    def __init__(self, family: Family, tasks: TaskBatch) -> None:
        """Prepare to draw one world for each of the tasks."""
        self.family, self.batch = family, tasks
        self.tasks = {name: x.cpu().numpy() for name, x in tasks.tensors().items()}

    @abstractmethod
    def draw(self, world: int, moment: Moment) -> Image.Image:
        """The picture, `SIDE` pixels square."""

    def caption(self, world: int) -> str:
        """The task in words: the family's own, or the numbers that it consists of."""
        describe = getattr(self.family, "describe", None)
        if describe is not None:
            words = str(describe(self.batch, world))
        else:
            parts = (
                numbers_in_words(name, values[world])
                for name, values in self.tasks.items()
                if values.ndim <= 2 and values.dtype.kind == "f"
            )
            words = ", ".join(part for part in parts if part)
        return f"task: {words}" if words else ""


def numbers_in_words(name: str, values: Array) -> str:
    """A number, up to three numbers, or of a longer vector the three farthest from its median."""
    numbers = np.atleast_1d(values).astype(float)
    if len(numbers) <= 3:
        words = ", ".join(f"{x:.2f}" for x in numbers)
        return f"{name} {words if values.ndim == 0 else f'({words})'}" if len(numbers) else ""
    far = np.argsort(-np.abs(numbers - np.median(numbers)), kind="stable")[:3]
    return ", ".join(f"{name}[{i}] {numbers[i]:.2f}" for i in sorted(far.tolist()))


class GridScene(Scene):
    """GridNavi: the goal's cell, the agent and its path."""

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Draw the 5x5 grid."""
        size = 5
        canvas = Canvas(-0.55, size - 0.45, GROUND)
        for cell in range(size * size):
            goal = cell == self.tasks["goal"][world]
            canvas.cell(divmod(cell, size), GOAL if goal else PAPER, inset=0.03)
        path = moment.path
        if path.shape[1] == size * size:
            path = np.stack(np.divmod(path.argmax(axis=1), size), axis=1)
        points = [(float(x), float(y)) for x, y in path]
        canvas.line(points, TRAIL, 6)
        canvas.disc(points[-1], 0.22, AGENT, PAPER)
        return canvas.finish()


class MazeScene(Scene):
    """Mazes: walls, goal, key, door, the agent, its path, and the window that it sees."""

    frames_per_second = 12

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Draw the whole maze, of which the agent sees only the lighter window."""
        walls = self.tasks["walls"][world]
        size = len(walls)
        canvas = Canvas(-0.5, size - 0.5, GROUND)
        rows = moment.path[:, 50:52]
        points = [(float(column), size - 1.0 - float(row)) for row, column in rows]
        x, y = points[-1]
        canvas.box((x - 2.5, y - 2.5), (x + 2.5, y + 2.5), PAPER, SOFT)
        for row, column in np.argwhere(walls):
            canvas.cell((float(column), size - 1.0 - float(row)), WALL)
        has_key = moment.path.shape[1] > 102 and moment.path[-1, 102] > 0.5
        for name, colour in (("goal", GOAL), ("key", KEY), ("door", DOOR)):
            row, column = map(float, self.tasks[name][world])
            absent = row == column == 0.0 or (has_key and name != "goal")
            if not absent:
                canvas.cell((column, size - 1.0 - row), colour, inset=0.12)
        canvas.line(points, TRAIL, 3)
        canvas.disc(points[-1], 0.33, KEY if has_key else AGENT, PAPER)
        return canvas.finish()


class PlaneScene(Scene):
    """Point robots: the goal, the robot and its path."""

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Draw the part of the plane where goals lie."""
        half = 1.25 * max(float(np.abs(self.tasks["goal"]).max()), 0.5)
        canvas = Canvas(-half, half, GROUND)
        canvas.line([(-half, 0.0), (half, 0.0)], PAPER, 2)
        canvas.line([(0.0, -half), (0.0, half)], PAPER, 2)
        x, y = (float(number) for number in self.tasks["goal"][world])
        canvas.disc((x, y), 0.2 if self.family.name == "point-sparse" else 0.06 * half, GOAL)
        points = [(float(px), float(py)) for px, py in moment.path[:, :2]]
        canvas.line(points, TRAIL, 4)
        for point in points[:-1]:
            canvas.disc(point, 0.012 * half, AGENT)
        canvas.disc(points[-1], 0.045 * half, AGENT, PAPER)
        return canvas.finish()

    def caption(self, world: int) -> str:
        """The goal."""
        x, y = self.tasks["goal"][world]
        return f"task: goal ({x:.2f}, {y:.2f}) m"


class BanditScene(Scene):
    """Bandits: how probable each arm is to pay, and how often it was pulled."""

    frames_per_second = 5

    def caption(self, world: int) -> str:
        """Nothing: the picture has the numbers."""
        return ""

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Draw one bar for each arm; the arm pulled last lights up if it paid."""
        chances = self.tasks["probability"][world]
        arms = len(chances)
        canvas = Canvas(-0.08, 1.08)
        pulls = np.bincount(moment.actions.astype(np.int64), minlength=arms)
        for arm, chance in enumerate(chances):
            left, right = (arm + 0.12) / arms, (arm + 0.88) / arms
            last = len(moment.actions) > 0 and arm == moment.actions[-1]
            paid = last and moment.rewards[-1] > 0
            canvas.box((left, 0.08), (right, 0.08 + 0.84 * float(chance)), GOAL if paid else TRAIL)
            if last:
                canvas.box((left, 0.0), (right, 0.012), AGENT)
            if arms <= 12:
                canvas.text(((left + right) / 2, 0.045), f"{pulls[arm]}", 12)
        canvas.text((0.5, 1.02), "bars: chance to pay; numbers: pulls so far", 11, SOFT)
        return canvas.finish()


class RingScene(Scene):
    """Tabular MDPs: the states on a ring, with the agent's moves."""

    def draw(self, world: int, moment: Moment) -> Image.Image:
        """Draw the states; the darker, the more its best action pays."""
        best = self.tasks["reward_mean"][world].max(axis=-1)
        places = [
            (math.sin(angle), math.cos(angle))
            for angle in 2.0 * math.pi * np.arange(len(best)) / len(best)
        ]
        canvas = Canvas(-1.3, 1.3)
        states = moment.path.argmax(axis=1)
        canvas.line([places[state] for state in states], TRAIL, 3)
        spread = max(float(np.ptp(best)), 1e-6)
        for state, place in enumerate(places):
            shade = (best[state] - best.min()) / spread
            canvas.disc(place, 0.16, between(GROUND, GOAL, float(shade)), AGENT)
            canvas.text(place, f"{best[state]:.1f}", 11)
        canvas.disc(places[states[-1]], 0.07, AGENT, PAPER)
        canvas.text((0.0, 0.0), "numbers: mean reward\nof the best action", 11, SOFT)
        return canvas.finish()


def between(low: str, high: str, share: float) -> str:
    """A colour between two colours."""
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (low, high)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(*ends, strict=True))


SCENES: dict[str, type[Scene]] = {
    "gridnavi": GridScene,
    "maze": MazeScene,
    "point-dense": PlaneScene,
    "point-sparse": PlaneScene,
    "navigation-2d": PlaneScene,
    "bandit": BanditScene,
    "tabular-mdp": RingScene,
}
"""How each family is drawn; robots with a MuJoCo model need no entry."""
