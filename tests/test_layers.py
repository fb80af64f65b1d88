"""Layers with weights for each task: what torch's own layers give, one task at a time."""

from __future__ import annotations

import pytest
import torch
from fewshot_oracles import shaken
from torch import nn
from torch.func import functional_call

from metarl.layers import (
    NORMS,
    BatchNorm,
    Conv2d,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    Linear,
    NarrowLinear,
    PerTask,
    RunningBatchNorm,
    tanh,
)

B, M, C = 3, 4, 6
"""tasks, inputs of a task, features"""
VECTORS, IMAGES = (C,), (C, 7, 5)


def running(features):
    """Batch norm in use, with statistics that are not those of the start."""
    norm = RunningBatchNorm(features).eval()
    norm.mean.copy_(torch.linspace(-1.0, 1.0, features))
    norm.var.copy_(torch.linspace(0.5, 2.0, features))
    return norm


def plain_running(features):
    norm = nn.BatchNorm2d(features).eval()
    norm.running_mean.copy_(torch.linspace(-1.0, 1.0, features))
    norm.running_var.copy_(torch.linspace(0.5, 2.0, features))
    return norm


def wrapped():
    return nn.Sequential(nn.Conv2d(C, 4, 3), nn.GroupNorm(2, 4), nn.GELU(), nn.MaxPool2d(2))


CASES = {
    "linear": (lambda: Linear(C, 5), lambda: nn.Linear(C, 5), VECTORS),
    "linear without bias": (
        lambda: Linear(C, 5, bias=False),
        lambda: nn.Linear(C, 5, bias=False),
        VECTORS,
    ),
    "conv": (lambda: Conv2d(C, 4), lambda: nn.Conv2d(C, 4, 3, padding=1), IMAGES),
    "conv, stride 2": (
        lambda: Conv2d(C, 4, 3, 2),
        lambda: nn.Conv2d(C, 4, 3, 2, padding=1),
        IMAGES,
    ),
    "conv, kernel 1": (lambda: Conv2d(C, 4, 1), lambda: nn.Conv2d(C, 4, 1), IMAGES),
    "batch": (
        lambda: BatchNorm(C),
        lambda: nn.BatchNorm2d(C, track_running_stats=False),
        IMAGES,
    ),
    "batch of vectors": (
        lambda: BatchNorm(C),
        lambda: nn.BatchNorm1d(C, track_running_stats=False),
        VECTORS,
    ),
    "running": (lambda: running(C), lambda: plain_running(C), IMAGES),
    "layer": (lambda: LayerNorm(C), lambda: nn.GroupNorm(1, C), IMAGES),
    "layer of vectors": (lambda: LayerNorm(C), lambda: nn.LayerNorm(C), VECTORS),
    "instance": (
        lambda: InstanceNorm(C),
        lambda: nn.InstanceNorm2d(C, affine=True),
        IMAGES,
    ),
    "group": (lambda: GroupNorm(C, 3), lambda: nn.GroupNorm(3, C), IMAGES),
    "group of vectors": (lambda: GroupNorm(C, 2), lambda: nn.GroupNorm(2, C), VECTORS),
    "any module": (lambda: PerTask(wrapped()), wrapped, IMAGES),
    "any linear": (lambda: PerTask(nn.Linear(C, 5)), lambda: nn.Linear(C, 5), VECTORS),
}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def weights_of_each_task(layer, tasks, seed=5):
    """Other parameters for each task, by name."""
    return {
        name: p.detach() + 0.3 * draw(tasks, *p.shape, seed=seed + k)
        for k, (name, p) in enumerate(layer.named_parameters())
    }


def one_by_one(plain, layer, own, x):
    """What `plain` gives with the weights of each task, and those of `layer` where it has none."""
    names = [name for name, _ in plain.named_parameters()]
    ours = dict(layer.named_parameters())
    out = []
    for b in range(len(x)):
        values = [own[n][b] if n in own else p for n, p in ours.items()]
        out.append(functional_call(plain, dict(zip(names, values, strict=True)), (x[b],)))
    return torch.stack(out)


def assert_equal(one, other):
    torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("tasks", [1, B])
@pytest.mark.parametrize("case", CASES)
def test_every_task_is_computed_with_its_own_weights(case, tasks):
    layer, plain, shape = CASES[case][0](), CASES[case][1]().double(), CASES[case][2]
    shaken(layer)
    x = draw(tasks, M, *shape)
    own = weights_of_each_task(layer, tasks)
    y = functional_call(layer, own, (x,))
    assert y.shape[:2] == (tasks, M)
    assert_equal(y, one_by_one(plain, layer, own, x))


@pytest.mark.parametrize("case", CASES)
def test_tasks_may_share_all_weights_or_some(case):
    layer, plain, shape = CASES[case][0](), CASES[case][1]().double(), CASES[case][2]
    shaken(layer)
    x = draw(B, B, *shape)  # as many inputs as tasks, so that one could be taken for the other
    assert_equal(layer(x), one_by_one(plain, layer, {}, x))
    for name, value in weights_of_each_task(layer, B).items():
        some = {name: value}
        assert_equal(functional_call(layer, some, (x,)), one_by_one(plain, layer, some, x))


@pytest.mark.parametrize("norm", NORMS)
def test_one_task_does_not_see_another_through_a_norm(norm):
    layer = shaken(running(C) if norm == "running" else NORMS[norm](C))
    x = draw(B, M, *IMAGES)
    other = torch.cat([x[:1], 3.0 * draw(B - 1, M, *IMAGES, seed=1)])
    assert torch.equal(layer(x)[0], layer(other)[0])


def test_batch_norm_of_a_single_number_says_so():
    layer = BatchNorm(C)
    with pytest.raises(ValueError, match="more than one input"):
        layer(torch.zeros(B, 1, C))
    assert layer(torch.zeros(B, 1, C, 2, 1)).shape == (B, 1, C, 2, 1)


def test_running_batch_norm_trains_as_torch_does_over_all_tasks():
    ours, theirs = RunningBatchNorm(C).double(), nn.BatchNorm2d(C).double()
    for k in range(3):
        x = draw(B, M, *IMAGES, seed=k)
        assert_equal(ours(x).flatten(0, 1), theirs(x.flatten(0, 1)))
    assert_equal(ours.mean, theirs.running_mean)
    assert_equal(ours.var, theirs.running_var)
    ours.eval()
    theirs.eval()
    x = draw(B, M, *IMAGES, seed=9)
    assert_equal(ours(x).flatten(0, 1), theirs(x.flatten(0, 1)))


@pytest.mark.parametrize(
    ("features", "asked", "groups"), [(6, 8, 6), (6, 4, 3), (7, 4, 1), (64, 8, 8)]
)
def test_groups_divide_the_features(features, asked, groups):
    assert GroupNorm(features, asked).groups == groups


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNorm1d(3),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.SyncBatchNorm(3),
        nn.InstanceNorm2d(3),
        nn.LayerNorm(3),
        nn.TransformerEncoderLayer(4, 2, 8),
    ],
)
def test_modules_that_vmap_differentiates_wrongly_are_refused(module):
    with pytest.raises(TypeError, match=r"second derivatives under vmap are wrong"):
        PerTask(nn.Sequential(nn.Identity(), module))
    with pytest.raises(TypeError):
        PerTask(module)


def test_the_message_names_the_layer():
    with pytest.raises(TypeError, match=r"^1\.norm1 is a LayerNorm"):
        PerTask(nn.Sequential(nn.Identity(), nn.TransformerEncoderLayer(4, 2, 8)))


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 2e-7), (torch.float64, 4e-16)])
def test_tanh_is_that_of_torch_to_the_rounding_of_one(dtype, rounding):
    ends = torch.tensor([0.0, 1e-30, -100.0, 1e38, float("inf"), float("-inf")])
    x = torch.cat([torch.linspace(-20.0, 20.0, 4001), ends]).to(dtype)
    before = x.clone()
    torch.testing.assert_close(tanh(x), x.double().tanh().to(dtype), rtol=0.0, atol=rounding)
    assert torch.equal(x, before) and bool(tanh(torch.tensor(float("nan"))).isnan())


def test_tanh_can_be_differentiated_as_often_as_torchs():
    x = torch.linspace(-3.0, 3.0, 12, dtype=torch.float64).view(3, 4)

    def third(function):
        inputs = x.clone().requires_grad_()
        y = function(inputs)
        for _ in range(3):
            (y,) = torch.autograd.grad((y * x.exp()).sum(), inputs, create_graph=True)
        return y

    torch.testing.assert_close(third(tanh), third(torch.tanh))
    per_row = torch.func.vmap(torch.func.grad(lambda row: tanh(row).square().sum()))
    expected = 2.0 * x.tanh() * (1.0 - x.tanh().square())
    torch.testing.assert_close(per_row(x), expected)


def test_a_narrow_layer_is_a_linear_one_to_every_derivative():
    plain, narrow = Linear(C, 2).double(), NarrowLinear(C, 2).double()
    narrow.load_state_dict(plain.state_dict())
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = [normal(B, M, C), normal(B, 2, C), normal(B, 2)]
    directions = [normal(*x.shape) for x in inputs]

    def derivatives(layer):
        x, weight, bias = leaves = [value.clone().requires_grad_() for value in inputs]
        y = functional_call(layer, {"weight": weight, "bias": bias}, (x,))
        first = torch.autograd.grad((y**3).sum(), leaves, create_graph=True)
        pairs = zip(first, directions, strict=True)
        second = torch.autograd.grad(sum((g * d).sum() for g, d in pairs), leaves)
        return [y, layer(x), *first, *second]

    torch.testing.assert_close(derivatives(narrow), derivatives(plain))
