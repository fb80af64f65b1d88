"""RL²: a recurrent policy that learns to learn (Duan et al. 2016; Wang et al. 2016).

The policy is a GRU whose hidden state lives for a whole trial of K episodes in one task. At every
step it sees the observation and what its last action brought, x_t = [o_t, a_{t-1}, r_{t-1},
d_{t-1}]; since the step that ends an episode returns the next episode's first observation, the last
reward, the boundary flag d and the reset observation arrive together. PPO maximises the return of
the trial: values and advantages run across episode boundaries and end with the trial.

While learning, the critic is told the task and time left; the policy never is. Without `memory` it
is PPO with a feed-forward policy: the non-adaptive reference or, if it sees the task, the oracle.

Shapes: `T` steps of a trial, `B` worlds, `O` observation, `A` action, `H` hidden, `F` task
features, `L` steps of a chunk, `C` chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from metarl.distributions import Distribution
from metarl.errors import TrainingError, require_between, require_positive, require_widths
from metarl.generators import policy_generator
from metarl.losses import approximate_kl, clipped_surrogate, huber, masked_mean, masked_standardize
from metarl.networks import RunningNorm, action_dim, action_head, mlp, orthogonal
from metarl.optimization import gradient_step, linear, load_optimizer, set_learning_rate
from metarl.policy import Step
from metarl.returns import gae, running_returns, trial_boundaries
from metarl.rollout import Rollout, cut, run_trials
from metarl.tasks import Spec, TaskBatch
from metarl.vector import VectorEnv

Ablation = Literal["none", "inputs-zeroed", "hidden-reset-every-step", "hidden-reset-every-episode"]
ABLATIONS: tuple[Ablation, ...] = get_args(Ablation)


@dataclass(frozen=True)
class RL2Config:
    """Settings of RL²; the defaults are those of the MuJoCo robots."""

    memory: bool = True
    """keep a hidden state over the trial; without it the policy cannot adapt"""
    embedding: int = 32
    """width of the input embedding"""
    hidden: int = 32
    """width of the GRU"""
    layers: tuple[int, ...] = (64, 64)
    """hidden layers of the policy and of the critic, on [observation, hidden state]"""
    log_std: float = -0.5
    """initial log standard deviation of continuous actions"""
    gamma: float = 0.97
    """discount per step"""
    lam: float = 0.9
    """lambda of GAE"""
    learning_rate: float = 2e-3
    """Adam's step size at the start"""
    final_learning_rate: float = 1e-4
    """Adam's step size at the end of the budget; linear in between"""
    epochs: int = 5
    """passes over a batch of trials"""
    minibatches: int = 16
    """gradient steps per pass"""
    chunk: int = 50
    """steps of truncated back-propagation through time; 0 takes whole trials"""
    clip: float = 0.2
    """PPO's epsilon"""
    target_kl: float = 0.05
    """stop the passes when the policy has moved this far, in nats"""
    entropy: float = 0.0
    """weight of the entropy bonus at the start; it falls linearly to 0 with the budget"""
    value_weight: float = 0.5
    """weight of the critic's loss"""
    max_grad_norm: float = 0.5
    """gradients are cut to this norm"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        require_between(self, ("gamma", "lam"), "rl2", 0, 1)
        require_between(self, ("embedding", "hidden", "epochs", "minibatches"), "rl2", 1)
        require_positive(self, ("learning_rate", "clip", "max_grad_norm", "target_kl"), "rl2")
        require_between(self, ("entropy", "value_weight", "final_learning_rate", "chunk"), "rl2", 0)
        require_widths(self, ("layers",), "rl2")


@dataclass(frozen=True)
class NonAdaptiveConfig(RL2Config):
    """Settings of the references without memory: the same PPO, the same critic."""

    memory: bool = False


class RecurrentActorCritic(nn.Module):
    """GRU memory, policy and privileged critic."""

    def __init__(self, spec: Spec, config: RL2Config) -> None:
        """Build the networks for the spaces of `spec`."""
        super().__init__()
        obs_dim, width = spec.obs_dim, config.layers[-1]
        self.hidden = config.hidden if config.memory else 0
        self.feedback_dim = action_dim(spec.action_space) + 2
        self.obs_norm = RunningNorm(obs_dim)
        self.task_norm = RunningNorm(spec.task_dim)
        if config.memory:
            self.embed = mlp([obs_dim + self.feedback_dim, config.embedding], nn.ReLU)
            self.gru = nn.GRU(config.embedding, config.hidden)
        self.policy = mlp([obs_dim + self.hidden, *config.layers])
        self.head = action_head(spec.action_space, width, config.log_std)
        self.critic = mlp([obs_dim + self.hidden + spec.task_dim + 2, *config.layers])
        self.critic.append(orthogonal(nn.Linear(width, 1), 1.0))

    def feedback(self, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
        """What an action brought, as inputs of the memory: [a, r, d], `[..., A + 2]`."""
        return torch.cat([self.head.encode(action), torch.stack([reward, done.float()], -1)], -1)

    def remember(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """States `[L, C, H]` after each input `x` `[L, C, X]`, from `[C, H]`, and the last one."""
        if self.hidden == 0:
            return x.new_zeros(*x.shape[:-1], 0), hidden
        states, last = self.gru(self.embed(x), hidden.unsqueeze(0))
        return states, last.squeeze(0)

    def distribution(self, obs: Tensor, hidden: Tensor) -> Distribution:
        """The distribution of actions for normalised `obs` `[..., O]`."""
        return cast(Distribution, self.head(self.policy(torch.cat([obs, hidden], -1))))

    def value(self, obs: Tensor, hidden: Tensor, privileged: Tensor) -> Tensor:
        """V `[...]` of normalised `obs`, the hidden state, and what only the critic knows."""
        return cast(Tensor, self.critic(torch.cat([obs, hidden, privileged], -1))).squeeze(-1)


class RL2Policy:
    """The adaptive policy: everything it learns about a task is in its hidden state."""

    def __init__(
        self,
        network: RecurrentActorCritic,
        deterministic: bool,
        generator: torch.Generator,
        ablation: Ablation = "none",
    ) -> None:
        """Act with `network`; an `ablation` takes parts of the memory away, to see what it does."""
        self.network, self.deterministic, self.generator = network, deterministic, generator
        self.ablation = ablation

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything: hidden state and last action, reward and flag are zero."""
        zeros = self.network.obs_norm.mean.new_zeros(num_tasks * worlds_per_task, 1).float()
        self.hidden = zeros.repeat(1, self.network.hidden)
        self.feedback = zeros.repeat(1, self.network.feedback_dim)

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Update the memory with `obs` `[B, O]` and choose actions."""
        network = self.network
        obs = network.obs_norm(obs)
        if network.hidden:
            if self.ablation == "hidden-reset-every-step":
                self.hidden = torch.zeros_like(self.hidden)
            if self.ablation == "inputs-zeroed":
                self.feedback.zero_()
            x = torch.cat([obs, self.feedback], -1).unsqueeze(0)
            self.hidden = network.remember(x, self.hidden)[1]
        chances = network.distribution(obs, self.hidden)
        self.action = chances.mode() if self.deterministic else chances.sample(self.generator)
        return self.action

    def observe(self, step: Step) -> None:
        """Keep the action, its reward and the boundary flag for the next input."""
        done = step.terminated | step.truncated
        self.feedback = self.network.feedback(self.action, step.reward, done)
        if self.ablation == "hidden-reset-every-episode":
            self.hidden = self.hidden * ~done.unsqueeze(-1)


@dataclass(frozen=True)
class Batch:
    """Trials made ready for learning, `[T, B, ...]` or, cut into chunks, `[L, C, ...]`.

    `obs` is normalised, `x` the input of the memory, `hidden` its state before the step (a chunk
    starts from its first), `privileged` what only the critic sees: task features and time.
    `weight` is 1 where the step may be learned from.
    """

    obs: Tensor
    x: Tensor
    privileged: Tensor
    action: Tensor
    hidden: Tensor
    log_prob: Tensor
    advantage: Tensor
    target: Tensor
    weight: Tensor

    def map(self, f: Callable[[Tensor], Tensor]) -> Batch:
        """Apply `f` to every field."""
        return Batch(**{name: f(x) for name, x in vars(self).items()})

    def chunks(self, length: int) -> Batch:
        """Cut the trials into chunks of `length` steps, `[L, C]`, and drop the empty ones."""
        parts = self.map(lambda x: cut(x, length))
        return parts.select(parts.weight.any(0))

    def select(self, index: Tensor) -> Batch:
        """The chunks `index` of a batch that was cut."""
        return self.map(lambda x: x[:, index])


def loss(
    network: RecurrentActorCritic, batch: Batch, config: RL2Config, entropy_weight: float
) -> dict[str, Tensor]:
    """PPO's losses on chunks `[L, C]`, with gradients through the memory."""
    hidden, _ = network.remember(batch.x, batch.hidden[0])
    chances = network.distribution(batch.obs, hidden)
    log_prob = chances.log_prob(batch.action)
    value = network.value(batch.obs, hidden, batch.privileged)
    w = batch.weight
    policy = clipped_surrogate(log_prob, batch.log_prob, batch.advantage, w, config.clip)
    critic = huber(value - batch.target, w)
    entropy = masked_mean(chances.entropy(), w)
    total = policy + config.value_weight * critic - entropy_weight * entropy
    with torch.no_grad():
        kl = approximate_kl(log_prob, batch.log_prob, w)
    return {"total": total, "policy": policy, "critic": critic, "entropy": entropy, "kl": kl}


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
        self.optimizer = torch.optim.Adam(self.network.parameters(), eps=1e-5)
        self.task_generator = torch.Generator().manual_seed(seed + 1)
        self.generator = torch.Generator(device).manual_seed(seed + 2)
        self.return_norm = RunningNorm(1).to(device)

    def policy(self, deterministic: bool = True, ablation: Ablation = "none") -> RL2Policy:
        """The present policy; an `ablation` takes parts of its memory away."""
        generator = policy_generator(self.generator.device)
        return RL2Policy(self.network, deterministic, generator, ablation)

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """One trial in a new task in every world of `env`, then PPO on all of them."""
        env.set_tasks(env.family.sample_tasks(env.num_envs, "train", self.task_generator))
        explorer = RL2Policy(self.network, False, self.generator)
        rollout = run_trials(explorer, env, self.spec.episodes)
        features = cast(TaskBatch, env.tasks).features()
        self.network.task_norm.update(features)
        figures = self.update(self.prepare(rollout, features), min(progress, 1.0))
        self.network.obs_norm.update(rollout.obs[rollout.valid])
        returns = rollout.per_episode(rollout.reward, self.spec.episodes).mean((0, 1)).tolist()
        ends = {"return_first": returns[0], "return_last": returns[-1]}
        return {"steps": rollout.steps, **ends, **figures}

    @torch.no_grad()
    def prepare(self, rollout: Rollout, features: Tensor) -> Batch:
        """Values, advantages and old log probabilities of a batch of trials."""
        network, flat = self.network, rollout.flat()
        action, reward, active, valid = (flat[k] for k in ("action", "reward", "active", "valid"))
        obs = network.obs_norm(flat["obs"])
        after = network.feedback(action, reward, flat["terminated"] | flat["truncated"])
        x = torch.cat([obs, torch.cat([torch.zeros_like(after[:1]), after[:-1]])], -1)
        start = obs.new_zeros(obs.shape[1], network.hidden)
        hidden, _ = network.remember(x, start)
        clock = flat["elapsed"] / self.spec.horizon, flat["episode"] / self.spec.episodes
        task = network.task_norm(features).repeat_interleave(rollout.obs.shape[2], 0)
        privileged = torch.cat([task.expand(len(obs), -1, -1), torch.stack(clock, -1)], -1)
        chances = network.distribution(obs, hidden)
        value = network.value(obs, hidden, privileged)
        # Rewards are divided by the spread of the discounted return, so that one learning rate
        # and one Huber threshold serve every family; the memory sees them as they are.
        past = running_returns(reward * active, self.config.gamma)
        self.return_norm.update(past[valid].unsqueeze(-1))
        scaled = reward / (self.return_norm.var + 1e-8).sqrt().float()
        next_value, carry = trial_boundaries(value, active)
        advantage = gae(scaled, value, next_value, carry, valid, self.config.gamma, self.config.lam)
        return Batch(
            obs=obs,
            x=x,
            privileged=privileged,
            action=action,
            hidden=torch.cat([start.unsqueeze(0), hidden[:-1]]),
            log_prob=chances.log_prob(action),
            advantage=masked_standardize(advantage, valid.float()),
            target=value + advantage,
            weight=valid.float(),
        )

    def update(self, batch: Batch, progress: float) -> dict[str, float]:
        """PPO epochs over shuffled chunks; stops early when the policy has moved far enough.

        The step size and the entropy bonus are annealed by `progress`, in [0, 1].

        Raises:
            TrainingError: if a gradient is not finite, or there is nothing to learn from.
        """
        config = self.config
        rates = config.learning_rate, config.final_learning_rate
        set_learning_rate(self.optimizer, *rates, progress)
        entropy_weight = linear(config.entropy, 0.0, progress)
        chunks = batch.chunks(config.chunk or len(batch.obs))
        count = chunks.obs.shape[1]
        if count == 0:
            raise TrainingError("rl2: no step of the batch is of a sound simulation")
        records: list[dict[str, float]] = []
        for _ in range(config.epochs):
            order = torch.randperm(count, generator=self.generator, device=chunks.obs.device)
            parts = order.chunk(min(config.minibatches, count))
            for index in parts:
                terms = loss(self.network, chunks.select(index), config, entropy_weight)
                gradient_step(terms["total"], self.optimizer, config.max_grad_norm, "rl2")
                records.append({name: float(value.detach()) for name, value in terms.items()})
            kl = sum(record["kl"] for record in records[-len(parts) :])
            if kl > config.target_kl * len(parts):
                break
        return {f"loss/{name}": fmean(record[name] for record in records) for name in records[0]}

    def buffers(self) -> dict[str, Any]:
        """None: every batch is new."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser, normalisers and random state."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "return_norm": self.return_norm.state_dict(),
            "task_generator": self.task_generator.get_state(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.return_norm.load_state_dict(state["return_norm"])
        self.task_generator.set_state(state["task_generator"].cpu())
        self.generator.set_state(state["generator"].cpu())
