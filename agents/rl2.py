"""RL²: a recurrent policy that learns to learn (Duan et al. 2016; Wang et al. 2016).

The policy is a GRU whose hidden state lives for a whole trial of K episodes in one task. At every
step it sees the observation and what its last action brought, x_t = [o_t, a_{t-1}, r_{t-1},
d_{t-1}]; since the step that ends an episode returns the next episode's first observation, the last
reward, the boundary flag d and the reset observation arrive together. PPO maximises the return of
the trial: values and advantages run across episode boundaries and end with the trial.

While learning, the critic is told the task and the time left; the policy never is. Without
`memory` the same code is PPO with a feed-forward policy: the non-adaptive reference, and, on a
family that shows the task in its observation, the oracle.

Shapes: `T` steps of a trial, `B` worlds, `O` observation, `A` action, `H` hidden, `F` task
features, `L` steps of a chunk, `C` chunks.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from metarl.errors import TrainingError, UsageError
from metarl.losses import approximate_kl, clipped_surrogate, huber, masked_mean, masked_standardize
from metarl.networks import RunningNorm, action_dim, action_head, mlp, orthogonal
from metarl.policy import Step
from metarl.returns import gae, running_returns, trial_boundaries
from metarl.rollout import Rollout, run_trials
from metarl.tasks import Spec
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
        for name in ("gamma", "lam"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UsageError(f"rl2: {name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("embedding", "hidden", "epochs", "minibatches"):
            if getattr(self, name) < 1:
                raise UsageError(f"rl2: {name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip", "max_grad_norm", "target_kl"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise UsageError(f"rl2: {name} must be finite and above 0, got {getattr(self, name)}")
        for name in ("entropy", "value_weight", "final_learning_rate", "chunk"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"rl2: {name} must be finite and not negative")


@dataclass(frozen=True)
class NonAdaptiveConfig(RL2Config):
    """Settings of the references without memory: the same PPO, the same critic."""

    memory: bool = False


class RecurrentActorCritic(nn.Module):
    """GRU memory, policy and privileged critic."""

    def __init__(self, spec: Spec, config: RL2Config) -> None:
        """Build the networks for the spaces of `spec`."""
        super().__init__()
        assert spec.observation_space.shape is not None
        obs_dim, width = spec.observation_space.shape[0], config.layers[-1]
        self.hidden = config.hidden if config.memory else 0
        self.obs_norm = RunningNorm(obs_dim)
        self.task_norm = RunningNorm(spec.task_dim)
        if config.memory:
            inputs = obs_dim + action_dim(spec.action_space) + 2
            self.embed = mlp([inputs, config.embedding], nn.ReLU)
            self.gru = nn.GRU(config.embedding, config.hidden)
        self.policy = mlp([obs_dim + self.hidden, *config.layers])
        self.head = action_head(spec.action_space, width, config.log_std)
        self.critic = mlp([obs_dim + self.hidden + spec.task_dim + 2, *config.layers])
        self.critic.append(orthogonal(nn.Linear(width, 1), 1.0))

    def remember(self, x: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Run the memory over inputs `[L, C, X]` from `hidden` `[C, H]`.

        Returns:
            Hidden states after each step `[L, C, H]`, and the last of them `[C, H]`.
        """
        if self.hidden == 0:
            return x.new_zeros(*x.shape[:-1], 0), hidden
        states, last = self.gru(self.embed(x), hidden.unsqueeze(0))
        return states, last.squeeze(0)

    def distribution(self, obs: Tensor, hidden: Tensor) -> Tensor:
        """Parameters of the action distribution for normalised `obs` `[..., O]`."""
        return cast(Tensor, self.head(self.policy(torch.cat([obs, hidden], -1))))

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
        self.network, self.deterministic = network, deterministic
        self.generator, self.ablation = generator, ablation

    def begin(self, num_tasks: int, worlds_per_task: int) -> None:
        """Forget everything: hidden state and last action, reward and flag are zero."""
        batch = num_tasks * worlds_per_task
        device = self.network.obs_norm.mean.device
        self.hidden = torch.zeros(batch, self.network.hidden, device=device)
        self.feedback: Tensor | None = None

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Update the memory with `obs` `[B, O]` and choose actions."""
        network = self.network
        obs = network.obs_norm(obs)
        if network.hidden:
            if self.ablation == "hidden-reset-every-step":
                self.hidden = torch.zeros_like(self.hidden)
            if self.feedback is None or self.ablation == "inputs-zeroed":
                width = network.embed[0].in_features - obs.shape[-1]
                feedback = obs.new_zeros(len(obs), width)
            else:
                feedback = self.feedback
            x = torch.cat([obs, feedback], -1)
            _, self.hidden = network.remember(x.unsqueeze(0), self.hidden)
        params = network.distribution(obs, self.hidden)
        if self.deterministic:
            self.action = network.head.mode(params)
        else:
            self.action = network.head.sample(params, self.generator)
        return self.action

    def observe(self, step: Step) -> None:
        """Keep the action, its reward and the boundary flag for the next input."""
        done = step.terminated | step.truncated
        self.feedback = feedback(self.network, self.action, step.reward, done)
        if self.ablation == "hidden-reset-every-episode":
            self.hidden = self.hidden * ~done.unsqueeze(-1)


def feedback(network: RecurrentActorCritic, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
    """What an action brought, as network inputs: [a, r, d], `[..., A + 2]`."""
    flags = torch.stack([reward, done.float()], -1)
    return torch.cat([network.head.encode(action), flags], -1)


@dataclass(frozen=True)
class Batch:
    """A batch of trials made ready for learning, `[T, B, ...]` or, cut, `[L, C, ...]`."""

    obs: Tensor
    """normalised"""
    x: Tensor
    """inputs of the memory"""
    privileged: Tensor
    """task features and time, for the critic"""
    action: Tensor
    hidden: Tensor
    """hidden state before the step; chunks start from their first"""
    log_prob: Tensor
    advantage: Tensor
    target: Tensor
    weight: Tensor
    """1 where the step may be learned from"""

    def chunks(self, length: int) -> Batch:
        """Cut the trials into chunks of `length` steps, `[T, B] -> [L, T/L * B]`, and drop the
        empty ones; the last chunk is padded with steps of weight 0."""
        pad = -len(self.obs) % length

        def cut(x: Tensor) -> Tensor:
            x = torch.cat([x, x.new_zeros(pad, *x.shape[1:])])
            return x.unflatten(0, (-1, length)).transpose(0, 1).flatten(1, 2)

        parts = {name: cut(x) for name, x in vars(self).items()}
        used = parts["weight"].any(0)
        return Batch(**{name: x[:, used] for name, x in parts.items()})

    def select(self, index: Tensor) -> Batch:
        """The chunks `index` of a batch that was cut."""
        return Batch(**{name: x[:, index] for name, x in vars(self).items()})


def loss(
    network: RecurrentActorCritic, batch: Batch, config: RL2Config, entropy_weight: float
) -> dict[str, Tensor]:
    """PPO's losses on chunks `[L, C]`, with gradients through the memory."""
    hidden, _ = network.remember(batch.x, batch.hidden[0])
    params = network.distribution(batch.obs, hidden)
    log_prob = network.head.log_prob(params, batch.action)
    value = network.value(batch.obs, hidden, batch.privileged)
    w = batch.weight
    policy = clipped_surrogate(log_prob, batch.log_prob, batch.advantage, w, config.clip)
    critic = huber(value - batch.target, w)
    entropy = masked_mean(network.head.entropy(params), w)
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
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=config.learning_rate, eps=1e-5)
        self.task_generator = torch.Generator().manual_seed(seed + 1)
        self.generator = torch.Generator(device).manual_seed(seed + 2)
        self.return_norm = RunningNorm(1).to(device)

    def policy(self, deterministic: bool = True, ablation: Ablation = "none") -> RL2Policy:
        """The present policy; an `ablation` takes parts of its memory away."""
        generator = torch.Generator(self.generator.device).manual_seed(0)
        return RL2Policy(self.network, deterministic, generator, ablation)

    def train_step(self, env: VectorEnv, progress: float) -> dict[str, float]:
        """One trial in a new task in every world of `env`, then PPO on all of them."""
        env.set_tasks(env.family.sample_tasks(env.num_envs, "train", self.task_generator))
        explorer = RL2Policy(self.network, False, self.generator)
        rollout = run_trials(explorer, env, self.spec.episodes)
        assert env.tasks is not None
        features = env.tasks.features()
        self.network.task_norm.update(features)
        batch = self.prepare(rollout, features)
        figures = self.update(batch, min(progress, 1.0))
        self.network.obs_norm.update(rollout.obs[rollout.valid])
        returns = rollout.per_episode(rollout.reward, self.spec.episodes).mean((0, 1))
        return {
            "steps": rollout.steps,
            "return_first": float(returns[0]),
            "return_last": float(returns[-1]),
            **figures,
        }

    @torch.no_grad()
    def prepare(self, rollout: Rollout, features: Tensor) -> Batch:
        """Values, advantages and old log probabilities of a batch of trials."""
        network, flat = self.network, rollout.flat()
        reward, active, valid = flat["reward"], flat["active"], flat["valid"]
        obs = network.obs_norm(flat["obs"])
        after = feedback(network, flat["action"], reward, flat["terminated"] | flat["truncated"])
        x = torch.cat([obs, torch.cat([torch.zeros_like(after[:1]), after[:-1]])], -1)
        start = obs.new_zeros(obs.shape[1], network.hidden)
        hidden, _ = network.remember(x, start)
        time = torch.stack(
            [flat["elapsed"] / self.spec.horizon, flat["episode"] / self.spec.episodes], -1
        )
        worlds = rollout.obs.shape[2]
        task = network.task_norm(features).repeat_interleave(worlds, 0).expand(len(obs), -1, -1)
        privileged = torch.cat([task, time], -1)
        params = network.distribution(obs, hidden)
        value = network.value(obs, hidden, privileged)
        # Rewards are divided by the spread of the discounted return, so that one learning rate
        # and one Huber threshold serve every family; the memory sees them as they are.
        self.return_norm.update(running_returns(reward * active, self.config.gamma)[valid].view(-1, 1))
        scaled = reward / (self.return_norm.var + 1e-8).sqrt().float()
        next_value, carry = trial_boundaries(value, active)
        advantage = gae(
            scaled, value, next_value, carry, valid, self.config.gamma, self.config.lam
        )
        weight = valid.float()
        return Batch(
            obs=obs,
            x=x,
            privileged=privileged,
            action=flat["action"],
            hidden=torch.cat([start.unsqueeze(0), hidden[:-1]]),
            log_prob=network.head.log_prob(params, flat["action"]),
            advantage=masked_standardize(advantage, weight),
            target=value + advantage,
            weight=weight,
        )

    def update(self, batch: Batch, progress: float) -> dict[str, float]:
        """PPO epochs over shuffled chunks; stops early when the policy has moved far enough.

        The step size and the entropy bonus are annealed by `progress`, in [0, 1].

        Raises:
            TrainingError: if a gradient is not finite; the parameters are left as they were.
        """
        config = self.config
        for group in self.optimizer.param_groups:
            change = config.final_learning_rate - config.learning_rate
            group["lr"] = config.learning_rate + change * progress
        entropy_weight = config.entropy * (1.0 - progress)
        chunks = batch.chunks(config.chunk or len(batch.obs))
        count = chunks.obs.shape[1]
        figures: dict[str, list[float]] = {}
        for _ in range(config.epochs):
            order = torch.randperm(count, generator=self.generator, device=chunks.obs.device)
            kls = []
            for index in order.chunk(min(config.minibatches, count)):
                terms = loss(self.network, chunks.select(index), config, entropy_weight)
                self.optimizer.zero_grad(set_to_none=True)
                terms["total"].backward()
                norm = nn.utils.clip_grad_norm_(self.network.parameters(), config.max_grad_norm)
                if not bool(torch.isfinite(norm)):
                    raise TrainingError(f"rl2: the gradient is not finite (norm {float(norm)})")
                self.optimizer.step()
                kls.append(float(terms["kl"]))
                for name, value in terms.items():
                    figures.setdefault(name, []).append(float(value.detach()))
            if sum(kls) / len(kls) > config.target_kl:
                break
        return {f"loss/{name}": sum(xs) / len(xs) for name, xs in figures.items()}

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
        # Adam keeps the step counters that it is given: without a copy two agents would share them.
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.return_norm.load_state_dict(state["return_norm"])
        self.task_generator.set_state(state["task_generator"].cpu())
        self.generator.set_state(state["generator"].cpu())
