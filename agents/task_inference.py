"""VariBAD's inference: a variational auto-encoder of tasks (Zintgraf et al. 2020, section 3).

After every step of a trial the encoder holds a belief q_t over the latent task z: a Gaussian that a
GRU over what happened so far, (a, s', r, d), makes. Decoders say from z how probable the rewards
(states, task) of the *whole* trial are, past and future, which is why q_t has to hold what is known
and how uncertain it is. With q_{-1} = N(0, I) the evidence lower bound of a trial of H steps is

    ELBO = Σ_{t=0..H} ( E_{z ~ q_t} Σ_{i=0..H-1} log p(r_{i+1} | s_i, a_i, s_{i+1}, z)
                        - w KL(q_t || q_{t-1}) )

with one belief a step and one before all of them, q_0, which is learned; sums throughout, so that w
means what it does in the paper. q_t - what was known before step t - is also what the policy sees.

Shapes: `T` steps of a trial, `M` trials, `Z` latent, `E` beliefs and `D` steps that are drawn out
of a trial, `S` sites, `F` task features, `X` input of the encoder, `I` input of a decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.acceleration import for_learning, whole
from metarl.agents.draws import at, draw
from metarl.distributions import Gaussian, normal
from metarl.errors import UsageError, require_between, require_widths
from metarl.memory import GRUMemory
from metarl.networks import action_dim, relu_layers, relu_mlp
from metarl.tasks import Spec

LOG_STD = -10.0, 3.0
"""bounds of a belief's log standard deviations"""
CACHED_ROWS = 16_384
"""about how many pairs of a latent and a step a processor's cache holds"""

RewardDecoder = Literal["regression", "heads", "none"]


@dataclass(frozen=True)
class InferenceConfig:
    """Settings of the auto-encoder; the defaults are those of the MuJoCo robots."""

    name: ClassVar[str] = "varibad"
    embedding: int = 64
    """width of the encoder's input embedding"""
    hidden: int = 64
    """width of the encoder's GRU"""
    latent: int = 5
    """Z, dimensions of the latent task"""
    decoder_layers: tuple[int, ...] = (64, 32)
    """hidden layers of every decoder"""
    reward_decoder: RewardDecoder = "regression"
    """regression predicts any reward; heads, whether each cell or arm pays"""
    reward_weight: float = 1.0
    """weight of the reward's log likelihood"""
    state_weight: float = 0.0
    """weight of the next observation's; 0 leaves the decoder away"""
    task_weight: float = 0.0
    """weight of the task's; 0 leaves the decoder away"""
    kl_weight: float = 0.1
    """weight of the KL from each belief to the one before"""
    beliefs: int = 50
    """of a trial, how many are decoded in a gradient step; 0 is all"""
    decodes: int = 50
    """of a trial's steps, how many each of them predicts; 0 is all"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        require_between(self, ("embedding", "hidden", "latent"), self.name, 1)
        least = ("reward_weight", "state_weight", "task_weight", "kl_weight", "beliefs", "decodes")
        require_between(self, least, self.name, 0)
        require_widths(self, ("decoder_layers",), self.name)
        rewards = self.reward_weight > 0 and self.reward_decoder != "none"
        if not (rewards or self.state_weight > 0 or self.task_weight > 0):
            raise UsageError(
                f"{self.name}: there is nothing to decode; choose reward_decoder regression or "
                "heads with a reward_weight above 0, or a state_weight or task_weight above 0"
            )

    def check(self, spec: Spec) -> None:
        """Raise `UsageError` unless the decoders fit the tasks and trials of `spec`."""
        if self.reward_decoder == "heads" and spec.reward_site == "none":
            raise UsageError(
                f"{self.name}: reward_decoder heads is for rewards with two values in the cells of "
                "a grid or the arms of a bandit, which this family does not show as such; "
                "choose regression or none"
            )
        if self.task_weight > 0 and spec.task_kind == "unknown":
            raise UsageError(
                f"{self.name}: task_weight must be 0 for this family, which does not say whether "
                f"its tasks are numbers or one choice of several (task_kind), got "
                f"{self.task_weight}"
            )
        steps = spec.episodes * spec.horizon
        for option, most in (("beliefs", steps + 1), ("decodes", steps)):
            if getattr(self, option) > most:
                raise UsageError(
                    f"{self.name}: a trial of {spec.episodes} episodes of {spec.horizon} steps has "
                    f"fewer {option} than {getattr(self, option)}; choose 0 (all) to {most}"
                )


@dataclass(frozen=True)
class Trials:
    """Whole trials, or steps drawn out of them: time first."""

    x: Tensor
    """`[T, M, X]`: what a step brought, [s', a, r, d]"""
    step: Tensor
    """`[T, M, I]`: what decoders are told of a step, [s, a, s']"""
    reward: Tensor
    """`[T, M]`, raw"""
    site: Tensor
    """int64 `[T, M]`: where `Spec.reward_site` points, 0 if nowhere"""
    task: Tensor
    """`[M, F]`: features, normalised if they are numbers"""
    active: Tensor
    """bool `[T, M]`: the step belongs to the trial, and a belief follows it"""
    valid: Tensor
    """bool `[T, M]`: and it is of a sound simulation: only these are decoded"""

    def at(self, index: Tensor | None) -> Trials:
        """The steps `index` int64 `[D, M]` of each trial; None takes all."""
        names = ("x", "step", "reward", "site", "active", "valid")
        return Trials(task=self.task, **{name: at(getattr(self, name), index) for name in names})


def kl_chain(belief: Gaussian) -> Tensor:
    """KL(q_t || q_{t-1}) of beliefs `[T + 1, M, Z]`, with q_{-1} = N(0, I): `[T + 1, M]`."""
    previous = (torch.cat([torch.zeros_like(x[:1]), x[:-1]]) for x in (belief.mean, belief.log_std))
    return belief.kl(Gaussian(*previous))


class Decoder(Protocol):
    """Something that is predicted from z."""

    def log_likelihood(self, z: Tensor, trials: Trials, weight: Tensor) -> Tensor:
        """Weighted sum over the steps of log p(... | z).

        Args:
            z: `[E, M, Z]`.
            trials: steps `[D, M]`.
            weight: of the steps, `[D, M]`.

        Returns:
            `[E, M]`.
        """


class PairMLP(nn.Module):
    """An MLP on [z, step] for all pairs of E latents and D steps of a trial.

    The first layer is computed once for each latent and once for each step, not for each pair.
    """

    def __init__(self, latent: int, inputs: int, layers: tuple[int, ...], out: int) -> None:
        """Hidden `layers` between `latent + inputs` numbers and `out`."""
        super().__init__()
        self.body = relu_mlp([latent + inputs, *layers], out)
        self.latent = latent

    def forward(self, z: Tensor, step: Tensor) -> Tensor:
        """`[E, M, Z]` and `[D, M, I]` to `[E, D, M, out]`."""
        first, *rest = (layer for layer in self.body if isinstance(layer, nn.Linear))
        weights, biases = [layer.weight for layer in rest], [layer.bias for layer in rest]
        of_latent = F.linear(z, first.weight[:, : self.latent], first.bias)
        of_step = F.linear(step, first.weight[:, self.latent :])
        # A processor is twice as fast where what lies between two layers fits into its cache.
        block = max(1, CACHED_ROWS // step[..., 0].numel()) if z.device.type == "cpu" else len(z)
        parts = []
        for some in of_latent.split(block):
            h = (some.unsqueeze(1) + of_step).relu_()
            parts.append(relu_layers(h.flatten(0, 2), weights, biases).view(*h.shape[:-1], -1))
        return whole(torch.cat(parts))


class RewardRegression(nn.Module):
    """Predicts the reward of a step, log p = -(r - r̂)² as published."""

    def __init__(self, spec: Spec, latent: int, layers: tuple[int, ...]) -> None:
        """Map [z, s, a, s'] to a reward."""
        super().__init__()
        inputs = 2 * spec.obs_dim + action_dim(spec.action_space)
        self.body = PairMLP(latent, inputs, layers, 1)

    def predict(self, z: Tensor, step: Tensor) -> Tensor:
        """Rewards `[E, D, M]`."""
        return cast(Tensor, self.body(z, step)).squeeze(-1)

    def log_likelihood(self, z: Tensor, trials: Trials, weight: Tensor) -> Tensor:
        """See `Decoder`."""
        error = trials.reward - self.predict(z, trials.step)
        return -(error.square() * weight).sum(1)


class RewardHeads(nn.Module):
    """Predicts from z alone, for each site, how probable the high reward is there.

    A trial enters by how often each site paid and did not, n⁺ and n⁻:

        Σ_i log p(r_i | z) = Σ_s n⁺_s log σ(l_s) + n⁻_s log σ(-l_s)
    """

    def __init__(self, spec: Spec, latent: int, layers: tuple[int, ...]) -> None:
        """One logit for each cell, or arm."""
        super().__init__()
        cells = spec.reward_site == "next-obs"
        self.sites = spec.obs_dim if cells else action_dim(spec.action_space)
        self.body = relu_mlp([latent, *layers], self.sites)

    def predict(self, z: Tensor) -> Tensor:
        """Logits `[..., S]` of z `[..., Z]`."""
        return cast(Tensor, self.body(z))

    def log_likelihood(self, z: Tensor, trials: Trials, weight: Tensor) -> Tensor:
        """See `Decoder`."""
        where, high = trials.site.T, trials.reward > 0
        none = weight.new_zeros(where.shape[0], self.sites)
        paid = none.scatter_add(1, where, (weight * high).T)
        failed = none.scatter_add(1, where, (weight * ~high).T)
        logits = self.predict(z)
        return (paid * F.logsigmoid(logits) + failed * F.logsigmoid(-logits)).sum(-1)


class StateRegression(nn.Module):
    """Predicts the next observation, log p = -(mean over dimensions of the squared error)."""

    def __init__(self, spec: Spec, latent: int, layers: tuple[int, ...]) -> None:
        """Map [z, s, a] to s', all normalised."""
        super().__init__()
        self.inputs = spec.obs_dim + action_dim(spec.action_space)
        self.body = PairMLP(latent, self.inputs, layers, spec.obs_dim)

    def log_likelihood(self, z: Tensor, trials: Trials, weight: Tensor) -> Tensor:
        """See `Decoder`."""
        before, after = trials.step.tensor_split([self.inputs], -1)
        error: Tensor = after - self.body(z, before)
        return -(error.square().mean(-1) * weight).sum(1)


class TaskPrediction(nn.Module):
    """Predicts the features of the task: as numbers, or as one choice of several."""

    def __init__(self, spec: Spec, latent: int, layers: tuple[int, ...]) -> None:
        """Map z to features or to logits."""
        super().__init__()
        self.choice = spec.task_kind == "one-hot"
        self.body = relu_mlp([latent, *layers], spec.task_dim)

    def log_likelihood(self, z: Tensor, trials: Trials, weight: Tensor) -> Tensor:
        """Log p(task | z), once for each belief; see `Decoder`."""
        predicted: Tensor = self.body(z)
        if self.choice:
            return (F.log_softmax(predicted, -1) * trials.task).sum(-1)
        error = predicted.sub(trials.task)
        return -error.square().mean(-1)


class TaskVAE(nn.Module):
    """The encoder and the decoders that it is trained with."""

    def __init__(self, spec: Spec, config: InferenceConfig) -> None:
        """Build them for the spaces and tasks of `spec`."""
        super().__init__()
        inputs = spec.obs_dim + action_dim(spec.action_space) + 2
        self.memory = GRUMemory.of(inputs, config.embedding, config.hidden)
        self.head = nn.Linear(config.hidden, 2 * config.latent)
        kinds = {"regression": RewardRegression, "heads": RewardHeads}
        wanted: dict[str, tuple[type[nn.Module], float]] = {
            "state": (StateRegression, config.state_weight),
            "task": (TaskPrediction, config.task_weight),
        }
        if config.reward_decoder != "none":
            wanted["reward"] = (kinds[config.reward_decoder], config.reward_weight)
        self.decoders = nn.ModuleDict(
            {
                name: kind(spec, config.latent, config.decoder_layers)
                for name, (kind, weight) in wanted.items()
                if weight > 0
            }
        )

    def belief(self, state: Tensor) -> Gaussian:
        """The belief `[..., Z]` that a state of the memory `[..., H]` stands for."""
        mean, log_std = self.head(state).chunk(2, -1)
        return Gaussian(mean, log_std.clamp(*LOG_STD))

    def states(self, x: Tensor) -> Tensor:
        """States of the memory before each step and after the last: `[T + 1, M, H]`."""
        start = self.memory.start(x.shape[1])
        return torch.cat([start.unsqueeze(0), self.memory(x, start)[0]])


def elbo(
    vae: TaskVAE, trials: Trials, config: InferenceConfig, generator: torch.Generator
) -> dict[str, Tensor]:
    """The evidence lower bound of each trial `[M]` (`total`) and its terms; see the module.

    Where `beliefs` or `decodes` are drawn, the terms are unbiased estimates of the sums over all.
    """
    belief = vae.belief(vae.states(trials.x))
    there = torch.cat([torch.ones_like(trials.active[:1]), trials.active])
    which = draw(there, config.beliefs, generator)
    steps = draw(trials.valid, config.decodes, generator)
    noise = normal(at(belief.mean, which[0]), generator)
    return bound(vae.decoders, belief, trials, config, which, steps, noise)


Drawn = tuple[Tensor | None, Tensor]
"""what `metarl.agents.draws.draw` gives: which, and their weights"""


@for_learning
def bound(
    decoders: nn.ModuleDict,
    belief: Gaussian,
    trials: Trials,
    config: InferenceConfig,
    which: Drawn,
    steps: Drawn,
    noise: Tensor,
) -> dict[str, Tensor]:
    """The bound and its terms with beliefs `[T + 1, M, Z]` and what was drawn: see `elbo`.

    Args:
        decoders: by the name of what they predict.
        belief: after every step.
        trials: as they are.
        config: weights.
        which: the beliefs that are decoded.
        steps: the steps that each of them predicts.
        noise: of their latents, `[E, M, Z]`.
    """
    there = torch.cat([torch.ones_like(trials.active[:1]), trials.active])
    z = Gaussian(at(belief.mean, which[0]), at(belief.log_std, which[0])).sample(noise)
    shown, weight = trials.at(steps[0]), steps[1]
    terms = {
        name: (cast(Decoder, decoder).log_likelihood(z, shown, weight) * which[1]).sum(0)
        for name, decoder in decoders.items()
    }
    kl = (kl_chain(belief) * there).sum(0)
    total = -config.kl_weight * kl
    for name, term in terms.items():
        total = total + getattr(config, f"{name}_weight") * term
    return {**terms, "kl": kl, "total": total}
