"""What worlds are timed against: the same robots in other simulators, or in our own ones."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from statistics import median
from typing import Any, Literal, get_args

import gymnasium as gym
from mujoco.batch import Batch

from metarl.envs.metaworld.families import MetaWorld
from metarl.envs.physics import CpuPhysics
from metarl.envs.robot_worlds import RobotWorlds
from metarl.errors import UsageError
from metarl.experiments.bench_metaworld import envpool_task, gymnasium_worlds, package_worlds
from metarl.experiments.bench_worlds import physics_worlds, started
from metarl.experiments.timing import Side, measure
from metarl.tasks import Family
from metarl.vector import VectorEnv

Peer = Literal["none", "cpu", "bare", "gymnasium", "envpool", "shared-model", "metaworld"]
PEERS: tuple[Peer, ...] = get_args(Peer)

MOST_PROCESSES = 32
"""worlds of Meta-World in processes of their own, at most"""


def _bare(ours: Side, env: VectorEnv, threads: int) -> Side:
    """MuJoCo's batch alone, from the states in which our windows start."""
    worlds = physics_worlds(env, "--peer bare")
    physics = worlds.physics
    if not isinstance(physics, CpuPhysics):
        raise UsageError(
            "bench rollout: --peer bare is MuJoCo's batch in the states of our own on the CPU, and "
            "these worlds are simulated by MuJoCo Warp; choose --peer cpu"
        )
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
    commands = [worlds.commands(a).double().numpy() for a in ours.actions]
    return Side(step, commands, begin, per_step=env.num_envs)


def _shared_model(ours: Side, env: VectorEnv, threads: int) -> Side:
    """Our own worlds, all on one model."""
    return Side(
        started(env.family, env.num_envs, threads, env.device).step,
        ours.actions,
        per_step=env.num_envs,
    )


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
        name = f"gymnasium {mode}"
        sides.append(
            Side(worlds.step, actions, close=worlds.close, name=name, per_step=env.num_envs)
        )
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
    return Side(worlds.step, actions, close=worlds.close, per_step=env.num_envs)


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
    actions = [a.cpu() for a in ours.actions]
    return Side(worlds.step, actions, close=worlds.close, per_step=env.num_envs)


BUILDERS: dict[str, Callable[[Side, VectorEnv, int], Side]] = {
    "bare": _bare,
    "gymnasium": _gymnasium,
    "envpool": _envpool,
    "shared-model": _shared_model,
    "metaworld": _metaworld,
}
"""by name, what builds a peer of our side, of its worlds, with so many threads"""
