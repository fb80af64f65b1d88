"""Hypernetwork and FiLM: weights, scales and shifts from a set, whose order does not matter."""

import pytest
import torch
from fewshot_properties import (
    Blobs,
    Levels,
    assert_goes_on_from_its_state,
    assert_queries_are_independent,
    assert_tasks_are_independent,
    drawn,
    shaken,
    train,
)
from torch.func import functional_call

from metarl.errors import UsageError
from metarl.fewshot.conditioned import (
    ClassHead,
    FiLM,
    FiLMConfig,
    Hypernetwork,
    HypernetworkConfig,
)
from metarl.fewshot.episodes import Episodes, Points, Protocol
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

NETWORK = NetworkConfig(layers=(16, 16), filters=(8, 8), norm="running")
MAKERS = {
    "hypernetwork": (Hypernetwork, HypernetworkConfig(NETWORK, hidden=24, learning_rate=3e-3)),
    "film": (FiLM, FiLMConfig(NETWORK, hidden=24, learning_rate=3e-3)),
}
WAYS3 = Protocol(ways=3, shots=2, queries=2)
TASKS = {
    "vectors": (Blobs(), WAYS3),
    "images": (Blobs(shape=(1, 8, 8)), WAYS3),
    "curves": (Sinusoids(), Protocol(shots=5, queries=4)),
    "levels of images": (Levels(shape=(1, 8, 8)), Protocol(shots=5, queries=4)),
}
both = pytest.mark.parametrize("method", MAKERS)
everywhere = pytest.mark.parametrize("tasks", TASKS)
classes = pytest.mark.parametrize("tasks", ["vectors", "images"])


def make(method, data, protocol, seed=0):
    kind, config = MAKERS[method]
    return kind(config, data.spec(protocol), seed=seed)


@both
@everywhere
def test_tasks_and_queries_are_independent(method, tasks):
    data, protocol = TASKS[tasks]
    learner = shaken(make(method, data, protocol))
    episodes = drawn(data, protocol, 3)
    assert_tasks_are_independent(learner, episodes)
    assert_queries_are_independent(learner, episodes)


@both
@everywhere
def test_the_order_of_the_support_set_does_not_matter(method, tasks):
    data, protocol = TASKS[tasks]
    learner = shaken(make(method, data, protocol))
    episodes = drawn(data, protocol, 2)
    other = episodes.support.permuted(torch.Generator().manual_seed(0))
    assert not torch.equal(other.x, episodes.support.x)
    torch.testing.assert_close(
        learner.predict(Episodes(other, episodes.query)).value, learner.predict(episodes).value
    )


@both
@classes
def test_renamed_classes_are_renamed_in_the_prediction(method, tasks):
    data, protocol = TASKS[tasks]
    learner = shaken(make(method, data, protocol))
    episodes = drawn(data, protocol, 2)
    names = torch.tensor([2, 0, 1])
    renamed = Points(episodes.support.x, names[episodes.support.y])
    value = learner.predict(Episodes(renamed, episodes.query)).value
    torch.testing.assert_close(value[..., names], learner.predict(episodes).value)


@both
@classes
def test_other_numbers_of_ways(method, tasks):
    data, protocol = TASKS[tasks]
    learner = make(method, data, protocol)
    assert not learner.fixed_ways
    generator = torch.Generator().manual_seed(0)
    episodes = data.episodes(Protocol(ways=6, shots=1, queries=2), 2, "held-out", generator)
    assert learner.predict(episodes).value.shape == (2, 12, 6)


@torch.no_grad()
def test_the_head_of_a_class_is_written_from_means():
    head = ClassHead(4, 5).double()
    features = torch.randn(2, 6, 4, dtype=torch.float64)
    y = torch.tensor([[0, 1, 2, 0, 1, 2], [2, 2, 1, 1, 0, 0]])
    weights = head(features, y)
    for k in range(2):
        means = [features[k][y[k] == c].mean(0) for c in range(3)]
        centre = torch.stack(means).mean(0)
        for c in range(3):
            written = head.write(torch.cat([means[c], centre]))
            torch.testing.assert_close(weights["weight"][k, c], (means[c] + written[:4]) / 2.0)
            torch.testing.assert_close(weights["bias"][k, c], written[4])


@torch.no_grad()
@pytest.mark.parametrize("tasks", ["curves", "levels of images"])
def test_written_weights_are_used_by_their_task(tasks):
    """All of them for vectors, for images those of the head; against one task at a time."""
    data, protocol = TASKS[tasks]
    learner = shaken(make("hypernetwork", data, protocol))
    episodes = drawn(data, protocol, 3)
    network = learner.network
    weights = network.weights(episodes.support)
    plain = dict(network.network.named_parameters())
    assert set(weights) == (set(plain) if tasks == "curves" else {"head.weight", "head.bias"})
    value = learner.predict(episodes).value
    for k in range(3):
        own = {name: w[k] for name, w in weights.items()}
        alone = functional_call(network.network, own, (episodes.query.x[k : k + 1],))
        torch.testing.assert_close(value[k : k + 1], alone)


@torch.no_grad()
def test_without_what_is_written_it_is_the_plain_network():
    data, protocol = TASKS["curves"]
    episodes = drawn(data, protocol, 2)
    hyper = shaken(make("hypernetwork", data, protocol))
    for parameter in hyper.network.write.parameters():
        parameter.zero_()
    expected = hyper.network.network(episodes.query.x)
    torch.testing.assert_close(hyper.predict(episodes).value, expected)
    film = shaken(make("film", data, protocol))
    for parameter in film.network.film.parameters():
        parameter.zero_()
    expected = film.network.head(film.network.body(episodes.query.x))
    torch.testing.assert_close(film.predict(episodes).value, expected)


@torch.no_grad()
def test_every_block_is_scaled_and_shifted():
    data, protocol = TASKS["curves"]
    learner = shaken(make("film", data, protocol))
    episodes = drawn(data, protocol, 2)
    network = learner.network
    film = network.conditions(episodes.support)
    assert [scale.shape for scale, _ in film] == [(2, 16), (2, 16)]
    value = learner.predict(episodes).value
    for k in range(2):
        x = episodes.query.x[k]
        for block, (scale, shift) in zip(network.body.blocks, film, strict=True):
            layer = block.layer
            x = ((x @ layer.weight.T + layer.bias) * scale[k] + shift[k]).relu()
        torch.testing.assert_close(value[k], x @ network.head.weight.T + network.head.bias)


@both
@everywhere
def test_every_weight_is_learned(method, tasks):
    data, protocol = TASKS[tasks]
    learner = shaken(make(method, data, protocol))
    learner.loss(drawn(data, protocol, 4), 0.0).sum().backward()
    unused = [
        name
        for name, p in learner.network.named_parameters()
        if p.grad is None or not p.grad.abs().max() > 0
    ]
    assert not unused


@both
def test_going_on_from_a_state(method):
    data, protocol = TASKS["images"]
    assert_goes_on_from_its_state(lambda s: make(method, data, protocol, s), data, protocol)


@both
def test_learns_to_classify(method):
    protocol = Protocol(ways=3, shots=1, queries=5)
    learner = make(method, Blobs(), protocol)
    before = train(learner, Blobs(), protocol, 0)
    assert train(learner, Blobs(), protocol, 100) > max(0.8, before + 0.03)


@both
def test_learns_a_regression(method):
    protocol = Protocol(shots=3, queries=10)
    learner = make(method, Levels(), protocol)
    assert train(learner, Levels(), protocol, 0) > 0.7
    assert train(learner, Levels(), protocol, 150) < 0.2


@pytest.mark.parametrize("config", [HypernetworkConfig, FiLMConfig])
def test_no_units(config):
    with pytest.raises(UsageError, match="hidden must be a finite number above 0"):
        config(hidden=0)
