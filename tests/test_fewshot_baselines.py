"""The baselines: what they train, what they adapt, and that they do learn."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from fewshot_properties import (
    Blobs,
    assert_goes_on_from_its_state,
    assert_queries_are_independent,
    assert_tasks_are_independent,
    drawn,
    shaken,
    train,
)

from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes, ImageData, Points, Protocol, TaskSpec
from metarl.fewshot.fine_tune import CosineHead, FineTune, FineTuneConfig, Scratch, ScratchConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

NETWORK = NetworkConfig(layers=(16, 16), filters=(8, 8), norm="running")
WAYS3 = Protocol(ways=3, shots=2, queries=2)
CURVES = Protocol(shots=5, queries=4)
MAKERS = {
    "fine-tune": (FineTune, FineTuneConfig(NETWORK, test_steps=3, adapts="all", batch=16)),
    "fine-tune head": (FineTune, FineTuneConfig(NETWORK, test_steps=3, adapts="head")),
    "fine-tune cosine": (FineTune, FineTuneConfig(NETWORK, test_steps=3, cosine=True)),
    "fine-tune cosine head": (
        FineTune,
        FineTuneConfig(NETWORK, test_steps=3, cosine=True, adapts="head", optimizer="sgd"),
    ),
    "scratch": (Scratch, ScratchConfig(NETWORK, test_steps=3)),
    "scratch head": (Scratch, ScratchConfig(NETWORK, test_steps=3, adapts="head", cosine=True)),
}
every = pytest.mark.parametrize("method", MAKERS)


@dataclass(frozen=True)
class Patterns(ImageData):
    """Random patterns with noise; half of the plane, and of the classes, say nothing."""

    name: ClassVar[str] = "patterns"
    noise: float = 1.0

    def spec(self, protocol):
        return TaskSpec("classification", (1, 8, 8), protocol.ways)

    def classes(self, split):
        return 30

    def _centres(self, split):
        seed = 1 if split == "train" else 2
        columns = torch.randn(30, 1, 1, 8, generator=torch.Generator().manual_seed(seed))
        return columns.expand(-1, -1, 8, -1)

    def _images(self, y, split, generator):
        noise = torch.randn(*y.shape, 1, 8, 8, generator=generator)
        return self._centres(split)[y] + self.noise * noise

    def batch(self, size, split, generator):
        y = torch.randint(30, (1, size), generator=generator)
        return Points(self._images(y, split, generator), y)

    def episodes(self, protocol, tasks, split, generator):
        chosen = torch.rand(tasks, 30, generator=generator).argsort(1)[:, : protocol.ways]
        parts = []
        for count in (protocol.shots, protocol.queries):
            y = torch.arange(protocol.ways).repeat_interleave(count).expand(tasks, -1)
            parts.append(Points(self._images(chosen.gather(1, y), split, generator), y))
        return Episodes(*parts)


def make(method, data=None, protocol=WAYS3, seed=0):
    kind, config = MAKERS[method]
    return kind(config, (data or Patterns()).spec(protocol), seed=seed)


@every
def test_tasks_and_queries_are_independent(method):
    episodes = drawn(Patterns(), WAYS3, 3)
    learner = shaken(make(method))
    assert_tasks_are_independent(learner, episodes)
    assert_queries_are_independent(learner, episodes)


@pytest.mark.parametrize("method", ["fine-tune", "fine-tune head", "scratch"])
def test_values_of_tasks_and_queries_are_independent(method):
    learner = shaken(make(method, Sinusoids(), CURVES))
    episodes = drawn(Sinusoids(), CURVES, 3)
    assert_tasks_are_independent(learner, episodes)
    assert_queries_are_independent(learner, episodes)


@every
def test_a_restored_learner_goes_on_bit_for_bit(method):
    assert_goes_on_from_its_state(lambda seed: make(method, seed=seed), Patterns(), WAYS3)


def test_a_restored_regression_goes_on_bit_for_bit():
    def of(seed):
        return make("fine-tune", Sinusoids(), CURVES, seed)

    assert_goes_on_from_its_state(of, Sinusoids(), CURVES)


@every
def test_nothing_is_known_before_the_first_step(method):
    learner = make(method)
    learner.train_step(Patterns(), WAYS3, 0.0)
    e = Patterns().episodes(WAYS3, 2, "held-out", torch.Generator().manual_seed(0))
    assert torch.equal(learner.predict(e, 0).value, torch.zeros(2, 6, 3))


@every
def test_adapting_leaves_the_learner_as_it_was(method):
    learner = make(method)
    learner.train_step(Patterns(), WAYS3, 0.0)
    before = {name: p.clone() for name, p in learner.network.state_dict().items()}
    e = Patterns().episodes(WAYS3, 2, "held-out", torch.Generator().manual_seed(0))
    value = learner.predict(e).value
    assert not value.requires_grad
    assert all(torch.equal(p, before[n]) for n, p in learner.network.state_dict().items())


def test_new_heads_have_the_ways_of_the_task():
    learner = make("fine-tune")
    e = Patterns().episodes(Protocol(5, 1, 1), 2, "held-out", torch.Generator().manual_seed(0))
    assert learner.predict(e).value.shape == (2, 5, 5)


def test_fine_tuning_against_a_loop_with_torch_adam():
    learner = shaken(make("fine-tune"))
    e = drawn(Patterns(), WAYS3, 2)
    found = learner.predict(e).value
    for task in range(2):
        network = make("fine-tune").network.double().eval()
        network.load_state_dict(learner.network.state_dict())
        torch.nn.init.zeros_(network.head.weight)
        torch.nn.init.zeros_(network.head.bias)
        adam = torch.optim.Adam(network.parameters(), lr=learner.config.inner_rate)
        for _ in range(3):
            adam.zero_grad()
            logits = network(e.support.x[task : task + 1])[0]
            F.cross_entropy(logits, e.support.y[task]).backward()
            adam.step()
        expected = network(e.query.x[task : task + 1])[0]
        # Where a gradient is nearly zero, Adam's first steps magnify rounding.
        torch.testing.assert_close(found[task], expected, rtol=1e-5, atol=1e-6)


def test_the_cosine_head_starts_from_class_means():
    learner = shaken(make("fine-tune cosine head"))
    learner.config = replace(learner.config, inner_rate=1e-12)
    e = drawn(Patterns(), WAYS3, 2)
    known, asked = learner.network.body(e.support.x), learner.network.body(e.query.x)
    found = learner.predict(e, 1).value
    scale = learner.network.head.log_scale.exp()
    for n in range(3):
        mean = known[1][e.support.y[1] == n].mean(0, keepdim=True)
        expected = scale * torch.cosine_similarity(asked[1], mean)
        torch.testing.assert_close(found[1, :, n], expected)


def test_only_the_head_is_changed_where_only_it_adapts():
    learner = shaken(make("fine-tune head"))
    e = drawn(Patterns(), WAYS3, 2)
    features = Episodes(
        Points(learner.network.body(e.support.x).detach(), e.support.y),
        Points(learner.network.body(e.query.x).detach(), e.query.y),
    )
    weight = torch.zeros(3, features.query.x.shape[-1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([weight, bias], lr=learner.config.inner_rate)
    for _ in range(3):
        adam.zero_grad()
        F.cross_entropy(F.linear(features.support.x[1], weight, bias), e.support.y[1]).backward()
        adam.step()
    expected = F.linear(features.query.x[1], weight, bias)
    torch.testing.assert_close(learner.predict(e).value[1], expected, rtol=1e-5, atol=1e-6)


def test_the_head_has_all_training_classes():
    learner = make("fine-tune cosine")
    assert isinstance(learner.network.head, CosineHead)
    learner.train_step(Patterns(), WAYS3, 0.0)
    assert learner.network.head.weight.shape == (30, learner.network.body.features)
    owned = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert owned == {id(p) for p in learner.network.parameters()}


def test_regression_is_trained_on_the_points_of_all_tasks():
    learner = make("fine-tune", Sinusoids(), CURVES)
    learner.network.double()
    e = drawn(Sinusoids(), CURVES, 4)
    x, y = torch.cat([e.support.x, e.query.x], 1), torch.cat([e.support.y, e.query.y], 1)
    expected = (learner.network(x.view(1, -1, 1)).view(-1) - y.view(-1)).square().mean()
    torch.testing.assert_close(learner.loss(e, 0.0).mean(), expected)


def test_scratch_learns_nothing_before_the_task():
    learner = make("scratch")
    before = {name: p.clone() for name, p in learner.network.state_dict().items()}
    figures = learner.train_step(Patterns(), WAYS3, 0.0)
    assert figures["gradient_norm"] == 0.0
    assert figures["loss"] == pytest.approx(float(torch.tensor(3.0).log()), rel=1e-5)
    assert all(torch.equal(p, before[n]) for n, p in learner.network.state_dict().items())


def test_fine_tuning_beats_training_from_scratch():
    data, protocol = Patterns(), Protocol(ways=5, shots=1, queries=5)
    config = FineTuneConfig(
        NETWORK, learning_rate=1e-2, final_learning_rate=0.0, test_steps=20, batch=64
    )
    tuned = train(FineTune(config, data.spec(protocol)), data, protocol, 150)
    scratch = train(Scratch(ScratchConfig(NETWORK), data.spec(protocol)), data, protocol, 1)
    assert scratch >= 0.3
    assert tuned >= scratch + 0.1


@pytest.mark.parametrize("kind", ["fine-tune", "scratch"])
def test_curves_are_learned_from_their_support_set(kind):
    protocol = Protocol(shots=10, queries=10)
    learner = make(kind, Sinusoids(), protocol)
    learner.config = replace(learner.config, test_steps=200, inner_rate=0.03)
    assert train(learner, Sinusoids(), protocol, 50) <= 2.5  # the variance is 4.3


@pytest.mark.parametrize(
    ("learner", "everything"),
    [
        (FineTune(FineTuneConfig(), Patterns().spec(WAYS3)), False),
        (FineTune(FineTuneConfig(), Sinusoids().spec(CURVES)), True),
        (FineTune(FineTuneConfig(adapts="all"), Patterns().spec(WAYS3)), True),
        (FineTune(FineTuneConfig(adapts="head"), Sinusoids().spec(CURVES)), False),
        (Scratch(ScratchConfig(), Patterns().spec(WAYS3)), True),
        (Scratch(ScratchConfig(adapts="head"), Patterns().spec(WAYS3)), False),
    ],
)
def test_what_adapts_of_itself(learner, everything):
    assert learner.adapts_all is everything


def test_the_steps_shown_end_with_those_in_use():
    assert make("scratch").steps_shown == (0, 1, 3)
    config = ScratchConfig(test_steps=50)
    assert Scratch(config, Patterns().spec(WAYS3)).steps_shown == (0, 1, 5, 10, 20, 50)


def test_data_that_do_not_name_their_classes_are_refused():
    data = Blobs(shape=(1, 8, 8))
    learner = make("fine-tune", data)
    with pytest.raises(UsageError, match="fine-tune: blobs must be image data"):
        learner.train_step(data, WAYS3, 0.0)


def test_bad_options_are_refused():
    with pytest.raises(UsageError, match="test_steps must be a finite number above 0"):
        ScratchConfig(test_steps=0)
    with pytest.raises(UsageError, match="batch must be a finite number above 0"):
        FineTuneConfig(batch=0)
