"""The inner loop: rules as torch's optimisers, meta-gradients as a plain loop's for all layers."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
import torch
from fewshot_oracles import (
    assert_finite_differences,
    assert_same,
    copy_values,
    gradients,
    losses_of,
    sgd,
    shaken,
    task_loss,
)
from test_layers import CASES, VECTORS, draw
from torch import nn
from torch.func import functional_call, grad, vmap

from metarl import inner_loop
from metarl.fewshot.episodes import Episodes, Points
from metarl.inner_loop import (
    SGD,
    Adam,
    Momentum,
    Proximal,
    adapt,
    faster_executor,
    gradient,
    own_copies,
    trajectory,
)
from metarl.layers import Conv2d, Linear

B, S, Q, OUT = 3, 4, 3, 2
RATE = 0.1


# --- rules, written again for one task ----------------------------------------------------------


def momentum(rate, mu):
    def step(params, grads, memory, k):
        old = memory or {n: torch.zeros_like(p) for n, p in params.items()}
        velocity = {n: mu * old[n] + grads[n] for n in params}
        return {n: p - rate(k, n) * velocity[n] for n, p in params.items()}, velocity

    return step


def adam(rate, b1, b2, eps):
    def step(params, grads, memory, k):
        m, v = memory or ({n: 0.0 for n in params}, {n: 0.0 for n in params})
        m = {n: b1 * m[n] + (1 - b1) * grads[n] for n in params}
        v = {n: b2 * v[n] + (1 - b2) * grads[n] ** 2 for n in params}
        moved = {}
        for n, p in params.items():
            mean, square = m[n] / (1 - b1 ** (k + 1)), v[n] / (1 - b2 ** (k + 1))
            # As in the library, the root of zero has a derivative.
            moved[n] = p - rate(k, n) * mean / ((square + 1e-30) ** 0.5 + eps)
        return moved, (m, v)

    return step


def proximal(rule, strength):
    def step(params, grads, memory, k):
        start, inner = memory or (params, None)
        pulled = {n: grads[n] + strength * (params[n] - start[n]) for n in params}
        moved, inner = rule(params, pulled, inner, k)
        return moved, (start, inner)

    return step


def constant(k, name):
    return RATE


class Rates:
    """Learned step sizes: for each tensor, each element, or each step; leaves of the gradient."""

    def __init__(self, kind, parameters):
        self.kind = kind
        generator = torch.Generator().manual_seed(4)

        def leaf(shape):
            value = 0.05 + 0.1 * torch.rand(shape, dtype=torch.float64, generator=generator)
            return value.requires_grad_()

        if kind == "step":
            self.leaves = [leaf(()) for _ in range(3)]
            self.ours = lambda k: self.leaves[k]
        else:
            named = {n: leaf(p.shape if "element" in kind else ()) for n, p in parameters.items()}
            self.leaves = list(named.values())
            self.ours = named
            if "step" in kind:  # half as long in each step, for each element
                self.ours = lambda k: {n: r * 0.5**k for n, r in named.items()}

    def plain(self, names):
        """The same step sizes by the names that the plain module gives its parameters."""
        if self.kind == "step":
            return lambda k, name: self.leaves[k]
        if "step" in self.kind:
            return lambda k, name: self.leaves[names.index(name)] * 0.5**k
        return lambda k, name: self.leaves[names.index(name)]


FIXED = {
    "sgd": (SGD(RATE), sgd(constant)),
    "momentum": (Momentum(RATE, 0.7), momentum(constant, 0.7)),
    "adam": (Adam(RATE, (0.8, 0.95), 1e-2), adam(constant, 0.8, 0.95, 1e-2)),
    "proximal sgd": (Proximal(SGD(RATE), 0.5), proximal(sgd(constant), 0.5)),
    "proximal momentum": (
        Proximal(Momentum(RATE, 0.7), 0.5),
        proximal(momentum(constant, 0.7), 0.5),
    ),
}
LEARNED = ("tensor", "element", "step", "element and step")
RULES = (*FIXED, *(f"a rate for each {kind}" for kind in LEARNED))
SIMILAR = [rule for rule in RULES if rule not in ("sgd", "adam")]
"""not worth finite differences for every layer"""


# --- a small network around each layer ----------------------------------------------------------


class Around(nn.Module):
    """`layer` between two others, for `[B, M, X...]`, or with plain layers for `[M, X...]`."""

    def __init__(self, first, layer, head, dims):
        super().__init__()
        self.first, self.layer, self.head, self.dims = first, layer, head, dims

    def forward(self, x):
        y = torch.tanh(self.layer(torch.tanh(self.first(x))))
        if self.dims == 3:
            y = y.square().mean((-1, -2))
        return self.head(y)


def networks(case):
    """Our network with that layer, torch's own with the same weights, and tasks for them."""
    ours, theirs, shape = CASES[case]
    features = shape[0]
    outputs = ours()(torch.zeros(1, 2, *shape)).shape[2]
    if shape == VECTORS:
        first = Linear(3, features), nn.Linear(3, features)
        inputs = (3,)
    else:
        first = Conv2d(1, features), nn.Conv2d(1, features, 3, padding=1)
        inputs = (1, *shape[1:])
    network = Around(first[0], ours(), Linear(outputs, OUT), len(shape))
    plain = Around(first[1], theirs(), nn.Linear(outputs, OUT), len(shape)).double()
    shaken(network)
    copy_values(network.parameters(), plain.parameters())

    def points(count, seed):
        return Points(draw(B, count, *inputs, seed=seed), draw(B, count, OUT, seed=seed + 1) + 1.0)

    return network, plain, Episodes(points(S, 11), points(Q, 13))


def rule_of(name, network, plain):
    """Our rule, the plain one, and the step sizes that are learned."""
    if name in FIXED:
        return *FIXED[name], []
    rates = Rates(name.removeprefix("a rate for each "), dict(network.named_parameters()))
    names = [n for n, _ in plain.named_parameters()]
    return SGD(rates.ours), sgd(rates.plain(names)), rates.leaves


def errors(network, params, points):
    """The loss of each task, `[B]`."""
    y = functional_call(network, params, (points.x,))
    return (y - points.y).square().sum(-1).mean(-1)


def adapted_losses(network, episodes, rule, steps, second_order, chunk=B):
    """The query loss of each task after adaptation, `chunk` tasks at once."""
    out = []
    for e in episodes.chunks(chunk):
        own = own_copies(dict(network.named_parameters()), len(e))
        adapted = adapt(
            own,
            lambda p, k, e=e: errors(network, p, e.support),
            rule,
            steps,
            second_order=second_order,
        )
        out.append(errors(network, adapted, e.query))
    return torch.cat(out)


def looped_losses(plain, episodes, rule, steps, second_order):
    """The same by the plain loop."""

    def predict(params, x):
        return functional_call(plain, params, (x,))

    def start(task):
        return dict(plain.named_parameters())

    return losses_of(predict, start, episodes, rule, steps, second_order)


LAYERS = [case for case in CASES if case not in ("conv, kernel 1", "any linear")]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("case", LAYERS)
def test_meta_gradients_are_those_of_the_loop(case, rule):
    network, plain, episodes = networks(case)
    ours, theirs, rates = rule_of(rule, network, plain)
    for steps, second_order in ((1, True), (3, True), (3, False)):
        loop = looped_losses(plain, episodes, theirs, steps, second_order)
        expected = gradients(loop.mean(), [*plain.parameters(), *rates])
        for chunk in (B, 1):
            got = adapted_losses(network, episodes, ours, steps, second_order, chunk)
            assert_same([got], [loop])
            assert_same(gradients(got.mean(), [*network.parameters(), *rates]), expected)


@pytest.mark.parametrize(
    ("case", "rule"),
    [
        *((case, rule) for case in LAYERS for rule in ("sgd", "adam")),
        *((case, rule) for case in ("linear", "batch of vectors") for rule in SIMILAR),
    ],
)
def test_meta_gradients_are_those_of_finite_differences(case, rule):
    network, plain, episodes = networks(case)
    ours, _, rates = rule_of(rule, network, plain)
    parameters = [*network.parameters(), *rates]

    def loss():
        return adapted_losses(network, episodes, ours, 3, True).mean()

    assert_finite_differences(loss, parameters, gradients(loss(), parameters))


@pytest.mark.parametrize("case", CASES)
def test_the_way_that_is_compiled_gives_the_same_meta_gradient(case, monkeypatch):
    network, plain, episodes = networks(case)
    loop = looped_losses(plain, episodes, FIXED["sgd"][1], 3, True)
    expected = gradients(loop.mean(), plain.parameters())
    start = {n: p.detach() for n, p in network.named_parameters()}

    def mean_loss(params):
        def loss(p, k):
            return errors(network, p, episodes.support)

        adapted = adapt(own_copies(params, B), loss, SGD(RATE), 3)
        return errors(network, adapted, episodes.query).mean()

    monkeypatch.setattr(inner_loop.torch.compiler, "is_compiling", lambda: True)
    found = grad(mean_loss)(start)
    assert_same(list(found.values()), expected)


def test_vmap_over_a_gradient_through_native_batch_norm_is_wrong():
    """Why the layers are as they are; if this fails, torch has been repaired."""
    network, plain, episodes = networks("batch")
    s, q = episodes.support, episodes.query
    params = dict(plain.named_parameters())

    def loss(p, x, y):
        return task_loss(functional_call(plain, p, (x,)), y)

    def adapted_loss(p, x, y, query_x, query_y):
        grads = grad(loss)(p, x, y)
        return loss({n: v - RATE * grads[n] for n, v in p.items()}, query_x, query_y)

    by_vmap = vmap(partial(adapted_loss, params))(s.x, s.y, q.x, q.y)
    by_loop = looped_losses(plain, episodes, sgd(constant), 1, True)
    by_ours = adapted_losses(network, episodes, SGD(RATE), 1, True)
    assert_same([by_vmap], [by_loop])  # the losses agree, but
    right = gradients(by_loop.mean(), plain.parameters())
    assert_same(gradients(by_ours.mean(), network.parameters()), right)
    wrong = gradients(by_vmap.mean(), plain.parameters())
    apart = torch.cat([(a - b).flatten() for a, b in zip(wrong, right, strict=True)]).norm()
    assert apart > 1e-6 * torch.cat([b.flatten() for b in right]).norm()


# --- rules against torch.optim -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "optimiser"),
    [
        (SGD(0.1), partial(torch.optim.SGD, lr=0.1)),
        (Momentum(0.05, 0.8), partial(torch.optim.SGD, lr=0.05, momentum=0.8)),
        (Adam(0.05), partial(torch.optim.Adam, lr=0.05)),
        (
            Adam(0.05, (0.5, 0.9), 1e-3),
            partial(torch.optim.Adam, lr=0.05, betas=(0.5, 0.9), eps=1e-3),
        ),
    ],
)
def test_rules_step_as_the_optimisers_of_torch(rule, optimiser):
    network, plain, episodes = networks("linear")
    points = episodes.support
    own = own_copies(dict(network.named_parameters()), B)
    steps = list(trajectory(own, lambda p, k: errors(network, p, points), rule, 6))
    assert len(steps) == 7
    for b in range(B):
        copy_values(network.parameters(), plain.parameters())
        stepper = optimiser(plain.parameters())
        for k, params in enumerate(steps):
            for ours, theirs in zip(params.values(), plain.parameters(), strict=True):
                torch.testing.assert_close(ours[b], theirs, rtol=1e-10, atol=1e-13, msg=str(k))
            stepper.zero_grad()
            task_loss(plain(points.x[b]), points.y[b]).backward()
            stepper.step()


def test_adam_is_differentiable_where_a_gradient_is_zero():
    start = torch.tensor([[1.0, 2.0]], dtype=torch.float64, requires_grad=True)

    def loss(p, k):  # does not depend on the second number
        return p["w"][:, 0].square()

    adapted = adapt({"w": start}, loss, Adam(0.1), 3)["w"]
    assert adapted[0, 1] == 2.0
    (found,) = torch.autograd.grad(adapted.sum(), start)
    assert torch.isfinite(found).all()
    assert found[0, 1] == 1.0


def test_the_proximal_rule_ends_where_loss_and_pull_balance():
    start = torch.tensor([[0.0], [3.0]], dtype=torch.float64)
    goal = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)

    def loss(p, k):  # ½ (w - goal)²
        return 0.5 * (p["w"] - goal).square().sum(-1)

    start.requires_grad_()
    adapted = adapt({"w": start}, loss, Proximal(SGD(0.3), 2.0), 200)["w"]
    torch.testing.assert_close(adapted, (goal + 2.0 * start) / 3.0)
    (found,) = torch.autograd.grad(adapted.sum(), start)
    torch.testing.assert_close(found, torch.full_like(found, 2.0 / 3.0))


# --- the parts ------------------------------------------------------------------------------------


def quadratic(p, k):
    return (p["w"] * (k + 1.0)).square().sum(-1)


def test_the_loss_is_told_the_step():
    start = torch.tensor([[1.0, -2.0]], requires_grad=True)
    steps = [p["w"] for p in trajectory({"w": start}, quadratic, SGD(0.01), 3)]
    for k, (before, after) in enumerate(pairwise(steps)):
        torch.testing.assert_close(after, before - 0.01 * 2.0 * (k + 1) ** 2 * before)


def test_no_step_changes_nothing():
    start = torch.ones(2, 3, requires_grad=True)
    assert adapt({"w": start}, quadratic, SGD(0.1), 0)["w"] is start


def test_own_copies_sum_the_gradients_of_the_tasks():
    shared = torch.tensor([1.0, 2.0], requires_grad=True)
    own = own_copies({"w": shared}, 3)["w"]
    assert own.shape == (3, 2)
    factors = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    (found,) = torch.autograd.grad((own * factors).sum(), shared)
    assert found.tolist() == [111.0, 222.0]


def test_the_gradient_of_a_task_is_that_of_its_own_loss():
    params = {"w": draw(3, 2).requires_grad_(), "unused": draw(3, 1).requires_grad_()}
    found = gradient(quadratic, params)
    torch.testing.assert_close(found["w"], 2.0 * params["w"])
    assert found["unused"].tolist() == [[0.0]] * 3


@pytest.mark.parametrize("rule", FIXED)
def test_without_gradients_the_steps_are_the_same_constants(rule):
    network, _, episodes = networks("conv")
    rule = FIXED[rule][0]
    own = own_copies(dict(network.named_parameters()), B)

    def loss(p, k):
        return errors(network, p, episodes.support)

    learned = list(trajectory(own, loss, rule, 3))
    with torch.no_grad():
        constants = list(trajectory(own, loss, rule, 3))
    for one, other in zip(learned[1:], constants[1:], strict=True):
        for name in one:
            assert one[name].requires_grad
            assert not other[name].requires_grad
            assert other[name].grad_fn is None
            torch.testing.assert_close(one[name].detach(), other[name], rtol=1e-12, atol=1e-14)


def test_first_order_steps_pass_a_gradient_as_if_they_were_the_identity():
    start = draw(3, 2).requires_grad_()
    adapted = adapt({"w": start}, quadratic, SGD(0.1), 3, second_order=False)["w"]
    (found,) = torch.autograd.grad(adapted.sum(), start)
    assert torch.equal(found, torch.ones_like(start))


def test_the_tasks_of_a_batch_do_not_touch_one_another():
    network, _, episodes = networks("batch")
    together = adapted_losses(network, episodes, Adam(RATE), 3, True)
    other = Episodes(Points(episodes.support.x.clone(), episodes.support.y), episodes.query)
    other.support.x[1:] *= -2.0
    assert torch.equal(together[0], adapted_losses(network, other, Adam(RATE), 3, True)[0])


# --- which executor -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vectorised", "loop", "faster"),
    [
        ((9.0, 1.0, 1.0, 1.0), (9.0, 2.0, 2.0, 2.0), "vectorised"),
        ((9.0, 2.0, 2.0, 2.0), (9.0, 1.0, 1.0, 1.0), "loop"),
        ((9.0, 1.0, 1.0, 1.0), (9.0, 1.0, 1.0, 1.0), "vectorised"),
        ((9.0, 1.0, 1.0, 1.0), (9.0, 0.98, 0.98, 0.98), "vectorised"),  # as good as a draw
        ((1.0, 2.0, 2.0, 2.0), (90.0, 1.0, 1.0, 1.0), "loop"),  # the first one only warms up
        ((9.0, 1.0, 90.0, 1.0), (9.0, 2.0, 2.0, 2.0), "vectorised"),  # one disturbance
    ],
)
def test_the_faster_executor_is_chosen(vectorised, loop, faster, monkeypatch):
    now = [0.0]
    seconds = {"vectorised": iter(vectorised), "loop": iter(loop)}
    weight = torch.ones(2, requires_grad=True)
    monkeypatch.setattr(inner_loop, "perf_counter", lambda: now[0])

    def way(name):
        def run():
            now[0] += next(seconds[name])
            return weight * 2.0

        return run

    assert faster_executor(way("vectorised"), way("loop")) == faster
    assert all(next(left, None) is None for left in seconds.values())
