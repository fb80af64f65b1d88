"""Videos of trials: recording, trials that run on in time, and files.

Trials whose episodes run side by side are in `metarl.experiments.side_by_side`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from metarl.errors import UsageError
from metarl.experiments.loading import LoadedRun
from metarl.experiments.printing import write_file
from metarl.experiments.scenes import (
    AGENT,
    GROUND,
    INK,
    PAPER,
    SCENES,
    SIDE,
    SOFT,
    Moment,
    Scene,
    font,
)
from metarl.policy import AdaptivePolicy, Step, worlds_per_task
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Split, TaskBatch
from metarl.vector import VectorEnv

HEAD, STRIP, GAP = 68, 92, 8
"""heights of what is above and below a picture, and the space between panels, pixels"""

Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class Recording:
    """Trials of a few worlds, one task each, with what is needed to draw them."""

    rollout: Rollout
    """`[T, N, W, ...]`; the first world of each task is shown"""
    states: NDArray[np.float64]
    """`[T, N, nq]`: `qpos` of simulated robots before each step; nq is 0 for others. Where robots
    differ, shorter ones end with zeros."""
    tasks: TaskBatch
    """N tasks"""
    episodes: int
    """K"""


class _Watching:
    """A policy that notes the simulators' state before each of its actions."""

    def __init__(self, policy: AdaptivePolicy, worlds: VectorEnv) -> None:
        self.policy, self.states = policy, list[Tensor]()
        self.positions: Callable[[], Tensor] = getattr(
            worlds, "positions", lambda: torch.zeros(worlds.num_envs, 0)
        )

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        self.policy.begin(num_tasks, worlds_per_task)

    def act(self, obs: Tensor) -> Tensor:
        self.states.append(self.positions().detach().double().cpu().clone())
        return self.policy.act(obs)

    def observe(self, step: Step) -> None:
        self.policy.observe(step)


def record(run: LoadedRun, tasks: int, split: Split, seed: int) -> tuple[Recording, Scene]:
    """Run one trial in each of a few tasks, of which the first world is shown.

    Returns:
        The recording, and the scene that can draw it.

    Raises:
        UsageError: if the family has no such split or cannot be drawn here.
    """
    family = run.family
    family.check_split(split)
    batch = family.sample_tasks(tasks, split, torch.Generator().manual_seed(seed))
    worlds = worlds_per_task(run.agent)
    env = family.make_worlds(tasks * worlds, seed=seed)
    try:
        env.set_tasks(batch)
        worlds_inside = getattr(env, "inner", env)
        policy = _Watching(run.agent.policy(), worlds_inside)
        scene = _scene(run, batch, worlds_inside)
        env.reset(seed=seed)
        rollout = run_trials(policy, env, family.episodes)
    finally:
        env.close()
    states = torch.stack(policy.states)[:, ::worlds]
    return Recording(rollout, states.numpy(), batch, family.episodes), scene


def _scene(run: LoadedRun, tasks: TaskBatch, worlds: VectorEnv) -> Scene:
    # An oracle's family is the one that it sees the tasks of, which knows how to describe them.
    family = getattr(run.family, "family", run.family)
    if hasattr(worlds, "physics"):
        from metarl.experiments.robots import RobotScene

        return RobotScene(family, tasks, worlds.physics.model.compiled)
    if hasattr(worlds, "positions"):
        from metarl.experiments.arms import ArmScene

        return ArmScene(cast(Any, family), cast(Any, tasks))
    name = run.config.family
    backend = getattr(family, "backend", "batch")
    if backend != "batch":
        raise UsageError(f"no pictures of {name} with backend {backend}; there are of batch")
    if name not in SCENES:
        raise UsageError(f"no pictures of {name}; there are some of {', '.join(SCENES)}")
    return SCENES[name](family, tasks)


def frames(recording: Recording, scene: Scene, title: str) -> Iterator[Frame]:
    """The pictures of trials that run on in time, uint8 `[height, width, 3]`, with even sides."""
    panels = [Panel(recording, scene, world) for world in range(len(recording.tasks))]
    width = len(panels) * (SIDE + GAP) + GAP
    for index in range(max(len(panel.moments) for panel in panels)):
        picture = Image.new("RGB", (width, 36 + HEAD + SIDE + STRIP), PAPER)
        ImageDraw.Draw(picture).text((GAP, 10), title, INK, font(15, bold=True))
        for column, panel in enumerate(panels):
            picture.paste(panel.draw(index), (GAP + column * (SIDE + GAP), 36))
        yield np.asarray(picture)


class Panel:
    """One world of the video: words above, the picture, rewards below."""

    moments: list[tuple[int, bool]]
    """of the video: a step of the trial, and whether it has been taken"""
    horizon: int
    """steps of the longest episode of any world"""

    def __init__(self, recording: Recording, scene: Scene, world: int) -> None:
        """Prepare to draw the recorded `world`."""
        rollout = recording.rollout
        steps = int(rollout.active[:, world, 0].sum())
        self.scene, self.world, self.episodes = scene, world, recording.episodes
        self.reward, self.episode, self.elapsed, self.done, self.success = (
            x[:steps, world, 0].cpu().numpy()
            for x in (
                rollout.reward,
                rollout.episode,
                rollout.elapsed,
                rollout.done,
                rollout.success,
            )
        )
        self.obs, self.final, self.action = (
            x[:steps, world, 0].cpu().numpy()
            for x in (rollout.obs, rollout.final_obs, rollout.action)
        )
        self.states = recording.states[:, world]
        self.limit = rollout.reward.shape[0]
        self.horizon = int(rollout.elapsed[rollout.active].max()) + 1
        lowest, highest = float(rollout.reward.min()), float(rollout.reward.max())
        self.low, self.span = lowest, max(highest - lowest, 1e-6)
        robot = self.states.shape[1] > 0
        self.moments = [
            (step, after)
            for step in range(steps)
            # Where an episode ends, its last observation is shown too; a robot's state is not.
            for after in ((False, True) if self.done[step] and not robot else (False,))
        ]

    def moment(self, step: int, after: bool) -> Moment:
        """What may be shown before a step, or `after` it."""
        begin, past = step - int(self.elapsed[step]), step + after
        path = self.obs[begin : step + 1]
        if after:
            path = np.concatenate([path, self.final[step : step + 1]])
        return Moment(path, self.action[:past], self.reward[:past], self.states[step])

    def draw(self, index: int) -> Image.Image:
        """The panel at a moment of the video; it stands still once the trial is over."""
        step, after = self.moments[min(index, len(self.moments) - 1)]
        moment = self.moment(step, after)
        panel = Image.new("RGB", (SIDE, HEAD + SIDE + STRIP), PAPER)
        panel.paste(self.scene.draw(self.world, moment), (0, HEAD))
        pen = ImageDraw.Draw(panel)
        self._words(pen, step, step + after)
        self._strip(pen, step + after)
        return panel

    def _words(self, pen: ImageDraw.ImageDraw, step: int, past: int) -> None:
        """Write the episode, the step, the task and what was earned so far."""
        begin = step - int(self.elapsed[step])
        episode = f"episode {int(self.episode[step]) + 1} of {self.episodes}"
        pen.text((0, 6), episode, AGENT, font(17, bold=True))
        pen.text((0, 34), self.scene.caption(self.world), INK, font(13))
        if self.limit > self.episodes:
            pen.text((SIDE, 8), f"step {past - begin}", INK, font(14), anchor="ra")
            earned = f"return {float(self.reward[begin:past].sum()):.2f}"
        else:  # a single step makes an episode
            earned = f"total {float(self.reward[:past].sum()):g}"
        pen.text((SIDE, 34), earned, INK, font(13), anchor="ra")

    def _strip(self, pen: ImageDraw.ImageDraw, past: int) -> None:
        """Draw the rewards so far, with the return of every finished episode above them."""
        top, bottom = HEAD + SIDE + 26, HEAD + SIDE + STRIP - 10
        pen.rectangle((0, top, SIDE - 1, bottom), fill=GROUND)
        pen.text((0, top - 20), "reward", SOFT, font(11))
        width = SIDE / self.limit
        heights = bottom - 3 - (self.reward[:past] - self.low) / self.span * (bottom - top - 6)
        points = [((i + 0.5) * width, float(y)) for i, y in enumerate(heights)]
        if width > 8:
            for x, y in points:
                pen.rectangle((x - 0.35 * width, y, x + 0.35 * width, bottom), fill=AGENT)
        elif len(points) > 1:
            pen.line(points, fill=AGENT, width=2)
        begin = 0
        for end in (np.flatnonzero(self.done[:past]) + 1).tolist():
            pen.line((end * width, top, end * width, bottom), fill=SOFT)
            if self.episodes <= 8:
                middle = 0.5 * (begin + end) * width
                total = f"{float(self.reward[begin:end].sum()):.1f}"
                pen.text((max(middle, 62), top - 20), total, INK, font(12), anchor="ma")
            begin = end


def check_format(path: Path) -> None:
    """Raise `UsageError` unless this machine can write a video of the kind of `path`."""
    if path.suffix not in (".mp4", ".gif"):
        raise UsageError(f"{path}: a video's name must end with .mp4 or .gif")
    if path.suffix == ".mp4" and not can_write_mp4():
        raise UsageError(
            f"{path}: .mp4 needs imageio-ffmpeg (pip install 'metarl[video]'); .gif needs nothing"
        )


def can_write_mp4() -> bool:
    """Whether the extra `video` is installed."""
    try:
        import imageio_ffmpeg  # noqa: F401
    except ImportError:
        return False
    return True


def write_video(pictures: Iterable[Frame], path: Path, frames_per_second: int) -> int:
    """Write a video while its pictures are made; the last one stays for a second.

    Returns:
        The number of pictures.

    Raises:
        UsageError: if it cannot be written.
    """
    check_format(path)
    write_file(path, b"")
    write = _write_gif if path.suffix == ".gif" else _write_mp4
    return write(pictures, path, frames_per_second)


def _write_gif(pictures: Iterable[Frame], path: Path, frames_per_second: int) -> int:
    images = [Image.fromarray(picture).quantize(256) for picture in pictures]
    shown = images + [images[-1]] * frames_per_second
    duration = round(1000 / frames_per_second)
    shown[0].save(path, save_all=True, append_images=shown[1:], duration=duration, loop=0)
    return len(images)


def _write_mp4(pictures: Iterable[Frame], path: Path, frames_per_second: int) -> int:
    import imageio_ffmpeg

    rest = iter(pictures)
    picture = next(rest)
    height, width = picture.shape[:2]
    writer = imageio_ffmpeg.write_frames(
        str(path), (width, height), fps=frames_per_second, macro_block_size=2, quality=6
    )
    writer.send(None)
    writer.send(np.ascontiguousarray(picture))
    count = 1
    for picture in rest:
        writer.send(np.ascontiguousarray(picture))
        count += 1
    for _ in range(frames_per_second):
        writer.send(np.ascontiguousarray(picture))
    writer.close()
    return count
