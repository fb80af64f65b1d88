"""Gaussian-process curves: the exact posterior against slow formulas, and against its own draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from metarl.errors import UsageError
from metarl.fewshot.episodes import Points, Protocol
from metarl.fewshot.gaussian_processes import GPCurves
from metarl.fewshot.learner import gaussian_log_likelihood

KERNELS = ("rbf", "matern", "periodic")


def draw(data, shots=6, queries=5, tasks=3, split="held-out", seed=0):
    generator = torch.Generator().manual_seed(seed)
    return data.episodes(Protocol(shots=shots, queries=queries), tasks, split, generator)


def slow_kernel(kernel, length, amplitude, period, a, b):
    """One covariance, in plain Python."""
    d = abs(a - b)
    if kernel == "rbf":
        shape = math.exp(-(d**2) / (2 * length**2))
    elif kernel == "matern":
        r = math.sqrt(5) * d / length
        shape = (1 + r + r**2 / 3) * math.exp(-r)
    else:
        shape = math.exp(-2 * math.sin(math.pi * d / period) ** 2 / length**2)
    return amplitude**2 * shape


def slow_joint(data, episodes, task):
    """The covariance of all observations of one task, support points first."""
    values = {name: float(value[task]) for name, value in episodes.tasks.items()}
    period = values.get("period", 1.0)
    x = torch.cat([episodes.support.x, episodes.query.x], 1)[task, :, 0].double().tolist()
    rows = [
        [slow_kernel(data.kernel, values["length"], values["amplitude"], period, a, b) for b in x]
        for a in x
    ]
    return np.array(rows) + data.noise**2 * np.eye(len(x))


@pytest.mark.parametrize("kernel", KERNELS)
def test_posterior_is_the_conditional_of_the_joint_normal(kernel):
    data = GPCurves(kernel=kernel)
    episodes = draw(data).to(dtype=torch.float64)
    found = data.posterior(episodes.tasks, episodes.support, episodes.query.x)
    for task in range(len(episodes)):
        joint = slow_joint(data, episodes, task)
        shots = episodes.support.x.shape[1]
        inverse = np.linalg.inv(joint[:shots, :shots])
        mean = joint[shots:, :shots] @ inverse @ episodes.support.y[task].numpy()
        rest = joint[shots:, :shots] @ inverse @ joint[:shots, shots:]
        std = np.sqrt(np.diag(joint[shots:, shots:] - rest))[:, None]
        np.testing.assert_allclose(found.value[task], mean, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(found.std[task], std, rtol=1e-7)


@pytest.mark.parametrize("kernel", KERNELS)
def test_log_likelihood_is_that_of_one_more_point_in_the_joint(kernel):
    data = GPCurves(kernel=kernel)
    episodes = draw(data, queries=1).to(dtype=torch.float64)
    prediction = data.posterior(episodes.tasks, episodes.support, episodes.query.x)
    found = gaussian_log_likelihood(prediction, episodes.query.y)[:, 0]
    y = torch.cat([episodes.support.y, episodes.query.y], 1)[..., 0].numpy()
    for task in range(len(episodes)):
        joint = slow_joint(data, episodes, task)
        all_points = multivariate_normal(cov=joint).logpdf(y[task])
        support = multivariate_normal(cov=joint[:-1, :-1]).logpdf(y[task, :-1])
        assert float(found[task]) == pytest.approx(all_points - support, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("kernel", KERNELS)
def test_posterior_is_calibrated_on_what_is_drawn(kernel):
    data = GPCurves(kernel=kernel)
    episodes = draw(data, shots=8, queries=1, tasks=8000)
    best = data.posterior(episodes.tasks, episodes.support, episodes.query.x)
    score = ((episodes.query.y - best.value) / best.std).double()
    # 8000 independent scores: the standard errors are 0.011, 0.016, 0.0024.
    assert abs(float(score.mean())) < 0.05
    assert abs(float(score.var()) - 1.0) < 0.07
    assert abs(float((score.abs() < 1.96).double().mean()) - 0.95) < 0.011
    # What it expects of its own likelihood, -log σ √(2πe), is what it gets.
    expected = -(best.std.double().log() + 0.5 * math.log(2.0 * math.pi * math.e)).mean()
    found = gaussian_log_likelihood(best, episodes.query.y).double().mean()
    assert abs(float(found - expected)) < 0.04


def test_posterior_falls_back_to_the_prior_far_away():
    data = GPCurves()
    episodes = draw(data)
    far = data.posterior(episodes.tasks, episodes.support, torch.full((3, 1, 1), 50.0))
    prior = (episodes.tasks["amplitude"].square() + data.noise**2).sqrt()
    torch.testing.assert_close(far.std, prior)
    torch.testing.assert_close(far.value, torch.zeros(3, 1, 1))


@pytest.mark.parametrize("kernel", KERNELS)
def test_posterior_without_noise_passes_through_the_support_points(kernel):
    data = GPCurves(kernel=kernel, noise=0.0)
    episodes = draw(data, shots=40, tasks=20)
    at = data.posterior(episodes.tasks, episodes.support, episodes.support.x)
    assert float((at.value - episodes.support.y).abs().max()) < 2e-3
    assert float(at.std.max()) < 2e-4


def test_posterior_of_a_task_does_not_depend_on_the_others():
    data = GPCurves(kernel="periodic")
    episodes = draw(data)
    together = data.posterior(episodes.tasks, episodes.support, episodes.query.x)
    one = episodes[1:2]
    alone = data.posterior(one.tasks, one.support, one.query.x)
    torch.testing.assert_close(together.value[1:2], alone.value)
    torch.testing.assert_close(together.std[1:2], alone.std)


def test_scales_stay_within_the_ranges_that_were_asked_for():
    data = GPCurves(
        kernel="periodic", length=(0.2, 0.3), amplitude=(2.0, 2.0), period=(0.7, 0.9), noise=0.0
    )
    episodes = draw(data, tasks=200)
    for name, (low, high) in {"length": (0.2, 0.3), "period": (0.7, 0.9)}.items():
        value = episodes.tasks[name]
        assert value.shape == (200, 1, 1)
        assert low <= float(value.min()) < low + 0.02 and high - 0.02 < float(value.max()) <= high
    assert torch.equal(episodes.tasks["amplitude"], torch.full((200, 1, 1), 2.0))
    assert 1.7 < float(episodes.query.y.std()) < 2.3
    assert -2.0 <= float(episodes.query.x.min()) < -1.9 < 1.9 < float(episodes.query.x.max()) <= 2.0


def test_context_is_random_in_training_alone():
    data, generator = GPCurves(context=(3, 6)), torch.Generator().manual_seed(0)
    protocol = Protocol(shots=8, queries=1)
    train = [data.episodes(protocol, 1, "train", generator) for _ in range(1500)]
    counts = torch.bincount(torch.tensor([e.support.x.shape[1] for e in train]))
    # P(n) is in proportion to log((n + 1) / n); the standard errors are at most 0.013.
    wanted = torch.tensor([math.log((n + 1) / n) for n in range(3, 7)]) / math.log(7 / 3)
    assert len(counts) == 7
    torch.testing.assert_close(counts[3:] / 1500, wanted, rtol=0.0, atol=0.05)
    assert draw(data, shots=8, split="held-out").support.x.shape == (3, 8, 1)
    assert draw(data, split="train").query.y.shape == (3, 5, 1)


def test_the_same_generator_gives_the_same_curves_and_another_others():
    first, again, other = (draw(GPCurves(), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.support.y, again.support.y)
    assert torch.equal(first.query.x, again.query.x)
    assert not torch.equal(first.support.y, other.support.y)


def test_nothing_but_the_drawn_points_is_known():
    data = GPCurves()
    episodes = draw(data)
    assert data.truth(episodes.tasks, episodes.query.x) is None
    assert "period" not in episodes.tasks


def test_predictions_are_of_the_type_of_the_inputs():
    data = GPCurves()
    episodes = draw(data)
    support = Points(episodes.support.x, episodes.support.y)
    assert data.posterior(episodes.tasks, support, episodes.query.x).std.dtype == torch.float32
    wide = data.posterior(episodes.tasks, support, episodes.query.x.double())
    assert wide.value.dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel": "linear"}, "kernel must be rbf, matern or periodic, got linear"),
        ({"length": (0.6, 0.1)}, "length must be two finite numbers above 0"),
        ({"amplitude": (0.0, 1.0)}, "amplitude must be two finite numbers above 0"),
        ({"period": (0.1, math.inf)}, "period must be two finite numbers above 0"),
        ({"context": (0, 5)}, "context must be two finite numbers above 0"),
        ({"noise": -0.1}, "noise must be a finite number of at least 0"),
    ],
)
def test_options_that_make_no_curves_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        GPCurves(**options)
