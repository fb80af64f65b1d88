"""Conjugate gradients, and the two methods that do not differentiate through their steps."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from fewshot_oracles import assert_same, classification, plain_twin, regression, shaken, task_loss

from metarl.conjugate_gradient import conjugate_gradient
from metarl.errors import UsageError
from metarl.fewshot.episodes import Episodes, Points, Protocol, TaskSpec
from metarl.fewshot.imaml import IMAML, IMAMLConfig
from metarl.fewshot.networks import NetworkConfig
from metarl.fewshot.reptile import Reptile, ReptileConfig, minibatches
from metarl.fewshot.sinusoids import Sinusoids
from metarl.inner_loop import SGD, Momentum, Proximal, adapt, own_copies
from metarl.layers import Linear

CURVES, IMAGES = regression(), classification()
CASES = {
    "vectors": (CURVES, TaskSpec("regression", (2,), 2), NetworkConfig(layers=(6, 5))),
    **{
        norm: (
            IMAGES,
            TaskSpec("classification", (2, 9, 9), 3),
            NetworkConfig(filters=(4, 3), norm=norm),
        )
        for norm in ("batch", "layer", "none")
    },
}


def both(points):
    """Support and query points of an episode as one set."""
    s, q = points.support, points.query
    return Points(torch.cat([s.x, q.x], 1), torch.cat([s.y, q.y], 1))


# --- conjugate gradients -----------------------------------------------------------------------


def systems(shape, size, seed=0):
    """Random symmetric positive definite matrices and right-hand sides."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(*shape, size, size, dtype=torch.float64, generator=generator)
    b = torch.randn(*shape, size, dtype=torch.float64, generator=generator)
    return root @ root.mT + 0.5 * torch.eye(size, dtype=torch.float64), b


def times(matrices):
    return lambda v: (matrices @ v.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_conjugate_gradients_solve(shape):
    matrices, b = systems(shape, 7)
    found = conjugate_gradient(times(matrices), b, 14)
    torch.testing.assert_close(found, torch.linalg.solve(matrices, b), rtol=1e-8, atol=1e-9)


def test_every_iteration_of_conjugate_gradients_comes_nearer():
    matrices, b = systems((3,), 8)
    exact = torch.linalg.solve(matrices, b)
    last = torch.full((3,), torch.inf, dtype=torch.float64)
    for iterations in range(7):
        error = conjugate_gradient(times(matrices), b, iterations) - exact
        distance = (error * times(matrices)(error)).sum(-1)
        assert (distance < last).all()
        last = distance


def test_systems_of_conjugate_gradients_rest_alone():
    matrices, b = systems((4,), 6)
    matrices[0] = 3.0 * torch.eye(6)  # solved by the first step
    b[1] = 0.0  # solved before it
    matrices[2] = -matrices[2]  # curves downwards
    found = conjugate_gradient(times(matrices), b, 12)
    torch.testing.assert_close(found[0], b[0] / 3.0)
    assert torch.equal(found[1:3], torch.zeros_like(found[1:3]))
    torch.testing.assert_close(found[3], torch.linalg.solve(matrices[3], b[3]))


def test_conjugate_gradients_stop_at_the_tolerance():
    matrices, b = systems((2,), 6)
    calls = []

    def product(v):
        calls.append(v)
        return times(matrices)(v)

    found = conjugate_gradient(product, b, 100, tolerance=1e-3)
    assert 1 < len(calls) <= 8
    residual = (b - times(matrices)(found)).norm(dim=-1)
    assert (residual <= 1e-3 * b.norm(dim=-1)).all()


# --- Reptile -----------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("case", ["vectors", "layer", "none"])
def test_reptile_steps_to_where_plain_optimisers_end(case, optimizer):
    episodes, spec, network = CASES[case]
    config = ReptileConfig(network, inner_optimizer=optimizer, inner_rate=0.02, inner_batch=4)
    learner = Reptile(config, spec)
    shaken(learner.network)
    generator = torch.Generator()
    generator.set_state(learner.generator.get_state())
    points = both(episodes)
    batches = minibatches(len(episodes), points.x.shape[1], 5, 4, generator)
    learner.backward(episodes, 0.0)
    found = [p.grad for p in learner.network.parameters()]
    expected = [torch.zeros_like(f) for f in found]
    for b in range(len(episodes)):
        twin = plain_twin(learner.network, spec.input_shape, spec.outputs, network)
        before = [p.detach().clone() for p in twin.in_order()]
        steps = torch.optim.SGD(twin.parameters(), lr=0.02)
        if optimizer == "adam":
            steps = torch.optim.Adam(twin.parameters(), lr=0.02, betas=(0.0, 0.999))
        for k in range(5):
            some = batches[k, b]
            steps.zero_grad()
            task_loss(twin(points.x[b, some]), points.y[b, some]).backward()
            steps.step()
        for e, start, end in zip(expected, before, twin.in_order(), strict=True):
            e += (start - end.detach()) / len(episodes)
    assert_same(found, expected, 1e-9)


def test_reptile_moves_a_share_of_the_way_that_falls_to_nothing():
    episodes, spec, network = CASES["vectors"]
    learner = Reptile(ReptileConfig(network, inner_rate=0.01, learning_rate=0.8), spec)
    learner.network.double()
    for progress, share in ((0.0, 0.8), (0.5, 0.4), (1.0, 0.0)):
        before = [p.detach().clone() for p in learner.network.parameters()]
        learner.update(episodes, progress)
        for p, old in zip(learner.network.parameters(), before, strict=True):
            torch.testing.assert_close(p.detach(), old - share * p.grad, rtol=1e-12, atol=1e-14)


def test_minibatches_go_through_all_points_before_one_comes_back():
    batches = minibatches(3, 7, 5, 4, torch.Generator().manual_seed(0))
    assert batches.shape == (5, 3, 4)
    for order in batches.transpose(0, 1).flatten(1):
        assert sorted(order[:7].tolist()) == list(range(7))
        assert sorted(order[7:14].tolist()) == list(range(7))
    assert not torch.equal(batches[:, 0], batches[:, 1])
    assert minibatches(2, 3, 2, 10, torch.Generator()).shape == (2, 2, 3)


def test_reptile_in_use_takes_the_whole_support_set_and_no_chance():
    episodes, spec, network = CASES["batch"]
    learner = Reptile(ReptileConfig(network, inner_batch=2, inner_rate=0.01), spec)
    learner.network.double()
    state = learner.generator.get_state()
    one, other = (learner.predict(episodes, 6).value for _ in range(2))
    assert torch.equal(one, other)
    assert torch.equal(state, learner.generator.get_state())
    missing = Episodes(episodes.support.split(5)[0], episodes.query)
    assert not torch.allclose(learner.predict(missing, 6).value, one)


# --- iMAML -------------------------------------------------------------------------------------


def imaml(case, **options):
    """The learner in float64, with nothing left to chance or to few iterations."""
    episodes, spec, network = CASES[case]
    chosen = {"strength": 5.0, "inner_rate": 0.05, "momentum": 0.0, "solver_iterations": 100}
    learner = IMAML(IMAMLConfig(network, **{**chosen, **options}), spec)
    shaken(learner.network)
    return learner, episodes


@pytest.fixture
def smooth(monkeypatch):
    """Soft ReLUs: plain steps never settle where a minimum lies on a kink."""
    monkeypatch.setattr(torch.Tensor, "relu", lambda x: F.softplus(x))


def test_imaml_of_a_quadratic_is_exact():
    learner, episodes = imaml("vectors", inner_steps=400, momentum=0.5)
    learner.network = Linear(2, 2).double()
    weight = torch.cat([learner.network.weight, learner.network.bias.unsqueeze(1)], 1).detach()
    learner.backward(episodes, 0.0)
    found = torch.cat([learner.network.weight.grad, learner.network.bias.grad.unsqueeze(1)], 1)
    ones = torch.ones(len(episodes), 4, 1, dtype=torch.float64)
    x, y = torch.cat([episodes.support.x, ones], -1), episodes.support.y
    hessian = 2.0 / 4.0 * x.mT @ x
    pulled = hessian + 5.0 * torch.eye(3, dtype=torch.float64)
    solved = torch.linalg.solve(pulled, 0.5 * x.mT @ y + 5.0 * weight.T)
    qx = torch.cat([episodes.query.x, ones[:, :3]], -1)
    slope = 2.0 / 3.0 * qx.mT @ (qx @ solved - episodes.query.y)
    exact = torch.linalg.solve(torch.eye(3, dtype=torch.float64) + hessian / 5.0, slope)
    torch.testing.assert_close(found, exact.mean(0).T, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CASES)
def test_imaml_is_the_limit_of_unrolled_steps(case, smooth):
    steps = 60
    learner, episodes = imaml(case, inner_steps=steps, strength=20.0, inner_rate=0.02)
    learner.backward(episodes, 0.0)
    start = dict(learner.network.named_parameters())
    found = [p.grad for p in start.values()]
    solved = adapt(
        own_copies(start, len(episodes)),
        lambda params, _: learner.task_loss(params, episodes.support),
        Proximal(SGD(0.02), 20.0),
        steps,
    )
    loss = learner.task_loss(solved, episodes.query).mean()
    expected = torch.autograd.grad(loss, list(start.values()), materialize_grads=True)
    assert_same(found, list(expected), 1e-8)


def test_imaml_does_not_care_how_the_inner_problem_was_solved(smooth):
    plain, episodes = imaml("vectors", inner_steps=200)
    pushed, _ = imaml("vectors", inner_steps=200, momentum=0.8)
    for learner in (plain, pushed):
        learner.backward(episodes, 0.0)
    one, other = ([p.grad for p in x.network.parameters()] for x in (plain, pushed))
    assert_same(one, other, 1e-9)
    learner, _ = imaml("vectors", inner_steps=2)
    learner.backward(episodes, 0.0)  # two steps are not there yet
    with pytest.raises(AssertionError):
        assert_same([p.grad for p in learner.network.parameters()], other, 1e-3)


def test_an_implicit_gradient_does_not_outweigh_the_others(monkeypatch):
    learner, episodes = imaml("vectors", inner_steps=4, strength=1e-3)
    generator = torch.Generator().manual_seed(0)
    long = 1e3 * torch.randn(len(episodes), 65, dtype=torch.float64, generator=generator)
    monkeypatch.setattr("metarl.fewshot.imaml.conjugate_gradient", lambda product, b, k: long)
    solved = learner.solve(episodes.support, 4)
    found, _ = learner.implicit_gradient(solved, episodes)
    flat = torch.cat([g.flatten(1) for g in found.values()], 1)
    params = {n: p.detach().requires_grad_() for n, p in solved.items()}
    query = learner.task_loss(params, episodes.query).sum()
    slope = torch.cat([g.flatten(1) for g in torch.autograd.grad(query, params.values())], 1)
    torch.testing.assert_close(flat.norm(dim=1), 3.0 * slope.norm(dim=1))
    torch.testing.assert_close(F.normalize(flat), F.normalize(long))


def test_imaml_adapts_by_momentum_near_its_start():
    learner, episodes = imaml("vectors", momentum=0.9, strength=0.7, inner_steps=3)
    points = episodes.support
    found = learner.solve(points, 3)
    start = own_copies(dict(learner.network.named_parameters()), len(episodes))

    def penalised(params, _):
        away = sum((params[n] - p).square().flatten(1).sum(1) for n, p in start.items())
        return learner.task_loss(params, points) + 0.35 * away

    expected = adapt(start, penalised, Momentum(0.05, 0.9), 3)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].detach(), rtol=1e-10, atol=1e-12)


# --- both --------------------------------------------------------------------------------------

LEARNERS = {
    "reptile": lambda spec, network: Reptile(ReptileConfig(network, inner_rate=0.01), spec),
    "imaml": lambda spec, network: IMAML(IMAMLConfig(network), spec),
}


@pytest.mark.parametrize("case", ["vectors", "batch"])
@pytest.mark.parametrize("name", LEARNERS)
def test_tasks_do_not_touch_one_another(name, case):
    episodes, spec, network = CASES[case]
    learner = LEARNERS[name](spec, network)
    learner.network.double()
    together = learner.predict(episodes, 4).value
    alone = torch.cat([learner.predict(e, 4).value for e in episodes.chunks(1)])
    torch.testing.assert_close(together, alone, rtol=1e-9, atol=1e-11)
    assert not together.requires_grad


def test_the_mean_implicit_gradient_is_that_of_each_task_alone():
    learner, episodes = imaml("batch", inner_steps=5, solver_iterations=4)
    learner.backward(episodes, 0.0)
    together = [p.grad.clone() for p in learner.network.parameters()]
    alone = [torch.zeros_like(g) for g in together]
    for one in episodes.chunks(1):
        learner.backward(one, 0.0)
        for total, p in zip(alone, learner.network.parameters(), strict=True):
            total += p.grad / len(episodes)
    assert_same(together, alone)


@pytest.mark.parametrize("name", LEARNERS)
def test_training_goes_on_exactly(name):
    data, protocol = Sinusoids(), Protocol(shots=5, queries=5)
    one = LEARNERS[name](data.spec(protocol), NetworkConfig(layers=(8,)))
    for k in range(3):
        one.train_step(data, protocol, k / 10)
    other = LEARNERS[name](data.spec(protocol), NetworkConfig(layers=(8,)))
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    logs = [[x.train_step(data, protocol, k / 10) for k in range(3)] for x in (one, other)]
    assert logs[0] == logs[1]
    for p, q in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert torch.equal(p, q)


SOON = {
    "reptile": lambda spec: Reptile(
        ReptileConfig(inner_optimizer="sgd", inner_rate=0.02, inner_steps=8, learning_rate=0.5),
        spec,
    ),
    "imaml": lambda spec: IMAML(IMAMLConfig(meta_batch=10, learning_rate=5e-3), spec),
}


@pytest.mark.parametrize("name", SOON)
def test_it_learns_to_adapt(name):
    data, protocol = Sinusoids(), Protocol(shots=10, queries=10)
    learner = SOON[name](data.spec(protocol))
    held_out = data.episodes(protocol, 200, "held-out", torch.Generator().manual_seed(0))

    def error():
        value = learner.predict(held_out, learner.steps_shown[-1]).value
        return float((value - held_out.query.y).square().mean())

    before = error()
    for k in range(80):
        learner.train_step(data, protocol, k / 80)
    assert error() < 0.7 * before


@pytest.mark.parametrize("config", [ReptileConfig, IMAMLConfig])
def test_nonsense_is_refused(config):
    for wrong in ({"inner_steps": 0}, {"inner_rate": -0.1}, {"test_steps": 0}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            config(**wrong)
    with pytest.raises(UsageError, match="running mixes the tasks"):
        config(NetworkConfig(norm="running"))
