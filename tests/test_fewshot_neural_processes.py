"""Neural processes: what they compute, by slow formulas; what they must not look at; learning."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from metarl.errors import UsageError
from metarl.fewshot.attention import MultiHeadAttention
from metarl.fewshot.episodes import Episodes, Points, Protocol, TaskSpec
from metarl.fewshot.gaussian_processes import GPCurves
from metarl.fewshot.learner import Prediction, gaussian_log_likelihood
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.neural_process_parts import mixture
from metarl.fewshot.neural_processes import ANP, CNP, NP, ANPConfig, CNPConfig, NPConfig

METHODS = {"cnp": (CNP, CNPConfig), "np": (NP, NPConfig), "anp": (ANP, ANPConfig)}
SMALL = {"network": NetworkConfig(layers=(16, 16), filters=(4, 4), norm="running")}
REGRESSION = TaskSpec("regression", (1,), 1)
VECTORS = TaskSpec("classification", (3,), 3)
IMAGES = TaskSpec("classification", (1, 8, 8), 3)
SPECS = {"regression": REGRESSION, "vectors": VECTORS, "images": IMAGES}
EVERY = [(method, spec) for method in METHODS for spec in SPECS]


def learner(method, spec=REGRESSION, **options):
    kind, config = METHODS[method]
    if method != "cnp":
        options = {"latent": 5, "samples": 4, **options}
    if method == "anp":
        options = {"heads": 2, "self_attention": True, **options}
    return kind(config(**{**SMALL, **options}), spec)


def episodes(spec, tasks=3, shots=2, queries=4, seed=0, ways=3):
    """Noise, which is enough to see what depends on what."""
    generator = torch.Generator().manual_seed(seed)

    def points(each):
        if spec.kind == "regression":
            x = torch.randn(tasks, 3 * each, 1, generator=generator)
            return Points(x, torch.randn(tasks, 3 * each, 1, generator=generator))
        x = torch.randn(tasks, ways * each, *spec.input_shape, generator=generator)
        return Points(x, torch.arange(ways).repeat_interleave(each).expand(tasks, -1))

    return Episodes(points(shots), points(queries))


def shuffled(points, seed=7):
    return points.permuted(torch.Generator().manual_seed(seed))


def assert_same(a, b):
    torch.testing.assert_close(a.value, b.value, rtol=1e-9, atol=1e-10)
    if a.std is not None:
        torch.testing.assert_close(a.std, b.std, rtol=1e-9, atol=1e-10)


def exact(method, spec):
    """A learner and episodes in float64."""
    found = learner(method, SPECS[spec])
    found.network.double()
    return found, episodes(SPECS[spec]).to(dtype=torch.float64)


@pytest.mark.parametrize(("method", "spec"), EVERY)
def test_the_order_of_the_support_points_does_not_matter(method, spec):
    found, e = exact(method, spec)
    mixed = Episodes(shuffled(e.support), e.query)
    assert not torch.equal(mixed.support.x, e.support.x)
    assert_same(found.predict(e), found.predict(mixed))


@pytest.mark.parametrize(("method", "spec"), EVERY)
def test_a_prediction_depends_on_its_own_query_and_task_alone(method, spec):
    found, e = exact(method, spec)
    together = found.predict(e)
    half = slice(1, 3)
    std = None if together.std is None else together.std[half, 2:5]
    few = Points(e.query.x[half, 2:5], e.query.y[half, 2:5])
    alone = found.predict(Episodes(e.support[half], few))
    assert_same(Prediction(together.value[half, 2:5], std), alone)


@pytest.mark.parametrize(("method", "spec"), EVERY)
def test_a_prediction_depends_on_every_support_point(method, spec):
    found, e = exact(method, spec)
    x = e.support.x.clone().requires_grad_()
    found.network.eval()
    found.adapt(Points(x, e.support.y))(e.query.x).value.square().sum().backward()
    assert (x.grad.flatten(2).abs().sum(-1) > 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_classes_are_scored_alike_whatever_they_are_called(method):
    found, e = exact(method, "vectors")
    order = torch.tensor([2, 0, 1])
    renamed = Episodes(Points(e.support.x, order[e.support.y]), e.query)
    torch.testing.assert_close(found.predict(renamed).value[..., order], found.predict(e).value)


@pytest.mark.parametrize("method", METHODS)
def test_other_numbers_of_ways_and_shots_are_taken(method):
    found = learner(method, VECTORS)
    e = episodes(VECTORS, shots=1, ways=7)
    assert not found.fixed_ways
    assert found.predict(e).value.shape == (3, 28, 7)
    assert torch.isfinite(found.loss(e, 0.0)).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_class_is_the_mean_over_its_own_points(method):
    """One point given three times is a class with one point; the other classes do not change it."""
    found, e = exact(method, "vectors")
    one = e.support.x[:, ::2]
    single = Points(one, torch.arange(3).expand(3, -1))
    triple = Points(
        torch.cat([one, one[:, 1:2], one[:, 1:2]], 1), torch.tensor([0, 1, 2, 1, 1]).expand(3, -1)
    )
    assert_same(found.predict(Episodes(single, e.query)), found.predict(Episodes(triple, e.query)))


def test_attention_is_the_formula():
    torch.manual_seed(0)
    layer = MultiHeadAttention(3, 4, 5, width=6, heads=2).double()
    q, k, v = (torch.randn(2, m, i).double() for m, i in ((3, 3), (4, 4), (4, 5)))
    mask = torch.tensor([[True, False, True, True], [False, True, True, False]]).unsqueeze(1)
    found = layer(q, k, v, mask)
    for b in range(2):
        for i in range(3):
            heads = []
            for part in (slice(0, 3), slice(3, 6)):
                weights = []
                for j in range(4):
                    score = layer.query(q[b, i])[part] @ layer.key(k[b, j])[part] / math.sqrt(3)
                    weights.append(score.exp() * mask[b, 0, j])
                total = sum(weights)
                heads.append(
                    sum(w / total * layer.value(v[b, j])[part] for j, w in enumerate(weights))
                )
            torch.testing.assert_close(found[b, i], layer.out(torch.cat(heads)))


def test_attention_needs_heads_of_equal_width():
    with pytest.raises(UsageError, match="heads must divide the width 6, got 4"):
        MultiHeadAttention(3, 3, 3, width=6, heads=4)


def test_a_mixture_has_the_moments_of_draws_from_it():
    mean, std = torch.tensor([[0.0], [3.0]]).double(), torch.tensor([[1.0], [0.5]]).double()
    mixed = mixture([Prediction(m, s) for m, s in zip(mean, std, strict=True)])
    assert float(mixed.value) == 1.5
    # E[y²] - E[y]², of each Gaussian E[y²] = σ² + μ².
    assert float(mixed.std) == pytest.approx(math.sqrt((1.0 + 0.25 + 9.0) / 2 - 1.5**2))


def test_a_mixture_of_classes_has_the_mean_probability():
    logits = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)).double()
    mixed = mixture([Prediction(x) for x in logits])
    assert mixed.std is None
    torch.testing.assert_close(mixed.value.softmax(-1), logits.softmax(-1).mean(0))


def log_normal(prediction, y):
    """Log density of all points, by the formula."""
    z = (y - prediction.value) / prediction.std
    return (-0.5 * z**2 - prediction.std.log() - 0.5 * math.log(2 * math.pi)).sum()


def slow_kl(q, p):
    """Between diagonal Gaussians, one dimension after the other."""
    total = 0.0
    for m1, s1, m0, s0 in zip(
        *(t.flatten().tolist() for t in (q.mean, q.stddev, p.mean, p.stddev)), strict=True
    ):
        total += math.log(s0 / s1) + (s1**2 + (m1 - m0) ** 2) / (2 * s0**2) - 0.5
    return total


@pytest.mark.parametrize("objective", ["likelihood", "bound"])
@pytest.mark.parametrize("method", ["np", "anp"])
def test_the_loss_is_the_objective_task_by_task(method, objective):
    found = learner(method, objective=objective, draws=3)
    found.network.double()
    e = episodes(REGRESSION).to(dtype=torch.float64)
    batch = found.loss(e, 0.0)
    generator = torch.Generator().manual_seed(1)  # as the learner's own, of seed 0
    noise = [torch.randn(3, 1, 5, generator=generator).double() for _ in range(3)]
    network = found.network
    for task in range(3):
        s, q = e.support[task : task + 1], e.query[task : task + 1]
        everything = Points(torch.cat([s.x, q.x], 1), torch.cat([s.y, q.y], 1))
        prior, posterior = (network.latent(network.support(p)) for p in (s, everything))
        known = network.reader(network.support(s))(q.x)

        def density(belief, draw, task=task, q=q, known=known):
            z = belief.mean + belief.stddev * noise[draw][task]
            return log_normal(network.decoder(q.x, *known, z.unsqueeze(2)), q.y)

        if objective == "bound":
            wanted = density(posterior, 0) - slow_kl(posterior, prior)
        else:
            wanted = (sum(density(prior, k).exp() for k in range(3)) / 3).log()
        torch.testing.assert_close(batch[task], -wanted / q.x.shape[1])


@pytest.mark.parametrize("method", METHODS)
def test_predicting_leaves_no_trace_and_builds_no_graph(method):
    found = learner(method)
    e = episodes(REGRESSION)
    before = found.generator.get_state()
    first, again = found.predict(e), found.predict(e, steps=3)
    assert_same(first, again)
    assert not first.value.requires_grad
    assert torch.equal(found.generator.get_state(), before)


@pytest.mark.parametrize("method", METHODS)
def test_a_state_goes_on_bit_for_bit(method):
    data, protocol = GPCurves(context=(3, 6)), Protocol(shots=5, queries=6)
    first, other = learner(method), learner(method)
    first.train_step(data, protocol, 0.0)
    other.load_state_dict(first.state_dict())
    for progress in (0.1, 0.2):
        a, b = (x.train_step(data, protocol, progress) for x in (first, other))
        assert a == b
    for name, value in first.network.state_dict().items():
        assert torch.equal(value, other.network.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_learns_curves(method):
    """Better than the best that knows no support set, and much better than before."""
    data = GPCurves(length=(0.8, 1.0), amplitude=(1.0, 1.0), context=(4, 8))
    protocol = Protocol(shots=8, queries=20)
    config = METHODS[method][1](
        network=NetworkConfig(layers=(48, 48)),
        learning_rate=3e-3,
        **({"heads": 4} if method == "anp" else {}),
    )
    found = METHODS[method][0](config, REGRESSION)
    iterations = 80 if method == "anp" else 200
    for k in range(iterations):
        found.train_step(data, protocol, k / iterations)
    e = data.episodes(protocol, 300, "held-out", torch.Generator().manual_seed(0))
    prediction = found.predict(e)
    reached = float(gaussian_log_likelihood(prediction, e.query.y).mean())
    best = data.posterior(e.tasks, e.support, e.query.x)
    bound = float(gaussian_log_likelihood(best, e.query.y).mean())
    prior = Prediction(torch.zeros_like(e.query.y), torch.ones_like(e.query.y))
    blind = float(gaussian_log_likelihood(prior, e.query.y).mean())
    assert blind + 0.15 < reached < bound


class Blobs(GPCurves):
    """Classes of vectors around a random centre; the noise is a third of what parts them."""

    def spec(self, protocol):
        return VECTORS

    def episodes(self, protocol, tasks, split, generator):
        centres = torch.randn(tasks, protocol.ways, 1, 3, generator=generator)

        def points(each):
            noise = torch.randn(tasks, protocol.ways, each, 3, generator=generator)
            y = torch.arange(protocol.ways).repeat_interleave(each).expand(tasks, -1)
            return Points((centres + 0.3 * noise).flatten(1, 2), y)

        return Episodes(points(protocol.shots), points(protocol.queries))


@pytest.mark.parametrize("method", METHODS)
def test_learns_classes(method):
    data, protocol = Blobs(), Protocol(ways=3, shots=2, queries=5)
    options = {"heads": 4} if method == "anp" else {}
    config = METHODS[method][1](
        network=NetworkConfig(layers=(48, 48)), learning_rate=3e-3, **options
    )
    found = METHODS[method][0](config, VECTORS)
    for k in range(60):
        found.train_step(data, protocol, k / 60)
    e = data.episodes(protocol, 200, "held-out", torch.Generator().manual_seed(0))
    accuracy = float((found.predict(e).value.argmax(-1) == e.query.y).double().mean())
    assert accuracy > 0.75  # chance is 0.33, the nearest mean 0.95


def test_images_are_normalised_by_running_statistics_in_use():
    found = learner("cnp", IMAGES)
    mean = found.network.body.blocks[0].norm.mean.clone()
    found.update(episodes(IMAGES), 0.0)
    assert not torch.equal(found.network.body.blocks[0].norm.mean, mean)
    assert isinstance(CNPConfig().network, NetworkConfig)
    assert CNPConfig().network.norm == "running"


def test_the_paths_are_those_of_the_papers():
    parts = {method: learner(method).network for method in METHODS}
    assert type(parts["cnp"].deterministic).__name__ == "MeanPath" and parts["cnp"].latent is None
    assert parts["np"].deterministic is None and isinstance(parts["np"].latent, nn.Module)
    assert type(parts["anp"].deterministic).__name__ == "AttentivePath"
    assert isinstance(parts["anp"].latent, nn.Module)


def test_the_spread_is_never_below_its_floor():
    found = learner("cnp", min_std=0.4)
    assert float(found.predict(episodes(REGRESSION)).std.min()) >= 0.4


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (CNPConfig, {"min_std": 0.0}, r"min_std must be in \(0, 1\), got 0.0"),
        (NPConfig, {"samples": 0}, "samples must be a finite number above 0"),
        (NPConfig, {"latent": 0}, "latent must be a finite number above 0"),
        (NPConfig, {"objective": "elbo"}, "objective must be likelihood or bound, got elbo"),
        (ANPConfig, {"heads": 3}, "heads must divide the last of network.layers, 128, got 3"),
    ],
)
def test_configs_that_cannot_train_are_refused(config, options, message):
    with pytest.raises(UsageError, match=message):
        replace(config(), **options)
