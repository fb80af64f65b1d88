"""Meta-gradients of MAML and ProMP the slow and obvious way: one task after the other.

Nothing here knows `metarl.layers`, `metarl.inner_loop` or `metarl.distributions`: policies are
`F.linear` and `tanh`, distributions are those of torch, steps that do not count are left out
instead of weighted by zero, and the loop over tasks and gradient steps is written out.
"""

from __future__ import annotations

from dataclasses import replace

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Independent, Normal, kl_divergence

from metarl.agents.gradient_adaptation import AdaptingPolicy, Batch
from metarl.tasks import Spec
from metarl.vector import box

GAUSSIAN = Spec(box(-10.0, 10.0, 3), box(-1.0, 1.0, 2), 1, 4, 5)
CATEGORICAL = Spec(box(-10.0, 10.0, 3), gym.spaces.Discrete(3), 1, 4, 5)
SPECS = {"gaussian": GAUSSIAN, "categorical": CATEGORICAL}


def shaken(network, size=0.3, seed=0):
    """`network` in float64, no parameter at a value such as 0 that would hide an error."""
    generator = torch.Generator().manual_seed(seed)
    network.double()
    for name, p in network.named_parameters():
        if name != "policy.context":  # it starts from zeros, always
            noise = torch.randn(p.shape, dtype=torch.float64, generator=generator)
            # Step sizes of either sign: what learns them does not ask.
            p.data += size * noise
    return network


def random_batch(spec, config, tasks=3, steps=6, seed=0):
    """Steps of any policy that acted, with advantages and weights at random, in float64."""
    g = torch.Generator().manual_seed(seed)
    obs = torch.randn(tasks, steps, spec.obs_dim, dtype=torch.float64, generator=g)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        acted = shaken(AdaptingPolicy(spec, replace(config, inner="sgd")), seed=seed + 100)
        chances = acted.chances({}, obs)
        action = chances.sample(g)
        log_prob = chances.log_prob(action)
    weight = (torch.rand(tasks, steps, generator=g) < 0.7).double()
    weight[:, 0] = 1.0
    old = tuple(x.detach().expand(tasks, *x.shape[-2:]) for x in chances.parameters)
    advantage = torch.randn(tasks, steps, dtype=torch.float64, generator=g) * weight
    elapsed = torch.arange(steps).expand(tasks, -1)
    credit = torch.randn(tasks, dtype=torch.float64, generator=g)
    return Batch(obs, action, advantage, weight, log_prob, old, elapsed, advantage, credit)


def random_rounds(spec, config, tasks=3, steps=6):
    """One batch for each gradient step, and one more."""
    return [random_batch(spec, config, tasks, steps, seed=k) for k in range(config.inner_steps + 1)]


class Plain:
    """The policy, its parameters as plain leaves with the values of `network`."""

    def __init__(self, network):
        self.config = network.config
        self.leaves = [p.detach().clone().requires_grad_() for p in network.meta_parameters()]
        values = iter(self.leaves)
        named = [name for name, _ in network.policy.named_parameters() if name != "context"]
        self.theta = {name: next(values) for name in named}
        self.rates = dict(zip(named, values, strict=False))  # what is left: Meta-SGD's step sizes

    def start(self):
        """What adapts, by name."""
        if self.config.inner == "cavia":
            zeros = torch.zeros(self.config.context, dtype=torch.float64)
            return {"context": zeros.requires_grad_()}
        return dict(self.theta)

    def policy(self, adapted, obs):
        """Torch's distribution of actions for `obs` `[M, O]`."""
        p = {**self.theta, **adapted}
        if "context" in p:
            obs = torch.cat([obs, p["context"].repeat(len(obs), 1)], 1)
        elif self.config.inner == "cavia":
            obs = torch.cat([obs, torch.zeros(len(obs), self.config.context).double()], 1)
        for k in range(len(self.config.layers)):
            obs = torch.tanh(F.linear(obs, p[f"hidden.{k}.weight"], p[f"hidden.{k}.bias"]))
        out = F.linear(obs, p["last.weight"], p["last.bias"])
        if "log_std" in p:
            return Independent(Normal(out, p["log_std"].exp().expand_as(out)), 1)
        return Categorical(logits=out)

    def step(self, params, loss, second_order):
        """One step down `loss`."""
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=second_order)
        rate = self.rates or dict.fromkeys(params, self.config.inner_rate)
        pairs = zip(params.items(), grads, strict=True)
        return {name: p - rate[name] * g for (name, p), g in pairs}


class Steps:
    """The steps of one task that count."""

    def __init__(self, batch, task):
        keep = batch.weight[task] > 0
        self.obs, self.action = batch.obs[task][keep], batch.action[task][keep]
        self.advantage, self.log_prob = batch.advantage[task][keep], batch.log_prob[task][keep]
        parts = [x[task].expand(len(keep), -1)[keep] for x in batch.old]
        if len(parts) == 2:
            self.old = Independent(Normal(parts[0], parts[1].exp()), 1)
        else:
            self.old = Categorical(logits=parts[0])

    def ratio(self, policy):
        """π(a|s) / π_old(a|s)."""
        return policy.log_prob(self.action).exp() / self.log_prob.exp()

    def inner_loss(self, policy, kind):
        """What a gradient step descends."""
        if kind == "log-likelihood":
            return -(policy.log_prob(self.action) * self.advantage).mean()
        return -(self.ratio(policy) * self.advantage).mean()

    def kl(self, policy):
        """KL(π_old || π), mean over the steps."""
        return kl_divergence(self.old, policy).mean()


def adapt(plain, rounds, task, second_order=True):
    """Task `task` after a step on each of `rounds`, and the KL before each of these steps."""
    params, kls = plain.start(), []
    for batch in rounds:
        steps = Steps(batch, task)
        policy = plain.policy(params, steps.obs)
        kls.append(steps.kl(policy))
        loss = steps.inner_loss(policy, plain.config.inner_loss)
        params = plain.step(params, loss, second_order)
    return params, kls


def maml_losses(plain, rounds):
    """L' of each task, `[N]`: Finn et al. 2017, eq. 4, with TRPO's ratio; and E-MAML's term."""
    config, out = plain.config, []
    for task in range(len(rounds[0])):
        params, _ = adapt(plain, rounds[:-1], task, config.second_order)
        after = Steps(rounds[-1], task)
        loss = -(after.ratio(plain.policy(params, after.obs)) * after.advantage).mean()
        if config.exploration:
            first = Steps(rounds[0], task)
            ratio = first.ratio(plain.policy({}, first.obs))
            loss = loss - config.exploration * (ratio * rounds[-1].credit[task]).mean()
        out.append(loss)
    return torch.stack(out)


def promp_losses(plain, rounds, weights):
    """Rothfuss et al. 2019, eq. 17, of each task `[N]`; `weights` are η of each gradient step.

    The penalty is a mean over the gradient steps, as in the published code.
    """
    clip, out = plain.config.clip, []
    for task in range(len(rounds[0])):
        params, kls = adapt(plain, rounds[:-1], task)
        after = Steps(rounds[-1], task)
        gains = []
        ratios = after.ratio(plain.policy(params, after.obs))
        for ratio, advantage in zip(ratios, after.advantage, strict=True):
            low, high = ratio.new_tensor(1.0 - clip), ratio.new_tensor(1.0 + clip)
            cut = min(max(ratio, low), high)
            gains.append(min(ratio * advantage, cut * advantage))
        penalty = sum(w * kl for w, kl in zip(weights, kls, strict=True)) / len(kls)
        out.append(penalty - torch.stack(gains).mean())
    return torch.stack(out)


def adapted_kl(plain, rounds, start):
    """Mean over tasks of KL(π_U(start) || π_U(θ)) on the last round, a function of θ."""
    total = 0.0
    for task in range(len(rounds[0])):
        after = Steps(rounds[-1], task)
        with torch.enable_grad():
            there, _ = adapt(start, rounds[:-1], task)
            fixed = start.policy({n: p.detach() for n, p in there.items()}, after.obs)
        here, _ = adapt(plain, rounds[:-1], task)
        total = total + kl_divergence(detached(fixed), plain.policy(here, after.obs)).mean()
    return total / len(rounds[0])


def detached(policy):
    """The same distribution, as a constant."""
    if isinstance(policy, Categorical):
        return Categorical(logits=policy.logits.detach())
    return Independent(Normal(policy.mean.detach(), policy.stddev.detach()), 1)
