"""VariBAD's inference as one writes it down: the peer of `metarl bench update varibad`.

Torch's own layers and distributions, and a loop over the terms of the bound: one belief after the
other, with its KL to the one before, and each predicts the reward of every step from z and the step
side by side. It learns exactly what `metarl.agents.task_inference` does; a test holds the two
gradients against each other.

Shapes: `T` steps of a trial, `M` trials, `Z` latent, `E` beliefs and `D` steps that are drawn out
of a trial.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from metarl.agents.draws import at, draw
from metarl.agents.task_inference import LOG_STD, RewardHeads, Trials
from metarl.agents.varibad import VariBAD
from metarl.errors import UsageError
from metarl.networks import action_dim


class PlainVAE:
    """Encoder and reward decoder, and the bound term by term."""

    def __init__(self, agent: VariBAD) -> None:
        """Copy the settings, the weights and the noise of `agent`.

        Raises:
            UsageError: if it decodes anything but rewards.
        """
        self.config, vae, spec = agent.config, agent.network.vae, agent.spec
        if set(vae.decoders) != {"reward"}:
            raise UsageError("bench update: the loop decodes rewards only")
        self.heads = self.config.reward_decoder == "heads"
        inputs = spec.obs_dim + action_dim(spec.action_space) + 2
        step = 0 if self.heads else inputs - 2 + spec.obs_dim
        decoder = vae.decoders["reward"]
        outputs = decoder.sites if isinstance(decoder, RewardHeads) else 1
        widths = [self.config.latent + step, *self.config.decoder_layers]
        layers: list[nn.Module] = []
        for width, following in zip(widths, [*widths[1:], outputs], strict=True):
            layers += [nn.Linear(width, following), nn.ReLU()]
        self.network = nn.ModuleDict(
            {
                "embed": nn.Sequential(nn.Linear(inputs, self.config.embedding), nn.ReLU()),
                "gru": nn.GRU(self.config.embedding, self.config.hidden),
                "head": nn.Linear(self.config.hidden, 2 * self.config.latent),
                "decoder": nn.Sequential(*layers[:-1]),
            }
        )
        ours = list(vae.parameters())
        self.network.to(ours[0])
        with torch.no_grad():
            for plain, own in zip(self.network.parameters(), ours, strict=True):
                plain.copy_(own)
        self.optimizer = torch.optim.Adam(self.network.parameters(), self.config.vae_learning_rate)
        self.generator = torch.Generator(agent.generator.device)
        self.generator.set_state(agent.generator.get_state())

    def update(self, trials: Trials) -> None:
        """A gradient step."""
        loss = -self.bound(trials).mean()
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.vae_max_grad_norm:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.vae_max_grad_norm)
        self.optimizer.step()

    def bound(self, trials: Trials) -> Tensor:
        """The evidence lower bound of each trial, `[M]`."""
        mean, std = self.beliefs(trials.x)
        there = torch.cat([torch.ones_like(trials.active[:1]), trials.active])
        which, belief_weight = draw(there, self.config.beliefs, self.generator)
        index, step_weight = draw(trials.valid, self.config.decodes, self.generator)
        shape = *belief_weight.shape, self.config.latent
        noise = torch.randn(shape, generator=self.generator, device=mean.device)
        z = at(mean, which) + at(std, which) * noise
        total = self.divergence(mean, std, there) * -self.config.kl_weight
        steps = trials.at(index)
        for one, weight in zip(z, belief_weight, strict=True):
            log_p = self.log_likelihood(one.expand(len(step_weight), *one.shape), steps)
            total = total + weight * self.config.reward_weight * (log_p * step_weight).sum(0)
        return total

    def beliefs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations before each step and after the last, `[T + 1, M, Z]`."""
        network = self.network
        after, _ = network["gru"](network["embed"](x))
        states = torch.cat([torch.zeros_like(after[:1]), after])
        mean, log_std = network["head"](states).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD).exp()

    def divergence(self, mean: Tensor, std: Tensor, there: Tensor) -> Tensor:
        """The sum of the KL from each belief to the one before, and to N(0, I), `[M]`."""
        before = Normal(torch.zeros_like(mean[0]), torch.ones_like(std[0]))
        total = mean.new_zeros(mean.shape[1])
        for one_mean, one_std, exists in zip(mean, std, there, strict=True):
            belief = Normal(one_mean, one_std)
            total = total + kl_divergence(belief, before).sum(-1) * exists
            before = belief
        return total

    def log_likelihood(self, z: Tensor, steps: Trials) -> Tensor:
        """Log p of the rewards of `steps` `[D, M]` under z `[D, M, Z]`: `[D, M]`."""
        decoder = self.network["decoder"]
        if self.heads:
            logits = decoder(z).gather(-1, steps.site.unsqueeze(-1)).squeeze(-1)
            high = (steps.reward > 0).to(logits.dtype)
            return -F.binary_cross_entropy_with_logits(logits, high, reduction="none")
        predicted: Tensor = decoder(torch.cat([z, steps.step], -1))
        return -(steps.reward - predicted.squeeze(-1)).square()
