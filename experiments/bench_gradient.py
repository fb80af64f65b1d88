"""What `metarl bench update maml` and `promp` time: learning from the rounds of a meta-iteration.

An update is what follows the collecting: the outer step, with the adaptation that it passes
through. The rounds are noise, in the sizes that were published for half-cheetah-dir (Rothfuss et
al. 2019), and every update starts from the same parameters: all of them do the same work.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from statistics import median
from time import perf_counter
from typing import Any

import torch

from metarl.agents.gradient_adaptation import AdaptationConfig, Batch
from metarl.agents.gradient_agent import GradientAgent
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.promp import ProMP, ProMPConfig
from metarl.envs.registry import make_family
from metarl.experiments.plain_policy_gradient import PlainMAML, PlainProMP
from metarl.experiments.timing import Stopwatch, Workload, synchronize
from metarl.inner_loop import own_copies
from metarl.tasks import Family

FAMILY, PRESET = "half-cheetah-dir", "promp"


def maml(
    device: torch.device, *, meta_batch: int = 40, rollouts: int = 20, whole: bool = False
) -> Workload:
    """MAML with TRPO; see `workload`."""
    config = MAMLConfig(meta_batch=meta_batch, rollouts=rollouts)
    return workload(MAML, PlainMAML, config, device, whole)


def promp(
    device: torch.device, *, meta_batch: int = 40, rollouts: int = 20, whole: bool = False
) -> Workload:
    """ProMP; see `workload`."""
    config = ProMPConfig(meta_batch=meta_batch, rollouts=rollouts)
    return workload(ProMP, PlainProMP, config, device, whole)


def workload(
    kind: Callable[..., GradientAgent],
    plain: Callable[[Any], PlainMAML | PlainProMP],
    config: AdaptationConfig,
    device: torch.device,
    whole: bool,
) -> Workload:
    """An agent, rounds of noise, and the loop over tasks as its peer.

    Args:
        kind: the class of the agent.
        plain: the class of the peer.
        config: of the agent.
        device: where networks and rounds are.
        whole: time whole meta-iterations, too, in worlds of their own.
    """
    family = make_family(FAMILY, preset=PRESET)
    agent = kind(config, family.spec(), device=device)
    rounds = random_rounds(agent, torch.Generator(device).manual_seed(0))
    start = deepcopy(agent.state_dict())

    def update() -> None:
        agent.load_state_dict(start)
        agent.learn(rounds, 0.0)

    def loop() -> None:
        agent.load_state_dict(start)
        plain(agent).learn(rounds)

    def further(windows: int) -> dict[str, Any]:
        other = kind(config, family.spec(), device=device)
        return whole_iterations(other, family, windows) if whole else {}

    facts = {
        "family": FAMILY,
        "preset": PRESET,
        "meta_batch": config.meta_batch,
        "rollouts": config.rollouts,
        "horizon": family.spec().horizon,
    }
    return Workload(update, "iterations/s", {"loop": lambda: loop}, facts, further=further)


@torch.no_grad()
def random_rounds(agent: GradientAgent, generator: torch.Generator) -> list[Batch]:
    """A round before each gradient step and one after the last.

    Observations and advantages are normal; actions are drawn by the policy as it adapts to them.
    """
    config, spec = agent.config, agent.spec
    shape = config.meta_batch, config.rollouts * spec.horizon
    like: dict[str, Any] = {"device": generator.device, "dtype": agent.meta_parameters[0].dtype}

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=generator, **like)

    params = {name: p.detach() for name, p in own_copies(agent.network.start(), shape[0]).items()}
    rounds: list[Batch] = []
    for step in range(config.inner_steps + 1):
        if step:
            params = agent.network.adapted(rounds[-1:], params=params, second_order=False)
        obs = normal(*shape, spec.obs_dim)
        chances = agent.network.chances(params, obs)
        action = chances.sample(generator).to(like["dtype"])
        batch = Batch(
            obs=obs,
            action=action,
            advantage=normal(*shape),
            weight=torch.ones(shape, **like),
            log_prob=chances.log_prob(action),
            old=tuple(x.expand(shape[0], *x.shape[-2:]) for x in chances.parameters),
            elapsed=torch.arange(shape[1], device=generator.device).expand(shape) % spec.horizon,
            returns=normal(*shape),
            credit=normal(shape[0]),
        )
        rounds.append(batch)
    return rounds


def whole_iterations(agent: GradientAgent, family: Family, count: int) -> dict[str, Any]:
    """Time meta-iterations in real worlds: collect, adapt, collect, outer step.

    Args:
        agent: trains while it is timed.
        family: of the worlds, one for each rollout; they get as many threads as torch has.
        count: of iterations, after one that is not counted.

    Returns:
        `whole_seconds` of an iteration, and which share of it the outer step takes
        (`learning_share`) and the stepping of the worlds (`physics_share`); medians.
    """
    worlds = agent.config.meta_batch * agent.config.rollouts
    threads, device = torch.get_num_threads(), agent.generator.device
    env = family.make_worlds(worlds, device=device, seed=0, threads=threads)
    learning, physics = Stopwatch(agent, "learn"), Stopwatch(env, "step", "reset")
    whole, shares = [], []
    for _ in range(count + 1):
        learning.clear()
        physics.clear()
        synchronize()
        start = perf_counter()
        agent.train_step(env, 0.0)
        synchronize()
        whole.append(perf_counter() - start)
        shares.append((learning.seconds / whole[-1], physics.seconds / whole[-1]))
    of_learning, of_physics = zip(*shares[1:], strict=True)
    return {
        "whole_seconds": median(whole[1:]),
        "learning_share": median(of_learning),
        "physics_share": median(of_physics),
    }
