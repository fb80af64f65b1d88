"""PEARL's update as one writes it down from the paper: the peer of `metarl bench update pearl`.

A network is a module, has an optimiser of its own, and every loss is followed by its own backward
pass and step. The memory is a dict of tensors per task, sampled task by task. It learns the same as
`metarl.agents.pearl`, but for the order: here, as published, the policy and the value are judged
by critics that have just made their step; there, by the critics of before it.

Shapes: `M` tasks, `B` transitions of a task, `C` transitions of a context, `O`, `A`, `X` numbers of
an observation, an action and a transition, `Z` latent; rows are `M * B`, task by task.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from metarl.agents.pearl import Pearl, PearlNetworks
from metarl.replay import MultiTaskReplay

Rows = dict[str, Tensor]
Linears = list[tuple[Tensor, Tensor]]
"""weight `[out, in]` and bias `[out]` of each layer of a network"""


def network(*sizes: int) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PlainPearl:
    """Encoder, policy, two critics, and a value or a temperature, updated one after the other."""

    def __init__(self, agent: Pearl) -> None:
        """Start with the settings, the weights, the replay and the noise of `agent`."""
        self.config, spec = agent.config, agent.spec
        self.actions = len(agent.networks.sac.low)
        state, hidden = spec.obs_dim + self.config.latent, self.config.layers
        sizes = {
            "encoder": (
                agent.networks.context_dim,
                *self.config.encoder_layers,
                2 * self.config.latent,
            ),
            "policy": (state, *hidden, 2 * self.actions),
            "q1": (state + self.actions, *hidden, 1),
            "q2": (state + self.actions, *hidden, 1),
        }
        if self.config.variant == "paper":
            sizes["value"] = (state, *hidden, 1)
        self.nets = {name: network(*size).to(agent.device) for name, size in sizes.items()}
        copy_weights(agent.networks, self.nets)
        followed = ("value",) if "value" in self.nets else ("q1", "q2")
        self.targets = {name: deepcopy(self.nets[name]) for name in followed}
        self.log_alpha = torch.zeros((), device=agent.device, requires_grad=True)
        learned: dict[str, list[Tensor]]
        learned = {name: list(net.parameters()) for name, net in self.nets.items()}
        if "value" not in self.nets:
            learned["temperature"] = [self.log_alpha]
        rate = self.config.learning_rate
        self.optimizers = {n: torch.optim.Adam(p, lr=rate) for n, p in learned.items()}
        self.generator = torch.Generator(agent.device)
        self.generator.set_state(agent.generator.get_state())
        self.replay = _by_task(agent.replay)
        self.contexts = _by_task(agent.contexts)

    def sample(self) -> Rows:
        """Transitions `[M * B, ...]` and contexts `x` `[M, C, X]` of random tasks."""
        config, device = self.config, self.log_alpha.device
        tasks = torch.randint(
            config.train_tasks, (config.meta_batch,), generator=self.generator, device=device
        )
        contexts = [self._draw(self.contexts[k], config.context)["x"] for k in tasks.tolist()]
        rows = [self._draw(self.replay[k], config.batch) for k in tasks.tolist()]
        joined = {name: torch.cat([row[name] for row in rows]) for name in rows[0]}
        return {**joined, "x": torch.stack(contexts)}

    def _draw(self, memory: Rows, count: int) -> Rows:
        size = len(next(iter(memory.values())))
        index = torch.randint(
            size, (count,), generator=self.generator, device=self.log_alpha.device
        )
        return {name: values[index] for name, values in memory.items()}

    def update(self, rows: Rows) -> Rows:
        """Update every network in turn; their losses."""
        mean, var = self._infer(rows["x"])
        noise = self._normal(mean.shape)
        latents = mean + var.sqrt() * noise
        # Every task's latent stands beside each of its transitions.
        z = torch.cat([latent.repeat(self.config.batch, 1) for latent in latents])
        losses = self._critics(rows, z, mean, var)
        states = torch.cat([rows["obs"], z.detach()], 1)
        losses |= self._policy(states)
        self._follow()
        return {name: loss.detach() for name, loss in losses.items()}

    def _infer(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance `[M, Z]` of the product of the Gaussians of each context."""
        mean, raw = self.nets["encoder"](x.view(-1, x.shape[-1])).chunk(2, 1)
        var = F.softplus(raw).clamp(min=1e-7)
        products = []
        for task_mean, task_var in zip(mean.chunk(len(x)), var.chunk(len(x)), strict=True):
            product = 1.0 / (1.0 / task_var).sum(0)
            products.append((product * (task_mean / task_var).sum(0), product))
        means, variances = zip(*products, strict=True)
        return torch.stack(means), torch.stack(variances)

    def _critics(self, rows: Rows, z: Tensor, mean: Tensor, var: Tensor) -> Rows:
        """Step the critics and the encoder down the Bellman error and the KL to the prior."""
        config = self.config
        prior = Normal(torch.zeros_like(mean), torch.ones_like(var))
        kl = config.kl_weight * kl_divergence(Normal(mean, var.sqrt()), prior).sum()
        with torch.no_grad():
            value = self._next_value(torch.cat([rows["next_obs"], z], 1))
            alive = (~rows["terminated"]).float()
            target = config.reward_scale * rows["reward"] + config.gamma * alive * value
        inputs = torch.cat([rows["obs"], z, rows["action"]], 1)
        q1, q2 = (self.nets[name](inputs).squeeze(1) for name in ("q1", "q2"))
        bellman = F.mse_loss(q1, target) + F.mse_loss(q2, target)
        self._zero("q1", "q2", "encoder")
        kl.backward(retain_graph=True)
        bellman.backward()
        self._step("q1", "q2", "encoder")
        return {"bellman": bellman, "kl": kl}

    def _next_value(self, states: Tensor) -> Tensor:
        """The value of states `[M * B, O + Z]` by the target networks."""
        if "value" in self.targets:
            value: Tensor = self.targets["value"](states).squeeze(1)
            return value
        action, log_prob, _, _ = self._act(states)
        q = self._lower(self.targets, states, action)
        return q - self.log_alpha.exp() * log_prob

    def _policy(self, states: Tensor) -> Rows:
        """Step the policy, and the value or the temperature, at `states` `[M * B, O + Z]`."""
        action, log_prob, mean, log_std = self._act(states)
        q = self._lower(self.nets, states, action)
        if "value" in self.nets:
            error = self.nets["value"](states).squeeze(1) - (q - log_prob).detach()
            other, other_loss = "value", error.pow(2).mean()
            regular = 1e-3 * mean.pow(2).mean() + 1e-3 * log_std.pow(2).mean()
            policy_loss = (log_prob - q).mean() + regular
        else:
            surplus = log_prob.detach().mean() - self.actions
            other, other_loss = "temperature", -self.log_alpha * surplus
            policy_loss = (self.log_alpha.exp().detach() * log_prob - q).mean()
        for name, loss in ((other, other_loss), ("policy", policy_loss)):
            self._zero(name)
            loss.backward()
            self._step(name)
        return {other: other_loss, "policy": policy_loss}

    def _act(self, states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Actions, their log density, and mean and log standard deviation before tanh."""
        mean, log_std = self.nets["policy"](states).chunk(2, 1)
        log_std = log_std.clamp(-20.0, 2.0)
        u = mean + log_std.exp() * self._normal(mean.shape)
        squeeze = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        log_prob = (Normal(mean, log_std.exp()).log_prob(u) - squeeze).sum(1)
        return u.tanh(), log_prob, mean, log_std

    @staticmethod
    def _lower(nets: dict[str, nn.Sequential], states: Tensor, action: Tensor) -> Tensor:
        """What the more pessimistic critic says, `[M * B]`."""
        inputs = torch.cat([states, action], 1)
        q1, q2 = (nets[name](inputs).squeeze(1) for name in ("q1", "q2"))
        lower: Tensor = torch.min(q1, q2)
        return lower

    def _normal(self, shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.log_alpha.device)

    def _zero(self, *names: str) -> None:
        for name in names:
            self.optimizers[name].zero_grad()

    def _step(self, *names: str) -> None:
        for name in names:
            self.optimizers[name].step()

    @torch.no_grad()
    def _follow(self) -> None:
        tau = self.config.tau
        for name, target in self.targets.items():
            pairs = zip(target.parameters(), self.nets[name].parameters(), strict=True)
            for slow, fast in pairs:
                slow.copy_((1.0 - tau) * slow + tau * fast)


def _by_task(replay: MultiTaskReplay) -> list[Rows]:
    """What each task holds."""
    return [
        {name: replay.storage[name][task, :size] for name in replay.fields}
        for task, size in enumerate(replay.size.tolist())
    ]


def linears(
    networks: PearlNetworks, of: Callable[[Tensor], Tensor] = lambda parameter: parameter
) -> dict[str, Linears]:
    """What in `networks` is the same as which layer of the plain networks, by their name.

    `of` maps a parameter to what is wanted of it: itself, or its gradient.
    """
    sac, encoder = networks.sac, networks.encoder
    policy = [*sac.actor.parameters(), *sac.head.parameters()]
    flat = {"encoder": list(encoder.parameters()), "policy": policy}
    found = {
        name: [(of(w), of(b)) for w, b in zip(p[::2], p[1::2], strict=True)]
        for name, p in flat.items()
    }
    ensembles = [("q1", sac.critics, 0), ("q2", sac.critics, 1)]
    if sac.variant == "paper":
        ensembles.append(("value", sac.value, 0))
    for name, net, head in ensembles:
        layers = zip(net.weights, net.biases, strict=True)
        found[name] = [(of(w)[head].T, of(b)[head, 0]) for w, b in layers]
    return found


@torch.no_grad()
def copy_weights(networks: PearlNetworks, nets: dict[str, nn.Sequential]) -> None:
    """Give the plain networks the weights of `networks`."""
    for name, layers in linears(networks).items():
        modules = [module for module in nets[name] if isinstance(module, nn.Linear)]
        for module, (weight, bias) in zip(modules, layers, strict=True):
            module.weight.copy_(weight)
            module.bias.copy_(bias)
