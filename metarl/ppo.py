"""PPO over trials: what RL² and VariBAD learn their policies by (Schulman et al. 2017).

The policy sees the observation and what the agent knows of the task: a hidden state, or a belief.
PPO maximises the return of the trial: values and advantages run across episode boundaries and end
with the trial. While learning, the critic is told the task and time left; the policy never is.

Shapes: `T` steps of a trial, `B` worlds, `O` observation, `A` action, `K` what is known, `X` input
and `H` state of a memory, `F` task features, `L` steps of a chunk, `C` chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from metarl.acceleration import for_learning, mixed, whole
from metarl.configs import NEWER
from metarl.distributions import Distribution
from metarl.errors import TrainingError, require_between, require_positive, require_widths
from metarl.losses import approximate_kl, clipped_surrogate, huber, masked_mean, masked_standardize
from metarl.memory import feedback
from metarl.networks import RunningNorm, action_dim, action_head, mlp, orthogonal
from metarl.optimization import (
    gradient_step,
    linear,
    load_optimizer,
    require_finite,
    set_learning_rate,
)
from metarl.returns import gae, running_returns, trial_boundaries
from metarl.rollout import Rollout, cut
from metarl.tasks import Spec


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO; the defaults are those of the MuJoCo robots."""

    name: ClassVar[str] = "ppo"
    layers: tuple[int, ...] = (64, 64)
    """hidden layers of the policy and of the critic"""
    normalize: bool = field(default=True, metadata=NEWER)
    """show observations less their running mean, over their running deviation; without it, small
    differences between the training tasks that can be seen are harder to remember them by"""
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
        require_between(self, ("gamma", "lam"), self.name, 0, 1)
        require_between(self, ("epochs", "minibatches"), self.name, 1)
        positive = ("learning_rate", "clip", "max_grad_norm", "target_kl")
        require_positive(self, positive, self.name)
        least = ("entropy", "value_weight", "final_learning_rate", "chunk")
        require_between(self, least, self.name, 0)
        require_widths(self, ("layers",), self.name)


class ActorCritic(nn.Module):
    """A policy on [observation, what is known], and a critic that is told the task and time."""

    def __init__(self, spec: Spec, config: PPOConfig, known: int) -> None:
        """Build the networks for the spaces of `spec`; `known` is K."""
        super().__init__()
        obs_dim, width = spec.obs_dim, config.layers[-1]
        # As it starts out, it changes nothing.
        self.normalize, self.obs_norm = config.normalize, RunningNorm(obs_dim)
        self.task_norm = RunningNorm(spec.task_dim)
        self.policy = mlp([obs_dim + known, *config.layers])
        self.head = action_head(spec.action_space, width, config.log_std)
        self.critic = mlp([obs_dim + known + spec.task_dim + 2, *config.layers])
        self.critic.append(orthogonal(nn.Linear(width, 1), 1.0))
        self.feedback_dim = action_dim(spec.action_space) + 2

    def feedback(self, action: Tensor, reward: Tensor, done: Tensor) -> Tensor:
        """What an action brought, as inputs of a memory: [a, r, d], `[..., A + 2]`."""
        return feedback(self.head, action, reward, done)

    def update_norm(self, rollout: Rollout) -> None:
        """Let the observations of a rollout count in what later ones are divided by."""
        if self.normalize:
            self.obs_norm.update(rollout.obs[rollout.valid])

    def distribution(self, obs: Tensor, known: Tensor) -> Distribution:
        """The distribution of actions for normalised `obs` `[..., O]`."""
        return cast(Distribution, self.head(self.policy(torch.cat([obs, known], -1))))

    def value(self, obs: Tensor, known: Tensor, privileged: Tensor) -> Tensor:
        """V `[...]` of normalised `obs`, what is known, and what only the critic is told."""
        value = cast(Tensor, self.critic(torch.cat([obs, known, privileged], -1)))
        return whole(value).squeeze(-1)


@dataclass(frozen=True)
class Batch:
    """Trials made ready for learning, `[T, B, ...]` or, cut into chunks, `[L, C, ...]`.

    `obs` is normalised, `x` the input of the memory, `hidden` its state before the step (a chunk
    starts from its first), `privileged` what only the critic sees: task features and time.
    `known` is what the policy knew. `weight` is 1 where the step may be learned from.
    """

    obs: Tensor
    x: Tensor
    privileged: Tensor
    action: Tensor
    hidden: Tensor
    known: Tensor
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
        return parts.select(parts.weight.any(0).nonzero().squeeze(1))

    def select(self, index: Tensor) -> Batch:
        """The chunks `index` of a batch that was cut."""
        return self.map(lambda x: x[:, index])


@for_learning
def loss(
    network: ActorCritic, batch: Batch, known: Tensor, config: PPOConfig, entropy_weight: Tensor
) -> dict[str, Tensor]:
    """PPO's losses on chunks `[L, C]`, where the policy knows `known` `[L, C, K]`."""
    chances = network.distribution(batch.obs, known)
    log_prob = chances.log_prob(batch.action)
    value = network.value(batch.obs, known, batch.privileged)
    w = batch.weight
    policy = clipped_surrogate(log_prob, batch.log_prob, batch.advantage, w, config.clip)
    critic = huber(value - batch.target, w)
    entropy = masked_mean(chances.entropy(), w)
    total = policy + config.value_weight * critic - entropy_weight * entropy
    with torch.no_grad():
        kl = approximate_kl(log_prob, batch.log_prob, w)
    return {"total": total, "policy": policy, "critic": critic, "entropy": entropy, "kl": kl}


class PPO:
    """Makes batches of trials ready and learns from them."""

    def __init__(
        self,
        config: PPOConfig,
        spec: Spec,
        network: ActorCritic,
        parameters: Iterable[nn.Parameter],
        generator: torch.Generator,
    ) -> None:
        """Learn `parameters`: those of `network` and, if gradients go there, of the memory."""
        self.config, self.spec, self.network, self.generator = config, spec, network, generator
        self.optimizer = torch.optim.Adam(parameters, eps=1e-5)
        self.return_norm = RunningNorm(1).to(generator.device)

    @torch.no_grad()
    def prepare(
        self, rollout: Rollout, features: Tensor, x: Tensor, hidden: Tensor, known: Tensor
    ) -> Batch:
        """Values, advantages and old log probabilities of a batch of trials.

        Args:
            rollout: `[T, N, W, ...]`.
            features: of the tasks `[N, F]`.
            x: inputs of the memory `[T, B, X]`.
            hidden: states of the memory before each step `[T, B, H]`.
            known: what the policy knew at each step `[T, B, K]`.
        """
        network, flat = self.network, rollout.flat()
        action, reward, active, valid = (flat[k] for k in ("action", "reward", "active", "valid"))
        obs = network.obs_norm(flat["obs"])
        clock = flat["elapsed"] / self.spec.horizon, flat["episode"] / self.spec.episodes
        task = network.task_norm(features).repeat_interleave(rollout.obs.shape[2], 0)
        privileged = torch.cat([task.expand(len(obs), -1, -1), torch.stack(clock, -1)], -1)
        with mixed():
            chances = network.distribution(obs, known)
            value = network.value(obs, known, privileged)
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
            hidden=hidden,
            known=known,
            log_prob=chances.log_prob(action),
            advantage=masked_standardize(advantage, valid.float()),
            target=value + advantage,
            weight=valid.float(),
        )

    def update(
        self, batch: Batch, recall: Callable[[Batch], Tensor], length: int, progress: float
    ) -> dict[str, float]:
        """PPO epochs over shuffled chunks; stops early when the policy has moved far enough.

        The step size and the entropy bonus are annealed by `progress`, in [0, 1].

        Args:
            batch: trials `[T, B]`, as `prepare` makes them.
            recall: what the policy knows in chunks `[L, C]`, with gradients if they are wanted.
            length: L; 0 takes whole trials.
            progress: share of the training budget that is spent.

        Raises:
            TrainingError: if a gradient is not finite, or there is nothing to learn from.
        """
        config, name = self.config, self.config.name
        rates = config.learning_rate, config.final_learning_rate
        set_learning_rate(self.optimizer, *rates, progress)
        # A tensor, as what is compiled would be compiled anew for every other number.
        entropy = linear(config.entropy, 0.0, progress)
        entropy_weight = torch.full((), entropy, device=batch.obs.device)
        chunks = batch.chunks(length or len(batch.obs))
        count = chunks.obs.shape[1]
        if count == 0:
            raise TrainingError(f"{name}: no step of the batch is of a sound simulation")
        records: list[dict[str, float]] = []
        for _ in range(config.epochs):
            order = torch.randperm(count, generator=self.generator, device=chunks.obs.device)
            parts = order.chunk(min(config.minibatches, count))
            values, unseen = list[Tensor](), list[Tensor]()
            for index in parts:
                part = chunks.select(index)
                terms = loss(self.network, part, recall(part), config, entropy_weight)
                most = config.max_grad_norm
                gradient_step(terms["total"], self.optimizer, most, name, unseen)
                values.append(torch.stack(list(terms.values())).detach())
            # A look waits for a GPU: one at all that a pass has brought.
            records += [dict(zip(terms, row, strict=True)) for row in torch.stack(values).tolist()]
            require_finite(unseen, name)
            kl = sum(record["kl"] for record in records[-len(parts) :])
            if kl > config.target_kl * len(parts):
                break
        return {f"loss/{name}": fmean(record[name] for record in records) for name in records[0]}

    def state_dict(self) -> dict[str, Any]:
        """Optimiser and normaliser; parameters and random state are the agent's."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "return_norm": self.return_norm.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        load_optimizer(self.optimizer, state["optimizer"])
        self.return_norm.load_state_dict(state["return_norm"])
