"""Gradient steps a second of an agent in its published configuration, beside a named peer.

Peers: the update as one writes it down from the paper, and the matrix products of an update alone.
These are the floor: with whatever lies between them for free, an update takes that long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from metarl.agents.pearl import Pearl, PearlConfig
from metarl.agents.sac import Variant
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments.plain_pearl import PlainPearl
from metarl.experiments.presets import preset
from metarl.experiments.timing import Side, check_windows, measure, median_ratio, torch_threads
from metarl.networks import action_dim
from metarl.tasks import Spec

UpdatePeer = Literal["none", "plain", "floor", "onednn-floor"]
PEERS: tuple[UpdatePeer, ...] = get_args(UpdatePeer)

TRANSITIONS = 2000
"""random transitions in the replay of every task"""

Product = tuple[int, int, int]
"""m, n, k of a product of `[m, k]` and `[k, n]`"""


@dataclass(frozen=True)
class Workload:
    """An agent with all that it needs to update, and what to compare it with."""

    sample: Callable[[], Any]
    """draw from the replay what an update needs"""
    update: Callable[[Any], object]
    """one gradient step of all networks on that"""
    plain: Callable[[], Callable[[], object]]
    """build the plain peer; its sampling and update in one"""
    products: tuple[Product, ...]
    """the matrix products that an update cannot do without"""
    family: str
    """whose spaces the transitions have"""


def pearl(variant: Variant, device: torch.device) -> Workload:
    """PEARL as published for half-cheetah-vel (Rakelly et al. 2019), its replay full of noise."""
    family = "half-cheetah-vel"
    room = {"capacity": TRANSITIONS, "context_capacity": TRANSITIONS}
    published = preset("pearl-paper", family)["agent"]
    config = PearlConfig(**{**published, **room, "variant": variant})
    spec = make_family(family).spec()
    agent = Pearl(config, spec, device=device)
    _fill(agent)

    def plain() -> Callable[[], object]:
        peer = PlainPearl(agent)
        return lambda: peer.update(peer.sample())

    return Workload(agent.sample, agent.update, plain, pearl_products(config, spec), family)


WORKLOADS: dict[str, Callable[[Variant, torch.device], Workload]] = {"pearl": pearl}
"""the agents whose update can be measured"""


def _fill(agent: Pearl) -> None:
    """Put `TRANSITIONS` random transitions into the memories of every task."""
    generator, tasks = torch.Generator().manual_seed(0), agent.config.train_tasks
    shape, spec = (TRANSITIONS, tasks), agent.spec
    obs, next_obs = torch.randn(2, *shape, spec.obs_dim, generator=generator)
    action = 2.0 * torch.rand(*shape, len(agent.networks.sac.low), generator=generator) - 1.0
    reward = torch.randn(shape, generator=generator)
    parts = {"obs": obs, "action": action, "reward": reward, "next_obs": next_obs}
    agent.replay.add(torch.arange(tasks), **parts, terminated=torch.zeros(shape, dtype=torch.bool))
    on_device = [part.to(agent.device) for part in parts.values()]
    agent.contexts.add(torch.arange(tasks), x=agent.networks.transition(*on_device))


def products_of(
    rows: int, sizes: Sequence[int], weights: bool = True, inputs: int = 0
) -> list[Product]:
    """The products of a network on `rows`, forward and backward.

    Args:
        rows: R.
        sizes: widths from the input to the output.
        weights: whether its weights need gradients.
        inputs: how many of the input's numbers need gradients.
    """
    products = []
    for k, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        products.append((rows, fan_out, fan_in))
        if weights:
            products.append((fan_out, fan_in, rows))
        # The gradient goes on to the layer before, if anything there or before it needs one.
        passed = (weights or inputs > 0) * fan_in if k else inputs
        if passed:
            products.append((rows, passed, fan_out))
    return products


def pearl_products(config: PearlConfig, spec: Spec) -> tuple[Product, ...]:
    """The products of one update of PEARL; only z and actions need gradients of an input."""
    rows, contexts = config.meta_batch * config.batch, config.meta_batch * config.context
    actions, latent = action_dim(spec.action_space), config.latent
    state = spec.obs_dim + latent
    critic, value = (state + actions, *config.layers, 1), (state, *config.layers, 1)
    policy = (state, *config.layers, 2 * actions)
    encoder = (spec.obs_dim + actions + 1, *config.encoder_layers, 2 * latent)
    products = products_of(contexts, encoder) + products_of(rows, policy)
    products += 2 * products_of(rows, critic, inputs=latent)
    products += 2 * products_of(rows, critic, weights=False, inputs=actions)
    if config.variant == "paper":
        products += products_of(rows, value) + products_of(rows, value, weights=False)
    else:
        products += products_of(rows, policy, weights=False)
        products += 2 * products_of(rows, critic, weights=False)
    return tuple(products)


def floor(
    products: Sequence[Product], device: torch.device, onednn: bool = False
) -> Callable[[], object]:
    """Something that makes all `products`, by torch's own means or by oneDNN.

    Each has operands of its own, as in an update: none finds them in the cache by chance.
    """
    operands = []
    for m, n, k in products:
        left, right = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        operands.append((left.to_mkldnn() if onednn else left, right))

    @torch.no_grad()
    def run() -> None:
        for left, right in operands:
            F.linear(left, right)

    return run


def bench_update(
    agent: str = "pearl",
    variant: Variant = "paper",
    threads: int = 1,
    device: torch.device | str = "cpu",
    peer: UpdatePeer = "none",
    *,
    windows: int = 15,
    seconds: float = 0.5,
) -> dict[str, Any]:
    """Time updates of `agent`, sampling from replay included.

    Args:
        agent: one of `WORKLOADS`.
        variant: of SAC: `paper` is what was published.
        threads: of torch, on both sides.
        device: where networks and replay are.
        peer: `plain` is the update as one writes it down from the paper; `floor` the matrix
            products of an update alone, as torch makes them; `onednn-floor` as oneDNN does.
        windows: timed windows per side.
        seconds: length of a window.

    Returns:
        `value` and `peer_value` (medians, in `unit`), `ratio`, `sampling_share` of an update's
        time, `gflop` of an update's products, the single windows and the settings.

    Raises:
        UsageError: for a setting that cannot be measured.
    """
    where = torch.device(device)
    _check(agent, threads, where, peer, windows, seconds)
    with torch_threads(threads):
        work = WORKLOADS[agent](variant, where)
        ours = Side(lambda _: work.update(work.sample()))
        sampling = Side(lambda _: work.sample())
        sides = [ours, sampling]
        if peer != "none":
            run = work.plain() if peer == "plain" else floor(work.products, where, peer != "floor")
            sides.append(Side(lambda _: run()))
        measure(sides, windows, seconds)
    theirs = None if peer == "none" else sides[-1].rates
    return {
        "agent": agent,
        "variant": variant,
        "family": work.family,
        "threads": threads,
        "device": str(where),
        "value": median(ours.rates),
        "unit": "updates/s",
        "peer": peer,
        "peer_value": None if theirs is None else median(theirs),
        "ratio": None if theirs is None else median_ratio(ours.rates, theirs),
        "sampling_share": median_ratio(ours.rates, sampling.rates),
        "gflop": 2e-9 * sum(m * n * k for m, n, k in work.products),
        "windows": ours.rates,
        "peer_windows": theirs,
    }


def _check(
    agent: str, threads: int, device: torch.device, peer: str, windows: int, seconds: float
) -> None:
    check_windows("update", windows, seconds)
    if agent not in WORKLOADS:
        raise UsageError(
            f"bench update: unknown agent {agent!r}; choose from {', '.join(WORKLOADS)}"
        )
    if threads < 1:
        raise UsageError(f"bench update: --threads must be at least 1, got {threads}")
    if peer not in PEERS:
        raise UsageError(f"bench update: unknown peer {peer!r}; choose from {', '.join(PEERS)}")
    onednn = device.type == "cpu" and torch.backends.mkldnn.is_available()
    if peer == "onednn-floor" and not onednn:
        raise UsageError("bench update: there is no oneDNN here for --peer onednn-floor")
