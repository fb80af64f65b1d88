"""The linear baseline: against least squares of one task at a time by numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from metarl.linear_baseline import RIDGE, feature_count, features, fit, fit_predict

TASKS, POINTS, OBS = 4, 40, 3


def points(dtype=torch.float64):
    g = torch.Generator().manual_seed(0)
    obs = 8.0 * torch.randn(TASKS, POINTS, OBS, dtype=torch.float64, generator=g)
    elapsed = torch.randint(0, 200, (TASKS, POINTS), generator=g)
    returns = 50.0 * torch.randn(TASKS, POINTS, dtype=torch.float64, generator=g) - 30.0
    weight = (torch.rand(TASKS, POINTS, generator=g) < 0.8).to(dtype)
    return obs.to(dtype), elapsed, returns.to(dtype), weight


def by_numpy(obs, elapsed, returns, keep, ridge=RIDGE):
    """Predictions of one task for all its points, of coefficients fitted to those kept."""
    rows = []
    for o, t in zip(obs.double().numpy(), elapsed.numpy() / 100.0, strict=True):
        o = np.clip(o, -10.0, 10.0)
        rows.append(np.concatenate([o, o**2, [t, t**2, t**3, 1.0]]))
    x, y = np.array(rows), returns.double().numpy()
    # The ridge as further equations: sqrt(ridge) times each coefficient equals zero.
    size = x.shape[1]
    system = np.concatenate([x[keep], np.sqrt(ridge) * np.eye(size)])
    target = np.concatenate([y[keep], np.zeros(size)])
    return x @ np.linalg.lstsq(system, target, rcond=None)[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_all_tasks_at_once_are_predicted_as_each_alone(dtype):
    obs, elapsed, returns, weight = points(dtype)
    found = fit_predict(obs, elapsed, returns, weight)
    assert found.dtype == dtype
    # float32 inputs are solved in float64: only the result is rounded.
    tolerance = 1e-7 if dtype == torch.float64 else 1e-6
    for n in range(TASKS):
        keep = weight[n].numpy() > 0
        assert 0 < keep.sum() < POINTS
        expected = by_numpy(obs[n], elapsed[n], returns[n], keep)
        np.testing.assert_allclose(found[n].numpy(), expected, rtol=tolerance, atol=50 * tolerance)


def test_points_of_no_weight_are_left_out():
    obs, elapsed, returns, weight = points()
    out = weight == 0
    other = fit_predict(
        obs.masked_fill(out.unsqueeze(-1), -9.0),
        elapsed.masked_fill(out, 7),
        returns.masked_fill(out, 1e9),
        weight,
    )
    here = fit_predict(obs, elapsed, returns, weight)
    torch.testing.assert_close(other[~out], here[~out], rtol=1e-9, atol=1e-9)


def test_features_are_as_documented():
    x = features(torch.tensor([[2.0, -30.0]]), torch.tensor([50]))
    assert x.dtype == torch.float64
    assert x.tolist() == [[2.0, -10.0, 4.0, 100.0, 0.5, 0.25, 0.125, 1.0]]
    assert x.shape[-1] == feature_count(2)


def test_a_task_that_cannot_be_solved_gets_more_ridge_and_the_others_do_not():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3, 30, 4, dtype=torch.float64, generator=g)
    returns = torch.randn(3, 30, dtype=torch.float64, generator=g)
    weight = torch.ones(3, 30, dtype=torch.float64)
    alone = fit(x, returns, weight)
    x[1] = 3e5 * x[1, :, :1]  # one feature four times, so large that 1e-5 beside it is nothing
    gram = x[1].mT @ x[1]
    _, info = torch.linalg.cholesky_ex(gram + RIDGE * torch.eye(4).double())
    assert int(info) > 0
    found = fit(x, returns, weight)
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found[[0, 2]], alone[[0, 2]], rtol=1e-9, atol=1e-12)
    # Whatever the ridge, alike features share the prediction that one of them would give.
    one = x[1, :, 0]
    best = one * (one @ returns[1]) / (one @ one)
    torch.testing.assert_close(x[1] @ found[1], best, rtol=0.05, atol=1e-3)


def test_a_task_that_no_ridge_makes_solvable_is_nan_and_alone_in_it():
    obs, elapsed, returns, weight = points()
    returns[2, 0], weight[2, 0] = float("nan"), 1.0
    found = fit_predict(obs, elapsed, returns, weight)
    assert found.isnan().all(1).tolist() == [False, False, True, False]
    assert found.isnan().any(1).tolist() == [False, False, True, False]
    x = torch.full((1, 30, 2), 1e200, dtype=torch.float64)
    assert bool(fit(x, returns[:1, :30], weight[:1, :30]).isnan().all())


def test_no_points_at_all_predict_zero():
    obs, elapsed, returns, _ = points()
    assert not fit_predict(obs, elapsed, returns, torch.zeros_like(returns)).any()
