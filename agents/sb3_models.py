"""Models of Stable-Baselines3: their settings, how they are built, and how they act.

The algorithms are the library's own (Raffin et al. 2021); nothing of them is written here again.
Models stand behind `metarl.adapters.Bridge`: they act in [-1, 1], whatever the family's bounds are.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from metarl.adapters import Bridge, as_array
from metarl.errors import UsageError, require_between, require_positive, require_widths
from metarl.generators import PrivateGenerators
from metarl.policy import Step
from metarl.tasks import Spec

Model: TypeAlias = PPO | SAC | TD3


@dataclass(frozen=True)
class BaselineConfig:
    """What the baselines share; their defaults are the library's, with batches for many worlds."""

    sees_task: bool = False
    """show the task in the observation: what knowing it would be worth"""
    from_scratch: bool = False
    """begin every trial with new weights and learn within it: what knowing nothing costs"""
    layers: tuple[int, ...] = (256, 256)
    """hidden layers of the policy and of the critics"""
    learning_rate: float = 3e-4
    """Adam's step size"""
    gamma: float = 0.99
    """discount per step"""
    episodes_per_task: int = 1
    """episodes after which all worlds get new tasks"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        require_positive(self, ("learning_rate", "episodes_per_task"), "sb3")
        require_between(self, ("gamma",), "sb3", 0, 1)
        require_widths(self, ("layers",), "sb3")
        if self.sees_task and self.from_scratch:
            raise UsageError(
                "sb3: a model that learns one task from scratch has no use for sees_task; choose "
                "one of the two"
            )


@dataclass(frozen=True)
class PPOConfig(BaselineConfig):
    """Settings of PPO."""

    layers: tuple[int, ...] = (64, 64)
    """hidden layers of the policy and of the critic"""
    n_steps: int = 200
    """steps of every world in an iteration"""
    minibatches: int = 32
    """gradient steps per pass"""
    epochs: int = 10
    """passes over the steps of an iteration"""
    lam: float = 0.95
    """lambda of GAE"""
    clip: float = 0.2
    """PPO's epsilon"""
    entropy: float = 0.0
    """weight of the entropy bonus"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("minibatches", "epochs", "clip"), "sb3-ppo")
        require_between(self, ("n_steps",), "sb3-ppo", 2)
        require_between(self, ("lam",), "sb3-ppo", 0, 1)
        require_between(self, ("entropy",), "sb3-ppo", 0)


@dataclass(frozen=True)
class SACConfig(BaselineConfig):
    """Settings of SAC, whose temperature is learned."""

    buffer_size: int = 1_000_000
    """transitions that the replay holds, of all worlds together"""
    learning_starts: int = 1_000
    """environment steps with random actions before the first update"""
    batch_size: int = 256
    """transitions of an update"""
    tau: float = 0.005
    """share of the critics that moves into their targets at every update"""
    train_freq: int = 1
    """steps of every world between updates"""
    gradient_steps: int = 1
    """updates each time"""
    iteration_steps: int = 200
    """steps of every world in an iteration"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        counts = ("buffer_size", "batch_size", "train_freq", "gradient_steps", "iteration_steps")
        require_positive(self, counts, "sb3")
        require_between(self, ("learning_starts",), "sb3", 0)
        require_between(self, ("tau",), "sb3", 0, 1)


@dataclass(frozen=True)
class TD3Config(SACConfig):
    """Settings of TD3."""

    learning_rate: float = 1e-3
    """Adam's step size"""
    noise: float = 0.1
    """standard deviation of the noise with which it explores; actions lie in [-1, 1]"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_between(self, ("noise",), "sb3-td3", 0)


def build_model(
    config: BaselineConfig, spec: Spec, *, worlds: int = 1, device: torch.device | str = "cpu"
) -> Model:
    """A fresh model for `worlds` worlds; its weights are drawn from the global generators.

    Raises:
        UsageError: if the algorithm needs continuous actions and the family's are discrete.
    """
    bridge = Bridge(spec.observation_space, spec.action_space)
    # Without an env, set up as the library's own `load` does it.
    shared: dict[str, Any] = {
        "policy": "MlpPolicy",
        "env": None,
        "learning_rate": config.learning_rate,
        "gamma": config.gamma,
        "policy_kwargs": {"net_arch": list(config.layers)},
        "device": device,
        "_init_setup_model": False,
    }
    model: Model
    if isinstance(config, PPOConfig):
        model = PPO(
            n_steps=config.n_steps,
            n_epochs=config.epochs,
            gae_lambda=config.lam,
            clip_range=config.clip,
            ent_coef=config.entropy,
            **shared,
        )
    elif isinstance(config, SACConfig):
        model = _off_policy(config, bridge.action_space, shared)
    else:
        raise TypeError(f"no algorithm has a {type(config).__name__}")
    model.observation_space, model.action_space = bridge.observation_space, bridge.action_space
    model.action_space.seed(int(np.random.randint(2**31)))
    model.n_envs = 1
    model._setup_model()
    model.set_logger(Logger(None, []))
    make_room(model, config, worlds)
    return model


def _off_policy(config: SACConfig, space: gym.Space[Any], shared: dict[str, Any]) -> SAC | TD3:
    name = "TD3" if isinstance(config, TD3Config) else "SAC"
    if not isinstance(space, gym.spaces.Box):
        raise UsageError(
            f"sb3-{name.lower()}: {name} needs continuous actions, this family's are discrete; "
            "choose sb3-ppo"
        )
    shared |= {
        "learning_starts": config.learning_starts,
        "batch_size": config.batch_size,
        "tau": config.tau,
        "train_freq": config.train_freq,
        "gradient_steps": config.gradient_steps,
    }
    dim = int(space.low.size)
    if isinstance(config, TD3Config):
        noise = NormalActionNoise(np.zeros(dim), np.full(dim, config.noise))
        return TD3(action_noise=noise, buffer_size=1, **shared)
    # The library works out "auto" from its env, and there is none.
    return SAC(target_entropy=-float(dim), buffer_size=1, **shared)


def make_room(model: Model, config: BaselineConfig, worlds: int) -> None:
    """Give `model` an empty memory for `worlds` worlds."""
    model.n_envs, model._last_obs = worlds, None
    layout: dict[str, Any] = {
        "observation_space": model.observation_space,
        "action_space": model.action_space,
        "device": model.device,
        "n_envs": worlds,
    }
    if isinstance(model, PPO):
        assert isinstance(config, PPOConfig)
        model.batch_size = max(1, model.n_steps * worlds // config.minibatches)
        model.rollout_buffer = RolloutBuffer(
            model.n_steps, gamma=model.gamma, gae_lambda=model.gae_lambda, **layout
        )
    else:
        assert isinstance(config, SACConfig)
        model.buffer_size = config.buffer_size
        model.replay_buffer = ReplayBuffer(config.buffer_size, **layout)


class FixedPolicy:
    """A model's policy as it is: it learns nothing within a trial."""

    def __init__(
        self, policy: BasePolicy, bridge: Bridge, deterministic: bool, device: torch.device | str
    ) -> None:
        """Act with `policy` on worlds on `device`."""
        self.policy, self.bridge, self.device = policy, bridge, device
        self.deterministic = deterministic
        self.generators = PrivateGenerators(0)

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """There is nothing to forget."""

    def act(self, obs: Tensor) -> Tensor:
        """Choose actions for observations `[B, O]`."""
        # Only a policy that draws its actions has to be kept from the global generators.
        with nullcontext() if self.deterministic else self.generators.in_use():
            actions, _ = self.policy.predict(as_array(obs), deterministic=self.deterministic)
        return self.bridge.actions(actions, self.device)

    def observe(self, step: Step) -> None:
        """There is nothing to remember."""
