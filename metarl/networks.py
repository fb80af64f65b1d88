"""Networks that agents are made of: MLP, running normalisation, action heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarl.acceleration import unmixed, whole
from metarl.distributions import Categorical, Gaussian, Noise, normal


def mlp(sizes: Sequence[int], activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers `sizes[0] -> ... -> sizes[-1]`, an activation after every one of them."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [orthogonal(nn.Linear(fan_in, fan_out), math.sqrt(2.0)), activation()]
    return nn.Sequential(*layers)


def orthogonal(layer: nn.Linear, gain: float) -> nn.Linear:
    """Give `layer` orthogonal weights of size `gain` and zero biases (Saxe et al. 2014)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class RunningNorm(nn.Module):
    """Subtract the running mean and divide by the running standard deviation of each feature."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, dim: int, clip: float = 10.0) -> None:
        """Start as the identity on features `[..., dim]`; results are cut at +-`clip`."""
        super().__init__()
        self.clip = clip
        # float64: the merge below subtracts large sums after long runs.
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("var", torch.ones(dim, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` `[..., dim]`."""
        scale = (self.var + 1e-8).rsqrt()
        return ((x - self.mean.to(x.dtype)) * scale.to(x.dtype)).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        """Merge the rows of `x` `[M, dim]` into the statistics (Chan et al. 1979)."""
        if len(x) == 0:
            return
        rows = x.double()
        var, mean = torch.var_mean(rows, dim=0, correction=0)
        total = self.count + len(rows)
        delta = mean - self.mean
        spread = self.var * self.count + var * len(rows)
        self.var.copy_((spread + delta.square() * self.count * len(rows) / total) / total)
        self.mean += delta * len(rows) / total
        self.count.copy_(total)


class GaussianHead(nn.Module):
    """Diagonal Gaussian over actions `[..., A]` with a standard deviation free of the state."""

    def __init__(self, features: int, actions: int, log_std: float) -> None:
        """Map `[..., features]` to means; every log standard deviation starts at `log_std`."""
        super().__init__()
        self.mean = orthogonal(nn.Linear(features, actions), 0.01)
        self.log_std = nn.Parameter(torch.full((actions,), log_std))

    def forward(self, features: Tensor) -> Gaussian:
        """The distribution of actions."""
        with unmixed(features.device):
            return Gaussian(self.mean(whole(features)), self.log_std)

    def encode(self, action: Tensor) -> Tensor:
        """Actions as network inputs, `[..., A]`."""
        return action


class CategoricalHead(nn.Module):
    """Categorical distribution over `actions` choices."""

    def __init__(self, features: int, actions: int) -> None:
        """Map `[..., features]` to logits."""
        super().__init__()
        self.actions = actions
        self.logits = orthogonal(nn.Linear(features, actions), 0.01)

    def forward(self, features: Tensor) -> Categorical:
        """The distribution of actions."""
        with unmixed(features.device):
            return Categorical(self.logits(whole(features)))

    def encode(self, action: Tensor) -> Tensor:
        """Actions as network inputs: one-hot `[..., actions]`."""
        return F.one_hot(action, self.actions).float()


def action_head(
    space: gym.spaces.Space[object], features: int, log_std: float
) -> GaussianHead | CategoricalHead:
    """The head for an action space: Gaussian for Box, categorical for Discrete."""
    if isinstance(space, gym.spaces.Discrete):
        return CategoricalHead(features, int(space.n))
    assert space.shape is not None
    return GaussianHead(features, space.shape[0], log_std)


def action_dim(space: gym.spaces.Space[object]) -> int:
    """Width of an action as a network input: A, or the number of choices."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n)
    assert space.shape is not None
    return space.shape[0]


def _fan_in(weight: Tensor, bias: Tensor, last: float | None) -> None:
    """Initialise as the published SAC does: uniform by fan-in, or in +-`last` at the end."""
    if last is not None:
        nn.init.uniform_(weight, -last, last)
        nn.init.uniform_(bias, -last, last)
        return
    bound = 1.0 / math.sqrt(weight.shape[-2])
    nn.init.uniform_(weight, -bound, bound)
    nn.init.constant_(bias, 0.1)


def relu_layers(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """Linear layers with ReLU between them, from `[R, in]` to `[R, out]`.

    Wide layers on a CPU are left to oneDNN, whose products are twice as fast as torch's own on some
    processors (`metarl bench update pearl` measures both). The price is to copy the input there
    and the result back, too much for narrow layers.

    Args:
        x: rows `[R, in]`.
        weights: `[out, in]` of each layer.
        biases: `[out]` of each layer.

    Returns:
        `[R, out]`, without a ReLU after the last layer.
    """
    wide = prefers_onednn(x, len(biases[0])) and len(weights) > 1
    h = x.to_mkldnn() if wide else x
    for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        # In place, as no gradient needs what a linear layer returned.
        h = F.linear(h.relu_() if k else h, weight.contiguous() if wide else weight, bias)
    return h.to_dense() if wide else h


def prefers_onednn(x: Tensor, width: int) -> bool:
    """Whether oneDNN can take the rows `x` `[R, in]` through layers of `width`, and is faster."""
    fits = x.device.type == "cpu" and x.dtype == torch.float32
    return fits and len(x) >= 512 and width >= 128 and torch.backends.mkldnn.is_available()


class ReluMLP(nn.Sequential):
    """Linear layers with ReLU between them, as `relu_mlp` makes them."""

    def forward(self, x: Tensor) -> Tensor:
        """Map `[..., in]` to `[..., out]`."""
        layers = [layer for layer in self if isinstance(layer, nn.Linear)]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        rows = relu_layers(x.reshape(-1, x.shape[-1]), weights, biases)
        return whole(rows).view(*x.shape[:-1], -1)


def relu_mlp(sizes: Sequence[int], out: int, last: float | None = None) -> ReluMLP:
    """Linear layers `sizes[0] -> ... -> sizes[-1] -> out` with ReLU between them.

    Hidden weights are uniform within one over the root of the fan-in; `last` bounds those of the
    last layer.
    """
    layers: list[nn.Module] = []
    for fan_in, fan_out in pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    layers.append(nn.Linear(sizes[-1], out))
    with torch.no_grad():
        for layer in layers[::2]:
            assert isinstance(layer, nn.Linear)
            _fan_in(layer.weight.T, layer.bias, last if layer is layers[-1] else None)
    return ReluMLP(*layers)


class EnsembleMLP(nn.Module):
    """`E` equal MLPs with ReLU and one output, computed together."""

    def __init__(self, heads: int, sizes: Sequence[int], last: float = 3e-3) -> None:
        """Layers `sizes[0] -> ... -> sizes[-1] -> 1`, `heads` times."""
        super().__init__()
        pairs = list(pairwise([*sizes, 1]))
        self.weights = nn.ParameterList(torch.empty(heads, i, o) for i, o in pairs)
        self.biases = nn.ParameterList(torch.empty(heads, 1, o) for _, o in pairs)
        with torch.no_grad():
            for k, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                _fan_in(weight, bias, last if k == len(pairs) - 1 else None)

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        """Values `[E, ...]` of inputs `[..., sizes[0]]`.

        `frozen` lets gradients through to the inputs and spares those of the weights.
        """
        rows = x.reshape(-1, x.shape[-1])
        weights, biases = list(self.weights), list(self.biases)
        if frozen:
            weights, biases = [w.detach() for w in weights], [b.detach() for b in biases]
        if prefers_onednn(rows, weights[0].shape[-1]):
            heads = range(len(weights[0]))
            each = [([w[e].T for w in weights], [b[e, 0] for b in biases]) for e in heads]
            h = torch.stack([relu_layers(rows, *layers) for layers in each])
        else:
            h = rows.expand(len(weights[0]), -1, -1)
            for k, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
                h = torch.baddbmm(bias, h.relu_() if k else h, weight)
        return whole(h).view(-1, *x.shape[:-1])


class TanhGaussianHead(nn.Module):
    """A Gaussian whose samples tanh squeezes into (-1, 1) (Haarnoja et al. 2018, appendix C)."""

    def __init__(self, features: int, actions: int) -> None:
        """Map `[..., features]` to the parameters of `actions` dimensions."""
        super().__init__()
        self.body = relu_mlp([features], 2 * actions, last=1e-3)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log standard deviation `[..., A]` before the squeeze."""
        mean, log_std = self.body(features).chunk(2, -1)
        return mean, log_std.clamp(-20.0, 2.0)

    def sample(self, mean: Tensor, log_std: Tensor, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draw actions `[..., A]` with their log density `[...]`, both differentiable."""
        drawn = normal(mean, noise)
        u = mean + log_std.exp() * drawn
        return u.tanh(), self.log_prob(drawn, log_std, u)

    @staticmethod
    def log_prob(noise: Tensor, log_std: Tensor, u: Tensor) -> Tensor:
        """Log density `[...]` of tanh(u), u = mean + std * noise.

        log p(tanh u) = log N(u) - Σ log(1 - tanh²u), and log(1 - tanh²u) = 2 (log 2 - u -
        softplus(-2u)), which stays finite where tanh saturates.
        """
        normal = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi)
        squeeze = 2.0 * (math.log(2.0) - u - F.softplus(-2.0 * u))
        return (normal - squeeze).sum(-1)
