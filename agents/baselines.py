"""Stable-Baselines3's PPO, SAC and TD3 as agents: what meta-learning has to be better than.

Three ways to use them:

- domain-randomised (default): one policy for all tasks, which are exchanged for new ones every few
  episodes; it cannot tell them apart and learns what is best on average.
- `sees_task`: the same, with the task shown in the observation; a multi-task oracle.
- `from_scratch`: nothing is kept; each trial begins with new weights and learns its one task.

An iteration is one call of the library's `learn`, or, from scratch, one whole trial.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from statistics import fmean
from typing import Any, BinaryIO

import torch
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.buffers import ReplayBuffer
from torch import Tensor

from metarl.adapters import Bridge, FamilyVecEnv
from metarl.agents.sb3_models import (
    BaselineConfig,
    FixedPolicy,
    Model,
    PPOConfig,
    SACConfig,
    TD3Config,
    build_model,
    make_room,
)
from metarl.agents.scratch import ScratchPolicy
from metarl.errors import TrainingError, UsageError
from metarl.generators import PrivateGenerators
from metarl.policy import AdaptivePolicy
from metarl.rollout import run_trials
from metarl.states import DamagedError, Stream
from metarl.storage import read_header, read_tensor, write_header, write_tensor
from metarl.tasks import Spec
from metarl.vector import VectorEnv

__all__ = ["PPOConfig", "SACConfig", "SB3Agent", "TD3Config"]

_COUNTERS = ("num_timesteps", "_n_updates", "_episode_num")
_ARRAYS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
_NOT_LOGGED = ("learning_rate", "n_updates", "clip_range")


@dataclass(frozen=True)
class ReplayStream:
    """The used part of the library's replay, for checkpoints."""

    replay: ReplayBuffer

    def write(self, file: BinaryIO) -> None:
        """Write a header, a line of JSON, and the used rows of every array."""
        position = {"pos": int(self.replay.pos), "full": bool(self.replay.full)}
        write_header(file, {**self._layout(), **position})
        for part in self._used():
            write_tensor(file, part)

    def read(self, file: BinaryIO) -> None:
        """Take over what `write` wrote, bit for bit; the replay is left empty if that fails.

        Raises:
            DamagedError: if the file is not complete or not a saved replay.
            UsageError: if it is one of another size.
        """
        replay = self.replay
        replay.reset()
        header = read_header(file, self._layout(), 100)
        pos, full = header.get("pos"), header.get("full")
        if type(pos) is not int or type(full) is not bool or not 0 <= pos < replay.buffer_size:
            raise DamagedError("the header of the replay is damaged")
        replay.pos, replay.full = pos, full
        try:
            for part in self._used():
                read_tensor(file, part)
            if file.read(1):
                raise DamagedError("the replay goes on after its end")
        except BaseException:
            replay.reset()
            raise

    def _layout(self) -> dict[str, Any]:
        arrays = {name: getattr(self.replay, name) for name in _ARRAYS}
        shapes = {name: [str(x.dtype), *x.shape] for name, x in arrays.items()}
        return {"kind": "metarl sb3 replay", "arrays": shapes}

    def _used(self) -> list[Tensor]:
        """Views of the rows that hold something."""
        rows = self.replay.buffer_size if self.replay.full else self.replay.pos
        return [torch.from_numpy(getattr(self.replay, name)[:rows]) for name in _ARRAYS]


class SB3Agent:
    """One of the library's algorithms; the class of its config says which."""

    def __init__(
        self,
        config: BaselineConfig,
        spec: Spec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build a model with weights drawn from `seed`.

        Raises:
            UsageError: if the algorithm cannot work with the actions of the family.
        """
        self.config, self.spec, self.device = config, spec, device
        self.bridge = Bridge(spec.observation_space, spec.action_space)
        self.generators = PrivateGenerators(seed)
        self.task_generator = torch.Generator().manual_seed(seed + 1)
        with self.generators.in_use():
            self.model = build_model(config, spec, device=device)
        self.worlds: FamilyVecEnv | None = None
        self._worlds_state: dict[str, Any] | None = None

    @property
    def refuses(self) -> dict[str, str]:
        """What of `metarl.acceleration` it cannot be trained with, and why."""
        why = "is not for the agents of Stable-Baselines3, whose updates are its own; train without"
        return {"compile": f"sb3: compile {why}", "bfloat16": f"sb3: precision bfloat16 {why}"}

    def policy(self, deterministic: bool = True) -> AdaptivePolicy:
        """The present policy; one that learns from scratch always explores."""
        if self.config.from_scratch:
            return ScratchPolicy(self.config, self.spec, PrivateGenerators(0), self.device)
        return FixedPolicy(self.model.policy, self.bridge, deterministic, self.device)

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """Collect and learn once by the library's `learn`; from scratch, run one whole trial.

        Raises:
            UsageError: if `env` shows or takes something else than the agent was built for.
            TrainingError: if a loss or a parameter is no longer finite.
        """
        if self.config.from_scratch:
            return self._trial(env)
        worlds, model, config = self._attach(env), self.model, self.config
        steps = config.n_steps if isinstance(config, PPOConfig) else 0
        if isinstance(config, SACConfig):
            steps = config.iteration_steps
        before = model.num_timesteps
        try:
            with self.generators.in_use():
                model.learn(steps * env.num_envs, log_interval=None, reset_num_timesteps=False)  # type: ignore[arg-type]
        except ValueError as error:
            self._require_finite({}, error)
            raise
        env.check()
        figures = self._losses()
        self._require_finite(figures, None)
        if worlds.finished:
            mean = fmean(worlds.finished)
            figures |= {"return_first": mean, "return_last": mean}
            worlds.finished.clear()
        return {"steps": model.num_timesteps - before, **figures}

    def _trial(self, env: VectorEnv) -> dict[str, float]:
        """Learn new tasks from scratch; nothing of it is kept."""
        self._require_fit(env)
        env.set_tasks(env.family.sample_tasks(env.num_envs, "train", self.task_generator))
        learners = ScratchPolicy(self.config, self.spec, self.generators, self.device)
        rollout = run_trials(learners, env, self.spec.episodes)
        returns = rollout.per_episode(rollout.reward, self.spec.episodes).mean((0, 1)).tolist()
        return {"steps": rollout.steps, "return_first": returns[0], "return_last": returns[-1]}

    def _attach(self, env: VectorEnv) -> FamilyVecEnv:
        """Let the model work on `env`, going on from a restored state if there is one."""
        if self.worlds is not None and self.worlds.env is env:
            return self.worlds
        self._require_fit(env)
        self.worlds = FamilyVecEnv(env, episodes_per_task=self.config.episodes_per_task)
        self.worlds.generator = self.task_generator
        if self._worlds_state is not None and self.model.n_envs == env.num_envs:
            self.worlds.load_state_dict(self._worlds_state)
        else:
            self._room(env.num_envs)
            self.model._last_obs = None
        self._worlds_state = None
        self.model.set_env(self.worlds, force_reset=False)
        return self.worlds

    def _room(self, worlds: int) -> None:
        """An empty memory for another number of worlds; one that fits is kept."""
        if self.model.n_envs != worlds:
            make_room(self.model, self.config, worlds)

    def _require_fit(self, env: VectorEnv) -> None:
        """Raise `UsageError` unless `env` shows and takes what the agent was built for."""
        found = Bridge(env.family.observation_space, env.family.action_space)
        for what in ("observation_space", "action_space"):
            mine, other = getattr(self.bridge, what), getattr(found, what)
            if mine != other:
                raise UsageError(
                    f"sb3: this agent was built for {what.replace('_', ' ')} {mine}, the worlds of "
                    f"{env.family.name} have {other}"
                )

    def _losses(self) -> dict[str, float]:
        """What the library logged in the last iteration."""
        logged = self.model.logger.name_to_value
        names = [name for name in logged if name.startswith("train/")]
        figures = {f"loss/{name.removeprefix('train/')}": float(logged[name]) for name in names}
        logged.clear()
        return {k: x for k, x in figures.items() if k.removeprefix("loss/") not in _NOT_LOGGED}

    def _require_finite(self, figures: dict[str, float], cause: Exception | None) -> None:
        """Raise `TrainingError` if a loss or a parameter is not finite."""
        bad = [name for name, x in figures.items() if "loss" in name[5:] and not math.isfinite(x)]
        parameters = self.model.policy.named_parameters()
        bad += [name for name, x in parameters if not bool(torch.isfinite(x).all())]
        if bad:
            raise TrainingError(f"sb3: {bad[0]} is not finite") from cause

    def buffers(self) -> dict[str, Stream]:
        """The replay of SAC and TD3."""
        if isinstance(self.model, PPO) or self.config.from_scratch:
            return {}
        assert self.model.replay_buffer is not None
        return {"replay": ReplayStream(self.model.replay_buffer)}

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimisers, counters and random state; the replay is in `buffers`."""
        shared = {
            "generators": self.generators.state,
            "task_generator": self.task_generator.get_state(),
        }
        if self.config.from_scratch:
            return shared
        model = self.model
        last, starts = model._last_obs, model._last_episode_starts
        return {
            **shared,
            "parameters": model.get_parameters(),
            "log_ent_coef": _temperature(model),
            "counters": {name: int(getattr(model, name)) for name in _COUNTERS},
            "last_obs": None if last is None else torch.as_tensor(last),
            "last_episode_starts": None if starts is None else torch.as_tensor(starts),
            "action_generator": model.action_space.np_random.bit_generator.state,
            "num_worlds": model.n_envs,
            "worlds": self._worlds_state if self.worlds is None else self.worlds.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`; the replay has to be read after it."""
        self.generators.state = state["generators"]
        self.task_generator.set_state(state["task_generator"].cpu())
        if self.config.from_scratch:
            return
        model: Any = self.model
        # Adam keeps the step counters that it is given: without a copy two agents would share them.
        model.set_parameters(deepcopy(state["parameters"]), device=model.device)
        temperature = _temperature(model)
        if temperature is not None:
            temperature.copy_(state["log_ent_coef"])
        for name in _COUNTERS:
            setattr(model, name, state["counters"][name])
        self._room(state["num_worlds"])
        for name in ("last_obs", "last_episode_starts"):
            value = state[name]
            setattr(model, f"_{name}", None if value is None else value.cpu().numpy().copy())
        model.action_space.np_random.bit_generator.state = state["action_generator"]
        self._worlds_state = state["worlds"]
        self.worlds = None


def _temperature(model: Model) -> Tensor | None:
    """The logarithm of SAC's temperature, which is learned beside the policy."""
    if not isinstance(model, SAC) or model.log_ent_coef is None:
        return None
    return model.log_ent_coef.detach()
