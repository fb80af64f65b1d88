"""Throughput of simulated worlds, and its ratio to a named peer measured in the same run.

Both sides are given the same random actions, which are drawn beforehand.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from statistics import median
from typing import Any, Literal, get_args

import gymnasium as gym
import torch
from mujoco.batch import Batch
from torch import Tensor

from metarl.envs.metaworld.families import MetaWorld
from metarl.envs.physics import PhysicsWorlds
from metarl.envs.robot_worlds import RobotWorlds
from metarl.errors import UsageError
from metarl.experiments.bench_metaworld import envpool_task, gymnasium_worlds, package_worlds
from metarl.experiments.timing import Side, check_windows, measure, median_ratio, torch_threads
from metarl.tasks import Family
from metarl.vector import VectorEnv

Peer = Literal["none", "bare", "gymnasium", "envpool", "shared-model", "metaworld"]
PEERS: tuple[Peer, ...] = get_args(Peer)

MOST_PROCESSES = 32
"""worlds of Meta-World in processes of their own, at most"""
ACTION_BATCHES = 32
"""How many random action batches are drawn; the windows go round them."""
RANDOMISED_FIELDS = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
RANDOMISED_RANGE = 1.2
"""Randomised model fields are scaled, element by element, by this number to the power U[-1, 1]."""


def bench_rollout(
    family: Family,
    num_worlds: int = 256,
    threads: int = 1,
    device: torch.device | str = "cpu",
    peer: Peer = "none",
    *,
    randomize: bool = False,
    windows: int = 15,
    seconds: float = 0.5,
) -> dict[str, Any]:
    """Time worlds of `family` under random actions: observation, reward and autoreset included.

    Args:
        family: whose worlds to step, each with a training task of its own.
        num_worlds: worlds stepped together, on both sides.
        threads: threads of the physics, on both sides; torch itself uses one.
        device: where observations and rewards go.
        peer: `bare` is MuJoCo's batch alone, without observation, reward or reset, from the same
            states; `gymnasium` the faster of its sync and async vector modes; `shared-model` our
            own worlds without randomised models (implies `randomize`); `metaworld` the package's
            own environments, one after the other.
        randomize: give every world its own masses, inertias, damping and friction.
        windows: timed windows per side.
        seconds: length of a window.

    Returns:
        `value` and `peer_value` (medians, in `unit`), `ratio`, the single windows and the settings.

    Raises:
        UsageError: for a peer that the family does not have or that is not installed.
    """
    _check(family, num_worlds, threads, peer, windows, seconds)
    where = torch.device(device)
    randomize = randomize or peer == "shared-model"
    # The physics owns the cores: torch's threads would wait for each other on a busy machine.
    with torch_threads(1):
        env = _started(family, num_worlds, threads, where)
        if randomize:
            _physics_worlds(env, "--randomize").physics.randomise(_random_fields(env))
        actions = _random_actions(family, num_worlds, where)
        ours = Side(env.step, actions)
        theirs = _PEERS[peer](ours, env, threads) if peer != "none" else None
        try:
            sides = [ours] if theirs is None else [ours, theirs]
            measure(sides, windows, seconds, per_step=num_worlds)
        finally:
            for side in (ours, theirs):
                if side is not None:
                    side.close()
    return {
        "family": family.name,
        "num_worlds": num_worlds,
        "threads": threads,
        "device": str(where),
        "randomized": randomize,
        "value": median(ours.rates),
        "unit": "steps/s",
        "peer": peer,
        "peer_mode": None if theirs is None else theirs.name or peer,
        "peer_value": None if theirs is None else median(theirs.rates),
        "ratio": None if theirs is None else median_ratio(ours.rates, theirs.rates),
        "windows": ours.rates,
        "peer_windows": None if theirs is None else theirs.rates,
    }


def _check(
    family: Family, num_worlds: int, threads: int, peer: str, windows: int, seconds: float
) -> None:
    check_windows("rollout", windows, seconds)
    counts = {"num-worlds": num_worlds, "threads": threads}
    for name, value in counts.items():
        if value < 1:
            raise UsageError(f"bench rollout: --{name} must be at least 1, got {value}")
    if peer not in PEERS:
        raise UsageError(f"bench rollout: unknown peer {peer!r}; choose from {', '.join(PEERS)}")
    known = isinstance(family, MetaWorld) or hasattr(family, "gymnasium_id")
    if peer in ("gymnasium", "envpool") and not known:
        raise UsageError(f"bench rollout: {peer} has no {family.name}; choose --peer none")


def _started(family: Family, num_worlds: int, threads: int, device: torch.device) -> VectorEnv:
    """Worlds that were just reset, each with its own task."""
    env = family.make_worlds(num_worlds, device=device, seed=0, threads=threads)
    env.set_tasks(family.sample_tasks(num_worlds, "train", torch.Generator().manual_seed(0)))
    env.reset()
    return env


def _physics_worlds(env: VectorEnv, option: str) -> PhysicsWorlds:
    if not isinstance(env, PhysicsWorlds):
        raise UsageError(
            f"bench rollout: {option} needs physics of one model, {env.family.name} has none"
        )
    return env


def _random_actions(family: Family, num_worlds: int, device: torch.device) -> list[Tensor]:
    """`ACTION_BATCHES` batches of uniform actions."""
    generator = torch.Generator().manual_seed(1)
    space = family.action_space
    if isinstance(space, gym.spaces.Discrete):
        shape = (ACTION_BATCHES, num_worlds)
        return list(torch.randint(int(space.n), shape, generator=generator).to(device))
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    u = torch.rand(ACTION_BATCHES, num_worlds, len(low), generator=generator)
    return list((low + (high - low) * u).to(device))


def _random_fields(env: VectorEnv) -> Mapping[str, Tensor]:
    """Every world's own values of the randomised model fields."""
    generator = torch.Generator().manual_seed(2)
    model = _physics_worlds(env, "--randomize").physics.model.compiled
    fields = {}
    for name in RANDOMISED_FIELDS:
        values = torch.from_numpy(getattr(model, name).copy())
        u = torch.rand(env.num_envs, *values.shape, generator=generator, dtype=torch.float64)
        fields[name] = values * RANDOMISED_RANGE ** (2 * u - 1)
    return fields


def _bare(ours: Side, env: VectorEnv, threads: int) -> Side:
    """MuJoCo's batch alone, from the states in which our windows start."""
    worlds = _physics_worlds(env, "--peer bare")
    physics = worlds.physics
    batch = Batch(physics.model.compiled, env.num_envs, threads)
    fields = {name: values for name, values in physics.state_dict().items() if "model." in name}
    for name, values in fields.items():
        batch.expand(name.removeprefix("model."))[...] = values.numpy()
    if fields:
        batch.set_const()
    start = batch.state.copy()
    ctrl = batch.bind("ctrl")

    def remember() -> None:
        start[...] = physics.state_dict()["rows"].numpy()

    def begin() -> None:
        batch.state[...] = start

    def step(command: Any) -> None:
        ctrl[...] = command
        batch.step(nstep=worlds.n_substeps)

    ours.begin = remember
    assert isinstance(worlds, RobotWorlds)
    return Side(step, [worlds.commands(a).double().numpy() for a in ours.actions], begin)


def _shared_model(ours: Side, env: VectorEnv, threads: int) -> Side:
    """Our own worlds, all on one model."""
    return Side(_started(env.family, env.num_envs, threads, env.device).step, ours.actions)


def _gymnasium_id(family: Family) -> str:
    """What gymnasium and envpool call the robot of `family`."""
    name: str = getattr(family, "gymnasium_id")  # noqa: B009
    return name


def _options(family: Family, peer: Peer) -> dict[str, Any]:
    """What a peer must be told so that it does the same work."""
    return dict(getattr(family, f"{peer}_options", {}))


def _make_vec(family: Family, num_worlds: int, mode: str) -> gym.vector.VectorEnv[Any, Any, Any]:
    """Gymnasium's own worlds of the robot, just reset."""
    worlds = gym.make_vec(
        _gymnasium_id(family),
        num_worlds,
        vectorization_mode=mode,
        max_episode_steps=family.horizon,
        **_options(family, "gymnasium"),
    )
    worlds.reset(seed=0)
    return worlds


def _gymnasium(ours: Side, env: VectorEnv, threads: int) -> Side:
    """The faster of gymnasium's vector modes; each is timed briefly to find out."""
    actions = [a.cpu().numpy() for a in ours.actions]
    metaworld = isinstance(env.family, MetaWorld)
    # Processes with Meta-World's models take 100 MB each.
    modes = ("sync",) if metaworld and env.num_envs > MOST_PROCESSES else ("sync", "async")
    sides = []
    for mode in modes:
        made = gymnasium_worlds if metaworld else _make_vec
        worlds = made(env.family, env.num_envs, mode)  # type: ignore[arg-type]
        sides.append(Side(worlds.step, actions, close=worlds.close, name=f"gymnasium {mode}"))
        measure(sides[-1:], windows=3, seconds=0.3)
    *slow, fast = sorted(sides, key=lambda side: median(side.rates))
    for side in slow:
        side.close()
    fast.rates = []
    return fast


def _envpool(ours: Side, env: VectorEnv, threads: int) -> Side:
    """The worlds of envpool, in C++."""
    family = env.family
    if isinstance(family, MetaWorld):
        name, options = envpool_task(family)
    else:
        name, options = _gymnasium_id(family), _options(family, "envpool")
    try:
        envpool = importlib.import_module("envpool")
    except ImportError as error:
        raise UsageError(
            "bench rollout: envpool is not installed; install it with: pip install 'metarl[bench]' "
            f"({error})"
        ) from None
    worlds = envpool.make(
        name,
        env_type="gymnasium",
        num_envs=env.num_envs,
        num_threads=threads,
        max_episode_steps=env.horizon,
        **options,
    )
    worlds.reset()
    actions = [a.cpu().numpy().astype(worlds.action_space.dtype) for a in ours.actions]
    return Side(worlds.step, actions, close=worlds.close)


def _metaworld(ours: Side, env: VectorEnv, threads: int) -> Side:
    """The package's own environments in one process, at the same tasks; threads do not help it."""
    family = env.family
    if not isinstance(family, MetaWorld):
        raise UsageError(
            f"bench rollout: {family.name} is no family of Meta-World; choose --peer none"
        )
    assert env.tasks is not None
    worlds = package_worlds(family, env.num_envs)
    worlds.set_tasks(env.tasks)
    worlds.reset()
    return Side(worlds.step, [a.cpu() for a in ours.actions], close=worlds.close)


_PEERS: dict[str, Callable[[Side, VectorEnv, int], Side]] = {
    "bare": _bare,
    "gymnasium": _gymnasium,
    "envpool": _envpool,
    "shared-model": _shared_model,
    "metaworld": _metaworld,
}
