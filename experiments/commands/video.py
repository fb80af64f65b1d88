"""`metarl video RUN`: what a policy does in the episodes of a trial, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from metarl.errors import UsageError
from metarl.experiments.options import parse
from metarl.experiments.printing import print_json


@dataclass(frozen=True)
class Options:
    """Film trials of a run: a row for each task, in it the episodes side by side."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of the run"""
    tasks: int = 2
    """number of tasks, 1 to 6"""
    episodes: tuple[int, ...] = ()
    """which episodes to show, such as 1 2 10; none are all, or some of many"""
    split: Literal["train", "held-out", "out-of-range", "nominal"] = "held-out"
    """where the tasks are from"""
    seed: int = 0
    """decides on the tasks and on the luck of the worlds"""
    out: str = ""
    """file to write, .mp4 or .gif; empty is a file in the run's folder"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl video`."""
    options = parse(Options, args, "metarl video")
    if not 1 <= options.tasks <= 6:
        raise UsageError(f"video: --tasks must be 1 to 6, got {options.tasks}")
    from metarl.experiments.loading import open_run, use_threads
    from metarl.experiments.side_by_side import chosen_episodes, film
    from metarl.experiments.video import can_write_mp4, check_format, record, write_video

    ending = "mp4" if can_write_mp4() else "gif"
    usual = options.run / "evaluation" / f"trials-{options.split}-seed{options.seed}.{ending}"
    path = Path(options.out) if options.out else usual
    check_format(path)
    use_threads(0)
    run = open_run(options.run)
    chosen_episodes(run.family.episodes, options.episodes)
    recording, scene = record(run, options.tasks, options.split, options.seed)
    title = f"{run.config.agent} on {options.split} tasks of {run.config.family}"
    pictures = film(recording, scene, title, options.episodes)
    count = write_video(pictures, path, scene.frames_per_second)
    if ending == "gif" and not options.out:
        print("imageio-ffmpeg is not installed, so this is a .gif; .mp4: pip install metarl[video]")
    print(f"saved {path}")
    if options.json:
        print_json({"out": str(path), "frames": count, "tasks": options.tasks})
    return 0
