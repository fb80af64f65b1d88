"""The value network as a baseline."""

from __future__ import annotations

import pytest
import torch

from metarl.errors import TrainingError
from metarl.value_baseline import ValueBaseline


def data(rows=600, seed=0):
    """Returns that observation and time determine, far from zero and from a spread of one."""
    g = torch.Generator().manual_seed(seed)
    obs = 5.0 + 3.0 * torch.randn(rows, 2, generator=g)
    elapsed = torch.randint(0, 20, (rows,), generator=g)
    return obs, elapsed, 400.0 + 30.0 * (obs[:, 0] - 5.0).sin() - 8.0 * elapsed


def trained(rounds=25):
    value = ValueBaseline(2, 20, (32, 32))
    optimizer = torch.optim.Adam(value.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(0)
    losses = [value.fit(optimizer, *data(), g, rows=100) for _ in range(rounds)]
    return value, losses


def test_it_learns_to_predict_returns_it_has_not_seen_in_their_own_units():
    value, losses = trained()
    obs, elapsed, returns = (x.view(3, 50, *x.shape[1:]) for x in data(150, seed=1))
    nothing = torch.full_like(returns, float("nan"))
    predicted = value.predict(obs, elapsed, nothing, nothing)  # neither is looked at
    assert predicted.shape == (3, 50)
    assert not predicted.requires_grad
    left = (predicted - returns).square().mean() / returns.var()
    assert float(left) < 0.1
    assert losses[-1] < 0.3 * losses[0]


def test_before_any_return_it_predicts_in_units_of_one():
    value = ValueBaseline(2, 20)
    obs, elapsed, returns = data(10)
    found = value.predict(obs[None], elapsed[None], returns[None], returns[None])
    torch.testing.assert_close(found[0], value(obs, elapsed).detach(), rtol=1e-5, atol=1e-5)


def test_the_loss_is_that_of_the_last_pass_in_units_of_the_spread():
    obs, elapsed, returns = data()
    value = ValueBaseline(2, 20)
    still = torch.optim.SGD(value.parameters(), lr=0.0)
    found = value.fit(still, obs, elapsed, returns, torch.Generator(), epochs=2)
    spread, mean = returns.std(correction=0), returns.mean()
    expected = (value(obs, elapsed) - (returns - mean) / spread).square().mean()
    assert found == pytest.approx(float(expected.detach()), rel=1e-4)


def test_a_return_that_is_not_finite_stops_it_before_the_network_changes():
    value = ValueBaseline(2, 20)
    before = [p.detach().clone() for p in value.network.parameters()]
    obs, elapsed, returns = data(10)
    returns[3] = float("nan")
    with pytest.raises(TrainingError, match="value baseline: the gradient is not finite"):
        value.fit(torch.optim.Adam(value.parameters()), obs, elapsed, returns, torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(before, value.network.parameters(), strict=True))


def test_the_same_generator_gives_the_same_network():
    found = []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(torch.cat([p.flatten() for p in trained(2)[0].parameters()]))
    assert torch.equal(*found)
