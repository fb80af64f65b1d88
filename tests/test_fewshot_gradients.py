"""Meta-gradients of the gradient methods: the per-task loop's, and finite differences'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fewshot_oracles import (
    Plain,
    assert_finite_differences,
    assert_same,
    classification,
    copy_values,
    gradients,
    losses_of,
    plain_twin,
    regression,
    sgd,
    shaken,
)
from torch.func import functional_call

from metarl.errors import UsageError
from metarl.fewshot.anil import ANIL, ANILConfig
from metarl.fewshot.cavia import CAVIA, CAVIAConfig
from metarl.fewshot.episodes import Episodes, Points, Protocol, TaskSpec
from metarl.fewshot.learner import losses
from metarl.fewshot.maml import MAML, FOMAMLConfig, MAMLConfig
from metarl.fewshot.meta_sgd import MetaSGD, MetaSGDConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

CURVES, IMAGES = regression(), classification()
WAYS, CONTEXT = 3, 4
NETWORKS = {
    "vectors": NetworkConfig(layers=(6, 5)),
    **{
        f"{pooling} {norm}": NetworkConfig(filters=(4, 3), pooling=pooling, norm=norm)
        for pooling, norms in (
            ("stride", ("batch", "layer", "group", "instance", "none")),
            ("max", ("batch", "layer", "none")),
        )
        for norm in norms
    },
}


def task_of(name):
    """Episodes for the network `name`, and what they are."""
    if name == "vectors":
        return CURVES, TaskSpec("regression", (2,), 2)
    return IMAGES, TaskSpec("classification", (2, 9, 9), WAYS)


class Oracle:
    """The losses of a learner by the plain loop, and the leaves that they depend on."""

    def __init__(self, learner, spec):
        self.config, self.network = learner.config, learner.config.network
        self.twin = plain_twin(self.body_and_head(learner), *self.shape(spec), self.network)
        self.leaves = list(self.twin.in_order())

    def body_and_head(self, learner):
        return learner.network

    def shape(self, spec):
        return spec.input_shape, spec.outputs

    def predict(self, params, x):
        return functional_call(self.twin, params, (x,))

    def start(self, task):
        return dict(self.twin.named_parameters())

    def rate(self, k, name):
        return self.config.inner_rate

    def losses(self, episodes):
        c = self.config
        rule = sgd(self.rate)
        return losses_of(
            self.predict, self.start, episodes, rule, c.inner_steps, second_order=c.second_order
        )


class MetaSGDOracle(Oracle):
    """A step size for each parameter, which is a leaf itself."""

    def __init__(self, learner, spec):
        super().__init__(learner, spec)
        names = {id(p): n for n, p in self.twin.named_parameters()}
        own = [r.detach().clone().requires_grad_() for r in learner.network.rates]
        self.rates = {names[id(p)]: r for p, r in zip(self.leaves, own, strict=True)}
        self.leaves += own

    def body_and_head(self, learner):
        return torch.nn.ModuleList([learner.network.body, learner.network.head])

    def rate(self, k, name):
        return self.rates[name]


class ANILOracle(Oracle):
    """Only the head steps; the body is computed anew in every step."""

    def start(self, task):
        return {f"head.{n}": p for n, p in self.twin.head.named_parameters()}


class CAVIAOracle(Oracle):
    """Only a context steps, from zero."""

    def __init__(self, learner, spec):
        super().__init__(learner, spec)
        self.films = [f.weight.detach().clone().requires_grad_() for f in learner.network.films]
        self.leaves += self.films

    def body_and_head(self, learner):
        return learner.network.network

    def shape(self, spec):
        vectors = len(spec.input_shape) == 1
        return (spec.input_shape[0] + CONTEXT,) if vectors else spec.input_shape, spec.outputs

    def predict(self, params, x):
        context = params["context"]
        if not self.films:
            return self.twin(torch.cat([x, torch.stack([context] * len(x))], 1))
        film = []
        for weight in self.films:
            scale, shift = torch.chunk(weight @ context, 2)
            film.append((1.0 + scale, shift))
        return self.twin(x, film)

    def start(self, task):
        return {"context": torch.zeros(CONTEXT, dtype=torch.float64, requires_grad=True)}


METHODS = {
    "maml": (MAML, MAMLConfig, Oracle, {}),
    "fomaml": (MAML, FOMAMLConfig, Oracle, {}),
    "meta-sgd element": (MetaSGD, MetaSGDConfig, MetaSGDOracle, {"rates": "element"}),
    "meta-sgd tensor": (MetaSGD, MetaSGDConfig, MetaSGDOracle, {"rates": "tensor"}),
    "meta-sgd first order": (MetaSGD, MetaSGDConfig, MetaSGDOracle, {"second_order": False}),
    "anil": (ANIL, ANILConfig, ANILOracle, {}),
    "anil first order": (ANIL, ANILConfig, ANILOracle, {"second_order": False}),
    "cavia": (CAVIA, CAVIAConfig, CAVIAOracle, {"context": CONTEXT}),
    "cavia first order": (
        CAVIA,
        CAVIAConfig,
        CAVIAOracle,
        {"context": CONTEXT, "second_order": False},
    ),
}
SECOND_ORDER = [name for name in METHODS if "fomaml" not in name and "first" not in name]


def learner_of(method, network, steps, executor="vectorised"):
    """The learner in float64 with shaken weights, and its oracle."""
    cls, config, oracle, options = METHODS[method]
    _, spec = task_of(network)
    config = config(
        network=NETWORKS[network], inner_rate=0.1, inner_steps=steps, executor=executor, **options
    )
    learner = cls(config, spec)
    shaken(learner.network)
    return learner, oracle(learner, spec)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_the_meta_gradient_is_that_of_the_loop(method, network, steps):
    episodes, _ = task_of(network)
    learner, oracle = learner_of(method, network, steps)
    theirs = oracle.losses(episodes)
    expected = gradients(theirs.mean(), oracle.leaves)
    for learner.executor in ("vectorised", "loop"):
        ours = learner.loss(episodes, 0.0)
        assert_same([ours], [theirs])
        assert_same(gradients(ours.mean(), learner.network.parameters()), expected)


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("method", SECOND_ORDER)
def test_the_meta_gradient_is_that_of_finite_differences(method, network):
    learner, _ = learner_of(method, network, 2)
    episodes, _ = task_of(network)
    parameters = list(learner.network.parameters())
    found = gradients(learner.loss(episodes, 0.0).mean(), parameters)
    assert_finite_differences(lambda: learner.loss(episodes, 0.0).mean(), parameters, found)


@pytest.mark.parametrize("network", ["vectors", "stride batch", "max none"])
def test_fomaml_is_the_gradient_where_the_steps_end(network):
    learner, oracle = learner_of("fomaml", network, 3)
    episodes, _ = task_of(network)
    found = gradients(learner.loss(episodes, 0.0).mean(), learner.network.parameters())
    total = [torch.zeros_like(f) for f in found]
    for b in range(len(episodes)):
        for p, value in zip(oracle.twin.in_order(), learner.network.parameters(), strict=True):
            p.data = value.detach().clone()
        optimiser = torch.optim.SGD(oracle.twin.parameters(), lr=0.1)
        for _ in range(3):
            optimiser.zero_grad()
            loss_of(oracle.twin, episodes.support, b).backward()
            optimiser.step()
        last = gradients(loss_of(oracle.twin, episodes.query, b), oracle.twin.in_order())
        total = [t + g / len(episodes) for t, g in zip(total, last, strict=True)]
    assert_same(found, total)


def loss_of(network, points, task):
    """The loss of a plain network on one task."""
    if points.y.is_floating_point():
        return (network(points.x[task]) - points.y[task]).square().sum(-1).mean()
    return torch.nn.functional.cross_entropy(network(points.x[task]), points.y[task])


def test_second_derivatives_make_a_difference_that_the_tests_above_would_see():
    for network in ("vectors", "stride batch"):
        episodes, _ = task_of(network)
        second, first = (learner_of(m, network, 1)[0] for m in ("maml", "fomaml"))
        one, other = (
            gradients(x.loss(episodes, 0.0).mean(), x.network.parameters()) for x in (second, first)
        )
        apart = torch.cat([(a - b).flatten() for a, b in zip(one, other, strict=True)]).norm()
        assert apart > 1e-2 * torch.cat([b.flatten() for b in other]).norm()


# --- what adapts, and what does not ------------------------------------------------------------


def test_meta_sgd_with_equal_rates_is_maml():
    _, spec = task_of("vectors")
    maml = MAML(MAMLConfig(network=NETWORKS["vectors"], inner_steps=2), spec)
    meta_sgd = MetaSGD(MetaSGDConfig(network=NETWORKS["vectors"], inner_steps=2), spec)
    episodes = CURVES.to(dtype=torch.float32)
    assert torch.equal(maml.predict(episodes).value, meta_sgd.predict(episodes).value)


def test_meta_sgd_has_a_rate_for_each_number_or_each_tensor():
    _, spec = task_of("stride batch")
    for rates, shape in (("element", lambda p: p.shape), ("tensor", lambda p: ())):
        learner = MetaSGD(MetaSGDConfig(network=NETWORKS["stride batch"], rates=rates), spec)
        assert [r.shape for r in learner.network.rates] == [
            shape(p) for p in learner.start().values()
        ]


def test_anil_computes_the_body_once_for_each_set():
    learner, _ = learner_of("anil", "max batch", 3)
    calls = []
    learner.network.body.register_forward_hook(lambda *_: calls.append(1))
    predict = learner.adapt(IMAGES.support, 7)
    assert len(calls) == 1
    predict(IMAGES.query.x)
    assert len(calls) == 2


def test_cavia_before_any_step_does_not_know_the_task():
    for network in ("vectors", "stride group"):
        learner, _ = learner_of("cavia", network, 1)
        episodes, _ = task_of(network)
        same = Points(episodes.query.x[:1].expand_as(episodes.query.x), episodes.query.y)
        before = learner.predict(Episodes(episodes.support, same), steps=0).value
        after = learner.predict(Episodes(episodes.support, same), steps=1).value
        assert torch.equal(before[0], before[1])
        assert (after[0] - after[1]).abs().max() > 1e-4


def test_cavia_without_context_is_the_network_alone():
    learner, oracle = learner_of("cavia", "stride layer", 1)
    plain = Plain((2, 9, 9), WAYS, NETWORKS["stride layer"]).double()
    copy_values(oracle.twin.in_order(), plain.in_order())
    x = IMAGES.query.x
    zero = torch.zeros(len(x), CONTEXT, dtype=torch.float64)
    expected = torch.stack([plain(one) for one in x])
    torch.testing.assert_close(learner.network(x, zero), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", ["vectors", "stride batch"])
@pytest.mark.parametrize("method", METHODS)
def test_tasks_do_not_touch_one_another(method, network):
    learner, _ = learner_of(method, network, 2)
    episodes, _ = task_of(network)
    together = learner.predict(episodes).value
    alone = torch.cat([learner.predict(episodes[b : b + 1]).value for b in range(len(episodes))])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", ["vectors", "max layer"])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_support_points_does_not_matter(method, network):
    learner, _ = learner_of(method, network, 2)
    episodes, _ = task_of(network)
    mixed = episodes.support.permuted(torch.Generator().manual_seed(0))
    assert not torch.equal(mixed.x, episodes.support.x)
    torch.testing.assert_close(
        learner.predict(Episodes(mixed, episodes.query)).value,
        learner.predict(episodes).value,
        rtol=1e-9,
        atol=1e-11,
    )


@pytest.mark.parametrize("method", METHODS)
def test_predicting_builds_no_graph_and_equals_training(method):
    learner, _ = learner_of(method, "vectors", 2)
    value = learner.predict(CURVES).value
    assert not value.requires_grad
    trained = learner.adapt(CURVES.support)(CURVES.query.x).value
    assert trained.requires_grad
    torch.testing.assert_close(value, trained.detach(), rtol=1e-12, atol=1e-14)


# --- training ----------------------------------------------------------------------------------


def test_the_executor_is_measured_once_and_kept(monkeypatch):
    asked = []

    def loop(*ways):
        asked.append(ways)
        return "loop"

    monkeypatch.setattr("metarl.fewshot.maml.faster_executor", loop)
    learner, _ = learner_of("maml", "vectors", 1, "auto")
    before = learner.loss(CURVES, 0.0)
    assert learner.executor == "loop"
    after = learner.loss(CURVES, 0.0)
    assert len(asked) == 1
    assert torch.equal(before, after)
    for way in asked[0]:
        torch.testing.assert_close(way(), after, rtol=1e-12, atol=1e-14)


def test_measuring_the_executor_does_not_touch_the_first_update():
    spec = TaskSpec("regression", (2,), 2)

    def updated(executor):
        learner = MAML(MAMLConfig(NETWORKS["vectors"], inner_rate=0.2, executor=executor), spec)
        learner.network.double()
        return learner, learner.update(CURVES, 0.0)

    auto, log = updated("auto")
    plain, wanted = updated(auto.executor)
    assert log == wanted
    pairs = zip(auto.network.parameters(), plain.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_norm_that_mixes_tasks_is_refused():
    with pytest.raises(UsageError, match="norm running mixes the tasks"):
        MAMLConfig(network=NetworkConfig(norm="running"))


@pytest.mark.parametrize("config", [MAMLConfig, FOMAMLConfig, MetaSGDConfig, ANILConfig])
@pytest.mark.parametrize("name", ["inner_rate", "inner_steps", "test_steps"])
def test_values_that_cannot_train_are_refused(config, name):
    with pytest.raises(UsageError, match=name):
        config(**{name: 0})
    with pytest.raises(UsageError, match="context"):
        CAVIAConfig(context=0)


SMALL = Protocol(shots=10, queries=10)
TRAINED = {
    "maml": (MAML, MAMLConfig(inner_rate=0.03)),
    "fomaml": (MAML, FOMAMLConfig(inner_rate=0.03)),
    "meta-sgd": (MetaSGD, MetaSGDConfig(inner_rate=0.03)),
    "anil": (ANIL, ANILConfig(inner_rate=0.1)),
    "cavia": (CAVIA, CAVIAConfig()),
}


def small_learner(method):
    cls, config = TRAINED[method]
    config = replace(
        config, executor="vectorised", learning_rate=3e-3, final_learning_rate=3e-3, meta_batch=10
    )
    return cls(config, Sinusoids().spec(SMALL))


@pytest.mark.parametrize("method", TRAINED)
def test_sinusoids_are_learned(method):
    data, learner = Sinusoids(), small_learner(method)
    held_out = data.episodes(SMALL, 200, "held-out", torch.Generator().manual_seed(0))

    def error(steps):
        return float(losses(learner.predict(held_out, steps), held_out.query.y).mean())

    untrained = error(1)
    for _ in range(300):
        learner.train_step(data, SMALL, 0.0)
    assert error(1) < 0.75 * min(untrained, error(0))


@pytest.mark.parametrize("method", TRAINED)
def test_training_goes_on_bit_for_bit_from_its_state(method):
    data, learner, other = Sinusoids(), small_learner(method), small_learner(method)
    for _ in range(2):
        learner.train_step(data, SMALL, 0.0)
    other.load_state_dict(learner.state_dict())
    for _ in range(2):
        assert learner.train_step(data, SMALL, 0.5) == other.train_step(data, SMALL, 0.5)
    pairs = zip(learner.network.parameters(), other.network.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
