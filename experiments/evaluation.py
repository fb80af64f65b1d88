"""Evaluate the run in a folder, keep the curve there, and find it again."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metarl.adaptation import AdaptationCurve, evaluate
from metarl.devices import Room
from metarl.errors import UsageError
from metarl.experiments import metaworld
from metarl.experiments.agents import AGENTS
from metarl.experiments.loading import LoadedRun
from metarl.policy import AdaptivePolicy, worlds_per_task
from metarl.tasks import SPLITS, Family, Split


@dataclass(frozen=True)
class Protocol:
    """How to evaluate: which tasks, how often, with which luck."""

    tasks: int = 100
    """number of tasks"""
    episodes: int = 0
    """episodes per trial; 0 takes the family's"""
    split: Split = "held-out"
    """where the tasks are from"""
    seed: int = 0
    """decides on the tasks and on the luck of the worlds"""
    stochastic: bool = False
    """draw actions instead of taking the most likely ones"""
    worlds_per_task: int = 0
    """worlds in which a task is tried at once; 0 takes the agent's own number, usually 1"""
    name: str = ""
    """of a published protocol that says all this itself; empty for none"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot be evaluated."""
        if self.tasks < 1:
            raise UsageError(f"tasks must be a whole number above 0, got {self.tasks}")
        if min(self.episodes, self.seed, self.worlds_per_task) < 0:
            raise UsageError(
                "episodes, seed and worlds_per_task must be whole numbers of at least 0"
            )
        if self.split not in SPLITS:
            raise UsageError(f"split must be one of {', '.join(SPLITS)}, got {self.split!r}")


def evaluate_run(
    run: LoadedRun,
    protocol: Protocol,
    *,
    ablation: str = "none",
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> AdaptationCurve:
    """The adaptation curve of a run; equal calls give equal curves, and all runs equal tasks.

    Raises:
        UsageError: if the family has no such split, or the agent no such ablation.
    """
    run.family.check_split(protocol.split)
    policy = policy_of(run, protocol.stochastic, ablation)
    return evaluate_policy(
        policy,
        run.family,
        protocol,
        info={**origin(run), "ablation": ablation},
        own_worlds=worlds_per_task(run.agent),
        device=device,
        threads=threads,
    )


def origin(run: LoadedRun) -> dict[str, Any]:
    """What curves keep about the run that they are of.

    Raises:
        UsageError: if it was trained on another version of its benchmark than is installed.
    """
    return {
        "agent": run.config.agent,
        "family": run.config.family,
        "trained_steps": run.step,
        "trained_seed": run.config.training.get("seed"),
        **metaworld.origin(run),
    }


def evaluate_policy(
    policy: AdaptivePolicy,
    family: Family,
    protocol: Protocol,
    *,
    info: dict[str, Any],
    own_worlds: int = 1,
    device: torch.device | str = "cpu",
    threads: int = 1,
) -> AdaptationCurve:
    """The adaptation curve of any policy on tasks of `family`, as `evaluate_run` measures it.

    A task is tried in `own_worlds` at once where the protocol leaves that open.

    Raises:
        UsageError: if the family has no such split, or a memory is full.
    """
    family.check_split(protocol.split)
    generator = torch.Generator().manual_seed(protocol.seed)
    tasks = family.sample_tasks(protocol.tasks, protocol.split, generator)
    episodes, seed = protocol.episodes or family.episodes, protocol.seed
    worlds = protocol.worlds_per_task or own_worlds
    measured = {
        "split": protocol.split,
        "seed": seed,
        "stochastic": protocol.stochastic,
        "worlds_per_task": worlds,
        "worlds_asked": protocol.worlds_per_task,
    }
    with Room(device, protocol.tasks, worlds, "--tasks").watched():
        env = family.make_worlds(protocol.tasks * worlds, device=device, seed=seed, threads=threads)
        try:
            return evaluate(policy, env, tasks, episodes, seed=seed, info={**info, **measured})
        finally:
            env.close()


def ablations_of(run: LoadedRun) -> tuple[str, ...]:
    """What can be taken away from the memory of the run's agent, to see what it does."""
    return AGENTS[run.config.agent].ablations()


def save_curve(run: LoadedRun, curve: AdaptationCurve) -> Path:
    """Write `curve` into the run's folder and return the file's path.

    Raises:
        UsageError: if it cannot be written.
    """
    return write_curve(run.folder.evaluation / name_of(curve), curve)


def name_of(curve: AdaptationCurve) -> str:
    """A file name that tells how `curve` was measured."""
    info = curve.info
    what = f"{info['split']}-{len(curve.tasks)}x{curve.episodes}"
    if info.get("protocol"):
        what = f"protocol-{info['protocol']}" + "-train" * (info["split"] == "train")
    parts = [f"{what}-seed{info['seed']}"]
    parts += ["stochastic"] * info["stochastic"]
    asked = info["worlds_asked"] > 0 and not info.get("protocol")
    parts += [f"{info['worlds_asked']}-worlds"] * asked
    parts += [info["ablation"]] * (info["ablation"] != "none")
    return f"{'-'.join(parts)}.json"


def write_curve(path: Path, curve: AdaptationCurve) -> Path:
    """Write `curve` to `path` and return it.

    Raises:
        UsageError: if it cannot be written.
    """
    try:
        curve.save(path)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error
    return path


def saved_curves(folder: Path) -> list[AdaptationCurve]:
    """The curves that `save_curve` left in an evaluation folder, the oldest first."""
    paths = [path for path in folder.glob("*.json") if not path.name.startswith("step-")]
    return [
        AdaptationCurve.load(path) for path in sorted(paths, key=lambda path: path.stat().st_mtime)
    ]


def policy_of(run: LoadedRun, stochastic: bool = False, ablation: str = "none") -> AdaptivePolicy:
    """The policy of a run's agent, which takes the most likely actions unless `stochastic`.

    Raises:
        UsageError: if the agent has no such ablation.
    """
    agent: Any = run.agent
    if ablation == "none":
        policy: AdaptivePolicy = agent.policy(deterministic=not stochastic)
    elif ablation in ablations_of(run):
        policy = agent.policy(deterministic=not stochastic, ablation=ablation)
    else:
        raise UsageError(f"agent {run.config.agent} has no ablation {ablation!r}")
    return policy
