"""LEO: its meta-gradient by a plain loop with the same noise, and what its codes are."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from fewshot_oracles import (
    Plain,
    assert_finite_differences,
    assert_same,
    classification,
    copy_values,
    gradients,
    regression,
    shaken,
    task_loss,
)

from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes, Points, Protocol, TaskSpec
from metarl.fewshot.leo import LEO, LEOConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.sinusoids import Sinusoids

CURVES, IMAGES = regression(), classification()
NETWORKS = {
    "vectors": NetworkConfig(layers=(6, 5)),
    "stride batch": NetworkConfig(filters=(4, 3)),
    "max layer": NetworkConfig(filters=(4, 3), pooling="max", norm="layer"),
}
SMALL = {"latent": 3, "hidden": 4, "latent_rate": 0.2, "fine_tune_rate": 0.05}
SMALL |= {"latent_steps": 2, "fine_tune_steps": 2}


def learner_of(network, **options):
    """The learner in float64 with shaken parameters, and tasks for it."""
    vectors = network == "vectors"
    spec = TaskSpec("regression", (2,), 2) if vectors else TaskSpec("classification", (2, 9, 9), 3)
    learner = LEO(LEOConfig(NETWORKS[network], **{**SMALL, **options}), spec)
    shaken(learner.network, 0.05)
    return learner, CURVES if vectors else IMAGES


def same_noise(learner):
    """A function that sets the learner's noise back to what it is now."""
    state = learner.generator.get_state()
    return lambda: learner.generator.set_state(state)


# --- the meta-gradient -------------------------------------------------------------------------


class Oracle:
    """One task after the other, one class after the other, from tensors by name."""

    def __init__(self, learner, spec, config):
        self.config, self.outputs = config, spec.outputs if spec.kind == "regression" else 1
        self.twin = Plain(spec.input_shape, spec.outputs, config.network).double()
        body = list(learner.network.body.parameters())
        copy_values([*body, *self.twin.head.parameters()], self.twin.in_order())
        others = {
            n: p.detach().clone().requires_grad_()
            for n, p in learner.network.named_parameters()
            if not n.startswith("body.")
        }
        self.p = others
        mine = dict(zip((id(p) for p in body), self.twin.in_order(), strict=False))
        names = {id(p): n for n, p in learner.network.named_parameters()}
        by_name = {names[i]: leaf for i, leaf in mine.items()} | others
        self.leaves = [by_name[n] for n, _ in learner.network.named_parameters()]
        self.scale = math.sqrt(2.0 / (self.twin.head.in_features + 1 + spec.outputs))

    def features(self, x):
        plain = self.twin.features(x)
        return torch.cat([plain, torch.ones(len(x), 1, dtype=torch.float64)], 1)

    def compare(self, one, other):
        x = torch.cat([one, other])
        for layer in (0, 2, 4):
            x = F.linear(x, self.p[f"relation.{layer}.weight"], self.p[f"relation.{layer}.bias"])
            x = x.relu() if layer < 4 else x
        return x

    def head(self, codes, noise):
        rows = []
        for z, e in zip(codes, noise, strict=True):
            both = self.p["decoder.weight"] @ z
            mean, log_std = both[: len(both) // 2], both[len(both) // 2 :]
            rows.append((mean + self.scale * torch.exp(log_std) * e).reshape(self.outputs, -1))
        return torch.cat(rows)

    def task(self, s, q, b, for_codes, for_weights):
        c, x, y = self.config, self.features(s.x[b]), s.y[b]
        real = y.is_floating_point()
        read = torch.cat([x[:, :-1], y], 1) if real else x[:, :-1]
        h = [self.p["encoder.weight"] @ row for row in read]
        groups = [range(len(y))] if real else [(y == n).nonzero().flatten() for n in range(3)]
        means, logs = [], []
        for group in groups:
            pairs = [self.compare(h[i], other) for i in group for other in h]
            both = torch.stack(pairs).mean(0)
            means.append(both[: c.latent]), logs.append(both[c.latent :])
        mean, log_std = torch.stack(means), torch.stack(logs)
        first = z = mean + torch.exp(log_std) * for_codes
        for _ in range(c.latent_steps):
            loss = task_loss(x @ self.head(z, for_weights).T, y)
            z = z - self.p["latent_rate"] * torch.autograd.grad(loss, z, create_graph=True)[0]
        w = self.head(z, for_weights)
        for _ in range(c.fine_tune_steps):
            loss = task_loss(x @ w.T, y)
            w = w - self.p["fine_tune_rate"] * torch.autograd.grad(loss, w, create_graph=True)[0]
        q_posterior = torch.distributions.Normal(mean, torch.exp(log_std))
        kl = torch.distributions.kl_divergence(q_posterior, torch.distributions.Normal(0.0, 1.0))
        away = (z.detach() - first) ** 2
        return (
            task_loss(self.features(q.x[b]) @ w.T, q.y[b])
            + c.kl_weight * kl.sum(1).mean()
            + c.encoder_penalty * away.sum(1).mean()
            + c.orthogonality * self.correlation()
        )

    def correlation(self):
        columns, total = self.p["decoder.weight"].T, 0.0
        for i, one in enumerate(columns):
            for j, other in enumerate(columns):
                cosine = (one @ other) / (one.norm() * other.norm())
                total = total + (cosine - (1.0 if i == j else 0.0)) ** 2
        return total / len(columns) ** 2

    def losses(self, episodes, for_codes, for_weights):
        s, q = episodes.support, episodes.query
        each = range(len(episodes))
        return torch.stack([self.task(s, q, b, for_codes[b], for_weights[b]) for b in each])


@pytest.mark.parametrize("network", NETWORKS)
def test_the_meta_gradient_is_that_of_the_loop(network):
    weights = {"kl_weight": 0.3, "encoder_penalty": 0.2, "orthogonality": 0.7}
    learner, episodes = learner_of(network, **weights)
    again = same_noise(learner)
    noise = learner.noise(len(episodes), 1 if network == "vectors" else 3)
    assert all(float(n.std()) > 0.5 for n in noise)
    oracle = Oracle(learner, learner.spec, learner.config)
    theirs = oracle.losses(episodes, *noise)
    again()
    ours = learner.loss(episodes, 0.0)
    assert_same([ours], [theirs])
    expected = gradients(theirs.mean(), oracle.leaves)
    assert_same(gradients(ours.mean(), learner.network.parameters()), expected)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_meta_gradient_is_that_of_finite_differences(network):
    # The penalty of the encoder stops a gradient on purpose.
    learner, episodes = learner_of(network, kl_weight=0.3, encoder_penalty=0.0)
    again = same_noise(learner)

    def loss():
        again()
        return learner.loss(episodes, 0.0).mean()

    parameters = list(learner.network.parameters())
    assert_finite_differences(loss, parameters, gradients(loss(), parameters))


# --- codes and steps ---------------------------------------------------------------------------


def test_the_steps_are_those_of_the_codes_and_then_those_of_the_weights():
    learner, episodes = learner_of("stride batch")
    learner.network.eval()
    support = episodes.support
    assert learner.steps_shown == (0, 2, 4)
    path = [learner.adapted(support, k) for k in range(5)]
    assert torch.equal(path[0].code, path[0].first)
    assert not torch.allclose(path[1].code, path[2].code)
    for later in path[2:]:
        assert torch.equal(later.code, path[2].code)
    decoded = learner.network.head(path[2].code, learner.noise(3, 3)[1])
    torch.testing.assert_close(path[2].weights, decoded)
    assert not torch.allclose(path[3].weights, decoded)


def test_every_step_fits_the_support_set_better():
    for network in ("vectors", "stride batch"):
        learner, episodes = learner_of(network, fine_tune_rate=0.02, latent_rate=0.05)
        points = Episodes(episodes.support, episodes.support)
        found = []
        for k in range(5):
            value = learner.predict(points, k).value
            each = zip(value, points.query.y, strict=True)
            found.append(float(torch.stack([task_loss(v, y) for v, y in each]).mean()))
        assert found == sorted(found, reverse=True)
        assert found[2] < found[0] and found[4] < found[2]


def test_in_use_nothing_is_drawn_and_in_training_codes_are():
    learner, episodes = learner_of("vectors")
    one, other = (learner.adapted(episodes.support, 0) for _ in range(2))
    assert not torch.allclose(one.first, other.first)
    state = learner.generator.get_state()
    found = [learner.predict(episodes).value for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(learner.generator.get_state(), state)
    used = learner.adapted(episodes.support, 0)  # `predict` left it in the mode of use
    assert torch.equal(used.first, used.mean)


@pytest.mark.parametrize("network", NETWORKS)
def test_tasks_and_query_points_do_not_touch_one_another(network):
    learner, episodes = learner_of(network)
    together = learner.predict(episodes).value
    alone = torch.cat([learner.predict(e).value for e in episodes.chunks(1)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    assert not together.requires_grad
    if network != "stride batch":
        some = Episodes(episodes.support, episodes.query.split(2)[0])
        torch.testing.assert_close(learner.predict(some).value, together[:, :2])


def test_classes_under_other_names_give_the_same_in_another_order():
    learner, episodes = learner_of("max layer")
    s, q = episodes.support, episodes.query
    names = torch.tensor([2, 0, 1])
    mixed = Points(s.x, names[s.y]).permuted(torch.Generator().manual_seed(0))
    renamed = learner.predict(Episodes(mixed, q)).value
    torch.testing.assert_close(renamed[..., names], learner.predict(episodes).value)


def test_any_number_of_ways_can_be_asked_for():
    learner, _ = learner_of("stride batch")
    assert not learner.fixed_ways
    assert learner.predict(classification(ways=5)).value.shape == (3, 10, 5)


# --- training ----------------------------------------------------------------------------------


def test_training_goes_on_exactly():
    data, protocol = Sinusoids(), Protocol(shots=5, queries=5)
    config = LEOConfig(NetworkConfig(layers=(8,)), meta_batch=3, **SMALL)
    one, other = (LEO(config, data.spec(protocol), seed=seed) for seed in (0, 1))
    for k in range(3):
        one.train_step(data, protocol, k / 10)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    logs = [[x.train_step(data, protocol, k / 10) for k in range(3)] for x in (one, other)]
    assert logs[0] == logs[1]
    for p, q in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(p, q)


def test_it_learns_to_adapt():
    data, protocol = Sinusoids(), Protocol(shots=10, queries=10)
    learner = LEO(LEOConfig(meta_batch=10), data.spec(protocol))
    held_out = data.episodes(protocol, 200, "held-out", torch.Generator().manual_seed(0))
    for k in range(100):
        learner.train_step(data, protocol, k / 100)
    decoded, _, adapted = (
        float((learner.predict(held_out, k).value - held_out.query.y).square().mean())
        for k in learner.steps_shown
    )
    assert adapted < 1.0  # predicting 0 costs more than 4
    assert adapted < decoded


def test_nonsense_is_refused():
    for wrong in ({"latent": 0}, {"latent_rate": 0.0}, {"latent_steps": 0}, {"kl_weight": -1.0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            LEOConfig(**wrong)
