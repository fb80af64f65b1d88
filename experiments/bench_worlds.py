"""The worlds that `metarl bench rollout` times, and what acts in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import gymnasium as gym
import torch
from torch import Tensor

from metarl.agents.rl2 import RL2, RL2Config
from metarl.envs.physics import PhysicsWorlds
from metarl.errors import UsageError
from metarl.experiments.timing import Side
from metarl.policy import AdaptivePolicy, Step
from metarl.tasks import Family
from metarl.vector import VectorEnv

Acting = Literal["none", "mlp", "gru"]
POLICIES: dict[Acting, dict[str, Any]] = {
    "none": {},
    "mlp": {"memory": False, "layers": (256, 256)},
    "gru": {"embedding": 128, "hidden": 128},
}
"""what may act, by its settings of RL²; nothing is random actions that are drawn beforehand"""
assert tuple(POLICIES) == get_args(Acting)

ACTION_BATCHES = 32
"""How many random action batches are drawn; the windows go round them."""
RANDOMISED_FIELDS = ("body_mass", "body_inertia", "dof_damping", "geom_friction")
RANDOMISED_RANGE = 1.2
"""Randomised model fields are scaled, element by element, by this number to the power U[-1, 1]."""


@dataclass(frozen=True)
class Setting:
    """Which worlds, where, and what acts in them."""

    family: Family
    threads: int
    """of the physics on a CPU"""
    device: torch.device
    randomize: bool = False
    """whether every world has its own masses, inertias, damping and friction"""
    policy: Acting = "none"

    def worlds(self, num_worlds: int) -> VectorEnv:
        """Worlds that were just reset, each with a task of its own."""
        env = started(self.family, num_worlds, self.threads, self.device)
        if self.randomize:
            physics_worlds(env, "--randomize").physics.randomise(random_fields(env))
        return env

    def side(self, env: VectorEnv) -> Side:
        """Steps of these worlds, to be timed."""
        if self.policy != "none":
            return Side(Player(env, acting(self.policy, env)).step, per_step=env.num_envs)
        actions = random_actions(self.family, env.num_envs, self.device)
        return Side(env.step, actions, per_step=env.num_envs)

    def on_cpu(self) -> Setting:
        """The same on the CPU, with MuJoCo's own physics."""
        family = self.family
        if any(field.name == "backend" for field in fields(family)):
            family = replace(family, backend="mujoco")  # type: ignore[call-arg]
        return replace(self, family=family, device=torch.device("cpu"))


class Player:
    """A policy that acts in worlds, as it does when it collects."""

    def __init__(self, env: VectorEnv, policy: AdaptivePolicy) -> None:
        """Begin trials in worlds that were just reset, each in a task of its own."""
        self.env, self.policy = env, policy
        policy.begin(env.num_envs, 1)
        self.obs = env.reset()[0]

    @torch.no_grad()
    def step(self, _: object = None) -> None:
        """One control step of all worlds."""
        action = self.policy.act(self.obs)
        self.obs, reward, terminated, truncated, info = self.env.step(action)
        self.policy.observe(Step(info["final_obs"], reward, terminated, truncated))


def acting(name: Acting, env: VectorEnv) -> AdaptivePolicy:
    """The untrained policy called `name`, which draws its actions."""
    agent = RL2(RL2Config(**POLICIES[name]), env.family.spec(), device=env.device)
    return agent.policy(deterministic=False)


def started(family: Family, num_worlds: int, threads: int, device: torch.device) -> VectorEnv:
    """Worlds that were just reset, each with its own task."""
    env = family.make_worlds(num_worlds, device=device, seed=0, threads=threads)
    env.set_tasks(family.sample_tasks(num_worlds, "train", torch.Generator().manual_seed(0)))
    env.reset()
    return env


def physics_worlds(env: VectorEnv, option: str) -> PhysicsWorlds:
    """The worlds, if they are on `Physics`, as `option` needs it.

    Raises:
        UsageError: if they are not.
    """
    if not isinstance(env, PhysicsWorlds):
        raise UsageError(
            f"bench rollout: {option} needs physics of one model, {env.family.name} has none"
        )
    return env


def random_actions(
    family: Family, num_worlds: int, device: torch.device | str = "cpu"
) -> list[Tensor]:
    """`ACTION_BATCHES` batches of uniform actions."""
    generator = torch.Generator().manual_seed(1)
    space = family.action_space
    if isinstance(space, gym.spaces.Discrete):
        shape = (ACTION_BATCHES, num_worlds)
        return list(torch.randint(int(space.n), shape, generator=generator).to(device))
    low, high = torch.from_numpy(space.low), torch.from_numpy(space.high)
    u = torch.rand(ACTION_BATCHES, num_worlds, len(low), generator=generator)
    return list((low + (high - low) * u).to(device))


def random_fields(env: VectorEnv) -> Mapping[str, Tensor]:
    """Every world's own values of the randomised model fields."""
    generator = torch.Generator().manual_seed(2)
    model = physics_worlds(env, "--randomize").physics.model.compiled
    drawn = {}
    for name in RANDOMISED_FIELDS:
        values = torch.from_numpy(getattr(model, name).copy())
        u = torch.rand(env.num_envs, *values.shape, generator=generator, dtype=torch.float64)
        drawn[name] = values * RANDOMISED_RANGE ** (2 * u - 1)
    return drawn
