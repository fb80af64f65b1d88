"""What a study compares: trained runs of one robot with one randomisation; and how much of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from metarl.envs.randomization import Parameters
from metarl.envs.robot import Robot
from metarl.errors import UsageError
from metarl.experiments.loading import LoadedRun, open_agent_folder, open_run
from metarl.experiments.records import RunRecord, grouped
from metarl.experiments.sim2real_measure import label_of, robot_of
from metarl.oracle import TaskInObservation
from metarl.runs import RunConfig, RunFolder

Kind = Literal["adaptive", "non-adaptive", "oracle"]


@dataclass(frozen=True)
class Plan:
    """How much to measure."""

    tasks: int = 128
    """tasks of each setting"""
    worlds: int = 16
    """worlds at each point of a sweep and in each failure; a quarter of them for heat maps"""
    grid: int = 9
    """points of a sweep, and along each side of a heat map"""
    budget: int = 512
    """candidates of the search for failures"""
    failures: int = 5
    """of them reported, inside of the training range and beyond it each"""
    episodes: int = 0
    """episodes of a trial; 0 takes those of the first run"""
    seed: int = 0
    """decides on tasks, candidates and luck"""
    threads: int = 1
    """of the physics"""
    pair: tuple[str, ...] = ()
    """two parameters of the heat maps; empty takes those that matter most"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot be measured."""
        least = {"tasks": 2, "worlds": 2, "grid": 3, "budget": 8, "failures": 1, "threads": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise UsageError(
                    f"study sim2real: {name} must be a whole number of at least {bound}, "
                    f"got {getattr(self, name)}"
                )
        if len(self.pair) not in (0, 2):
            raise UsageError(f"study sim2real: --pair takes two parameters, got {len(self.pair)}")


@dataclass(frozen=True)
class Contender:
    """An agent with its seeds."""

    label: str
    kind: Kind
    runs: tuple[LoadedRun, ...]


def open_contenders(paths: Sequence[Path], episodes: int = 0) -> tuple[list[Contender], Robot]:
    """Open runs for a study; seeds of an agent are put together.

    Args:
        paths: run folders; the first decides on the episodes of a trial where `episodes` is 0.
        episodes: of a trial.

    Returns:
        The agents in the order given, and the robot as they were trained on it, without extra
        tasks.

    Raises:
        UsageError: for runs that cannot be compared, or judged in this way.
    """
    if not paths:
        raise UsageError("study sim2real: name at least one run folder")
    folders = [open_agent_folder(path) for path in dict.fromkeys(paths)]
    first = folders[0]
    for folder in folders:
        _require_comparable(first, folder)
        if folder.config.agent_config.get("from_scratch"):
            raise UsageError(
                f"study sim2real: {folder.path} learns each task from scratch, which the thousands "
                "of trials of a study leave no time for; leave it out"
            )
    episodes = episodes or int(first.config.family_options["episodes"])
    contenders = []
    for group in grouped([RunRecord(folder, 0) for folder in folders]):
        runs = tuple(open_run(record.folder.path, episodes=episodes) for record in group.runs)
        contenders.append(Contender(group.label, kind_of(runs[0]), runs))
    robot = robot_of(contenders[0].runs[0].family)
    if not any(vary.low < vary.high for vary in robot.parameters.vary):
        raise UsageError(
            f"study sim2real: {first.path} was trained on {robot.name} without a randomisation of "
            "the robot; train on a family whose name ends with -rand-params, or with "
            "--family.randomize FILE"
        )
    plain = replace(robot.randomize, extra=(), extra_share=0.0)
    return contenders, replace(robot, episodes=episodes, randomize=plain)


def _require_comparable(first: RunFolder, other: RunFolder) -> None:
    """Raise `UsageError` unless both were trained on the same robot and randomisation.

    Trials may have other lengths, and training may have had extra tasks.
    """
    mine, theirs = first.config, other.config
    if mine.family != theirs.family:
        raise UsageError(
            f"study sim2real: {first.path} was trained on {mine.family}, {other.path} on "
            f"{theirs.family}; all runs must be of one family"
        )
    varied = [_varied(config) for config in (mine, theirs)]
    if varied[0] != varied[1]:
        here, there = (", ".join(map(_words, ranges)) or "none" for ranges in varied)
        raise UsageError(
            f"study sim2real: {first.path} and {other.path} were trained with different "
            f"randomisations: {here}; and {there}"
        )
    for name, value in mine.family_options.items():
        if name not in ("episodes", "randomize") and theirs.family_options.get(name) != value:
            raise UsageError(
                f"study sim2real: {first.path} was trained with {name} = {value!r}, {other.path} "
                f"with {theirs.family_options.get(name)!r}"
            )


def _varied(config: RunConfig) -> list[dict[str, Any]]:
    """What a run's robot was randomised in, as its config has it."""
    return list((config.family_options.get("randomize") or {}).get("vary", []))


def _words(vary: dict[str, Any]) -> str:
    """A range of `config.yaml` in words: everything that is not as usual."""
    plain = {"quantity": "", "low": "", "high": "", "distribution": "uniform", "each": False}
    usual = {**plain, "of": [], "beyond": 0.5}
    ends = f"{vary['quantity']} {vary['low']:g} to {vary['high']:g}"
    more = [f"{name} {x}" for name, x in vary.items() if usual[name] not in ("", x)]
    return " ".join([ends, *more])


def kind_of(run: LoadedRun) -> Kind:
    """Whether a policy is told the task, adapts to it, or neither."""
    if isinstance(run.family, TaskInObservation):
        return "oracle"
    plain = run.config.agent == "non-adaptive" or run.config.agent.startswith("sb3-")
    return "non-adaptive" if plain else "adaptive"


def choose_pair(parameters: Parameters, names: Sequence[str]) -> list[int]:
    """The indices of two `Vary` by name.

    Raises:
        UsageError: for names that the randomisation does not have, or the same twice.
    """
    ranged = {label_of(v): i for i, v in enumerate(parameters.vary) if v.low < v.high}
    chosen = []
    for name in names:
        label = name.replace("_", " ")
        if label not in ranged:
            raise UsageError(
                f"study sim2real: --pair: nothing called {name!r} is randomised; choose two of "
                f"{', '.join(repr(x) if ' ' in x else x for x in ranged)}"
            )
        chosen.append(ranged[label])
    if len(set(chosen)) < len(chosen):
        raise UsageError(f"study sim2real: --pair needs two different parameters, got {names[0]!r}")
    return chosen
