"""Learning each task from scratch, within the trial: what all the meta-training is to save.

Every world gets a model of its own with new weights. It acts to explore, stores what comes of it
and learns by the library's own updates, episode after episode; the adaptation curve is its learning
curve. Models of worlds know nothing of each other.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO, SAC, TD3
from torch import Tensor

from metarl.adapters import Array, Bridge, as_array
from metarl.agents.sb3_models import BaselineConfig, SACConfig, build_model
from metarl.generators import PrivateGenerators
from metarl.policy import Step
from metarl.tasks import Spec


class _OffPolicyLearner:
    """SAC or TD3 in one world: the loop of the library's `collect_rollouts`, turned inside out."""

    def __init__(self, model: SAC | TD3, config: SACConfig) -> None:
        self.model, self.config, self.buffered = model, config, np.zeros(0)

    def act(self, obs: Array) -> Array:
        """An action `[1, A]` that explores from `obs` `[1, O]`."""
        model = self.model
        model._last_obs = obs
        action, self.buffered = model._sample_action(model.learning_starts, model.action_noise, 1)
        return action

    def observe(self, next_obs: Array, reward: Array, terminated: Array, truncated: Array) -> None:
        """Store what the last action brought, and learn when it is time."""
        model, config = self.model, self.config
        model.num_timesteps += 1
        assert model.replay_buffer is not None
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(truncated[0])}]
        done = terminated | truncated
        model._store_transition(model.replay_buffer, self.buffered, next_obs, reward, done, infos)
        due = model.num_timesteps % config.train_freq == 0
        if due and model.num_timesteps > model.learning_starts:
            model.train(config.gradient_steps, config.batch_size)


class _OnPolicyLearner:
    """PPO in one world: the loop of the library's `collect_rollouts`, turned inside out."""

    def __init__(self, model: PPO) -> None:
        self.model, self.starts = model, np.ones(1, dtype=bool)

    def act(self, obs: Array) -> Array:
        """An action `[1, A]` or `[1]` that explores from `obs` `[1, O]`."""
        model, space = self.model, self.model.action_space
        model.policy.set_training_mode(False)
        with torch.no_grad():
            action, self.value, self.log_prob = model.policy(torch.as_tensor(obs).to(model.device))
        chosen = as_array(action)
        self.obs, self.action = obs, chosen.reshape(1, -1)
        if isinstance(space, gym.spaces.Box):
            return np.clip(chosen, space.low, space.high)
        return chosen

    def observe(self, next_obs: Array, reward: Array, terminated: Array, truncated: Array) -> None:
        """Store what the last action brought, and learn when the buffer is full."""
        model, done = self.model, terminated | truncated
        with torch.no_grad():
            next_value = model.policy.predict_values(torch.as_tensor(next_obs).to(model.device))
        cut_off = truncated.astype(np.float32) * (model.gamma * as_array(next_value)[:, 0])
        buffer = model.rollout_buffer
        buffer.add(self.obs, self.action, reward + cut_off, self.starts, self.value, self.log_prob)
        self.starts = done
        if buffer.full:
            buffer.compute_returns_and_advantage(next_value, done)
            model.train()
            buffer.reset()


Learner = _OffPolicyLearner | _OnPolicyLearner


class ScratchPolicy:
    """An adaptive policy that is born with every trial."""

    def __init__(
        self,
        config: BaselineConfig,
        spec: Spec,
        generators: PrivateGenerators,
        device: torch.device | str,
    ) -> None:
        """Learn with the settings of `config`; weights and exploration come from `generators`."""
        self.config, self.spec, self.generators, self.device = config, spec, generators, device
        self.bridge = Bridge(spec.observation_space, spec.action_space)
        self.learners: list[Learner] = []

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything: a new model for every world."""
        with self.generators.in_use():
            self.learners = [self._new() for _ in range(num_tasks * worlds_per_task)]

    def _new(self) -> Learner:
        model = build_model(self.config, self.spec, device=self.device)
        if isinstance(model, PPO):
            return _OnPolicyLearner(model)
        assert isinstance(self.config, SACConfig)
        return _OffPolicyLearner(model, self.config)

    def act(self, obs: Tensor) -> Tensor:
        """Choose actions that explore from `obs` `[B, O]`."""
        rows = as_array(obs)
        with self.generators.in_use():
            actions = [one.act(rows[i : i + 1]) for i, one in enumerate(self.learners)]
        return self.bridge.actions(np.concatenate(actions), obs.device)

    def observe(self, step: Step) -> None:
        """Let every model learn from what its action brought."""
        terminated, truncated = step.terminated, step.truncated
        if self.spec.horizon == 1:  # an episode of one step has no future to estimate
            terminated, truncated = terminated | truncated, torch.zeros_like(truncated)
        parts = [as_array(x) for x in (step.next_obs, step.reward, terminated, truncated)]
        # Whoever runs the trial has no use for gradients; the models do.
        with self.generators.in_use(), torch.enable_grad():
            for i, one in enumerate(self.learners):
                one.observe(*(x[i : i + 1] for x in parts))
