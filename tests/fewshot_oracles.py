"""Meta-gradients the slow and obvious way: one task after the other, by the modules of torch.

Nothing here knows `metarl.layers` or `metarl.inner_loop`: inputs are `[M, X...]` of a single task,
parameters are those of a plain module, and the loop is written out. Gradient methods are held
against it in float64.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from metarl.fewshot.episodes import Episodes, Points


class Plain(nn.Module):
    """A network as `metarl.fewshot.networks.Network` describes it, for a single task."""

    def __init__(self, input_shape, outputs, config):
        super().__init__()
        self.config = config
        self.layers, self.norms = nn.ModuleList(), nn.ModuleList()
        if len(input_shape) == 1:
            for i, o in pairwise((*input_shape, *config.layers)):
                self.layers.append(nn.Linear(i, o))
        else:
            stride = 2 if config.pooling == "stride" else 1
            for i, o in pairwise((input_shape[0], *config.filters)):
                self.layers.append(nn.Conv2d(i, o, 3, stride, padding=1))
                if config.norm != "none":
                    self.norms.append(plain_norm(config.norm, o))
        features = self.features(torch.zeros(2, *input_shape)).shape[1]
        self.head = nn.Linear(features, outputs)

    def features(self, x, film=None):
        for k, layer in enumerate(self.layers):
            x = layer(x)
            x = self.norms[k](x) if self.norms else x
            if film is not None:
                scale, shift = film[k]
                x = x * scale[:, None, None] + shift[:, None, None]
            x = F.relu(x)
            if x.dim() == 4 and self.config.pooling == "max":
                x = F.max_pool2d(x, 2)
        return x.flatten(1)

    def forward(self, x, film=None):
        return self.head(self.features(x, film))

    def in_order(self):
        """The parameters, in the order in which the network of metarl has them."""
        for k, layer in enumerate(self.layers):
            yield from layer.parameters()
            yield from self.norms[k].parameters() if self.norms else ()
        yield from self.head.parameters()


def plain_norm(norm, features, groups=8):
    """Torch's own normalisation of that name, with a scale and shift of each feature."""
    if norm == "batch":
        return nn.BatchNorm2d(features, track_running_stats=False)
    if norm == "instance":
        return nn.InstanceNorm2d(features, affine=True)
    divisors = [g for g in range(1, min(groups, features) + 1) if features % g == 0]
    return nn.GroupNorm({"layer": 1, "group": divisors[-1]}[norm], features)


def copy_values(source, target):
    """Give the parameters `target` the values of `source`, in order."""
    for one, other in zip(source, target, strict=True):
        assert one.shape == other.shape
        other.data = one.detach().clone()


def shaken(module, size=0.1):
    """`module` in float64, no parameter at a value such as 0 or 1 that would hide an error."""
    generator = torch.Generator().manual_seed(0)
    module.double()
    for p in module.parameters():
        p.data += size * torch.randn(p.shape, dtype=torch.float64, generator=generator)
    return module


def plain_twin(network, input_shape, outputs, config):
    """A `Plain` with the weights of `network`."""
    twin = Plain(input_shape, outputs, config).double()
    copy_values(network.parameters(), twin.in_order())
    return twin


# --- tasks -------------------------------------------------------------------------------------


def regression(tasks=3, support=4, queries=3, inputs=2, outputs=2):
    """Random regression tasks in float64."""
    generator = torch.Generator().manual_seed(1)

    def points(count):
        x = torch.randn(tasks, count, inputs, dtype=torch.float64, generator=generator)
        y = torch.randn(tasks, count, outputs, dtype=torch.float64, generator=generator)
        return Points(x, y)

    return Episodes(points(support), points(queries))


def classification(tasks=3, ways=3, shots=2, queries=2, shape=(2, 9, 9)):
    """Tasks of random images in float64."""
    generator = torch.Generator().manual_seed(2)

    def points(count):
        x = torch.randn(tasks, ways * count, *shape, dtype=torch.float64, generator=generator)
        return Points(x, torch.arange(ways).repeat_interleave(count).expand(tasks, -1))

    return Episodes(points(shots), points(queries))


def task_loss(prediction, y):
    """The mean loss of one task."""
    if y.is_floating_point():
        return ((prediction - y) ** 2).sum(-1).mean()
    return F.cross_entropy(prediction, y)


# --- the loop ----------------------------------------------------------------------------------


def sgd(rate):
    """A plain rule: θ - rate(k, name) g."""

    def step(params, grads, memory, k):
        return {n: p - rate(k, n) * grads[n] for n, p in params.items()}, memory

    return step


def descend(predict, start, x, y, rule, steps, second_order=True):
    """The parameters of one task after `steps` steps, from `start`, by name.

    `predict(params, x)` gives predictions; `rule(params, grads, memory, k)` the next parameters and
    memory, which is None at first.
    """
    params, memory = dict(start), None
    for k in range(steps):
        loss = task_loss(predict(params, x), y)
        found = torch.autograd.grad(
            loss, list(params.values()), create_graph=second_order, allow_unused=True
        )
        grads = {
            n: torch.zeros_like(params[n]) if g is None else g
            for n, g in zip(params, found, strict=True)
        }
        params, memory = rule(params, grads, memory, k)
    return params


def losses_of(predict, start, episodes, rule, steps, second_order=True):
    """The query loss of every task after adaptation, `[B]`; `start(b)` is where task b starts."""
    s, q = episodes.support, episodes.query
    out = []
    for b in range(len(episodes)):
        adapted = descend(predict, start(b), s.x[b], s.y[b], rule, steps, second_order)
        out.append(task_loss(predict(adapted, q.x[b]), q.y[b]))
    return torch.stack(out)


# --- comparisons -------------------------------------------------------------------------------


def gradients(loss, parameters):
    """The gradient of `loss`, zero where it does not depend on a parameter."""
    return list(torch.autograd.grad(loss, list(parameters), materialize_grads=True))


def assert_same(found, expected, tolerance=1e-10):
    """Each tensor agrees to `tolerance` of its norm.

    What is exactly zero but for rounding, such as the gradient of a bias before batch norm, is
    judged by the size of the whole.
    """
    whole = float(torch.cat([e.detach().flatten() for e in expected]).norm())
    assert whole > 0.0
    for k, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.shape == other.shape
        error, allowed = (
            float((one - other).detach().norm()),
            tolerance * float(other.detach().norm()),
        )
        assert error <= allowed + 1e-13 * whole, f"tensor {k} is off by {error} of {other.norm()}"


def assert_finite_differences(function, parameters, found, width=1e-6, tolerance=1e-5):
    """Central differences of `function()` agree with the gradient `found`, tensor by tensor.

    Each tensor is moved in a random direction of length 1. Errors count relative to the slope, and
    where that is small by chance, to that of a typical direction.
    """
    generator = torch.Generator().manual_seed(3)
    whole = float(torch.cat([f.flatten() for f in found]).norm())
    for k, (p, grad) in enumerate(zip(parameters, found, strict=True)):
        way = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        way /= way.norm()
        values = []
        for sign in (1.0, -1.0):
            p.data += sign * width * way
            values.append(float(function().detach()))
            p.data -= sign * width * way
        slope, claimed = (values[0] - values[1]) / (2.0 * width), float((grad * way).sum())
        size = max(abs(slope), float(grad.norm()) / grad.numel() ** 0.5, 1e-3 * whole)
        assert abs(slope - claimed) <= tolerance * size, f"tensor {k}: {claimed}, not {slope}"
