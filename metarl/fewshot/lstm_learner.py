"""The LSTM meta-learner: an optimiser that is itself a recurrent network, and is learned.

Ravi and Larochelle 2017, "Optimization as a Model for Few-Shot Learning", section 3. The parameters
of a task are the cell of an LSTM, and every coordinate is updated by the same learned gates:

    θ_t = f_t ⊙ θ_{t-1} - i_t ⊙ ∇L_t        f_t = σ(W_f [s_t, θ_{t-1}, f_{t-1}] + b_f)    (eq. 2)
    θ_0 = c_0, learned                      i_t = σ(W_i [s_t, θ_{t-1}, i_{t-1}] + b_i)    (eq. 3)

s_t comes from a first LSTM, which reads the gradient and the loss (section 4.1), preprocessed as in
appendix A. Loss and gradient count as constants in the meta-gradient (section 3.3). Batch norm is
over the inputs of each task, in training as in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarl.errors import require_between, require_positive
from metarl.fewshot.episodes import Points
from metarl.fewshot.learner import Learner, LearnerConfig, Prediction, Predictor, losses
from metarl.fewshot.networks import Network, NetworkConfig
from metarl.layers import Params

PREPROCESSING = 10.0
"""p of appendix A: numbers below e^-p count as small"""
CHUNK = 2**13
"""coordinates that are updated at a time, so that they fit into the processor's cache"""


@dataclass(frozen=True)
class LSTMLearnerConfig(LearnerConfig):
    """Sizes of the optimiser and of what it optimises."""

    network: NetworkConfig = field(default_factory=lambda: NetworkConfig(filters=(32, 32, 32, 32)))
    """the network whose weights the optimiser updates"""
    hidden: int = 8
    """units of the first LSTM of the optimiser; the paper has 20, which cost twice the time"""
    inner_steps: int = 5
    """updates on the support set"""
    inner_rate: float = 0.1
    """value of the input gate before anything is learned: a step size"""
    keep: float = 0.999
    """value of the forget gate before anything is learned: what is left of the weights"""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values that cannot train."""
        super().__post_init__()
        require_positive(self, ("hidden", "inner_steps"), "learner")
        require_between(self, ("inner_rate", "keep"), "learner", 1e-6, 1.0 - 1e-6)


def preprocess(x: Tensor) -> Tensor:
    """Size and sign of numbers of any magnitude, `[...]` to `[..., 2]` (appendix A).

    (log|x| / p, sign x) where |x| ≥ e^-p, and else (-1, e^p x).
    """
    size = x.abs().clamp(min=math.exp(-PREPROCESSING)).log() / PREPROCESSING
    small = x.abs() < math.exp(-PREPROCESSING)
    return torch.stack([size, torch.where(small, x * math.exp(PREPROCESSING), x.sign())], -1)


State = tuple[Tensor, Tensor, Tensor, Tensor]
"""of N coordinates: forget and input gate `[N, 1]`, hidden and cell `[N, hidden]` of the LSTM"""


class Optimiser(nn.Module):
    """One update of any number of coordinates, by weights that all of them share."""

    def __init__(self, hidden: int, keep: float, rate: float) -> None:
        """Start with gates near `keep` and `rate`, whatever they are given."""
        super().__init__()
        self.reader = nn.LSTMCell(4, hidden)
        self.forget, self.input = nn.Linear(hidden + 2, 1), nn.Linear(hidden + 2, 1)
        for gate, start in ((self.forget, keep), (self.input, rate)):
            nn.init.uniform_(gate.weight, -0.01, 0.01)
            nn.init.constant_(gate.bias, math.log(start / (1.0 - start)))

    def start(self, coordinates: Tensor) -> State:
        """The state before the first update of coordinates `[N, 1]`."""
        hidden = coordinates.new_zeros(len(coordinates), self.reader.hidden_size)
        forget, put = (g.bias.sigmoid().expand_as(coordinates) for g in (self.forget, self.input))
        return forget, put, hidden, hidden

    def forward(
        self, coordinates: Tensor, gradient: Tensor, loss: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Update `coordinates` by their `gradient`, given the `loss`, all `[N, 1]`."""
        read = torch.cat([preprocess(gradient), preprocess(loss)], -1).flatten(1)
        forget, put, hidden, cell = state
        hidden, cell = self.reader(read, (hidden, cell))
        forget = self.forget(torch.cat([hidden, coordinates, forget], -1)).sigmoid()
        put = self.input(torch.cat([hidden, coordinates, put], -1)).sigmoid()
        return forget * coordinates - put * gradient, (forget, put, hidden, cell)


class OptimisedNetwork(nn.Module):
    """A network, whose weights are where the optimiser starts, and the optimiser."""

    def __init__(self, network: Network, optimiser: Optimiser) -> None:
        super().__init__()
        self.network, self.optimiser = network, optimiser
        self.shapes = {name: p.shape for name, p in network.named_parameters()}

    def start(self) -> Tensor:
        """c_0, all weights as one vector `[P]`."""
        return torch.cat([p.flatten() for p in self.network.parameters()])

    def by_name(self, weights: Tensor) -> Params:
        """Weights `[B, P]` as parameters `[B, ...]`."""
        parts = weights.split([shape.numel() for shape in self.shapes.values()], -1)
        named = zip(self.shapes.items(), parts, strict=True)
        return {name: part.unflatten(-1, shape) for (name, shape), part in named}

    def forward(self, weights: Tensor, x: Tensor) -> Prediction:
        """Predict with the weights `[B, P]` of each task."""
        return Prediction(functional_call(self.network, self.by_name(weights), (x,)))


class LSTMLearner(Learner):
    """Takes steps on the support set that a learned optimiser decides."""

    config: LSTMLearnerConfig
    network: OptimisedNetwork

    def build(self) -> nn.Module:
        """Network and optimiser."""
        c = self.config
        optimiser = Optimiser(c.hidden, c.keep, c.inner_rate)
        return OptimisedNetwork(Network(self.spec, c.network), optimiser)

    @property
    def steps_shown(self) -> tuple[int, ...]:
        """0, 1 and as many as it was trained for."""
        return (0, *sorted({1, self.config.inner_steps}))

    def gradient(self, weights: Tensor, support: Points) -> tuple[Tensor, Tensor]:
        """Loss `[B]` on the support set, and its gradient `[B, P]`; both are constants."""
        with torch.enable_grad():
            constant = weights.detach().requires_grad_()
            loss = losses(self.network(constant, support.x), support.y)
            (found,) = torch.autograd.grad(loss.sum(), constant)
        return loss.detach(), found

    def adaptation(self, support: Points, steps: int) -> Iterator[Tensor]:
        """The weights `[B, P]` of each task after 0, 1, ... `steps` updates."""
        weights = self.network.start().expand(support.tasks, -1)
        state: State | None = None
        yield weights
        for _ in range(steps):
            loss, gradient = self.gradient(weights, support)
            weights, state = self.step(weights, gradient, loss, state)
            yield weights

    def step(
        self, weights: Tensor, gradient: Tensor, loss: Tensor, state: State | None
    ) -> tuple[Tensor, State]:
        """One update of weights `[B, P]`; `state` is None before the first."""
        optimiser = self.network.optimiser
        rows = weights.reshape(-1, 1)
        state = optimiser.start(rows) if state is None else state
        given = rows, gradient.reshape(-1, 1), loss.repeat_interleave(weights.shape[1]).unsqueeze(1)
        size = CHUNK if rows.device.type == "cpu" else len(rows)
        parts = zip(*(t.split(size) for t in (*given, *state)), strict=True)
        done = [optimiser(w, g, of, (f, i, h, c)) for w, g, of, f, i, h, c in parts]
        moved = torch.cat([new for new, _ in done]).view_as(weights)
        f, i, h, c = (torch.cat(kept) for kept in zip(*(s for _, s in done), strict=True))
        return moved, (f, i, h, c)

    def adapt(self, support: Points, steps: int | None = None) -> Predictor:
        """Take `steps` updates on the support set."""
        count = self.config.inner_steps if steps is None else steps
        *_, weights = self.adaptation(support, count)
        return lambda x: self.network(weights, x)
