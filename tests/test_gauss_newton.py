"""Gauss-Newton products: against the matrix written out, and the Hessian of a KL."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from gradient_oracles import SPECS, Plain, adapted_kl, random_rounds, shaken

from metarl.agents.maml import MAML, MAMLConfig
from metarl.conjugate_gradient import conjugate_gradient
from metarl.gauss_newton import GaussNewton
from metarl.trust_region import natural_step

SMALL = MAMLConfig(
    layers=(4,), inner_rate=0.2, context=2, meta_batch=3, rollouts=4, baseline="none"
)


def vectors(like, count=3):
    g = torch.Generator().manual_seed(5)
    return [[torch.randn(x.shape, dtype=x.dtype, generator=g) for x in like] for _ in range(count)]


def matrix(product, size):
    """The matrix that `product` multiplies vectors `[size]` with."""
    return torch.stack([product(row) for row in torch.eye(size, dtype=torch.float64)], 1)


def test_products_are_those_of_the_matrix_written_out():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 4, 3, dtype=torch.float64, generator=g)
    w = torch.randn(3, dtype=torch.float64, generator=g).requires_grad_()
    z = torch.randn(2, dtype=torch.float64, generator=g).requires_grad_()

    def f(w, z):
        return (a @ w).sin() + z[0], ((b @ w).exp() * z[1]).view(2, 2)

    def loss(one, two):
        return one.square().square().sum() + (one.view(2, 2) * two.square()).sum()

    product = GaussNewton(f(w, z), [w, z], loss)
    jw, jz = (
        torch.cat([part.view(4, -1) for part in parts])
        for parts in zip(*torch.func.jacrev(f, argnums=(0, 1))(w, z), strict=True)
    )
    jacobian = torch.cat([jw, jz], 1).detach()

    def flat_loss(d):
        return loss(d[:4], d[4:].view(2, 2))

    d = torch.cat([x.detach().flatten() for x in f(w, z)])
    expected = jacobian.mT @ torch.func.hessian(flat_loss)(d) @ jacobian
    for v in vectors([w, z]):
        found = torch.cat(product(v))
        torch.testing.assert_close(found, expected @ torch.cat(v), rtol=1e-12, atol=1e-12)


def test_inputs_without_influence_get_zeros():
    used, unused = (torch.ones(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    product = GaussNewton([used.square()], [used, unused], lambda d: d.square().sum())
    one, other = product([torch.ones(3).double(), torch.full((3,), 7.0).double()])
    assert one.tolist() == [8.0] * 3  # 2 used * 2 * 2 used
    assert other.tolist() == [0.0] * 3


@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("inner", ["sgd", "meta-sgd", "cavia"])
@pytest.mark.parametrize("steps", [1, 2])
def test_it_is_the_hessian_of_the_kl_through_the_steps_of_adaptation(kind, inner, steps):
    """In θ, between the adapted policies, by differentiating a plain loop twice."""
    config = replace(SMALL, inner=inner, inner_steps=steps)
    agent = MAML(config, SPECS[kind])
    shaken(agent.network)
    rounds = random_rounds(SPECS[kind], config)
    _, chances = agent.meta_loss(rounds)
    fisher = agent.fisher(rounds, [chances])

    start = Plain(agent.network)
    sizes = [p.numel() for p in start.leaves]

    def kl(theta):
        """As a function of one flat vector."""
        moved = Plain(agent.network)
        parts = [p.view_as(x) for p, x in zip(theta.split(sizes), start.leaves, strict=True)]
        names = list(moved.theta)
        moved.theta = dict(zip(names, parts, strict=False))
        moved.rates = dict(zip(names, parts[len(names) :], strict=False))
        return adapted_kl(moved, rounds, start)

    theta = torch.cat([p.detach().flatten() for p in start.leaves]).requires_grad_()
    (slope,) = torch.autograd.grad(kl(theta), theta, create_graph=True)
    assert float(slope.detach().abs().max()) < 1e-12
    found, largest = [], 0.0
    for (v,) in vectors([theta]):
        (expected,) = torch.autograd.grad(slope @ v, theta, retain_graph=True)
        torch.testing.assert_close(fisher(v), expected, rtol=1e-8, atol=1e-10)
        found.append(float(v @ fisher(v)))
        largest = max(largest, float(expected.abs().max()))
        # And without trusting autograd: the KL grows by half of vᵀ F v times the way squared.
        way = 1e-4
        ahead, behind = (kl(theta + sign * way * v).detach() for sign in (1.0, -1.0))
        assert float(ahead + behind) / way**2 == pytest.approx(found[-1], rel=1e-4)
    assert min(found) > 0.0
    assert largest > 1e-3


@pytest.mark.parametrize("kind", SPECS)
def test_parts_of_the_tasks_add_up_to_the_same_matrix(kind, monkeypatch):
    config = replace(SMALL, inner_steps=2)
    agent = MAML(config, SPECS[kind])
    shaken(agent.network)
    rounds = random_rounds(SPECS[kind], config)
    size = sum(p.numel() for p in agent.meta_parameters)
    found = []
    for rows in (10**6, 12, 1):
        monkeypatch.setattr("metarl.agents.gradient_agent.ROWS", rows)
        kept = []
        agent.meta_gradient(rounds, kept)
        assert len(kept) == {10**6: 1, 12: 2, 1: 3}[rows]
        found.append(matrix(agent.fisher(rounds, kept), size))
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found[2], found[0], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found[0], found[0].mT, rtol=1e-9, atol=1e-13)
    assert float(torch.linalg.eigvalsh(found[0]).min()) > -1e-12


def test_a_natural_step_through_it_solves_the_damped_system_and_is_as_long_as_allowed():
    agent = MAML(SMALL, SPECS["gaussian"])
    shaken(agent.network)
    rounds = random_rounds(SPECS["gaussian"], SMALL)
    kept = []
    agent.meta_gradient(rounds, kept)
    gradient = torch.cat([p.grad.flatten() for p in agent.meta_parameters])
    fisher, damping, max_kl = agent.fisher(rounds, kept), 1e-2, 0.01
    system = matrix(fisher, len(gradient)) + damping * torch.eye(len(gradient)).double()

    def damped(v):
        return fisher(v) + damping * v

    x = conjugate_gradient(damped, gradient, 4 * len(gradient))
    torch.testing.assert_close(x, torch.linalg.solve(system, gradient), rtol=1e-6, atol=1e-9)
    for iterations in (1, 3, 4 * len(gradient)):
        step = natural_step(fisher, gradient, max_kl, iterations, damping)
        assert float(0.5 * step @ system @ step) == pytest.approx(max_kl, rel=1e-8)
        assert float(step @ gradient) < 0.0
    torch.testing.assert_close(step / step.norm(), -x / x.norm(), rtol=1e-6, atol=1e-9)
