"""How far the batched worlds of Meta-World agree with the package's own environments.

Both are given the same tasks and the same actions, random ones and those of the package's scripted
policies, and are compared step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from metarl.envs.metaworld.experts import Experts
from metarl.envs.metaworld.families import FAMILIES, MetaWorld
from metarl.envs.metaworld.names import SKILLS
from metarl.experiments.options import choose
from metarl.tasks import TaskBatch
from metarl.vector import VectorEnv

AGREE = 1e-6
"""the largest difference, relative to numbers above 1, with which a skill agrees"""
DRIFT = 20
"""steps after which random actions drift elsewhere"""
WIDEST = 1.3
"""random actions reach beyond the action space, as policies do"""

Act = Callable[[Tensor], Tensor]
"""observations `[B, O]` to actions `[B, 4]`"""


@dataclass(frozen=True)
class Agreement:
    """What came out of the same actions in both kinds of worlds."""

    observation: float
    """largest difference of a number that was observed"""
    reward: float
    """largest difference of a reward"""
    success: int
    """steps of worlds that only one of both calls a success"""
    solved: float
    """share of the goals reached at any time in our worlds"""
    solved_package: float
    """the same in the package's"""

    @property
    def agrees(self) -> bool:
        """Whether both are the same, but for rounding."""
        return max(self.observation, self.reward) <= AGREE and self.success == 0


def compare(
    family: MetaWorld,
    tasks: TaskBatch,
    act: Act,
    steps: int,
    tick: Callable[[], object] = lambda: None,
) -> Agreement:
    """Step worlds of both kinds together, one for each task, each for `steps` steps.

    Args:
        family: with backend batch.
        tasks: of the family, T of them.
        act: is shown what our worlds observe.
        steps: control steps; beyond the horizon a new episode begins.
        tick: is called after every step.
    """
    ours = family.make_worlds(len(tasks))
    theirs = replace(family, backend="python").make_worlds(len(tasks))
    obs, package_obs = _begin(ours, tasks), _begin(theirs, tasks)
    differ = _largest(obs, package_obs)
    reward_differs, mismatches = 0.0, 0
    solved = torch.zeros(2, len(tasks), dtype=torch.bool)
    for _ in range(steps):
        actions = act(obs)
        obs, reward, _, _, info = ours.step(actions)
        package_obs, package_reward, _, _, package_info = theirs.step(actions)
        both = ((obs, package_obs), (info["final_obs"], package_info["final_obs"]))
        differ = max(differ, *(_largest(a, b) for a, b in both))
        reward_differs = max(reward_differs, _largest(reward, package_reward))
        success = torch.stack([info["success"], package_info["success"]]) > 0
        mismatches += int((success[0] != success[1]).sum())
        solved |= success
        tick()
    ours.close()
    theirs.close()
    share, package_share = solved.double().mean(-1).tolist()
    return Agreement(differ, reward_differs, mismatches, share, package_share)


def _begin(env: VectorEnv, tasks: TaskBatch) -> Tensor:
    env.set_tasks(tasks)
    return env.reset()[0]


def _largest(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to numbers above 1; NaN differs by infinity.

    Rewards go up to 10, where float32 has steps of 1e-6: the package rounds some to them.
    """
    difference = (a.double() - b.double()).abs() / b.double().abs().clamp_min(1.0)
    return float(difference.nan_to_num(nan=torch.inf).max())


def wandering(generator: torch.Generator) -> Act:
    """Random actions around a place that changes every `DRIFT` steps, so that the arm gets about.

    They leave the range from -1 to 1 at times, and do not depend on what is observed.
    """
    step, drift = 0, torch.empty(0)

    def act(obs: Tensor) -> Tensor:
        nonlocal step, drift
        if step % DRIFT == 0:
            drift = 2.0 * torch.rand(len(obs), 4, generator=generator) - 1.0
        step += 1
        noise = 0.5 * torch.randn(len(obs), 4, generator=generator)
        return (drift + noise).clamp(-WIDEST, WIDEST)

    return act


def chosen_skills(names: Sequence[str]) -> tuple[str, ...]:
    """The skills called so, or all of them if none is named.

    Raises:
        UsageError: for a name that is none of Meta-World's.
    """
    return tuple(choose("skill", name, SKILLS) for name in names) or SKILLS


def study_skill(
    skill: str, goals: int, steps: int, seed: int, tick: Callable[[], object] = lambda: None
) -> dict[str, Agreement]:
    """Compare worlds of one skill under `random` and under `expert` actions.

    Args:
        skill: its name.
        goals: how many of the benchmark's goals, each in a world of its own.
        steps: of each world and each kind of actions.
        seed: decides on the goals and the random actions.
        tick: is called after every step of all worlds.
    """
    family = FAMILIES[f"metaworld-mt1-{skill}"]()
    generator = torch.Generator().manual_seed(seed)
    tasks = family.sample_tasks(goals, "train", generator)
    acts = {"random": wandering(generator), "expert": Experts(family).act}
    return {name: compare(family, tasks, act, steps, tick) for name, act in acts.items()}


def figures(found: dict[str, dict[str, Agreement]]) -> dict[str, Any]:
    """What was found, for JSON: how many skills agree, what experts solve, and each skill."""
    agree = sum(all(a.agrees for a in each.values()) for each in found.values())
    experts = [each["expert"] for each in found.values()]
    return {
        "skills": {
            skill: {kind: {**vars(a), "agrees": a.agrees} for kind, a in each.items()}
            for skill, each in found.items()
        },
        "tolerance": AGREE,
        "compared": len(found),
        "agree": agree,
        "experts_solve": sum(a.solved for a in experts) / len(experts),
        "experts_solve_package": sum(a.solved_package for a in experts) / len(experts),
    }


def headline(result: dict[str, Any]) -> str:
    """One line that says what came out."""
    ours, theirs = result["experts_solve"], result["experts_solve_package"]
    beside = "" if ours == theirs else f" ({theirs:.0%} in the package's own environments)"
    words = f"{result['agree']} of {result['compared']} skills agree to {result['tolerance']:.0e}"
    return f"{words.replace('e-0', 'e-')}; experts solve {ours:.0%}{beside}".replace("%", " %")


def rows(result: dict[str, Any]) -> list[dict[str, object]]:
    """A line for each skill."""
    return [
        {
            "skill": skill,
            "observation differs": f"{max(a['observation'] for a in each.values()):.1e}",
            "reward differs": f"{max(a['reward'] for a in each.values()):.1e}",
            "success differs": sum(a["success"] for a in each.values()),
            "expert solves": f"{each['expert']['solved']:.0%}",
            "in the package": f"{each['expert']['solved_package']:.0%}",
            "agrees": "yes" if all(a["agrees"] for a in each.values()) else "NO",
        }
        for skill, each in result["skills"].items()
    ]
