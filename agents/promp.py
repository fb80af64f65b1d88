"""ProMP: proximal meta-policy search (Rothfuss et al. 2019).

    max_θ Σ_i E[min(ρ A, clip(ρ, 1 ± ε) A)] - η mean_k KL(π_old,k || π_θ,k),   ρ = π_U(θ) / π_old

(eq. 17; the mean over the steps k is the published code's) on episodes after adaptation U, for a
few epochs on the same episodes; every epoch adapts anew from the θ that it has. The KL keeps θ near
the policies that collected the episodes *before* each gradient step k, on whose ratios the
adaptation relies; how far the adapted policy moves is what the clip limits. The gradient steps
descend likelihood ratios, whose derivative is the low-variance curvature of section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metarl.acceleration import for_learning
from metarl.agents.gradient_adaptation import (
    AdaptationConfig,
    AdaptingPolicy,
    Batch,
    kl_from_old,
    task_mean,
)
from metarl.agents.gradient_agent import GradientAgent, NotFiniteError
from metarl.distributions import Distribution
from metarl.errors import require_between, require_positive
from metarl.optimization import load_optimizer, set_learning_rate


@dataclass(frozen=True)
class ProMPConfig(AdaptationConfig):
    """Settings of ProMP, as published for the robots."""

    inner_loss: Literal["log-likelihood", "likelihood-ratio"] = "likelihood-ratio"
    """what the steps descend; the ratio's second derivative has the lower variance"""
    clip: float = 0.3
    """ε of the outer objective"""
    epochs: int = 5
    """outer steps on the same episodes"""
    learning_rate: float = 1e-3
    """Adam's step size at the start"""
    final_learning_rate: float = 1e-3
    """Adam's step size at the end of the budget; linear in between"""
    kl_weight: float = 5e-4
    """η, weight of the KL before each gradient step, or where it starts"""
    adaptive_kl: bool = False
    """halve or double η so that the KL stays near its target"""
    target_kl: float = 0.01
    """in nats; η changes where the KL is 1.5 times as large or as small (adaptive-kl)"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("clip", "learning_rate", "target_kl"), "promp")
        require_between(self, ("kl_weight", "final_learning_rate"), "promp", 0)
        require_between(self, ("epochs",), "promp", 1)


def clipped_loss(chances: Distribution, batch: Batch, clip: float) -> Tensor:
    """-E[min(ρ A, clip(ρ, 1 - ε, 1 + ε) A)] of each task, `[N]` (eq. 15)."""
    ratio = (chances.log_prob(batch.action) - batch.log_prob).exp()
    clipped = ratio.clamp(1.0 - clip, 1.0 + clip)
    gain = (ratio * batch.advantage).minimum(clipped * batch.advantage)
    return -task_mean(gain, batch.weight)


@for_learning
def promp_loss(
    network: AdaptingPolicy, rounds: Sequence[Batch], clip: float, kl_weight: Tensor
) -> tuple[Tensor, Distribution, Tensor]:
    """The objective of each task as a loss (eq. 17).

    Args:
        network: with the meta-parameters θ.
        rounds: before each gradient step, and after the last.
        clip: ε.
        kl_weight: η of each gradient step, `[steps]`.

    Returns:
        The loss `[N]`, what acts after adaptation, and the KL before each step `[steps, N]`.
    """
    *before, after = rounds
    seen: list[Distribution] = []
    adapted = network.adapted(before, seen=seen)
    chances = network.chances(adapted, after.obs)
    kl = torch.stack([kl_from_old(b, c) for b, c in zip(before, seen, strict=True)])
    penalty = (kl_weight.unsqueeze(-1) * kl).mean(0)
    return clipped_loss(chances, after, clip) + penalty, chances, kl


def adapt_weight(weight: Tensor, kl: Tensor, target: float) -> Tensor:
    """η `[steps]`, halved where the KL is below target / 1.5 and doubled above 1.5 target."""
    halved = torch.where(kl < target / 1.5, 0.5 * weight, weight)
    return torch.where(kl > 1.5 * target, 2.0 * weight, halved)


class ProMP(GradientAgent):
    """Meta-trains by several proximal steps on the same episodes."""

    name = "promp"
    config: ProMPConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        """Build the policy; see `GradientAgent`."""
        super().__init__(*args, **options)
        start = torch.full((self.config.inner_steps,), self.config.kl_weight)
        self.kl_weight = start.to(self.generator.device)
        self.kl = torch.zeros_like(self.kl_weight)

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.meta_parameters, lr=self.config.learning_rate)

    def meta_loss(self, rounds: Sequence[Batch]) -> tuple[Tensor, Distribution]:
        """As `promp_loss`; adds up the KL over the parts of an epoch."""
        losses, chances, kl = promp_loss(self.network, rounds, self.config.clip, self.kl_weight)
        self.kl += kl.detach().sum(1)
        return losses, chances

    def learn(self, rounds: Sequence[Batch], progress: float) -> dict[str, float]:
        """Some epochs of Adam; see `GradientAgent.learn`."""
        rates = self.config.learning_rate, self.config.final_learning_rate
        set_learning_rate(self.optimizer, *rates, progress)
        before = deepcopy((self.network.state_dict(), self.optimizer.state_dict()))
        losses = []
        try:
            for _ in range(self.config.epochs):
                self.kl.zero_()
                losses.append(self.meta_gradient(rounds))
                self.optimizer.step()
        except NotFiniteError:  # maybe not in the first epoch
            self.network.load_state_dict(before[0])
            load_optimizer(self.optimizer, before[1])
            raise
        if self.config.adaptive_kl:  # by how far all epochs went
            self.kl.zero_()
            with torch.no_grad():
                for part in self.parts(rounds):
                    self.meta_loss(part)
        kl = self.kl / len(rounds[0])
        if self.config.adaptive_kl:
            self.kl_weight = adapt_weight(self.kl_weight, kl, self.config.target_kl)
        return {
            "loss/meta": losses[-1],
            "loss/inner_kl": float(kl.mean()),
            "loss/kl_weight": float(self.kl_weight.mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        """As every agent, and η."""
        return {**super().state_dict(), "kl_weight": self.kl_weight.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        super().load_state_dict(state)
        self.kl_weight = state["kl_weight"].to(self.generator.device).clone()
