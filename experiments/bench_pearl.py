"""What `metarl bench update pearl` times: an update as published, its plain peer and its floor.

The floor is the matrix products of an update alone: with whatever lies between them for free, an
update takes that long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F

from metarl.agents.pearl import Pearl, PearlConfig
from metarl.agents.sac import Variant
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.experiments.plain_pearl import PlainPearl
from metarl.experiments.presets import preset
from metarl.experiments.timing import Workload
from metarl.networks import action_dim
from metarl.tasks import Spec

FAMILY = "half-cheetah-vel"
TRANSITIONS = 2000
"""random transitions in the replay of every task"""

Product = tuple[int, int, int]
"""m, n, k of a product of `[m, k]` and `[k, n]`"""


def pearl(device: torch.device, *, variant: Variant = "paper") -> Workload:
    """PEARL as published for half-cheetah-vel (Rakelly et al. 2019), its replay full of noise.

    Args:
        device: where networks and replay are.
        variant: of SAC: `paper` is what was published.
    """
    room = {"capacity": TRANSITIONS, "context_capacity": TRANSITIONS}
    published = preset("pearl-paper", FAMILY)["agent"]
    config = PearlConfig(**{**published, **room, "variant": variant})
    spec = make_family(FAMILY).spec()
    agent = Pearl(config, spec, device=device)
    _fill(agent)
    products = pearl_products(config, spec)

    def plain() -> Callable[[], object]:
        peer = PlainPearl(agent)
        return lambda: peer.update(peer.sample())

    return Workload(
        run=lambda: agent.update(agent.sample()),
        unit="updates/s",
        peers={
            "plain": plain,
            "floor": lambda: floor(products, device),
            "onednn-floor": lambda: floor(products, device, onednn=True),
        },
        parts={"sampling": agent.sample},
        facts={
            "variant": variant,
            "family": FAMILY,
            "gflop": 2e-9 * sum(m * n * k for m, n, k in products),
        },
    )


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

    Raises:
        UsageError: if oneDNN is wanted but not there.
    """
    if onednn and not (device.type == "cpu" and torch.backends.mkldnn.is_available()):
        raise UsageError("bench update: there is no oneDNN here for --peer onednn-floor")
    operands = []
    for m, n, k in products:
        left, right = torch.randn(m, k, device=device), torch.randn(n, k, device=device)
        operands.append((left.to_mkldnn() if onednn else left, right))

    @torch.no_grad()
    def run() -> None:
        for left, right in operands:
            F.linear(left, right)

    return run
