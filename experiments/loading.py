"""Build agents and families by name, and rebuild those of a run from its folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from metarl.checkpoint import load_checkpoint
from metarl.configs import from_plain
from metarl.devices import find_device
from metarl.envs.registry import family_class
from metarl.errors import UsageError
from metarl.experiments.agents import AGENTS
from metarl.experiments.fewshot import PREFIX
from metarl.experiments.options import choose, choose_family
from metarl.oracle import TaskInObservation
from metarl.policy import Agent
from metarl.runs import RunConfig, RunFolder
from metarl.tasks import Family


@dataclass(frozen=True)
class LoadedRun:
    """A trained agent with the family that it was trained on."""

    folder: RunFolder
    """where it is from"""
    agent: Agent
    """as of the newest good checkpoint"""
    family: Family
    """as the agent sees it: an oracle's shows the task"""
    step: int
    """environment steps that the agent was trained for"""

    @property
    def config(self) -> RunConfig:
        """Every value that the run was trained with."""
        return self.folder.config


def check_device(name: str, family: Family | None = None) -> torch.device:
    """Return the device called `name`, on which worlds of `family` can live if it is given.

    Raises:
        UsageError: if there is no such device here, or something is missing for these worlds.
    """
    device = find_device(name)
    if family is not None:
        family.require_device(device)
    return device


def use_threads(threads: int) -> int:
    """Let torch work with `threads` threads and return how many the physics shall have.

    0 gives the physics one for each processor and torch a single one: these networks are so small
    that on a busy machine threads of torch would mostly wait for each other.

    Raises:
        UsageError: if `threads` is negative.
    """
    if threads < 0:
        raise UsageError(f"--threads must be 0 or more, got {threads}")
    torch.set_num_threads(threads or 1)
    return threads or os.cpu_count() or 1


def as_seen_by(agent: str, family: Family, config: Any = None) -> Family:
    """The family as the agent called `agent` sees it: with the task shown, if it is an oracle.

    Some agents are oracles always, others where their `config` says `sees_task`.
    """
    sees_task = AGENTS[agent].sees_task or getattr(config, "sees_task", False)
    return TaskInObservation.of(family) if sees_task else family


def build_agent(
    name: str, config: Any, family: Family, *, seed: int, device: torch.device | str
) -> Agent:
    """Build the agent called `name` for `family`, which `as_seen_by` has prepared."""
    agent: Agent = AGENTS[name].agent_class()(config, family.spec(), seed=seed, device=device)
    return agent


def family_of(config: RunConfig, where: str) -> Family:
    """The family that a run was trained on, without its worlds.

    Raises:
        UsageError: if this version knows no such family or the options are not its.
    """
    module, own, _ = config.family.partition(":")
    if own and module not in sys.modules:
        # A file must not decide what is imported; the user may.
        raise UsageError(
            f"{where} names the family {config.family}, which is not part of metarl: import "
            f"{module} first, on the command line with metarl --import {module} COMMAND"
        )
    if not own:
        choose_family(config.family, f"family in {where}")
    options: Mapping[str, Any] = config.family_options
    return from_plain(family_class(config.family), options, f"{where}: family_options")


def open_agent_folder(path: Path) -> RunFolder:
    """Open the folder of a run that trained an agent.

    Raises:
        UsageError: if it is no run folder, or one of `metarl fewshot`.
    """
    folder = RunFolder.open(path)
    config = folder.config
    if config.agent.startswith(PREFIX):
        method = config.agent.removeprefix(PREFIX)
        raise UsageError(
            f"{path} holds a few-shot learner, which has no worlds to act in; it is judged and "
            f"drawn by metarl fewshot {method} {config.family} --run-dir {path} --resume"
        )
    return folder


def open_run(
    path: Path | str,
    device: str = "cpu",
    episodes: int = 0,
    rollouts: int = 0,
    horizon: int = 0,
) -> LoadedRun:
    """Rebuild the agent and the family of the run in `path`; nothing in it is executed.

    Args:
        path: a run folder, as `metarl train` makes it.
        device: where the agent shall live.
        episodes: of a trial, which some policies plan by; 0 takes those that it was trained with.
        rollouts: episodes that such a policy takes a gradient step after; 0 takes those, too.
        horizon: steps of an episode; 0 takes those, too. Memories still know how many they were
            trained on.

    Raises:
        UsageError: if it is no run folder, or none of its checkpoints is good or fits.
    """
    folder = open_agent_folder(Path(path))
    config, where = folder.config, f"{path}/config.yaml"
    choose(f"agent in {where}", config.agent, AGENTS)
    family = family_of(config, where)
    longer = {"horizon": horizon} if horizon else {}
    kind = AGENTS[config.agent].config_class()
    agent_config = from_plain(kind, config.agent_config, f"{where}: agent_config")
    if AGENTS[config.agent].plans:
        family = replace(family, episodes=episodes or family.episodes, **longer)
        agent_config = replace(agent_config, rollouts=rollouts or agent_config.rollouts)
    seen = as_seen_by(config.agent, family, agent_config)
    where_to = check_device(device, seen)
    agent = build_agent(config.agent, agent_config, seen, seed=0, device=where_to)
    family = as_seen_by(config.agent, replace(family, **longer), agent_config)
    checkpoint = load_checkpoint(folder.checkpoints, ["agent"])
    folder.require_own(checkpoint.labels, checkpoint.path)
    try:
        agent.load_state_dict(checkpoint.states["agent"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"checkpoint {checkpoint.path} does not fit: {reason}") from error
    return LoadedRun(folder, agent, family, checkpoint.step)


def load_run(path: Path | str, device: str = "cpu") -> tuple[Agent, Family, RunConfig]:
    """The agent, the family and the config of a run: what most scripts need; see `open_run`."""
    run = open_run(path, device)
    return run.agent, run.family, run.config
