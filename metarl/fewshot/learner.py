"""What every few-shot learner is: something that adapts to a support set and then predicts.

A learner says how it adapts (`adapt`); what it learns from an episode is, unless it says otherwise,
the loss of its predictions for the query points. Everything else is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.errors import UsageError, require_between, require_positive
from metarl.fewshot.episodes import Data, Episodes, Kind, Points, Protocol, TaskSpec
from metarl.fewshot.networks import NetworkConfig
from metarl.optimization import clipped_step, load_optimizer, set_learning_rate


@dataclass(frozen=True)
class Prediction:
    """What a learner says about query points."""

    value: Tensor
    """logits `[B, Q, ways]`, or means `[B, Q, D]`"""
    std: Tensor | None = None
    """standard deviations `[B, Q, D]`, where the learner knows what it does not know"""


Predictor = Callable[[Tensor], Prediction]
"""query inputs `[B, Q, X...]` to predictions"""


@dataclass(frozen=True)
class LearnerConfig:
    """What all learners need to know."""

    network: NetworkConfig = field(default_factory=NetworkConfig)
    meta_batch: int = 16
    """tasks of an iteration"""
    learning_rate: float = 1e-3
    """step size of Adam in the outer loop"""
    final_learning_rate: float = 1e-3
    """the same at the end; linear in between"""
    max_grad_norm: float = 10.0
    """longer meta-gradients are cut to this norm"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        require_positive(self, ("meta_batch", "learning_rate", "max_grad_norm"), "learner")
        require_between(self, ("final_learning_rate",), "learner", 0.0)


def steps_up_to(last: int, marks: Sequence[int] = (0, 1, 5, 10)) -> tuple[int, ...]:
    """The numbers of steps after which a learner is judged that takes `last` of them."""
    return (*(k for k in marks if k < last), last)


def losses(prediction: Prediction, y: Tensor) -> Tensor:
    """One loss for each task, `[B]`, averaged over its points.

    Cross-entropy for labels `[B, Q]`; for values `[B, Q, D]` the negative log-likelihood of a
    Gaussian where the prediction has a standard deviation, and else the squared error, both summed
    over D.
    """
    if not y.is_floating_point():
        return F.cross_entropy(prediction.value.mT, y, reduction="none").mean(-1)
    if prediction.std is None:
        return (prediction.value - y).square().sum(-1).mean(-1)
    return -gaussian_log_likelihood(prediction, y).mean(-1)


def gaussian_log_likelihood(prediction: Prediction, y: Tensor) -> Tensor:
    """Log density of each point `[B, Q]` in nats, for predictions with a standard deviation."""
    assert prediction.std is not None
    normal = torch.distributions.Normal(prediction.value, prediction.std, validate_args=False)
    density: Tensor = normal.log_prob(y).sum(-1)
    return density


class Learner(ABC):
    """Meta-learns from episodes; adapts to the support set of a task never seen before."""

    kinds: ClassVar[tuple[Kind, ...]] = ("classification", "regression")
    """what it can learn"""
    fixed_ways: ClassVar[bool] = True
    """whether its network has an output for each way, so that it cannot be asked for other ways"""

    config: LearnerConfig
    network: nn.Module
    """holds everything that is meta-learned; built by `build`"""

    def __init__(
        self,
        config: LearnerConfig,
        spec: TaskSpec,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        """Build the network with weights drawn from `seed`.

        Raises:
            UsageError: if the learner does not do tasks of this kind.
        """
        if spec.kind not in self.kinds:
            raise UsageError(
                f"{type(self).__name__} does {' and '.join(self.kinds)}, not {spec.kind}"
            )
        self.config, self.spec, self.device = config, spec, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self.build().to(device)
        self.optimizer = self.make_optimizer()
        self.generator = torch.Generator().manual_seed(seed + 1)

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, with every meta-learned parameter in it."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """What steps the outer loop."""
        # Fused: these networks are so small that the calls of Adam's parts cost more than its sums.
        rate = self.config.learning_rate
        return torch.optim.Adam(self.network.parameters(), lr=rate, fused=True)

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """After how many steps of adaptation it is judged; the last one counts."""
        return (1,)

    @abstractmethod
    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Adapt to B tasks at once.

        Args:
            support: what is known of the tasks.
            steps: how many steps of adaptation, where the learner takes steps; None takes as many
                as in training, and 0 is before it has seen anything.
        """

    def loss(self, episodes: Episodes, progress: float) -> Tensor:
        """What training reduces, one number for each task `[B]`; `progress` is in [0, 1]."""
        return losses(self.adapt(episodes.support)(episodes.query.x), episodes.query.y)

    def train_step(self, data: Data, protocol: Protocol, progress: float) -> dict[str, float]:
        """One iteration: draw tasks, step down the mean of their losses.

        Raises:
            TrainingError: if the gradient is not finite.
        """
        if not self.network.training:
            self.network.train()
        episodes = data.episodes(protocol, self.config.meta_batch, "train", self.generator)
        return self.update(episodes.to(self.device), progress)

    def update(self, episodes: Episodes, progress: float) -> dict[str, float]:
        """One step of the outer loop on `episodes`."""
        config = self.config
        rates = config.learning_rate, config.final_learning_rate
        set_learning_rate(self.optimizer, *rates, progress)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(episodes, progress)
        norm = clipped_step(self.optimizer, config.max_grad_norm, type(self).__name__)
        return {"loss": float(loss), "gradient_norm": norm}

    def backward(self, episodes: Episodes, progress: float) -> Tensor:
        """Put the gradient of the mean loss into the parameters; return the mean loss."""
        loss = self.loss(episodes, progress).mean()
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def predict(self, episodes: Episodes, steps: int | None = None) -> Prediction:
        """Predictions for the query points, by a network in the mode of use."""
        self.network.eval()
        return self.adapt(episodes.support, steps)(episodes.query.x)

    def state_dict(self) -> dict[str, Any]:
        """Parameters, optimiser and random state."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on exactly from `state`."""
        self.network.load_state_dict(state["network"])
        load_optimizer(self.optimizer, state["optimizer"])
        self.generator.set_state(state["generator"].cpu())
