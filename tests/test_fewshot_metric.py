"""Metric learners against slow and obvious versions, and what must hold of all of them."""

import math
from dataclasses import dataclass, replace

import pytest
import torch
from fewshot_properties import (
    SIZE,
    Blobs,
    assert_goes_on_from_its_state,
    assert_queries_are_independent,
    assert_tasks_are_independent,
    drawn,
    shaken,
    train,
)

from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes, Points, Protocol
from metarl.fewshot.matching import Matching, MatchingConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.prototypical import Prototypical, PrototypicalConfig
from metarl.fewshot.relation import Relation, RelationConfig
from metarl.fewshot.siamese import Siamese, SiameseConfig
from metarl.fewshot.sinusoids import Sinusoids

NETWORK = NetworkConfig(layers=(16, 16), filters=(8, 8), norm="running")
CONTEXT = MatchingConfig(NETWORK, full_context=True, reads=2)
MAKERS = {
    "prototypical": (Prototypical, PrototypicalConfig(NETWORK)),
    "prototypical cosine": (Prototypical, PrototypicalConfig(NETWORK, distance="cosine")),
    "prototypical gaussian": (Prototypical, PrototypicalConfig(NETWORK, distance="gaussian")),
    "matching": (Matching, MatchingConfig(NETWORK)),
    "matching in context": (Matching, CONTEXT),
    "siamese": (Siamese, SiameseConfig(NETWORK)),
    "relation": (Relation, RelationConfig(NETWORK, relation_filters=(8,))),
}
IMAGES = Blobs(shape=(1, 8, 8))
WAYS3 = Protocol(ways=3, shots=2, queries=2)
CURVES = Protocol(shots=5, queries=4)
every = pytest.mark.parametrize("method", MAKERS)
regressors = pytest.mark.parametrize("method", list(MAKERS)[:5])


def make(method, data=IMAGES, protocol=WAYS3, seed=0):
    kind, config = MAKERS[method]
    return kind(config, data.spec(protocol), seed=seed)


@every
def test_tasks_and_queries_are_independent(method):
    learner = shaken(make(method))
    episodes = drawn(IMAGES, WAYS3, 3)
    assert_tasks_are_independent(learner, episodes)
    assert_queries_are_independent(learner, episodes)


@regressors
def test_values_of_tasks_and_queries_are_independent(method):
    learner = shaken(make(method, Sinusoids(), CURVES))
    episodes = drawn(Sinusoids(), CURVES, 3)
    assert_tasks_are_independent(learner, episodes)
    assert_queries_are_independent(learner, episodes)


@every
def test_new_names_of_the_classes_rename_the_predictions(method):
    learner = shaken(make(method))
    e = drawn(IMAGES, WAYS3, 2)
    names = torch.tensor([2, 0, 1])
    renamed = Episodes(Points(e.support.x, names[e.support.y]), e.query)
    expected = learner.predict(e).value
    torch.testing.assert_close(learner.predict(renamed).value[..., names], expected)


@pytest.mark.parametrize("method", [name for name in MAKERS if "context" not in name])
def test_the_order_of_the_support_set_does_not_matter(method):
    learner = shaken(make(method))
    e = drawn(IMAGES, WAYS3, 2)
    shuffled = Episodes(e.support.permuted(torch.Generator().manual_seed(5)), e.query)
    assert not torch.equal(shuffled.support.y, e.support.y)
    torch.testing.assert_close(learner.predict(shuffled).value, learner.predict(e).value)


@every
def test_it_is_trained_on_some_ways_and_used_on_others(method):
    learner = make(method, protocol=Protocol(6, 1, 1))
    learner.train_step(IMAGES, Protocol(6, 1, 1), 0.0)
    learner.network.double()
    assert learner.predict(drawn(IMAGES, WAYS3, 2)).value.shape == (2, 6, 3)
    assert not learner.fixed_ways


@every
def test_a_restored_learner_goes_on_bit_for_bit(method):
    assert_goes_on_from_its_state(lambda seed: make(method, seed=seed), IMAGES, WAYS3)


@dataclass(frozen=True)
class Hidden(Blobs):
    """Classes that differ in half of the coordinates; the others are loud noise."""

    def episodes(self, protocol, tasks, split, generator):
        e = super().episodes(protocol, tasks, split, generator)
        for points in (e.support, e.query):
            half = points.x[..., : SIZE // 2]
            points.x[..., : SIZE // 2] = 3.0 * torch.randn(half.shape, generator=generator)
        return e


@pytest.mark.parametrize("method", [name for name in MAKERS if name != "relation"])
def test_it_learns_what_classes_differ_in(method):
    data, protocol = Hidden(), Protocol(ways=4, shots=1, queries=4)
    learner = learner_of(method, data, protocol)
    before = train(learner, data, protocol, 0)
    after = train(learner, data, protocol, 200)
    assert before <= 0.5
    assert after >= 0.65


def test_it_learns_to_relate():
    data, protocol = Blobs(shape=(1, 8, 8)), Protocol(ways=3, shots=1, queries=3)
    assert train(learner_of("relation", data, protocol), data, protocol, 150) >= 0.6


@regressors
def test_it_learns_to_predict_values(method):
    protocol = Protocol(shots=10, queries=10)
    learner = learner_of(method, Sinusoids(), protocol)
    assert train(learner, Sinusoids(), protocol, 150) <= 2.2  # the variance is 4.3


def learner_of(method, data, protocol):
    """With steps large enough to learn in few."""
    kind, config = MAKERS[method]
    config = replace(config, meta_batch=8, learning_rate=1e-2, final_learning_rate=0.0)
    return kind(config, data.spec(protocol))


@pytest.mark.parametrize("distance", ["euclidean", "cosine", "gaussian"])
def test_prototypes_against_a_loop_over_classes(distance):
    config = PrototypicalConfig(NETWORK, distance=distance)
    learner = shaken(Prototypical(config, IMAGES.spec(WAYS3)))
    e = drawn(IMAGES, WAYS3, 2)
    found = learner.predict(e).value
    known, asked = learner.embed(e.support.x), learner.embed(e.query.x)
    scale = learner.network.log_scale.exp()
    for task in range(2):
        for n in range(3):
            members = known[task][e.support.y[task] == n]
            centre = members.mean(0)
            if distance == "gaussian":
                s = 1 + torch.log1p(learner.network.precision(members).exp())
                centre = (s * members).sum(0) / s.sum()
            for q, x in enumerate(asked[task]):
                expected = -scale * (x - centre).pow(2).sum()
                if distance == "cosine":
                    expected = scale * (x @ centre) / (x.norm() * centre.norm())
                if distance == "gaussian":
                    expected = -scale * (s.sum() * (x - centre).pow(2).sum()).sqrt()
                torch.testing.assert_close(found[task, q, n], expected)


def test_the_kernel_against_nadaraya_watson():
    learner = shaken(Prototypical(PrototypicalConfig(NETWORK), Sinusoids().spec(CURVES)))
    learner.network.requires_grad_(False)
    e = drawn(Sinusoids(), CURVES, 1)
    known, asked = learner.embed(e.support.x)[0], learner.embed(e.query.x)[0]
    scale = learner.network.log_scale.exp()
    for q, x in enumerate(asked):
        weights = [math.exp(-float(scale * (x - k).pow(2).sum())) for k in known]
        pairs = zip(weights, e.support.y[0, :, 0], strict=True)
        expected = sum(w * float(y) for w, y in pairs) / sum(weights)
        assert float(learner.predict(e).value[0, q, 0]) == pytest.approx(expected, rel=1e-9)


def test_attention_gives_the_probabilities_of_equation_1():
    learner = shaken(Matching(MatchingConfig(NETWORK), IMAGES.spec(WAYS3)))
    e = drawn(IMAGES, WAYS3, 2)
    found = learner.predict(e).value.exp()
    torch.testing.assert_close(found.sum(-1), torch.ones_like(found[..., 0]))
    known, asked = learner.embed(e.support.x)[1], learner.embed(e.query.x)[1]
    cosine = torch.stack([torch.cosine_similarity(asked, k.unsqueeze(0)) for k in known], 1)
    attention = (learner.network.log_scale.exp() * cosine).softmax(1)
    for n in range(3):
        expected = attention[:, e.support.y[1] == n].sum(1)
        torch.testing.assert_close(found[1, :, n], expected)


def test_the_query_context_is_an_lstm_whose_hidden_state_is_joined_by_what_it_reads():
    learner = shaken(Matching(CONTEXT, IMAGES.spec(WAYS3)))
    context, width = learner.network.query, learner.network.body.features
    cell = torch.nn.LSTMCell(2 * width, width).double()
    gates = context.gates
    order = torch.tensor([0, 1, 3, 2])  # torch: input, forget, new, output

    def rows(weight):
        return weight.unflatten(0, (4, width))[order].flatten(0, 1)

    x, support = torch.randn(2, 3, width).double(), torch.randn(2, 4, width).double()
    with torch.no_grad():
        cell.weight_ih.copy_(
            rows(torch.cat([gates.weight[:, :width], gates.weight[:, 2 * width :]], 1))
        )
        cell.weight_hh.copy_(rows(gates.weight[:, width : 2 * width]))
        cell.bias_ih.copy_(rows(gates.bias))
        cell.bias_hh.zero_()
        found = context(x, support)
        for task in range(2):
            for q in range(3):
                point, known = x[task, q : q + 1], support[task]
                h = c = torch.zeros_like(point)
                read = known.mean(0, keepdim=True)
                for _ in range(2):
                    out, c = cell(torch.cat([point, read], 1), (h, c))
                    h = out + point
                    read = (known @ h[0]).softmax(0).unsqueeze(0) @ known
                torch.testing.assert_close(found[task, q], h[0])


def test_a_support_point_is_embedded_in_the_context_of_the_others():
    learner = shaken(Matching(CONTEXT, IMAGES.spec(WAYS3)))
    x = learner.embed(drawn(IMAGES, WAYS3, 1).support.x)
    changed = x.clone()
    changed[0, 3] += 1.0
    difference = (learner.network.support(x) - learner.network.support(changed)).abs().sum(-1)
    assert (difference > 0).all()


def test_pairs_of_either_kind_weigh_the_same():
    learner = shaken(Siamese(SiameseConfig(NETWORK), IMAGES.spec(WAYS3)))
    e = drawn(IMAGES, WAYS3, 2)
    known = Points(learner.embed(e.support.x), e.support.y)
    asked = Points(learner.embed(e.query.x), e.query.y)
    layer = learner.network.similarity
    for task in range(2):
        same, different = [], []
        for x, label in zip(asked.x[task], asked.y[task], strict=True):
            for k, other in zip(known.x[task], known.y[task], strict=True):
                p = torch.sigmoid(layer((x - k).abs())).squeeze()
                (same if label == other else different).append(
                    -p.log() if label == other else -(1 - p).log()
                )
        expected = (sum(same) / len(same) + sum(different) / len(different)) / 2
        torch.testing.assert_close(learner.judge(known, asked)[task], expected)


def test_relations_are_scores_of_maps_on_top_of_each_other():
    learner = shaken(make("relation"))
    e = drawn(IMAGES, WAYS3, 2)
    found = learner.predict(e).value
    assert ((found > 0) & (found < 1)).all()
    known, asked = learner.embed(e.support.x), learner.embed(e.query.x)
    for n in range(3):
        mean = known[1][e.support.y[1] == n].mean(0)
        pair = torch.cat([mean, asked[1, 4]])[None, None]
        torch.testing.assert_close(found[1, 4, n], learner.network.relation(pair)[0, 0])
    loss = learner.judge(Points(known, e.support.y), Points(asked, e.query.y))
    target = torch.zeros_like(found)
    for task in range(2):
        for q in range(6):
            target[task, q, e.query.y[task, q]] = 1.0
    torch.testing.assert_close(loss, ((found - target) ** 2).sum((1, 2)) / 6)


def test_training_sees_support_and_query_points_under_the_same_statistics():
    learner = make("prototypical")
    learner.network.double().train()
    e = drawn(IMAGES, WAYS3, 2)
    learner.loss(e, 0.0)
    x = torch.cat([e.support.x, e.query.x], 1)
    first = learner.network.body.blocks[0]
    expected = 0.1 * first.layer(x).mean((0, 1, 3, 4))
    torch.testing.assert_close(first.norm.mean, expected)


def test_transductive_statistics_are_those_of_use():
    config = PrototypicalConfig(replace(NETWORK, norm="batch"))
    learner = shaken(Prototypical(config, IMAGES.spec(WAYS3)))
    e = drawn(IMAGES, WAYS3, 2)
    logits = learner.predict(e).value
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), e.query.y.flatten())
    torch.testing.assert_close(learner.loss(e, 0.0).mean(), expected)


@pytest.mark.parametrize("method", ["siamese", "relation"])
def test_learners_of_classes_refuse_values(method):
    kind, config = MAKERS[method]
    with pytest.raises(UsageError, match="does classification, not regression"):
        kind(config, Sinusoids().spec(CURVES))


def test_relations_are_of_images():
    with pytest.raises(UsageError, match="relation: inputs must be images"):
        Relation(RelationConfig(NETWORK), Blobs().spec(WAYS3))


def test_bad_options_are_refused():
    with pytest.raises(UsageError, match="reads must be a finite number above 0"):
        MatchingConfig(reads=0)
    with pytest.raises(UsageError, match="relation_filters must be one or more widths"):
        RelationConfig(relation_filters=())
