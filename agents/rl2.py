"""RL²: a recurrent policy that learns to learn (Duan et al. 2016; Wang et al. 2016).

The policy is a GRU whose hidden state lives for a whole trial of K episodes in one task. At every
step it sees the observation and what its last action brought, x_t = [o_t, a_{t-1}, r_{t-1},
d_{t-1}]; since the step that ends an episode returns the next episode's first observation, the last
reward, the boundary flag d and the reset observation arrive together. PPO (`metarl.ppo`) maximises
the return of the trial, with gradients through the memory. Without `memory` it is PPO with a
feed-forward policy: the non-adaptive reference or, if it sees the task, the oracle.

Shapes: `T` steps of a trial, `B` worlds, `X` input of the memory, `H` hidden, `F` task features,
`L` steps of a chunk, `C` chunks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor, nn

from metarl.acceleration import for_acting
from metarl.configs import NEWER
from metarl.distributions import Distribution
from metarl.errors import require_between
from metarl.generators import policy_generator, restore_generator
from metarl.memory import Carry, GRUMemory
from metarl.networks import RunningNorm, action_dim
from metarl.policy import Step
from metarl.ppo import PPO, ActorCritic, Batch, PPOConfig
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Spec, TaskBatch
from metarl.vector import VectorEnv

Ablation = Literal["none", "inputs-zeroed", "hidden-reset-every-step", "hidden-reset-every-episode"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


@dataclass(frozen=True)
class RL2Config(PPOConfig):
    """Settings of RL²; the defaults are those of the MuJoCo robots."""

    name: ClassVar[str] = "rl2"
    memory: bool = True
    """keep a hidden state over the trial; without it the policy cannot adapt"""
    embedding: int = 32
    """width of the input embedding"""
    hidden: int = 32
    """width of the GRU"""
    reward_norm: bool = field(default=False, metadata=NEWER)
    """show the memory rewards less their running mean, over their running deviation: for those
    that are large beside what distinguishes tasks"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_between(self, ("embedding", "hidden"), self.name, 1)


@dataclass(frozen=True)
class NonAdaptiveConfig(RL2Config):
    """Settings of the references without memory: the same PPO, the same critic."""

    memory: bool = False


class RecurrentActorCritic(nn.Module):
    """GRU memory, policy and privileged critic."""

    def __init__(self, spec: Spec, config: RL2Config) -> None:
        """Build the networks for the spaces of `spec`."""
        super().__init__()
        inputs = spec.obs_dim + action_dim(spec.action_space) + 2
        self.hidden = config.hidden if config.memory else 0
        if config.memory:
            self.memory = GRUMemory.of(inputs, config.embedding, config.hidden)
        self.reward_norm = RunningNorm(1) if config.memory and config.reward_norm else None
        self.actor_critic = ActorCritic(spec, config, self.hidden)

    def feedback(self, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
        """What the memory is told of an action `[..., A]`: [a, r, d], `[..., A + 2]`."""
        if self.reward_norm is not None:
            reward = self.reward_norm(reward.unsqueeze(-1)).squeeze(-1)
        return self.actor_critic.feedback(action, reward, done)

    def update_norms(self, rollout: Rollout) -> None:
        """Let observations and rewards of a rollout count in what later ones are divided by."""
        self.actor_critic.update_norm(rollout)
        if self.reward_norm is not None:
            self.reward_norm.update(rollout.reward[rollout.valid].unsqueeze(-1))

    def remember(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """States `[L, C, H]` after each input `x` `[L, C, X]`, from `[C, H]`, and the last one."""
        if self.hidden == 0:
            return x.new_zeros(*x.shape[:-1], 0), hidden
        states, last = self.memory(x, hidden)
        return states, last


@for_acting
def think(
    network: RecurrentActorCritic, obs: Tensor, feedback: Tensor, hidden: Tensor
) -> tuple[Distribution, Tensor]:
    """The chances of actions for `obs` `[B, O]`, and the memory's state after it, `[B, H]`.

    Args:
        network: with K = H.
        obs: as the worlds show it.
        feedback: what the last action brought, `[B, A + 2]`.
        hidden: the memory's state before, `[B, H]`.
    """
    obs = network.actor_critic.obs_norm(obs)
    if network.hidden:
        hidden = network.remember(torch.cat([obs, feedback], -1).unsqueeze(0), hidden)[1]
    return network.actor_critic.distribution(obs, hidden), hidden


class RL2Policy:
    """The adaptive policy: everything it learns about a task is in its hidden state."""

    def __init__(
        self,
        network: RecurrentActorCritic,
        deterministic: bool,
        generator: torch.Generator,
        horizon: int,
        ablation: Ablation = "none",
    ) -> None:
        """Act with `network`, trained on episodes of `horizon` steps.

        An `ablation` takes parts of the memory away, to see what it does.
        """
        self.network, self.deterministic, self.generator = network, deterministic, generator
        self.horizon, self.ablation = horizon, ablation

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything: hidden state and last action, reward and flag are zero."""
        actor_critic, worlds = self.network.actor_critic, num_tasks * worlds_per_task
        zeros = actor_critic.obs_norm.mean.new_zeros(worlds, 1).float()
        self.hidden = zeros.repeat(1, self.network.hidden)
        self.feedback = zeros.repeat(1, actor_critic.feedback_dim)
        self.carry = Carry(self.horizon, self.hidden)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Update the memory with `obs` `[B, O]` and choose actions."""
        if self.ablation == "hidden-reset-every-step":
            self.hidden = torch.zeros_like(self.hidden)
        if self.ablation == "inputs-zeroed":
            self.feedback.zero_()
        chances, self.hidden = think(self.network, obs, self.feedback, self.hidden)
        self.action = chances.mode() if self.deterministic else chances.sample(self.generator)
        return self.action

    def observe(self, step: Step) -> None:
        """Keep the action, its reward and the boundary flag for the next input."""
        done = step.terminated | step.truncated
        self.feedback = self.network.feedback(self.action, step.reward, done)
        self.hidden = self.carry.over(self.hidden, done)
        if self.ablation == "hidden-reset-every-episode":
            self.hidden = self.hidden * ~done.unsqueeze(-1)


class RL2:
    """Meta-trains `RecurrentActorCritic` by PPO over trials."""

    def __init__(
        self, config: RL2Config, spec: Spec, *, seed: int = 0, device: torch.device | str = "cpu"
    ) -> None:
        """Build networks with weights drawn from `seed`."""
        self.config, self.spec = config, spec
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = RecurrentActorCritic(spec, config).to(device)
        self.task_generator = torch.Generator().manual_seed(seed + 1)
        self.generator = torch.Generator(device).manual_seed(seed + 2)
        actor_critic, parameters = self.network.actor_critic, self.network.parameters()
        self.ppo = PPO(config, spec, actor_critic, parameters, self.generator)

    def policy(self, deterministic: bool = True, ablation: Ablation = "none") -> RL2Policy:
        """The present policy; an `ablation` takes parts of its memory away."""
        generator = policy_generator(self.generator.device)
        return RL2Policy(self.network, deterministic, generator, self.spec.horizon, ablation)

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """One trial in a new task in every world of `env`, then PPO on all of them."""
        env.set_tasks(env.family.sample_tasks(env.num_envs, "train", self.task_generator))
        explorer = RL2Policy(self.network, False, self.generator, self.spec.horizon)
        rollout = run_trials(explorer, env, self.spec.episodes)
        features = cast(TaskBatch, env.tasks).features()
        self.network.actor_critic.task_norm.update(features)
        figures = self.update(self.prepare(rollout, features), min(progress, 1.0))
        self.network.update_norms(rollout)
        returns = rollout.per_episode(rollout.reward, self.spec.episodes).mean((0, 1)).tolist()
        ends = {"return_first": returns[0], "return_last": returns[-1]}
        return {"steps": rollout.steps, **ends, **figures}

    @torch.no_grad()
    def prepare(self, rollout: Rollout, features: Tensor) -> Batch:
        """The hidden state at every step of the trials, and what PPO makes of it."""
        actor_critic, flat = self.network.actor_critic, rollout.flat()
        obs = actor_critic.obs_norm(flat["obs"])
        done = flat["terminated"] | flat["truncated"]
        after = self.network.feedback(flat["action"], flat["reward"], done)
        x = torch.cat([obs, torch.cat([torch.zeros_like(after[:1]), after[:-1]])], -1)
        start = obs.new_zeros(obs.shape[1], self.network.hidden)
        hidden, _ = self.network.remember(x, start)
        before = torch.cat([start.unsqueeze(0), hidden[:-1]])
        return self.ppo.prepare(rollout, features, x, before, hidden)

    def update(self, batch: Batch, progress: float) -> dict[str, float]:
        """PPO with gradients through the memory; see `PPO.update`."""

        def recall(part: Batch) -> Tensor:
            return self.network.remember(part.x, part.hidden[0])[0]

        return self.ppo.update(batch, recall, self.config.chunk, progress)

    def buffers(self) -> dict[str, Any]:
        """None: every batch is new."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser, normalisers and random state."""
        return {
            "network": self.network.state_dict(),
            **self.ppo.state_dict(),
            "task_generator": self.task_generator.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        self.network.load_state_dict(state["network"])
        self.ppo.load_state_dict(state)
        self.task_generator.set_state(state["task_generator"].cpu())
        restore_generator(self.generator, state["generator"])
