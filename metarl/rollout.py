"""Trials: K consecutive episodes per world in one task, recorded as tensors `[T, N, W, ...]`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from metarl.policy import AdaptivePolicy, Step
from metarl.vector import VectorEnv


@dataclass(frozen=True)
class Rollout:
    """What happened in a batch of trials. `T` time, `N` tasks, `W` worlds per task."""

    obs: Tensor
    """float32 `[T, N, W, O]`: what the policy saw"""
    action: Tensor
    """float32 `[T, N, W, A]` or int64 `[T, N, W]`"""
    reward: Tensor
    """float32 `[T, N, W]`"""
    terminated: Tensor
    """bool `[T, N, W]`: the task ended the episode"""
    truncated: Tensor
    """bool `[T, N, W]`: the time limit, or an unstable simulation, ended the episode"""
    final_obs: Tensor
    """float32 `[T, N, W, O]`: the true next observation, also where an episode ended"""
    active: Tensor
    """bool `[T, N, W]`: the step belongs to the trial (False once its K episodes are over)"""
    valid: Tensor
    """bool `[T, N, W]`: active and of a sound simulation; only these steps may be learned from"""
    episode: Tensor
    """int64 `[T, N, W]`: index of the episode within the trial, 0..K-1 where active"""
    elapsed: Tensor
    """int64 `[T, N, W]`: steps since the start of the episode"""
    success: Tensor
    """float32 `[T, N, W]`: 1 where the task was solved at this step; NaN if it is not defined"""
    dense_reward: Tensor
    """float32 `[T, N, W]`: a denser reward for learning, where the family has one, else `reward`"""

    @property
    def done(self) -> Tensor:
        """Bool `[T, N, W]`: the episode ended at this step, for whatever reason."""
        return self.terminated | self.truncated

    @property
    def steps(self) -> int:
        """Environment steps taken by the trials."""
        return int(self.active.sum())

    def flat(self) -> dict[str, Tensor]:
        """The fields with tasks and worlds merged: `[T, B, ...]`, `B = N * W`."""
        return {f.name: getattr(self, f.name).flatten(1, 2) for f in fields(self)}

    def per_episode(self, values: Tensor, episodes: int) -> Tensor:
        """Sum `values` `[T, N, W]` over each episode: `[N, W, K]`."""
        sums = values.new_zeros(*values.shape[1:], episodes)
        index = self.episode.clamp(max=episodes - 1).permute(1, 2, 0)
        return sums.scatter_add_(-1, index, (values * self.active).permute(1, 2, 0).contiguous())


class _Recorder:
    """Preallocated storage for the longest possible trial, cut to what was used."""

    def __init__(self, limit: int, num_tasks: int, worlds: int) -> None:
        self.limit, self.shape, self.time = limit, (num_tasks, worlds), 0
        self.storage: dict[str, Tensor] = {}

    def add(self, **values: Tensor) -> None:
        for name, value in values.items():
            if name not in self.storage:
                self.storage[name] = value.new_empty(self.limit, *value.shape)
            self.storage[name][self.time] = value
        self.time += 1

    def rollout(self) -> Rollout:
        return Rollout(
            **{name: x[: self.time].unflatten(1, self.shape) for name, x in self.storage.items()}
        )


@torch.no_grad()
def run_trials(
    policy: AdaptivePolicy,
    env: VectorEnv,
    episodes: int,
    on_step: Callable[[Step], None] | None = None,
) -> Rollout:
    """Run one trial of `episodes` episodes in every world of `env`, whose tasks are set.

    A world that has finished its last episode rests until all have: its steps are marked inactive
    and count nowhere.

    Args:
        policy: begins anew, then acts and observes.
        env: the worlds; `env.set_tasks` has been called.
        episodes: K, the episodes of a trial.
        on_step: called after every step, for those who want to look on (videos).
    """
    num_tasks, worlds = env.num_tasks, env.num_envs // env.num_tasks
    recorder = _Recorder(episodes * env.horizon, num_tasks, worlds)
    episode = torch.zeros(env.num_envs, dtype=torch.int64, device=env.device)
    elapsed = torch.zeros_like(episode)
    undefined = torch.full((env.num_envs,), float("nan"), device=env.device)
    policy.begin(num_tasks, worlds)
    obs, _ = env.reset()
    while recorder.time < recorder.limit:
        active = episode < episodes
        # On a GPU every look at a value waits for the device, so look once per horizon only.
        if env.device.type == "cpu" or recorder.time % env.horizon == 0:
            left = int(active.sum())
            if left == 0:
                break
            if left < env.num_envs:
                env.rest(~active)
        action = policy.act(obs)
        next_obs, reward, terminated, truncated, info = env.step(action)
        step = Step(info["final_obs"], reward, terminated, truncated)
        policy.observe(step)
        unstable = info.get("unstable")
        recorder.add(
            obs=obs,
            action=action,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            final_obs=step.next_obs,
            active=active,
            valid=active if unstable is None else active & ~unstable,
            episode=episode,
            elapsed=elapsed,
            success=info.get("success", undefined),
            dense_reward=info.get("dense_reward", reward),
        )
        done = terminated | truncated
        episode = episode + done
        elapsed = (elapsed + 1) * ~done
        obs = next_obs
        if on_step is not None:
            on_step(step)
    env.check()
    return recorder.rollout()


def cut(x: Tensor, length: int) -> Tensor:
    """Cut sequences into chunks: `[T, B, ...] -> [length, ceil(T / length) * B, ...]`.

    The chunks of one time come together, and the last are padded with zeros.
    """
    padded = torch.cat([x, x.new_zeros(-len(x) % length, *x.shape[1:])])
    chunks = padded.view(len(padded) // length, length, *x.shape[1:])
    return chunks.transpose(0, 1).flatten(1, 2)
