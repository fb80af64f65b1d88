"""Videos of trials whose episodes run side by side: a row for each task, a column for each episode.

All episodes of a row start at the same moment, so that what was learned in the first shows in the
others at once. Those that end earlier stand still in grey.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from metarl.errors import UsageError
from metarl.experiments.scenes import AGENT, GOAL, GROUND, INK, PAPER, SOFT, Scene, font
from metarl.experiments.video import GAP, Frame, Panel, Recording, frames

MOST_FRAMES = 150
"""Longer episodes are shown every second, third, ... step."""
MOST_COLUMNS = 5
"""episodes that are shown unless others are asked for"""
WIDTH, HEIGHT = 1500, 1100
"""of a frame, pixels, as far as possible"""
TITLE, CAPTION, HEAD, STRIP = 36, 26, 24, 62
"""heights: above all rows, above each of them, above and below each picture, pixels"""
SIDES = (360, 300, 240, 200, 160)
"""of the pictures, pixels; all even, as videos need them"""


def film(
    recording: Recording, scene: Scene, title: str, episodes: Sequence[int] = ()
) -> Iterator[Frame]:
    """The pictures of a video, uint8 `[height, width, 3]`, with even sides.

    Trials whose episodes are single steps run on in time instead.

    Args:
        recording: the trials.
        scene: what draws them.
        title: of the video.
        episodes: which to show, from 1; none for a selection that fits.

    Raises:
        UsageError: if there is no such episode.
    """
    if recording.rollout.reward.shape[0] <= recording.episodes:
        return frames(recording, scene, title)
    return _rows(recording, scene, title, chosen_episodes(recording.episodes, episodes))


def chosen_episodes(count: int, wanted: Sequence[int] = ()) -> list[int]:
    """Which of `count` episodes to show, from 0 and in order.

    All of them if they are few, else the first two, the middle and the last.

    Raises:
        UsageError: if one of `wanted` (from 1) is not among them.
    """
    for episode in wanted:
        if not 1 <= episode <= count:
            raise UsageError(f"video: --episodes must be of 1 to {count}, got {episode}")
    if wanted:
        return sorted({episode - 1 for episode in wanted})
    return list(range(count)) if count <= MOST_COLUMNS else [0, 1, (count - 1) // 2, count - 1]


def picture_side(rows: int, columns: int, most_pixels: int) -> int:
    """How large pictures can be so that all fit into a frame and do not take too long to draw."""
    for side in SIDES:
        fits = (
            columns * (side + GAP) <= WIDTH
            and rows * (side + CAPTION + HEAD + STRIP) <= HEIGHT
            and rows * columns * side**2 <= most_pixels
        )
        if fits:
            return side
    return SIDES[-1]


def _rows(
    recording: Recording, scene: Scene, title: str, episodes: Sequence[int]
) -> Iterator[Frame]:
    tasks = len(recording.tasks)
    scene.side = side = picture_side(tasks, len(episodes), scene.most_pixels)
    trials = [Panel(recording, scene, world) for world in range(tasks)]
    rows = [[EpisodePanel(trial, episode, side) for episode in episodes] for trial in trials]
    longest = max(len(panel.moments) for row in rows for panel in row)
    width = len(episodes) * (side + GAP) + GAP
    height = CAPTION + HEAD + side + STRIP
    blank = Image.new("RGB", (width, TITLE + tasks * height), PAPER)
    pen = ImageDraw.Draw(blank)
    pen.text((GAP, 10), shortened(title, 15, width - 2 * GAP, bold=True), INK, font(15, bold=True))
    for world in range(tasks):
        words = f"task {world + 1} of {tasks}: {scene.caption(world).removeprefix('task: ')}"
        words = shortened(words.removesuffix(": "), 14, width - 2 * GAP)
        pen.text((GAP, TITLE + world * height + 4), words, INK, font(14))
    stride = math.ceil(longest / MOST_FRAMES)
    for index in [*range(0, longest - 1, stride), longest - 1]:
        picture = blank.copy()
        for world, row in enumerate(rows):
            top = TITLE + world * height + CAPTION
            for column, panel in enumerate(row):
                picture.paste(panel.draw(index), (GAP + column * (side + GAP), top))
        yield np.asarray(picture)


class EpisodePanel:
    """One episode of a trial: words above, the picture, the return so far and rewards below."""

    moments: list[tuple[int, bool]]
    """of the episode: a step of the trial, and whether it has been taken"""

    def __init__(self, trial: Panel, episode: int, side: int) -> None:
        """Prepare to draw an episode (from 0) of a recorded trial, in pictures of `side` pixels."""
        self.trial, self.episode, self.side = trial, episode, side
        self.moments = [at for at in trial.moments if int(trial.episode[at[0]]) == episode]
        self.begin, last = self.moments[0][0], self.moments[-1][0]
        if not self.moments[-1][1]:
            # Of robots only what comes before a step is recorded: they stay where they were.
            self.moments.append((last, True))

    def draw(self, index: int) -> Image.Image:
        """The panel at a moment since the episode began."""
        return self._at(*self.moments[index]) if index < len(self.moments) else self._ended

    @cached_property
    def _ended(self) -> Image.Image:
        """The last picture, in grey."""
        panel, bottom = self._at(*self.moments[-1]), HEAD + self.side
        picture = panel.crop((0, HEAD, self.side, bottom))
        grey = Image.new("RGB", picture.size, GROUND)
        panel.paste(Image.blend(picture, grey, 0.6), (0, HEAD))
        pen = ImageDraw.Draw(panel)
        pen.rectangle((0, bottom - 24, self.side - 1, bottom - 1), fill=GROUND)
        steps = self.moments[-1][0] + 1 - self.begin
        words = f"ended after {steps} step{'s' if steps > 1 else ''}"
        pen.text((self.side / 2, bottom - 12), words, INK, font(13, bold=True), anchor="mm")
        return panel

    def _picture(self, step: int, after: bool) -> Image.Image:
        moment = self.trial.moment(step, after)
        picture = self.trial.scene.draw(self.trial.world, moment)
        if picture.width != self.side:
            picture = picture.resize((self.side, self.side), Image.Resampling.LANCZOS)
        return picture

    def _at(self, step: int, after: bool) -> Image.Image:
        panel = Image.new("RGB", (self.side, HEAD + self.side + STRIP), PAPER)
        panel.paste(self._picture(step, after), (0, HEAD))
        pen = ImageDraw.Draw(panel)
        past = step + after
        words = f"episode {self.episode + 1} of {self.trial.episodes}"
        pen.text((0, 4), words, AGENT, font(13, bold=True))
        pen.text((self.side, 5), f"step {past - self.begin}", INK, font(12), anchor="ra")
        if (self.trial.success[self.begin : past] > 0).any():  # NaN where it is not defined
            pen.rectangle((0, HEAD, 56, HEAD + 19), fill=GOAL)
            pen.text((28, HEAD + 10), "solved", PAPER, font(13, bold=True), anchor="mm")
        self._strip(pen, past)
        return panel

    def _strip(self, pen: ImageDraw.ImageDraw, past: int) -> None:
        """Write the return so far, and draw the rewards that make it."""
        top, bottom = HEAD + self.side + 22, HEAD + self.side + STRIP - 8
        trial, rewards = self.trial, self.trial.reward[self.begin : past]
        pen.text((0, top - 18), "return so far", SOFT, font(12))
        earned = f"{float(rewards.sum()):.2f}"
        pen.text((self.side, top - 18), earned, INK, font(12, bold=True), anchor="ra")
        pen.rectangle((0, top, self.side - 1, bottom), fill=GROUND)
        width = self.side / trial.horizon
        heights = bottom - 3 - (rewards - trial.low) / trial.span * (bottom - top - 6)
        points = [((i + 0.5) * width, float(y)) for i, y in enumerate(heights)]
        if width > 4:
            for x, y in points:
                pen.rectangle((x - 0.35 * width, y, x + 0.35 * width, bottom), fill=AGENT)
        elif len(points) > 1:
            pen.line(points, fill=AGENT, width=2)


def shortened(words: str, size: int, width: int, *, bold: bool = False) -> str:
    """As much of some words as fits into a line of `width` pixels."""
    letters = font(size, bold=bold)
    if letters.getlength(words) <= width:
        return words
    while words and letters.getlength(words + "…") > width:
        words = words[:-1]
    return words.rstrip(" ,") + "…"
