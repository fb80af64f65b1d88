"""Policies that adapt by policy gradients: what MAML, ProMP and their relatives have in common.

A task is tried for some episodes, and the policy takes a gradient step on them (Finn et al. 2017,
algorithm 3):

    θ'_i = θ - α ∇_θ L_i(θ),   L_i(θ) = -E[log π_θ(a|s) A]   or   -E[π_θ(a|s) / π_old(a|s) A]

Both losses have the same gradient. Through the second, the likelihood ratio, the derivative of the
step is an estimate of low variance (Rothfuss et al. 2019, section 4).

Shapes: `N` tasks, `M` = T * W steps of a task, `O` observation, `A` action.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, Literal, cast

import gymnasium as gym
import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.distributions import Categorical, Distribution, Gaussian
from metarl.errors import UsageError, require_between, require_positive, require_widths
from metarl.inner_loop import SGD, own_copies, trajectory
from metarl.layers import Linear, NarrowLinear, Params, tanh
from metarl.linear_baseline import feature_count
from metarl.networks import RunningNorm, action_dim
from metarl.returns import discounted_returns, gae
from metarl.rollout import Rollout
from metarl.tasks import Spec

MIN_LOG_STD = -13.8
"""lower bound of log standard deviations: a standard deviation of 1e-6"""


@dataclass(frozen=True)
class AdaptationConfig:
    """Settings of policies that adapt by gradient steps; the defaults are those of the robots."""

    layers: tuple[int, ...] = (64, 64)
    """hidden layers of the policy, with tanh"""
    log_std: float = 0.0
    """initial log standard deviation of continuous actions; it adapts, too"""
    last_layer: float = 1.0
    """size of the last layer's first weights; small ones keep a policy from drifting away"""
    normalize: bool = False
    """show the policy observations less their running mean, over their running deviation"""
    meta_batch: int = 40
    """tasks of an iteration; num_worlds is a multiple of it"""
    rollouts: int = 20
    """episodes of a task for each gradient step"""
    inner_steps: int = 1
    """gradient steps that are trained for; a policy may take more"""
    inner_rate: float = 0.1
    """α, size of the gradient steps, or where they start from (meta-sgd)"""
    inner: Literal["sgd", "meta-sgd", "cavia"] = "sgd"
    """what adapts: all parameters, all by learned step sizes, or only a context of a few inputs"""
    inner_loss: Literal["log-likelihood", "likelihood-ratio"] = "log-likelihood"
    """what the steps descend"""
    context: int = 5
    """numbers that adapt as further inputs of the policy (cavia)"""
    gamma: float = 0.99
    """discount per step"""
    lam: float = 1.0
    """lambda of GAE"""
    baseline: Literal["linear", "value", "none"] = "linear"
    """ridge regression for each task anew, a network that learns over the run, or nothing"""
    worlds_per_task: int = 0
    """worlds in which a task is tried at once when it is judged; 0 is one for each rollout"""
    max_skipped: int = 10
    """iterations that may be skipped because their meta-gradient is not finite"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        where = "gradient adaptation"
        counts = ("meta_batch", "rollouts", "inner_steps", "context")
        require_between(self, counts, where, 1)
        require_between(self, ("gamma", "lam"), where, 0, 1)
        require_between(self, ("max_skipped", "worlds_per_task"), where, 0)
        require_between(self, ("log_std",), where, MIN_LOG_STD)
        require_positive(self, ("inner_rate", "last_layer"), where)
        require_widths(self, ("layers",), where)


def check_fit(config: AdaptationConfig, spec: Spec) -> None:
    """Raise `UsageError` if a task's episodes are too few steps for the linear baseline."""
    steps, wanted = config.rollouts * spec.horizon, feature_count(spec.obs_dim)
    if config.baseline == "linear" and steps <= wanted:
        raise UsageError(
            f"baseline linear: {config.rollouts} rollouts of {spec.horizon} steps are too short to "
            f"fit {wanted} coefficients, which would predict every return exactly; take more than "
            f"{wanted // spec.horizon} rollouts, or baseline value or none"
        )


class Policy(nn.Module):
    """A policy that takes one set of parameters for all tasks, or one for each of them."""

    def __init__(self, spec: Spec, config: AdaptationConfig) -> None:
        """Build it for the spaces of `spec`."""
        super().__init__()
        actions, cavia = action_dim(spec.action_space), config.inner == "cavia"
        self.hidden = nn.ModuleList()
        inputs = spec.obs_dim + (config.context if cavia else 0)
        for fan_in, fan_out in pairwise((inputs, *config.layers)):
            self.hidden.append(_xavier(Linear(fan_in, fan_out)))
        self.last = _xavier(NarrowLinear(config.layers[-1], actions), config.last_layer)
        if not isinstance(spec.action_space, gym.spaces.Discrete):
            self.log_std = nn.Parameter(torch.full((actions,), config.log_std))
        if cavia:
            self.context = nn.Parameter(torch.zeros(config.context))

    def forward(self, obs: Tensor) -> Distribution:
        """The distributions of actions for observations `[N, M, O]`."""
        h = obs
        if hasattr(self, "context"):
            context = self.context.expand(len(obs), -1).unsqueeze(1)
            h = torch.cat([obs, context.expand(-1, obs.shape[1], -1)], -1)
        for layer in self.hidden:
            h = tanh(layer(h))
        out = self.last(h)
        if not hasattr(self, "log_std"):
            return Categorical(out)
        # [1, A], or [N, 1, A] where every task has its own.
        return Gaussian(out, self.log_std.clamp(min=MIN_LOG_STD).unsqueeze(-2))


def _xavier(layer: Linear, scale: float = 1.0) -> Linear:
    nn.init.xavier_uniform_(layer.weight, scale)
    nn.init.zeros_(layer.bias)
    return layer


class AdaptingPolicy(nn.Module):
    """A policy with what it needs to know to adapt: the meta-parameters."""

    def __init__(self, spec: Spec, config: AdaptationConfig) -> None:
        """Build the policy, and step sizes if they are learned."""
        super().__init__()
        self.config = config
        self.obs_norm = RunningNorm(spec.obs_dim)
        self.policy = Policy(spec, config)
        if config.inner == "meta-sgd":
            rates = [torch.full_like(p, config.inner_rate) for p in self.policy.parameters()]
            self.rates = nn.ParameterList(rates)

    def start(self) -> Params:
        """The parameters that adapt, as they are before."""
        named: Params = dict(self.policy.named_parameters())
        return {"context": named["context"]} if self.config.inner == "cavia" else named

    def meta_parameters(self) -> list[nn.Parameter]:
        """What meta-training changes: everything but a context, which starts from zeros."""
        return [p for name, p in self.named_parameters() if name != "policy.context"]

    def rule(self) -> SGD:
        """What a gradient does to the parameters that adapt."""
        if self.config.inner == "meta-sgd":
            return SGD(dict(zip(self.start(), self.rates, strict=True)))
        return SGD(self.config.inner_rate)

    def chances(self, params: Params, obs: Tensor) -> Distribution:
        """Distributions of actions for `obs` `[N, M, O]` under the adapted `params` `[N, ...]`."""
        if self.config.normalize:
            obs = self.obs_norm(obs)
        return cast(Distribution, functional_call(self.policy, params, (obs,)))

    def adaptation(
        self,
        batches: Sequence[Batch],
        *,
        second_order: bool = True,
        params: Params | None = None,
        seen: list[Distribution] | None = None,
    ) -> Iterator[Params]:
        """The parameters `[N, ...]` after 0, 1, ... steps, the k-th on `batches[k]`.

        Args:
            batches: one for each step.
            second_order: keep the derivative of the steps.
            params: where to start; by default all tasks start from the meta-learned parameters.
            seen: gets the distributions whose loss each step descends.
        """
        kind = self.config.inner_loss

        def loss(own: Params, step: int) -> Tensor:
            chances = self.chances(own, batches[step].obs)
            if seen is not None:
                seen.append(chances)
            return inner_loss(chances, batches[step], kind)

        own = own_copies(self.start(), len(batches[0])) if params is None else params
        return trajectory(own, loss, self.rule(), len(batches), second_order=second_order)

    def adapted(self, batches: Sequence[Batch], **options: Any) -> Params:
        """The parameters after all steps; see `adaptation`."""
        *_, params = self.adaptation(batches, **options)
        return params


@dataclass(frozen=True)
class Episodes:
    """Whole episodes of N tasks, `[T, N, W, ...]`, each world's one after the other."""

    obs: Tensor
    """float32 `[T, N, W, O]`"""
    action: Tensor
    """float32 `[T, N, W, A]` or int64 `[T, N, W]`"""
    reward: Tensor
    """float32 `[T, N, W]`"""
    done: Tensor
    """bool `[T, N, W]`: the episode ended at this step"""
    valid: Tensor
    """bool `[T, N, W]`: may be learned from"""
    elapsed: Tensor
    """int64 `[T, N, W]`: steps since the start of the episode"""

    @classmethod
    def of(cls, rollout: Rollout, dense: bool = False) -> Episodes:
        """Those of a rollout, with its denser reward if it is `dense`."""
        reward = rollout.dense_reward if dense else rollout.reward
        parts = rollout.obs, rollout.action, reward, rollout.done, rollout.valid, rollout.elapsed
        return cls(*parts)


@dataclass(frozen=True)
class Batch:
    """The steps of N tasks, made ready for a policy gradient; indexable by tasks."""

    obs: Tensor
    """`[N, M, O]`"""
    action: Tensor
    """`[N, M, A]` or `[N, M]`"""
    advantage: Tensor
    """`[N, M]`, of mean 0 and standard deviation 1 in every task"""
    weight: Tensor
    """`[N, M]`, 1 where the step may be learned from, else 0"""
    log_prob: Tensor
    """`[N, M]`, of the policy that acted"""
    old: tuple[Tensor, ...]
    """the parameters of the distributions that it acted by, `[N, ...]`"""
    elapsed: Tensor
    """`[N, M]`, steps since the start of the episode"""
    returns: Tensor
    """`[N, M]`, discounted"""
    credit: Tensor
    """`[N]`, the mean return of an episode, standardised over the tasks"""

    def __len__(self) -> int:
        """N."""
        return len(self.obs)

    def __getitem__(self, tasks: slice) -> Batch:
        """Some of the tasks."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        old = tuple(x[tasks] for x in parts.pop("old"))
        return Batch(old=old, **{name: x[tasks] for name, x in parts.items()})


Baseline = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""obs `[N, M, O]`, elapsed, returns and weight `[N, M]` to predicted returns `[N, M]`"""


def no_baseline(obs: Tensor, elapsed: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
    """Zeros `[N, M]`."""
    return torch.zeros_like(returns)


def by_task(x: Tensor) -> Tensor:
    """`[T, N, W, ...]` to `[N, T * W, ...]`."""
    return x.movedim(0, 1).flatten(1, 2)


def task_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of each task's steps `[N, M]` of weight 1: `[N]`."""
    return (x * weight).sum(-1) / weight.sum(-1).clamp(min=1.0)


@torch.no_grad()
def prepare(
    episodes: Episodes,
    chances: Callable[[Tensor], Distribution],
    config: AdaptationConfig,
    baseline: Baseline,
) -> Batch:
    """Advantages by GAE, standardised in every task, and what the old policy thought.

    Nothing follows the last step of an episode, time limit or not, as in the published code: the
    return is what can be had in the time that there is, and the baseline is told the time.

    Args:
        episodes: `[T, N, W, ...]`.
        chances: observations `[N, M, O]` to the distributions that acted.
        config: discount, lambda.
        baseline: predicts returns.
    """
    done, valid = episodes.done, episodes.valid
    reward = episodes.reward.where(valid, 0.0)
    returns = discounted_returns(reward, ~done & valid, config.gamma)
    obs, elapsed = by_task(episodes.obs), by_task(episodes.elapsed)
    weight = by_task(valid).to(reward.dtype)
    predicted = baseline(obs, elapsed, by_task(returns), weight)
    value = predicted.unflatten(1, (len(reward), -1)).movedim(1, 0)
    following = torch.cat([value[1:], torch.zeros_like(value[:1])]) * ~done
    advantage = by_task(gae(reward, value, following, ~done, valid, config.gamma, config.lam))
    centred = advantage - task_mean(advantage, weight).unsqueeze(-1)
    spread = task_mean(centred.square(), weight).sqrt().unsqueeze(-1)
    action, old = by_task(episodes.action), chances(obs)
    return Batch(
        obs=obs,
        action=action,
        advantage=centred / (spread + 1e-8) * weight,
        weight=weight,
        log_prob=old.log_prob(action),
        old=tuple(x.expand(len(obs), *x.shape[-2:]) for x in old.parameters),
        elapsed=elapsed,
        returns=by_task(returns),
        credit=_standardised(task_mean(by_task(returns), weight * (elapsed == 0))),
    )


def _standardised(x: Tensor) -> Tensor:
    sound = x[x.isfinite()]  # a task whose return is not finite is to spoil no other
    return (x - sound.mean()) / (sound.std(correction=0) + 1e-8)


def where_finite(params: Params, before: Params) -> Params:
    """`params` `[N, ...]`, but `before` for tasks where any of them is not finite."""
    sound = torch.stack([p.flatten(1).isfinite().all(1) for p in params.values()]).all(0)
    return {n: p.where(sound.view(-1, *[1] * (p.dim() - 1)), before[n]) for n, p in params.items()}


def inner_loss(chances: Distribution, batch: Batch, kind: str) -> Tensor:
    """What a gradient step descends, `[N]`; see the top of this module."""
    log_prob = chances.log_prob(batch.action)
    if kind == "log-likelihood":
        return -task_mean(log_prob * batch.advantage, batch.weight)
    return -task_mean((log_prob - batch.log_prob).exp() * batch.advantage, batch.weight)


def kl_from_old(batch: Batch, chances: Distribution) -> Tensor:
    """KL(π_old || π) of each task, mean over its steps: `[N]`."""
    old = type(chances)(*batch.old)
    return task_mean(old.kl(cast(Any, chances)), batch.weight)
