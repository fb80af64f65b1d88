"""Meta-World's reference protocol: ten episodes to adapt in a goal, then three that count.

For each goal (Yu et al. 2020; the package's `evaluation.py`): 10 episodes in which a policy adapts,
then 3 whose success is averaged; 40 goals of each test skill; the mean over a skill's goals, then
over skills. An episode is a success if the skill's own measure is true at any of its steps. ML1 is
tested on goals of its one skill that it has not trained on, ML10, ML25 and ML45 on five other
skills, and the multi-task benchmarks on the tasks that they train on.

It is the one evaluation (`metarl.adaptation`) with 13 episodes in one world for each goal. Policies
with a memory keep what they learned through all 13. Those that take gradient steps take one, after
10 episodes, however many they had for it in training, and act by the result in the last 3. All
others just act.

Two traps of the package's own loop are not here. It ends episodes as soon as they succeed, and
counts the first 3 that end among all worlds of a skill: those that succeed end first, so that its
figure is too high. Here every goal has its 3 episodes. And here these go on for Meta-World's 500
steps, however short they were in training, which is the same measure for those who do not adapt,
and leaves those who do their whole experience for the next episode.

Shapes: `R` runs, `E` skills, `G` goals of each, `K` = 13 episodes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarl.adaptation import AdaptationCurve, evaluate, join
from metarl.errors import UsageError
from metarl.experiments.evaluation import Protocol, name_of, origin, policy_of, write_curve
from metarl.experiments.loading import LoadedRun, family_of, open_agent_folder, open_run
from metarl.experiments.metaworld import KEY, USUAL_HORIZON, inner, is_metaworld
from metarl.statistics import mean, stratified_bootstrap
from metarl.tasks import Split

Array = NDArray[np.float64]

NAME = "metaworld"
ADAPTATION, EVALUATION = 10, 3
"""episodes in which a policy adapts to a goal, and those that are counted"""
EPISODES = ADAPTATION + EVALUATION
GOALS = 40
"""of each test skill"""
ABOUT = (
    f"Meta-World's protocol, {GOALS} goals of each skill, {ADAPTATION} episodes to adapt in each, "
    f"then {EVALUATION} that count"
)
AT_ONCE = 100
"""Most goals that are tried at once: 6500 steps of each take 2 MB of memory."""


class VersionWarning(UserWarning):
    """Figures that must not be compared with most others."""


# --- measuring -----------------------------------------------------------------------------------


def measure(
    path: Path,
    *,
    split: Split = "held-out",
    seed: int = 0,
    stochastic: bool = False,
    device: str = "cpu",
    threads: int = 1,
) -> AdaptationCurve:
    """The curve over the protocol's 13 episodes of the run in `path`, goals sorted by skill.

    Args:
        path: the run's folder.
        split: held-out for the test skills and goals, train for those of training; benchmarks
            that test on what they train on have but one of them.
        seed: decides which 40 of a skill's 50 goals are tried.
        stochastic: draw actions instead of taking the most likely ones.
        device: where the agent lives.
        threads: of the physics.

    Raises:
        UsageError: if the run is not one on Meta-World, or on another version of it; for a split
            that its benchmark does not have.
    """
    trained_on = open_agent_folder(path).config.family
    if not is_metaworld(trained_on):
        raise UsageError(
            f"--protocol {NAME} is for runs on families of Meta-World, and {path} was trained on "
            f"{trained_on}"
        )
    run = open_run(path, device, EPISODES, rollouts=ADAPTATION, horizon=USUAL_HORIZON)
    about = origin(run)
    about["trained_horizon"] = family_of(run.config, str(path)).horizon
    if (version := about[KEY]["reward_version"]) != "v2":
        warnings.warn(
            f"run {path} learned from rewards {version} and is measured with them: do not compare "
            "its figures with those of v2, Meta-World's own default",
            VersionWarning,
            stacklevel=2,
        )
    split = "train" if run.family.shared_splits else split
    run.family.check_split(split)
    tasks = GOALS * len(inner(run.family).vectors(split))
    protocol = Protocol(tasks, EPISODES, split, seed, stochastic, 1, NAME)
    return _measure(run, protocol, about, device, threads)


def _measure(
    run: LoadedRun, protocol: Protocol, about: dict[str, Any], device: str, threads: int
) -> AdaptationCurve:
    """Try the goals, at most `AT_ONCE` of them at a time, skill after skill."""
    family, seed = run.family, protocol.seed
    generator = torch.Generator().manual_seed(seed)
    tasks: Any = family.sample_tasks(protocol.tasks, protocol.split, generator)
    which = tasks.which.argmax(-1)
    # Few skills at a time: simulations of one skill are stepped together, others apart.
    order = which.argsort(stable=True)
    skills = [inner(family).skills[index] for index in which[order].tolist()]
    info = {
        **about,
        "ablation": "none",
        "protocol": protocol.name,
        "split": protocol.split,
        "seed": seed,
        "stochastic": protocol.stochastic,
        "worlds_per_task": 1,
        "worlds_asked": 1,
        "skills": skills,
    }
    policy = policy_of(run, protocol.stochastic)
    curves = []
    for part in order.chunk(-(-protocol.tasks // AT_ONCE)):
        env = family.make_worlds(len(part), device=device, seed=seed, threads=threads)
        try:
            curves.append(evaluate(policy, env, tasks[part], EPISODES, seed=seed, info=info))
        finally:
            env.close()
    return join(curves)


def save(path: Path, curve: AdaptationCurve) -> Path:
    """Keep `curve` in the folder `path` of its run; gives the file's path.

    Raises:
        UsageError: if it cannot be written.
    """
    return write_curve(open_agent_folder(path).evaluation / name_of(curve), curve)


# --- figures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """A mean over goals with its 95 % interval, for which goals are resampled within skills."""

    mean: float
    low: float
    high: float

    def plain(self, name: str, prefix: str = "") -> dict[str, float]:
        """The three as `name`, `low` and `high`; the bounds with a prefix."""
        return {name: self.mean, f"{prefix}low": self.low, f"{prefix}high": self.high}


@dataclass(frozen=True)
class SkillResult:
    """One skill, in the episodes that count."""

    success: Estimate
    """share of episodes that succeed"""
    returns: Estimate
    """mean return of an episode"""

    def plain(self) -> dict[str, float]:
        """The contract of `--json`."""
        return {**self.success.plain("success"), **self.returns.plain("return", "return_")}


@dataclass(frozen=True)
class Result(SkillResult):
    """The mean over skills, and what it is the mean of."""

    skills: dict[str, SkillResult]
    """by name, in the benchmark's order"""
    episodes: list[Estimate]
    """`[K]`: success in each episode, mean over skills"""

    def plain(self) -> dict[str, Any]:
        """The contract of `--json`."""
        return {
            **super().plain(),
            "skills": {name: skill.plain() for name, skill in self.skills.items()},
            "episodes": [episode.plain("success") for episode in self.episodes],
        }


def result_of(curves: Sequence[AdaptationCurve]) -> Result:
    """The protocol's figures, of one curve or pooled over those of several seeds."""
    names = list(dict.fromkeys(curves[0].info["skills"]))
    success = np.stack([_by_skill(curve, curve.success, names) for curve in curves])
    counted = success[..., ADAPTATION:].mean(-1)
    returns = np.stack([_by_skill(curve, curve.returns, names) for curve in curves])
    returns = returns[..., ADAPTATION:].mean(-1)
    skills = {
        name: SkillResult(_estimate(counted[:, i]), _estimate(returns[:, i]))
        for i, name in enumerate(names)
    }
    return Result(
        success=_estimate(counted),
        returns=_estimate(returns),
        skills=skills,
        episodes=[_estimate(success[..., k]) for k in range(EPISODES)],
    )


def _by_skill(curve: AdaptationCurve, rows: Any, names: Sequence[str]) -> Array:
    """`rows` `[tasks][K]` as `[E, G, K]`."""
    own = np.asarray(curve.info["skills"])
    return np.stack([np.asarray(rows)[own == name] for name in names])


def _estimate(scores: Array) -> Estimate:
    """Mean of `[..., G]`, whose goals are resampled within each run and skill."""
    strata = scores.reshape(-1, scores.shape[-1])
    low, high = stratified_bootstrap(strata, mean)
    return Estimate(float(strata.mean()), float(low), float(high))


def rows_of(result: Result) -> list[dict[str, Any]]:
    """A table of skills, and their mean where there are several."""
    skills = dict(result.skills)
    if len(skills) > 1:
        skills["mean over skills"] = result
    return [
        {
            "skill": name,
            "success": skill.success.mean,
            "low": skill.success.low,
            "high": skill.success.high,
            "return": skill.returns.mean,
        }
        for name, skill in skills.items()
    ]


def plain(curve: AdaptationCurve) -> dict[str, Any]:
    """The contract of `--json`: the figures, and under which conditions they were measured."""
    info = curve.info
    return {
        **result_of([curve]).plain(),
        "protocol": NAME,
        "adaptation_episodes": ADAPTATION,
        "evaluation_episodes": EVALUATION,
        "goals": GOALS,
        "agent": info["agent"],
        "family": info["family"],
        **info[KEY],
        "steps": info["trained_steps"],
        "trained_horizon": info["trained_horizon"],
        "trained_seed": info["trained_seed"],
        "split": info["split"],
        "seed": info["seed"],
        "stochastic": info["stochastic"],
    }
