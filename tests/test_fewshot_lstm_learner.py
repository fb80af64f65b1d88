"""The LSTM meta-learner: its rule coordinate by coordinate, and its limit, gradient descent."""

import math

import pytest
import torch
from fewshot_properties import (
    Blobs,
    assert_goes_on_from_its_state,
    assert_queries_are_independent,
    assert_tasks_are_independent,
    drawn,
    shaken,
    train,
)
from torch.func import functional_call

from metarl.errors import UsageError
from metarl.fewshot import lstm_learner
from metarl.fewshot.episodes import Protocol
from metarl.fewshot.learner import Prediction, losses
from metarl.fewshot.lstm_learner import LSTMLearner, LSTMLearnerConfig, preprocess
from metarl.fewshot.maml import MAML, FOMAMLConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

NETWORK = NetworkConfig(layers=(6,), filters=(4, 4))
CONFIG = LSTMLearnerConfig(NETWORK, meta_batch=4, hidden=3, inner_steps=3, inner_rate=0.2)
WAYS3 = Protocol(ways=3, shots=2, queries=2)
TASKS = {
    "vectors": (Blobs(), WAYS3),
    "images": (Blobs(shape=(1, 8, 8)), WAYS3),
    "curves": (Sinusoids(), Protocol(shots=5, queries=4)),
}
everywhere = pytest.mark.parametrize("tasks", TASKS)


def make(data, protocol, seed=0, config=CONFIG):
    return LSTMLearner(config, data.spec(protocol), seed=seed)


def test_preprocessing_is_that_of_appendix_a():
    small = math.exp(-10.0)
    x = torch.tensor([1.0, -math.e, 2 * small, 0.5 * small, -0.1 * small, 0.0])
    expected = [
        [0.0, 1.0],
        [0.1, -1.0],
        [(math.log(2) - 10) / 10, 1.0],
        [-1.0, 0.5],
        [-1.0, -0.1],
        [-1.0, 0.0],
    ]
    torch.testing.assert_close(preprocess(x), torch.tensor(expected))


def as_gradient_descent(learner, rate):
    """Let the gates be 1 and `rate`, whatever they are given."""
    learner.network.double().eval()
    optimiser = learner.network.optimiser
    with torch.no_grad():
        for gate in (optimiser.forget, optimiser.input):
            gate.weight.zero_()
        optimiser.forget.bias.fill_(50.0)
        optimiser.input.bias.fill_(math.log(rate / (1.0 - rate)))
    return learner


@everywhere
def test_constant_gates_are_first_order_maml(tasks):
    """Predictions after each step, and the meta-gradient of the initial weights."""
    data, protocol = TASKS[tasks]
    learner = as_gradient_descent(make(data, protocol), 0.2)
    config = FOMAMLConfig(NETWORK, inner_rate=0.2, inner_steps=3, executor="vectorised")
    maml = MAML(config, data.spec(protocol))
    maml.network.double().load_state_dict(learner.network.network.state_dict())
    episodes = drawn(data, protocol, 3)
    for steps in range(4):
        torch.testing.assert_close(
            learner.predict(episodes, steps).value, maml.predict(episodes, steps).value
        )
    learner.loss(episodes, 0.0).sum().backward()
    maml.loss(episodes, 0.0).sum().backward()
    ours = learner.network.network.named_parameters()
    for (name, p), expected in zip(ours, maml.network.parameters(), strict=True):
        assert p.grad.abs().max() > 0 or "norm" in name or "bias" in name
        torch.testing.assert_close(p.grad, expected.grad, msg=name)


def slow_loss(learner, episodes, k):
    """The loss of one task: every tensor of weights by itself, every coordinate in its own call."""
    network, optimiser = learner.network.network, learner.network.optimiser
    task = episodes[k : k + 1]
    weights = dict(network.named_parameters())
    states = {name: [None] * p.numel() for name, p in weights.items()}

    def loss(parameters, points):
        return losses(Prediction(functional_call(network, parameters, (points.x,))), points.y)[0]

    for _ in range(learner.config.inner_steps):
        constant = {name: w.detach().requires_grad_() for name, w in weights.items()}
        value = loss(constant, task.support)
        gradients = torch.autograd.grad(value, list(constant.values()))
        given = value.detach().view(1, 1)
        for (name, w), gradient in zip(list(weights.items()), gradients, strict=True):
            moved = []
            for i, (at, down) in enumerate(zip(w.flatten(), gradient.flatten(), strict=True)):
                at, down = at.view(1, 1), down.view(1, 1)
                state = states[name][i] or optimiser.start(at)
                new, states[name][i] = optimiser(at, down, given, state)
                moved.append(new)
            weights[name] = torch.cat(moved).view_as(w)
    return loss(weights, task.query)


@pytest.mark.parametrize("tasks", ["vectors", "curves"])
def test_meta_gradient_equals_one_coordinate_at_a_time(tasks):
    data, protocol = TASKS[tasks]
    learner = shaken(make(data, protocol))
    episodes = drawn(data, protocol, 2)
    found = learner.loss(episodes, 0.0)
    slow = torch.stack([slow_loss(learner, episodes, k) for k in range(2)])
    torch.testing.assert_close(found, slow)
    parameters = list(learner.network.parameters())
    ours = torch.autograd.grad(found.sum(), parameters)
    expected = torch.autograd.grad(slow.sum(), parameters)
    for a, b in zip(ours, expected, strict=True):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def test_weights_as_one_vector_and_by_name():
    network = make(*TASKS["images"]).network
    named = network.by_name(network.start().expand(2, -1))
    for name, parameter in network.network.named_parameters():
        assert torch.equal(named[name], parameter.expand(2, *parameter.shape))


def test_gates_start_where_the_config_says():
    learner = make(*TASKS["curves"])
    optimiser = learner.network.optimiser
    state = optimiser.start(torch.zeros(4, 1))
    assert [gate[0].item() for gate in state[:2]] == pytest.approx([0.999, 0.2])


@everywhere
def test_tasks_are_independent(tasks):
    data, protocol = TASKS[tasks]
    assert_tasks_are_independent(shaken(make(data, protocol)), drawn(data, protocol, 3))


@pytest.mark.parametrize("tasks", ["vectors", "curves"])
def test_queries_are_independent_without_batch_norm(tasks):
    data, protocol = TASKS[tasks]
    assert_queries_are_independent(shaken(make(data, protocol)), drawn(data, protocol, 2))


def test_many_coordinates_are_updated_part_by_part(monkeypatch):
    data, protocol = TASKS["vectors"]
    learner = shaken(make(data, protocol))
    episodes = drawn(data, protocol, 3)
    whole = learner.predict(episodes).value
    monkeypatch.setattr(lstm_learner, "CHUNK", 7)
    torch.testing.assert_close(learner.predict(episodes).value, whole)


def test_going_on_from_a_state():
    data, protocol = TASKS["images"]
    assert_goes_on_from_its_state(lambda s: make(data, protocol, s), data, protocol)


def test_learns_to_classify_by_steps():
    protocol = Protocol(ways=3, shots=2, queries=5)
    config = LSTMLearnerConfig(
        NetworkConfig(layers=(16,)), learning_rate=1e-2, meta_batch=8, hidden=4, inner_steps=3
    )
    learner = make(Blobs(), protocol, config=config)
    before = train(learner, Blobs(), protocol, 0)
    assert train(learner, Blobs(), protocol, 100) > before + 0.1
    assert learner.steps_shown == (0, 1, 3)
    episodes = Blobs().episodes(protocol, 200, "held-out", torch.Generator().manual_seed(5))
    by_step = [float(losses(learner.predict(episodes, k), episodes.query.y).mean()) for k in (0, 3)]
    assert by_step[1] < 0.8 * by_step[0]


@pytest.mark.parametrize("bad", [{"inner_rate": 1.0}, {"keep": 0.0}, {"inner_steps": 0}])
def test_gates_that_are_none(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        LSTMLearnerConfig(**bad)
