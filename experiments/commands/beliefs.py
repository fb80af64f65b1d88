"""`metarl beliefs RUN`: what a VariBAD agent believes in the course of trials."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from metarl.errors import UsageError
from metarl.experiments.options import parse
from metarl.experiments.printing import print_json

if TYPE_CHECKING:
    from metarl.experiments.beliefs import BeliefTrials
    from metarl.experiments.loading import LoadedRun

FEW, MOST_FEW = 3, 6
"""tasks that have a row of the picture to themselves: how many usually, and at most"""
MANY, MOST_MANY = 20, 100
"""tasks of which each is one path of the latent: how many usually, and at most"""
GOALS, BANDITS = 21, 100
"""tasks that the distance from the exact posterior is measured over"""


@dataclass(frozen=True)
class Options:
    """Draw what a VariBAD agent believes in the course of trials."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """folder of the run"""
    tasks: int = 0
    """number of tasks to draw; 0 is 3 where each has a row of its own, else 20"""
    split: Literal["train", "held-out", "out-of-range", "nominal"] = "held-out"
    """where the tasks are from"""
    seed: int = 0
    """decides on the tasks, on the luck of the worlds, and on the draws from beliefs"""
    out: str = ""
    """folder to write into; empty is that of the run's evaluations"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl beliefs`."""
    options = parse(Options, args, "metarl beliefs")
    from metarl.experiments.loading import open_run, use_threads

    use_threads(0)
    run = open_run(options.run)
    folder = Path(options.out) if options.out else run.folder.evaluation
    stem = folder / f"beliefs-{options.split}-seed{options.seed}"
    paths, figures = list[str](), dict[str, Any]()
    for found in _draw(run, options, stem):
        if isinstance(found, Path):
            print(f"saved {found}")
            paths.append(str(found))
        elif isinstance(found, str):
            print(found)
        else:
            figures |= found
    if options.json:
        print_json({"out": paths, "split": options.split, "seed": options.seed, **figures})
    return 0


def _draw(run: LoadedRun, options: Options, stem: Path) -> Iterator[Path | str | dict[str, Any]]:
    """Draw what suits the decoder and the family: files, sentences and figures as they come."""
    from metarl.agents.task_inference import RewardHeads
    from metarl.envs.bandits import Bandit
    from metarl.envs.gridnavi import GridNavi
    from metarl.experiments.beliefs import record_beliefs, reward_decoder

    heads = isinstance(reward_decoder(run), RewardHeads)
    grid, bandit = (heads and isinstance(run.family, kind) for kind in (GridNavi, Bandit))
    usual, most = (FEW, MOST_FEW) if grid or bandit else (MANY, MOST_MANY)
    tasks = options.tasks or usual
    if tasks > most:
        raise UsageError(f"beliefs: --tasks must be 0 to {most} for this run, got {tasks}")
    count = max(tasks, GOALS if grid else BANDITS if bandit else 1)
    trials = record_beliefs(run, count, options.split, options.seed)
    yield {"tasks": tasks, "measured_tasks": count}
    draw = _draw_grids if grid else _draw_arms if bandit else _draw_latents
    yield from draw(trials, tasks, stem)


def _draw_grids(
    trials: BeliefTrials, tasks: int, stem: Path
) -> Iterator[Path | str | dict[str, Any]]:
    from metarl.experiments.belief_grids import GridBeliefs, grid_figure, grid_frames
    from metarl.experiments.figures import save
    from metarl.experiments.scenes import GridScene
    from metarl.experiments.video import can_write_mp4, write_video

    beliefs = GridBeliefs.of(trials)
    yield beliefs.figures
    path = stem.with_name(f"{stem.name}.png")
    save(grid_figure(beliefs, tasks), path)
    yield path
    path = stem.with_name(f"{stem.name}.{'mp4' if can_write_mp4() else 'gif'}")
    write_video(grid_frames(beliefs, tasks), path, GridScene.frames_per_second)
    yield path
    yield (
        f"total variation from the exact posterior over goals: "
        f"{beliefs.figures['total_variation']:.3f}, "
        f"mean over all steps of {len(trials.tasks)} tasks; of a belief that stays uniform: "
        f"{beliefs.figures['without_learning']:.3f}"
    )


def _draw_arms(
    trials: BeliefTrials, tasks: int, stem: Path
) -> Iterator[Path | str | dict[str, Any]]:
    from metarl.experiments.belief_arms import ArmBeliefs, arm_figure
    from metarl.experiments.figures import save

    beliefs = ArmBeliefs.of(trials)
    yield beliefs.figures
    path = stem.with_name(f"{stem.name}.png")
    save(arm_figure(beliefs, tasks), path)
    yield path
    yield (
        f"believed chances differ from the exact posterior means by "
        f"{beliefs.figures['from_exact']:.3f}, mean over arms and all steps of "
        f"{len(trials.tasks)} tasks; one half would by {beliefs.figures['without_learning']:.3f}"
    )


def _draw_latents(
    trials: BeliefTrials, tasks: int, stem: Path
) -> Iterator[Path | str | dict[str, Any]]:
    from metarl.agents.task_inference import RewardRegression
    from metarl.experiments.belief_latents import latent_figure
    from metarl.experiments.belief_rewards import RewardBeliefs, reward_figure
    from metarl.experiments.beliefs import reward_decoder
    from metarl.experiments.figures import save

    path = stem.with_name(f"{stem.name}-latent.png")
    save(latent_figure(trials), path)
    yield path
    if not isinstance(reward_decoder(trials.run), RewardRegression):
        return
    beliefs = RewardBeliefs.of(trials)
    yield beliefs.figures
    path = stem.with_name(f"{stem.name}-reward.png")
    save(reward_figure(beliefs, min(tasks, FEW)), path)
    yield path
    errors = zip(beliefs.figures["decoded_after"], beliefs.figures["reward_error"], strict=True)
    yield (
        "root mean square error of decoded rewards after steps: "
        + ", ".join(f"{steps}: {error:.3g}" for steps, error in errors)
        + f"; of their mean alone: {beliefs.figures['reward_std']:.3g}"
    )
