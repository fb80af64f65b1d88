"""What `metarl bench update varibad` times: gradient steps of the auto-encoder, and iterations.

An update is what makes VariBAD differ from any other policy that PPO trains: trials out of the
buffer, the bound on all of their terms, and its gradient, in the sizes in which `metarl train` runs
by default.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from time import perf_counter
from typing import Any, cast

import torch

from metarl.agents.varibad import VariBAD, VariBADConfig
from metarl.envs.registry import make_family
from metarl.experiments.plain_varibad import PlainVAE
from metarl.experiments.presets import preset
from metarl.experiments.timing import Stopwatch, Workload, synchronize
from metarl.rollout import run_trials
from metarl.tasks import Family, TaskBatch


def varibad(device: torch.device, *, family: str = "gridnavi", whole: bool = False) -> Workload:
    """The auto-encoder, trials of the untrained policy, and the loop over terms as its peer.

    Args:
        device: where networks and trials are.
        family: whose preset is measured.
        whole: time whole iterations of training, too, in worlds of their own.
    """
    settings = preset("varibad", family)
    made, config = make_family(family, **settings["family"]), VariBADConfig(**settings["agent"])
    agent = VariBAD(replace(config, vae_updates=1), made.spec(), device=device)
    _fill(agent, made)
    worlds = settings["training"]["num_worlds"]

    def loop() -> Callable[[], object]:
        peer = PlainVAE(agent)
        return lambda: peer.update(agent.sample())

    def further(windows: int) -> dict[str, Any]:
        other = VariBAD(config, made.spec(), device=device)
        return whole_iterations(other, made, worlds, windows) if whole else {}

    steps = made.episodes * made.horizon
    facts = {
        "family": family,
        "trials": config.vae_batch,
        "steps": steps,
        "beliefs": config.beliefs or steps + 1,
        "decodes": config.decodes or steps,
        "reward_decoder": config.reward_decoder,
    }
    return Workload(
        agent.infer, "updates/s", {"loop": loop}, facts, {"sampling": agent.sample}, further
    )


def _fill(agent: VariBAD, family: Family) -> None:
    """Put a trial in each of as many worlds as a gradient step has trials into the buffer."""
    env = family.make_worlds(agent.config.vae_batch, device=agent.trials.device)
    env.set_tasks(family.sample_tasks(env.num_envs, "train", agent.task_generator))
    rollout = run_trials(agent.policy(deterministic=False), env, family.episodes)
    agent.remember(rollout, cast(TaskBatch, env.tasks).features())


def whole_iterations(agent: VariBAD, family: Family, worlds: int, count: int) -> dict[str, Any]:
    """Time iterations of training: a trial in every world, PPO, gradient steps on the buffer.

    Args:
        agent: trains while it is timed.
        family: of the worlds, which get as many threads as torch has.
        worlds: how many there are.
        count: of iterations, after one that is not counted.

    Returns:
        `whole_seconds` of an iteration, `whole_rate`, the environment's steps a second with all
        that is learned from them, and which share is spent where: in the stepping of the worlds
        (`simulation_share`), PPO (`ppo_share`), the auto-encoder's gradient steps (`vae_share`),
        and in acting, the belief included, and what little else there is (`policy_share`); medians.
    """
    threads, device = torch.get_num_threads(), agent.trials.device
    env = family.make_worlds(worlds, device=device, seed=0, threads=threads)
    watches = {
        "simulation": Stopwatch(env, "step", "reset"),
        "ppo": Stopwatch(agent, "prepare", "update"),
        "vae": Stopwatch(agent, "infer"),
    }
    seconds, rates = [], []
    shares: dict[str, list[float]] = {name: [] for name in ("simulation", "policy", "ppo", "vae")}
    for _ in range(count + 1):
        for watch in watches.values():
            watch.clear()
        synchronize()
        start = perf_counter()
        steps = agent.train_step(env, 0.0)["steps"]
        synchronize()
        seconds.append(perf_counter() - start)
        rates.append(steps / seconds[-1])
        for name, watch in watches.items():
            shares[name].append(watch.seconds / seconds[-1])
        shares["policy"].append(1.0 - sum(shares[name][-1] for name in watches))
    return {
        "whole_seconds": median(seconds[1:]),
        "whole_rate": median(rates[1:]),
        **{f"{name}_share": median(each[1:]) for name, each in shares.items()},
    }
