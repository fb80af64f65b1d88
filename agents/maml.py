"""MAML for reinforcement learning, with TRPO as the outer step (Finn et al. 2017).

    min_θ Σ_i L_i'(θ - α ∇L_i(θ)),  L' on episodes after the step

With U(θ) for the steps of adaptation, the meta-gradient is that of L'(U(θ)), second derivatives
included. TRPO (Schulman et al. 2015) then steps along F⁻¹ g as far as the KL between the adapted
policies that collected and those of the new θ allows; F is the Fisher matrix of the *adapted*
policies with respect to θ, so its products go through U: Jᵀ H J with J = ∂π_U(θ)/∂θ.

Other outer steps: a plain policy gradient with Adam (`vpg`), and Reptile (Nichol et al. 2018),
θ + β (U(θ) - θ). What adapts: everything, everything by learned step sizes (Meta-SGD, Li et al.
2017), or a context (CAVIA, Zintgraf et al. 2019). E-MAML (Stadie et al. 2018) credits the actions
before adaptation for the return after it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from metarl.acceleration import for_learning
from metarl.agents.gradient_adaptation import (
    AdaptationConfig,
    AdaptingPolicy,
    Batch,
    inner_loss,
    kl_from_old,
    task_mean,
)
from metarl.agents.gradient_agent import GradientAgent, NotFiniteError
from metarl.distributions import Distribution
from metarl.errors import UsageError, require_between, require_positive
from metarl.gauss_newton import GaussNewton
from metarl.trust_region import flatten, line_search, natural_step, unflatten


@dataclass(frozen=True)
class MAMLConfig(AdaptationConfig):
    """Settings of MAML; the defaults are those of ProMP's comparison (Rothfuss et al. 2019)."""

    outer: Literal["trpo", "vpg", "reptile"] = "trpo"
    """the outer step: a trust region, a policy gradient with Adam, or towards what adapts"""
    second_order: bool = True
    """differentiate through the gradient steps"""
    exploration: float = 0.0
    """weight of E-MAML's term: actions before adaptation are credited for the return after it"""
    max_kl: float = 0.01
    """δ of the trust region, in nats (trpo)"""
    cg_iterations: int = 10
    """iterations of conjugate gradients (trpo)"""
    damping: float = 1e-5
    """added to the diagonal of the Fisher matrix (trpo)"""
    learning_rate: float = 1e-3
    """Adam's step size (vpg), or β (reptile)"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("max_kl", "learning_rate"), "maml")
        require_between(self, ("exploration", "damping"), "maml", 0)
        require_between(self, ("cg_iterations",), "maml", 1)
        if self.outer == "reptile" and self.inner != "sgd":
            raise UsageError(
                f"maml: outer reptile moves the parameters to where they adapt, which goes with "
                f"inner sgd only, got {self.inner}"
            )


@for_learning
def maml_loss(
    network: AdaptingPolicy, rounds: Sequence[Batch], config: MAMLConfig
) -> tuple[Tensor, Distribution]:
    """The loss of each task after adaptation, `[N]`, and what acts then on the last round.

    -E[π_U(θ)(a|s) / π_old(a|s) A] on the last round (eq. 4 of Finn et al. 2017, with the ratio that
    TRPO puts in place of the log likelihood).
    """
    *before, after = rounds
    adapted = network.adapted(before, second_order=config.second_order)
    chances = network.chances(adapted, after.obs)
    return inner_loss(chances, after, "likelihood-ratio"), chances


def exploration_loss(network: AdaptingPolicy, before: Batch, credit: Tensor) -> Tensor:
    """E-MAML's term of each task: -E[π_θ(a|s) / π_old(a|s)] R' before adaptation, `[N]`.

    Stadie et al. 2018, eq. 6: all actions of a task share in the return R' after adaptation.

    Args:
        network: with the meta-parameters θ.
        before: the first round.
        credit: R' of each task `[N]`, relative to the other tasks'.
    """
    chances = network.chances({}, before.obs)
    ratio = (chances.log_prob(before.action) - before.log_prob).exp()
    return -task_mean(ratio, before.weight) * credit


def mean_kl(chances: Distribution, batch: Batch, tasks: int) -> Callable[..., Tensor]:
    """KL from `chances` as they are to others, given by their parameters; a mean over `tasks`."""
    here = replace(batch, old=tuple(x.detach() for x in chances.parameters))

    def kl(*parameters: Tensor) -> Tensor:
        return kl_from_old(here, type(chances)(*parameters)).sum() / tasks

    return kl


class MAML(GradientAgent):
    """Meta-trains a policy whose gradient steps lead far."""

    name = "maml"
    config: MAMLConfig

    @property
    def refuses(self) -> dict[str, str]:
        """As every such agent, and what is differentiated twice or not at all is not compiled."""
        if self.config.outer == "vpg":
            return super().refuses
        sentence = f"maml: compile is for outer vpg, got {self.config.outer}; train without it"
        return {**super().refuses, "compile": sentence}

    def make_optimizer(self) -> torch.optim.Optimizer:
        """Adam, or plain steps for Reptile; TRPO needs none."""
        kind = torch.optim.SGD if self.config.outer == "reptile" else torch.optim.Adam
        return kind(self.meta_parameters, lr=self.config.learning_rate)

    def meta_loss(self, rounds: Sequence[Batch]) -> tuple[Tensor, Distribution]:
        """As `maml_loss`, with E-MAML's term."""
        losses, chances = maml_loss(self.network, rounds, self.config)
        if self.config.exploration:
            term = exploration_loss(self.network, rounds[0], rounds[-1].credit)
            losses = losses + self.config.exploration * term
        return losses, chances

    def learn(self, rounds: Sequence[Batch], progress: float) -> dict[str, float]:
        """The outer step; see `GradientAgent.learn`."""
        outer = {"trpo": self._trpo, "vpg": self._vpg, "reptile": self._reptile}
        return outer[self.config.outer](rounds)

    def _trpo(self, rounds: Sequence[Batch]) -> dict[str, float]:
        """A natural gradient step whose length a line search finds."""
        config, parameters = self.config, self.meta_parameters
        kept: list[Distribution] = []
        before = self.meta_gradient(rounds, kept)
        gradient = flatten([p.grad for p in parameters if p.grad is not None])
        fisher = self.fisher(rounds, kept)
        step = natural_step(fisher, gradient, config.max_kl, config.cg_iterations, config.damping)
        del fisher, kept  # the graphs
        done = line_search(parameters, step, lambda: self.evaluate(rounds), before, config.max_kl)
        return {"loss/meta": done.loss, "loss/kl": done.kl, "loss/step": done.share}

    def fisher(
        self, rounds: Sequence[Batch], kept: Sequence[Distribution]
    ) -> Callable[[Tensor], Tensor]:
        """Products of F with vectors `[P]`.

        F is the Hessian, with respect to θ, of the mean KL from the adapted policies to those of
        another θ. The tasks are independent, so it is the sum over the parts that they come in.
        """
        pairs = zip(self.parts(rounds), kept, strict=True)
        parts = [
            GaussNewton(c.parameters, self.meta_parameters, mean_kl(c, part[-1], len(rounds[0])))
            for part, c in pairs
        ]

        def product(v: Tensor) -> Tensor:
            direction = unflatten(v, self.meta_parameters)
            return torch.stack([flatten(part(direction)) for part in parts]).sum(0)

        return product

    @torch.no_grad()
    def evaluate(self, rounds: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """The loss and the KL from the policies that acted, means over tasks, of the present θ."""
        losses, kls = [], []
        for part in self.parts(rounds):
            loss, chances = self.meta_loss(part)
            losses.append(loss)
            kls.append(kl_from_old(part[-1], chances))
        return torch.cat(losses).mean(), torch.cat(kls).mean()

    def _vpg(self, rounds: Sequence[Batch]) -> dict[str, float]:
        """One step of Adam along the meta-gradient."""
        loss = self.meta_gradient(rounds)
        self.optimizer.step()
        return {"loss/meta": loss, "loss/kl": float(self.evaluate(rounds)[1])}

    def _reptile(self, rounds: Sequence[Batch]) -> dict[str, float]:
        """A step to where the tasks adapt on all rounds, on the last one too."""
        with torch.no_grad():
            adapted = self.network.adapted(rounds)
            moved = [adapted[name].mean(0) for name in self.network.start()]
        if not all(bool(x.isfinite().all()) for x in moved):
            raise NotFiniteError(self._culprits(rounds))
        for p, mean in zip(self.meta_parameters, moved, strict=True):
            p.grad = p.detach() - mean
        self.optimizer.step()
        return {"loss/kl": float(self.evaluate(rounds)[1])}
