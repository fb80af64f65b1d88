"""The networks of few-shot learners: shapes, sizes, and weights of each task's own."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call

from metarl.errors import UsageError
from metarl.fewshot.episodes import TaskSpec
from metarl.fewshot.networks import Body, Network, NetworkConfig
from metarl.layers import NORMS

VECTORS = (3,)
IMAGES = (2, 9, 8)
SMALL = {"layers": (5, 4), "filters": (4, 6)}


def network(shape, outputs=3, **options):
    torch.manual_seed(0)
    spec = TaskSpec("classification", shape, outputs)
    return Network(spec, NetworkConfig(**{**SMALL, **options})).double()


def inputs(shape, tasks=3, points=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, points, *shape, dtype=torch.float64, generator=generator)


def own_weights(module, tasks, seed=2):
    """Different weights for each task."""
    generator = torch.Generator().manual_seed(seed)

    def near(p):
        noise = torch.randn(tasks, *p.shape, dtype=p.dtype, generator=generator)
        return p.detach() + 0.3 * noise

    return {name: near(p) for name, p in module.named_parameters()}


def film(body, tasks, seed=3):
    """A scale and a shift for each block."""
    generator = torch.Generator().manual_seed(seed)
    pairs = [
        torch.randn(2, tasks, w, dtype=torch.float64, generator=generator) for w in body.widths
    ]
    return [(1.0 + 0.5 * scale, shift) for scale, shift in pairs]


def plainly(net, x, config, film=None):
    """One task `[M, ...]` by torch's own functions, of a network whose norm is batch or none."""
    for k, block in enumerate(net.body.blocks):
        weight, bias = block.layer.weight, block.layer.bias
        if x.dim() == 2:
            x = F.linear(x, weight, bias)
        else:
            stride = 2 if config.pooling == "stride" else 1
            x = F.conv2d(x, weight, bias, stride=stride, padding=1)
            if config.norm == "batch":
                mean = x.mean((0, 2, 3), keepdim=True)
                var = x.var((0, 2, 3), unbiased=False, keepdim=True)
                x = (x - mean) / (var + 1e-5).sqrt()
                x = x * block.norm.weight.view(-1, 1, 1) + block.norm.bias.view(-1, 1, 1)
        if film is not None:
            scale, shift = (f.view(-1, *(1,) * (x.dim() - 2)) for f in film[k])
            x = x * scale + shift
        x = x.clamp(min=0.0)
        if x.dim() == 4 and config.pooling == "max":
            x = F.max_pool2d(x, 2)
    return F.linear(x.flatten(1), net.head.weight, net.head.bias)


# Shapes and sizes


@pytest.mark.parametrize(
    ("shape", "options", "features"),
    [
        ((3,), {"layers": (7,)}, 7),
        ((1,), {"layers": (40, 30)}, 30),
        ((1, 28, 28), {"filters": (64,) * 4}, 64 * 2 * 2),
        ((1, 28, 28), {"filters": (64,) * 4, "pooling": "max"}, 64),
        ((3, 84, 84), {"filters": (32,) * 4, "pooling": "max"}, 32 * 5 * 5),
        ((3, 84, 84), {"filters": (32,) * 4}, 32 * 6 * 6),
        ((2, 9, 5), {"filters": (4, 6)}, 6 * 3 * 2),
        ((2, 9, 5), {"filters": (4, 6), "pooling": "max"}, 6 * 2 * 1),
    ],
)
def test_features_are_as_many_as_come_out(shape, options, features):
    body = Body(shape, NetworkConfig(**options))
    assert body.features == features
    with torch.no_grad():
        assert body(torch.zeros(2, 3, *shape)).shape == (2, 3, features)


@pytest.mark.parametrize("shape", [VECTORS, IMAGES])
def test_a_network_has_an_output_for_each_way(shape):
    assert network(shape, 7)(inputs(shape)).shape == (3, 4, 7)


def count(module):
    return sum(p.numel() for p in module.parameters())


def test_the_networks_have_as_many_parameters_as_those_of_the_papers():
    """Finn et al. 2017: two layers of 40 for sinusoids, four of 64 filters for Omniglot."""
    curves = Network(TaskSpec("regression", (1,), 1), NetworkConfig())
    assert count(curves) == (1 + 1) * 40 + (40 + 1) * 40 + (40 + 1) * 1
    images = Network(TaskSpec("classification", (1, 28, 28), 5), NetworkConfig())
    first, others = 9 * 64 + 64 + 128, 3 * (9 * 64 * 64 + 64 + 128)
    assert count(images) == first + others + (256 + 1) * 5 == 113_221
    bare = Network(TaskSpec("classification", (1, 28, 28), 5), NetworkConfig(norm="none"))
    assert count(images) - count(bare) == 4 * 128


def test_images_too_small_for_the_poolings_are_refused():
    pooled = NetworkConfig(filters=(4,) * 4, pooling="max")
    with pytest.raises(UsageError, match="4 poolings leave nothing"):
        Body((1, 28, 15), pooled)
    assert Body((1, 28, 16), pooled).features == 4
    # A stride rounds up, so that something is always left.
    assert Body((1, 28, 15), NetworkConfig(filters=(4,) * 4)).features == 4 * 2


@pytest.mark.parametrize("shape", [(), (28, 28), (1, 2, 3, 4)])
def test_inputs_of_another_shape_are_refused(shape):
    with pytest.raises(UsageError, match="vectors or images"):
        Body(shape, NetworkConfig())


@pytest.mark.parametrize("options", [{"layers": ()}, {"filters": (4, 0)}])
def test_widths_that_make_no_network_are_refused(options):
    with pytest.raises(UsageError, match="network"):
        NetworkConfig(**options)


# What comes out


@pytest.mark.parametrize("with_film", [False, True])
@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize(
    ("shape", "pooling"), [(VECTORS, "stride"), (IMAGES, "stride"), (IMAGES, "max")]
)
def test_each_task_with_its_own_weights_is_a_plain_network(shape, pooling, norm, with_film):
    net, x = network(shape, pooling=pooling, norm=norm), inputs(shape)
    config = NetworkConfig(**SMALL, pooling=pooling, norm=norm)
    weights = own_weights(net, 3)
    scales = film(net.body, 3) if with_film else None
    together = functional_call(net, weights, (x, scales))
    for task in range(3):
        alone = network(shape, pooling=pooling, norm=norm)
        alone.load_state_dict({name: p[task] for name, p in weights.items()})
        own = None if scales is None else [(a[task], b[task]) for a, b in scales]
        expected = plainly(alone, x[task], config, own)
        torch.testing.assert_close(together[task], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [*NORMS, "none"])
@pytest.mark.parametrize("pooling", ["stride", "max"])
def test_copies_of_the_same_weights_change_nothing(pooling, norm):
    net, x = network(IMAGES, pooling=pooling, norm=norm), inputs(IMAGES)
    net.eval()
    copies = {name: p.expand(3, *p.shape) for name, p in net.named_parameters()}
    torch.testing.assert_close(functional_call(net, copies, (x,)), net(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", [*NORMS, "none"])
def test_a_task_does_not_depend_on_the_others(norm):
    net, x = network(IMAGES, norm=norm), inputs(IMAGES)
    net.eval()
    weights, scales = own_weights(net, 3), film(net.body, 3)
    other = x.clone()
    other[1:] *= 3.0
    before, after = (functional_call(net, weights, (z, scales)) for z in (x, other))
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=1e-12)
    assert not torch.allclose(after[1], before[1])


@pytest.mark.parametrize("shape", [VECTORS, IMAGES])
def test_some_parameters_may_be_each_task_s_own_and_others_shared(shape):
    """ANIL adapts the head alone, and bias or scale alone would do as well."""
    net, x = network(shape), inputs(shape)
    full = own_weights(net, 3)
    for chosen in ("head", "bias", "body.blocks.0"):
        own = {name: p for name, p in full.items() if chosen in name}
        assert 0 < len(own) < len(full)
        mixed = functional_call(net, own, (x,))
        shared = {n: p.expand(3, *p.shape) for n, p in net.named_parameters() if n not in own}
        expected = functional_call(net, {**own, **shared}, (x,))
        torch.testing.assert_close(mixed, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pooling", ["stride", "max"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_the_gradient_of_a_task_reaches_its_own_weights_only(norm, pooling):
    net, x = network(IMAGES, norm=norm, pooling=pooling), inputs(IMAGES)
    weights = {name: p.requires_grad_() for name, p in own_weights(net, 3).items()}
    loss = functional_call(net, weights, (x,))[1].square().sum()
    grads = torch.autograd.grad(loss, list(weights.values()))
    for grad in grads:
        assert not grad[[0, 2]].any()
    head = dict(zip(weights, grads, strict=True))["head.weight"]
    assert head[1].abs().sum() > 0


def test_film_that_does_nothing_changes_nothing():
    for shape in (VECTORS, IMAGES):
        net, x = network(shape), inputs(shape)
        ones = torch.ones(3, 1, dtype=torch.float64)
        still = [(ones.expand(3, w), 0.0 * ones.expand(3, w)) for w in net.body.widths]
        torch.testing.assert_close(net(x, still), net(x), rtol=0, atol=1e-12)
        assert not torch.allclose(net(x, film(net.body, 3)), net(x))


def test_the_same_seed_builds_the_same_network():
    one, same = network(IMAGES), network(IMAGES)
    states = one.state_dict(), same.state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
