"""MANN and SNAIL: a memory, a sequence, and that queries do not meet in them."""

import math

import pytest
import torch
import torch.nn.functional as F
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

from metarl.errors import UsageError
from metarl.fewshot.encoding import as_sequence, class_means, encode_labels
from metarl.fewshot.episodes import Points, Protocol, TaskSpec
from metarl.fewshot.mann import MANN, MANNConfig, address, least_used
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids
from metarl.fewshot.snail import SNAIL, Attention, Dense, SNAILConfig

NETWORK = NetworkConfig(layers=(24,), filters=(8, 8), norm="running")
SMALL = {"network": NETWORK, "embedding": 16, "learning_rate": 3e-3, "meta_batch": 16}
MAKERS = {
    "mann": (MANN, MANNConfig(**SMALL, controller=32, rows=9, row_size=12, heads=2)),
    "snail": (SNAIL, SNAILConfig(**SMALL, filters=16, dense_layers=2)),
}
WAYS3 = Protocol(ways=3, shots=2, queries=2)
TASKS = {
    "vectors": (Blobs(), WAYS3),
    "images": (Blobs(shape=(1, 8, 8)), WAYS3),
    "curves": (Sinusoids(), Protocol(shots=5, queries=4)),
}
both = pytest.mark.parametrize("method", MAKERS)
everywhere = pytest.mark.parametrize("tasks", TASKS)


def make(method, data, protocol, seed=0):
    kind, config = MAKERS[method]
    return kind(config, data.spec(protocol), seed=seed)


# What both share


def test_sequences_keep_each_label_with_its_input():
    x = torch.arange(12.0).view(2, 6, 1)
    points = Points(x, x.long().squeeze(-1))
    fixed, again = as_sequence(points, None), as_sequence(points, None)
    assert torch.equal(fixed.x, again.x)
    assert torch.equal(fixed.x[1], fixed.x[0] + 6)  # the same order for every task
    generator = torch.Generator().manual_seed(0)
    random = as_sequence(points, generator)
    assert not torch.equal(random.x[1], random.x[0] + 6)
    for read in (fixed, random):
        assert torch.equal(read.x.long().squeeze(-1), read.y)
        assert torch.equal(read.x.sort(1).values, x)
        assert not torch.equal(read.x, x)


def test_labels_and_class_means():
    spec = TaskSpec("classification", (1,), 3)
    y = torch.tensor([[2, 0, 2, 1]])
    assert encode_labels(y, spec)[0].tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]]
    values = torch.randn(1, 4, 2)
    assert encode_labels(values, TaskSpec("regression", (1,), 2)) is values
    features = torch.tensor([[[1.0], [10.0], [4.0], [7.0]]])
    assert class_means(features, y, 3).flatten().tolist() == [10.0, 7.0, 2.5]


@both
@everywhere
def test_tasks_and_queries_are_independent(method, tasks):
    data, protocol = TASKS[tasks]
    learner = shaken(make(method, data, protocol))
    episodes = drawn(data, protocol, 3)
    assert_tasks_are_independent(learner, episodes)
    assert_queries_are_independent(learner, episodes)


@both
def test_asking_twice_gives_the_same_answer(method):
    learner = shaken(make(method, Blobs(), WAYS3))
    episodes = drawn(Blobs(), WAYS3, 2)
    predict = learner.adapt(episodes.support)
    first = predict(episodes.query.x).value
    predict(episodes.query.x.flip(1))
    assert torch.equal(predict(episodes.query.x).value, first)
    assert first.requires_grad
    assert not learner.predict(episodes).value.requires_grad


@both
def test_going_on_from_a_state(method):
    data, protocol = TASKS["images"]
    assert_goes_on_from_its_state(lambda s: make(method, data, protocol, s), data, protocol)


@both
def test_learns_to_classify(method):
    protocol = Protocol(ways=3, shots=1, queries=5)
    learner = make(method, Blobs(), protocol)
    assert train(learner, Blobs(), protocol, 0) < 0.45
    assert train(learner, Blobs(), protocol, 120) > 0.55


@both
def test_learns_a_regression(method):
    protocol = Protocol(shots=3, queries=10)
    learner = make(method, Levels(), protocol)
    assert train(learner, Levels(), protocol, 0) > 0.7
    assert train(learner, Levels(), protocol, 80) < 0.3


# MANN


def test_the_least_used_rows_come_first():
    usage = torch.tensor([[0.5, 0.1, 0.0, 0.1, 0.9]])
    assert least_used(usage, 3).argmax(-1).tolist() == [[2, 1, 3]]
    assert least_used(torch.zeros(2, 4), 2).argmax(-1).tolist() == [[0, 1], [0, 1]]
    assert torch.equal(least_used(usage, 3).sum(-1), torch.ones(1, 3))


def slow_memory(network, points):
    """One task `[S, I]`: the memory written row by row, as the paper's formulas say."""
    c = network.config
    memory = network.empty(points[None])
    rows = [memory.rows[0, i] for i in range(c.rows)]
    usage = [0.0] * c.rows
    read = [[1.0] + [0.0] * (c.rows - 1) for _ in range(c.heads)]
    for point in points:
        hidden, cell, keys, strength, gate = network.control(point[None], memory)
        free = sorted(range(c.rows), key=lambda i: usage[i])[: c.heads]
        for i in free:
            rows[i] = torch.zeros_like(rows[i])
        write = [[0.0] * c.rows for _ in range(c.heads)]
        for h in range(c.heads):
            for i in range(c.rows):
                fresh = (1 - float(gate[0, h])) * (i == free[h])
                write[h][i] = float(gate[0, h]) * read[h][i] + fresh
                rows[i] = rows[i] + write[h][i] * keys[0, h]
        for h in range(c.heads):
            score = [
                float(strength[0, h] * F.cosine_similarity(keys[0, h], row, dim=0)) for row in rows
            ]
            total = sum(math.exp(s) for s in score)
            read[h] = [math.exp(s) / total for s in score]
        for i in range(c.rows):
            used = sum(read[h][i] + write[h][i] for h in range(c.heads))
            usage[i] = c.decay * usage[i] + used
        found = [sum(w * row for w, row in zip(read[h], rows, strict=True)) for h in range(c.heads)]
        memory = type(memory)(
            torch.stack(rows)[None],
            torch.tensor([usage], dtype=torch.float64),
            torch.tensor([read], dtype=torch.float64),
            torch.cat(found)[None],
            hidden,
            cell,
        )
    return memory


@torch.no_grad()
def test_memory_equals_the_formulas_row_by_row():
    """More points than there are rows, so that the least used ones are overwritten."""
    protocol = Protocol(ways=4, shots=4, queries=1)
    network = shaken(make("mann", Blobs(), protocol), 0.3).network
    points = torch.randn(2, 16, 16 + 4, dtype=torch.float64)
    memory = network.empty(points)
    for point in points.unbind(1):
        memory = network.store(point, memory)
    for k in range(2):
        slow = slow_memory(network, points[k])
        for name, value in vars(slow).items():
            torch.testing.assert_close(getattr(memory, name)[k : k + 1], value, msg=name)


@torch.no_grad()
def test_a_key_finds_what_is_like_it():
    rows = torch.eye(4, dtype=torch.float64)[None] * 3.0
    keys = torch.tensor([[[0.0, 2.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]], dtype=torch.float64)
    weights = address(keys, torch.tensor([[50.0, 50.0]], dtype=torch.float64), rows)
    torch.testing.assert_close(weights[0, 0], rows[0, 1] / 3.0)
    expected = torch.tensor([0.5, 0.5, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(weights[0, 1], expected)


def test_more_heads_than_rows():
    with pytest.raises(UsageError, match=r"heads must be at most rows \(3\), got 4"):
        MANNConfig(rows=3)


# SNAIL


@torch.no_grad()
def test_queries_in_parallel_equal_whole_sequences():
    protocol = Protocol(ways=3, shots=2, queries=4)
    network = shaken(make("snail", Blobs(), protocol)).network
    support = torch.randn(2, 6, 16 + 3, dtype=torch.float64)
    queries = torch.randn(2, 12, 16 + 3, dtype=torch.float64)
    parallel = network.answer(queries, network.remember(support))
    for k in range(12):
        x = torch.cat([support, queries[:, k : k + 1]], 1)
        for layer in network.layers:
            x = layer(x)
        torch.testing.assert_close(parallel[:, k], network.output(x[:, -1]))


@torch.no_grad()
def test_dense_layer_equals_the_formula():
    layer = Dense(3, 2, dilation=2).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    y = layer(x)
    assert torch.equal(y[..., :3], x)
    for b in range(2):
        for t in range(5):
            total = layer.now.weight @ x[b, t] + layer.now.bias
            if t >= 2:
                total = total + layer.then.weight @ x[b, t - 2]
            expected = total[:2].tanh() * total[2:].sigmoid()
            torch.testing.assert_close(y[b, t, 3:], expected)


@torch.no_grad()
def test_attention_layer_equals_the_formula():
    layer = Attention(3, 4, 2).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    y = layer(x)
    assert torch.equal(y[..., :3], x)
    for b in range(2):
        for t in range(5):
            score = [float(layer.query(x[b, t]) @ layer.key(x[b, s])) / 2.0 for s in range(t + 1)]
            total = sum(math.exp(s) for s in score)
            expected = sum(math.exp(score[s]) / total * layer.value(x[b, s]) for s in range(t + 1))
            torch.testing.assert_close(y[b, t, 3:], expected)


@pytest.mark.parametrize("config", [MANNConfig, SNAILConfig])
def test_no_embedding(config):
    with pytest.raises(UsageError, match="embedding must be a finite number above 0"):
        config(embedding=0)
