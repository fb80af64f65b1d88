"""`metarl study NAME`: ready studies, of trained policies (sim2real) and of worlds (metaworld)."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from metarl.errors import UsageError
from metarl.experiments.options import choose, parse
from metarl.experiments.printing import print_json, print_table

STUDIES = {
    "sim2real": "RUN [RUN ...]: what policies would do on a robot unlike their simulator",
    "metaworld": "whether Meta-World's batched worlds do what its own environments do",
}
"""The studies there are."""

USAGE = """usage: metarl study NAME [RUN ...] [OPTIONS]

NAME is one of
{names}

metarl study NAME --help lists the options of a study."""


@dataclass(frozen=True)
class Options:
    """Compare trained policies on robots unlike their simulator, on one HTML page.

    The runs are of one family with a randomisation. Sweeps of one and two quantities, a surrogate
    of the real robot, a search for tasks where the first run fails, and the time a step takes.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """run folders; the first is the policy that is studied, seeds of an agent are put together"""
    tasks: int = 128
    """tasks of each setting"""
    worlds: int = 16
    """worlds at each point of a sweep and in each failure"""
    grid: int = 9
    """points of a sweep, and along each side of a heat map"""
    budget: int = 512
    """candidates of the search for failures"""
    pair: tuple[str, ...] = ()
    """two quantities of the heat maps; empty takes those that change the return most"""
    episodes: int = 0
    """episodes of a trial; 0 takes those of the first run"""
    seed: int = 0
    """decides on tasks, candidates and luck"""
    threads: int = 0
    """threads for physics and torch; 0 is one for each processor, and one for torch"""
    out: str = ""
    """HTML file to write; empty is sim2real.html in the evaluation folder of the first run"""
    json: bool = False
    """print one JSON object as the last line"""


@dataclass(frozen=True)
class MetaWorldOptions:
    """Compare Meta-World's batched worlds with the package's own environments, skill by skill.

    Both are given the same random actions, and the same actions of the package's scripted policies.
    All skills take a few minutes.
    """

    skills: tuple[str, ...] = ()
    """which skills; empty takes all 50"""
    goals: int = 5
    """goals of each skill"""
    steps: int = 500
    """steps from each goal, under each kind of actions; an episode has 500"""
    seed: int = 0
    """decides on goals and random actions"""
    json: bool = False
    """print one JSON object as the last line"""


def main(args: list[str]) -> int:
    """Run `metarl study`."""
    if args and args[0] in ("-h", "--help"):
        names = "\n".join(f"  {name:<10}{words}" for name, words in STUDIES.items())
        print(USAGE.format(names=names))
        return 0
    if not args or args[0].startswith("-"):
        raise UsageError(f"study: name a study, one of {', '.join(STUDIES)}")
    studies = {"sim2real": _sim2real, "metaworld": _metaworld}
    return studies[choose("study", args[0], STUDIES)](args[1:])


def _sim2real(args: list[str]) -> int:
    """Measure, write the page and print its table."""
    options = parse(Options, args, "metarl study sim2real")
    from metarl.envs.surrogate import Surrogate
    from metarl.experiments.loading import use_threads
    from metarl.experiments.sim2real import run_study
    from metarl.experiments.sim2real_agents import Plan, open_contenders
    from metarl.experiments.sim2real_findings import figures, headline
    from metarl.experiments.sim2real_page import write_study

    plan = Plan(
        tasks=options.tasks,
        worlds=options.worlds,
        grid=options.grid,
        budget=options.budget,
        episodes=options.episodes,
        seed=options.seed,
        threads=use_threads(options.threads),
        pair=options.pair,
    )
    contenders, robot = open_contenders(options.runs, options.episodes)
    usual = options.runs[0] / "evaluation" / "sim2real.html"
    out = Path(options.out) if options.out else usual
    if out.suffix != ".html":
        raise UsageError(f"study sim2real: --out must be a file that ends with .html, got {out}")
    study = run_study(contenders, robot, plan, Surrogate(), _say)
    files = write_study(study, out, shlex.join(["metarl", "study", "sim2real", *args]))
    found = figures(study)
    print_table(_rows(found["settings"]))
    print(headline(study))
    print(f"saved {files.page}, {files.figures} and {files.failures}")
    if options.json:
        paths = {"out": str(files.page), "figures": str(files.figures)}
        print_json({**found, **paths, "failures_file": str(files.failures)})
    return 0


def _metaworld(args: list[str]) -> int:
    """Compare skill by skill, and print what came out."""
    options = parse(MetaWorldOptions, args, "metarl study metaworld")
    for name, value in (("goals", options.goals), ("steps", options.steps)):
        if value < 1:
            raise UsageError(f"study metaworld: --{name} must be at least 1, got {value}")
    from metarl.experiments import metaworld_study as study

    skills = study.chosen_skills(options.skills)
    interval = 0.2 if sys.stderr.isatty() else 30.0
    found = {}
    with tqdm(total=2 * len(skills) * options.steps, unit="step", mininterval=interval) as bar:
        for skill in skills:
            bar.set_description(skill, refresh=False)
            found[skill] = study.study_skill(
                skill, options.goals, options.steps, options.seed, bar.update
            )
    result = study.figures(found)
    print_table(study.rows(result))
    print(study.headline(result))
    if options.json:
        settings = {"goals": options.goals, "steps": options.steps, "seed": options.seed}
        print_json({**result, **settings})
    return 0


def _say(line: str) -> None:
    """Progress is for those who wait."""
    print(line, flush=True)


def _rows(settings: dict[str, dict[str, dict[str, list[float]]]]) -> list[dict[str, object]]:
    """A line for each agent in each setting."""
    return [
        {
            "setting": name,
            "agent": agent,
            "first episode": summary["mean"][0],
            "last episode": summary["mean"][-1],
            "low": summary["mean_low"][-1],
            "high": summary["mean_high"][-1],
        }
        for name, agents in settings.items()
        for agent, summary in agents.items()
    ]
