"""Encoders of context: exact inference, whatever the order, and two ways of reading that agree."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Independent, Normal, kl_divergence

from metarl.context import (
    ENCODERS,
    MIN_VARIANCE,
    Belief,
    ProductEncoder,
    first,
    join,
    product_of_gaussians,
)

KINDS = tuple(ENCODERS)
X, Z = 5, 3
"""numbers of a transition, dimensions of the latent"""


def encoder(kind, layers=(16, 16)):
    """An encoder whose beliefs differ visibly from one context to the next, in float64."""
    torch.manual_seed(1)
    made = ENCODERS[kind](X, layers, Z).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def transitions(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, X, dtype=torch.float64, generator=generator)


def assert_equal(one, other):
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one.var, other.var, rtol=1e-9, atol=1e-12)


def assert_prior(belief):
    assert torch.equal(belief.mean, torch.zeros_like(belief.mean))
    assert torch.equal(belief.var, torch.ones_like(belief.var))


# --- inference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_the_product_is_what_integrating_it_gives(count):
    generator = torch.Generator().manual_seed(count)
    mean = torch.randn(1, count, 1, dtype=torch.float64, generator=generator)
    var = 0.05 + 2.0 * torch.rand(1, count, 1, dtype=torch.float64, generator=generator)
    z = torch.linspace(-20.0, 20.0, 400_001, dtype=torch.float64)
    log_density = torch.zeros_like(z)
    for mu, variance in zip(mean.flatten(), var.flatten(), strict=True):
        log_density -= 0.5 * (z - mu).square() / variance
    density = (log_density - log_density.max()).exp()
    mass = torch.trapezoid(density, z)
    expected = torch.trapezoid(z * density, z) / mass
    spread = torch.trapezoid((z - expected).square() * density, z) / mass
    belief = product_of_gaussians(mean, var)
    torch.testing.assert_close(belief.mean.squeeze(), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(belief.var.squeeze(), spread, rtol=1e-8, atol=0.0)
    # Not the mean and variance alone: the density is the same everywhere.
    there = Normal(belief.mean.squeeze(), belief.var.squeeze().sqrt()).log_prob(z).exp()
    torch.testing.assert_close(there, density / mass, rtol=0.0, atol=1e-7)


@pytest.mark.parametrize("count", [1, 3, 12])
def test_likelihoods_weigh_the_prior_as_integrating_does(count):
    made, x = encoder("likelihood"), transitions(1, count)
    a, b = made.terms(x).chunk(2, -1)
    assert (b > 0).all()
    z = torch.linspace(-30.0, 30.0, 400_001, dtype=torch.float64)
    belief = made(x)
    for dim in range(Z):
        log_density = -0.5 * z.square()
        for k in range(count):
            log_density = log_density + a[0, k, dim] * z - 0.5 * b[0, k, dim] * z.square()
        density = (log_density - log_density.max()).exp()
        mass = torch.trapezoid(density, z)
        expected = torch.trapezoid(z * density, z) / mass
        spread = torch.trapezoid((z - expected).square() * density, z) / mass
        torch.testing.assert_close(belief.mean[0, dim], expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(belief.var[0, dim], spread, rtol=1e-8, atol=0.0)


def test_an_untrained_likelihood_encoder_is_not_sure_of_anything():
    torch.manual_seed(0)
    x = transitions(1, 20).float()
    var = {kind: ENCODERS[kind](X, (16,), Z)(x).var.max() for kind in ("likelihood", "product")}
    assert var["likelihood"] > 0.5
    assert var["product"] < 0.1


def test_dimensions_and_contexts_do_not_mix():
    mean, var = transitions(4, 6), transitions(4, 6, seed=1).exp()
    whole = product_of_gaussians(mean, var)
    for context in range(4):
        for dim in range(X):
            alone = product_of_gaussians(
                mean[context, :, dim].view(1, -1, 1), var[context, :, dim].view(1, -1, 1)
            )
            torch.testing.assert_close(alone.mean.squeeze(), whole.mean[context, dim])
            torch.testing.assert_close(alone.var.squeeze(), whole.var[context, dim])


def test_the_spread_of_a_factor_is_a_variance():
    """softplus of the second half of the outputs, as published, and no standard deviation."""
    made, x = encoder("product"), transitions(2, 1)
    mean, raw = made.body(x).chunk(2, -1)
    belief = made(x)
    torch.testing.assert_close(belief.mean, mean.squeeze(1))
    torch.testing.assert_close(belief.var, (1.0 + raw.squeeze(1).exp()).log())


def test_one_factor_that_is_sure_outweighs_many_that_are_not():
    mean = torch.tensor([[[5.0], [0.0], [0.0]]])
    var = torch.tensor([[[1e-6], [1.0], [1.0]]])
    belief = product_of_gaussians(mean, var)
    assert float(belief.mean) == pytest.approx(5.0, abs=1e-4)


def test_kl_equals_torch():
    mean, var = transitions(7), transitions(7, seed=1).exp()
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 1)
    expected = kl_divergence(Independent(Normal(mean, var.sqrt()), 1), prior)
    torch.testing.assert_close(Belief(mean, var).kl_to_prior(), expected)
    assert float(Belief(torch.zeros(1, 4), torch.ones(1, 4)).kl_to_prior()) == 0.0


def test_samples_follow_the_belief_and_carry_gradients():
    mean = torch.tensor([[3.0, -1.0]]).repeat(100_000, 1).requires_grad_()
    var = torch.tensor([[0.25, 4.0]]).repeat(100_000, 1).requires_grad_()
    drawn = Belief(mean, var).sample(torch.Generator().manual_seed(0))
    found = drawn.detach()
    torch.testing.assert_close(found.mean(0), torch.tensor([3.0, -1.0]), rtol=0.0, atol=0.03)
    torch.testing.assert_close(found.var(0), torch.tensor([0.25, 4.0]), rtol=0.02, atol=0.0)
    by_mean, by_var = torch.autograd.grad(drawn.sum(), (mean, var))
    assert torch.equal(by_mean, torch.ones_like(mean))
    # z = mean + sqrt(var) noise, so that dz/dvar = noise / (2 sqrt(var)).
    noise = (drawn - mean) / var.sqrt()
    torch.testing.assert_close(by_var, noise / (2.0 * var.sqrt()), rtol=1e-3, atol=1e-4)


# --- which transitions, and in which order -----------------------------------------------------


@pytest.mark.parametrize("kind", ["product", "likelihood"])
@settings(max_examples=25)
@given(order=st.permutations(range(9)))
def test_the_order_does_not_matter(kind, order):
    made, x = encoder(kind), transitions(2, 9)
    assert_equal(made(x[:, order]), made(x))


def test_the_recurrent_encoder_may_depend_on_the_order():
    made, x = encoder("recurrent"), transitions(2, 9)
    assert not torch.allclose(made(x.flip(1)).mean, made(x).mean, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(masks=st.lists(st.lists(st.booleans(), min_size=7, max_size=7), min_size=1, max_size=4))
def test_a_mask_is_the_same_as_leaving_out(kind, masks):
    made, x, mask = encoder(kind), transitions(len(masks), 7), torch.tensor(masks)
    belief = made(x, mask)
    rubbish = made(torch.where(mask.unsqueeze(-1), x, 1e3), mask)
    assert_equal(rubbish, belief)
    for row, kept in enumerate(mask):
        mine = Belief(belief.mean[row : row + 1], belief.var[row : row + 1])
        if kept.any():
            assert_equal(mine, made(x[row : row + 1, kept]))
        else:
            assert_prior(mine)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_seen_is_the_prior(kind):
    made = encoder(kind)
    assert_prior(made.belief(made.start(3)))
    assert_prior(made(transitions(3, 4), torch.zeros(3, 4, dtype=torch.bool)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_without_transitions_leaves_the_gradients_of_the_others_alone(kind):
    made, x = encoder(kind), transitions(2, 4)
    mask = torch.tensor([[True, False, True, False], [False] * 4])
    made(x, mask).kl_to_prior().sum().backward()
    both = [p.grad.clone() for p in made.parameters()]
    made.zero_grad()
    made(x[:1], mask[:1]).kl_to_prior().sum().backward()
    assert any(gradient.abs().sum() > 0 for gradient in both)
    for parameter, gradient in zip(made.parameters(), both, strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_contexts_of_two_kinds_are_joined():
    full, partial = transitions(2, 3), transitions(1, 5, seed=1)
    there = torch.tensor([[True, True, True, False, True]])
    for one, other, mask in ((full, partial, there), (partial, full, torch.ones(2, 3) == 1)):
        x, known = join(one, other, mask)
        assert x.shape == (3, 5, X) and known.shape == (3, 5)
        assert torch.equal(x[: len(one)][known[: len(one)]], one.flatten(0, 1))
        assert torch.equal(x[len(one) :][known[len(one) :]], other[mask])
        assert int(known.sum()) == one.shape[0] * one.shape[1] + int(mask.sum())


def test_the_first_transitions_of_a_mask():
    mask = torch.tensor([[True, True, True, False], [True, True, False, False]])
    found = first(mask, torch.tensor([2, 9]))
    assert found.tolist() == [[True, True, False, False], [True, True, False, False]]


def test_a_belief_gives_way_to_the_prior_row_by_row():
    belief = Belief(transitions(3), transitions(3, seed=1).exp())
    found = belief.where(torch.tensor([True, False, True]))
    assert torch.equal(found.mean[[0, 2]], belief.mean[[0, 2]])
    assert torch.equal(found.var[[0, 2]], belief.var[[0, 2]])
    assert_prior(Belief(found.mean[1:2], found.var[1:2]))


# --- one transition after the other ------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_streaming_gives_the_beliefs_of_whole_contexts(kind):
    made, x = encoder(kind), transitions(3, 12)
    state = made.start(3)
    for seen in range(1, 13):
        state = made.absorb(state, x[:, seen - 1])
        assert_equal(made.belief(state), made(x[:, :seen]))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25)
@given(masks=st.lists(st.lists(st.booleans(), min_size=8, max_size=8), min_size=1, max_size=3))
def test_streaming_what_a_mask_leaves_gives_the_masked_belief(kind, masks):
    made, x, mask = encoder(kind), transitions(len(masks), 8), torch.tensor(masks)
    state = made.start(len(masks))
    for step in range(8):
        state = torch.where(mask[:, step, None], made.absorb(state, x[:, step]), state)
    assert_equal(made.belief(state), made(x, mask))


@pytest.mark.parametrize("kind", ["product", "likelihood"])
def test_a_stream_of_thousands_stays_exact_in_single_precision(kind):
    made = encoder(kind).float()
    x = transitions(2, 3_000).float()
    state = made.start(2)
    with torch.no_grad():
        for row in x.unbind(1):
            state = made.absorb(state, row)
        slow = made.double()(x.double())
    torch.testing.assert_close(made.belief(state).mean.double(), slow.mean, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(made.belief(state).var.double(), slow.var, rtol=1e-3, atol=0.0)


# --- extremes ----------------------------------------------------------------------------------


def test_variances_stay_above_their_floor_and_everything_finite():
    made = ProductEncoder(X, (4,), Z)
    with torch.no_grad():
        made.body[-1].bias[Z:] = -1e4
        made.body[-1].bias[:Z] = 3.0
    belief = made(transitions(2, 50).float())
    assert torch.equal(belief.var, torch.full_like(belief.var, MIN_VARIANCE))
    torch.testing.assert_close(belief.mean, torch.full_like(belief.mean, 3.0), atol=0.1, rtol=0.0)
    loss = belief.kl_to_prior().sum() + belief.sample(torch.Generator()).sum()
    loss.backward()
    assert math.isfinite(loss.detach())
    assert all(bool(p.grad.isfinite().all()) for p in made.parameters() if p.grad is not None)
