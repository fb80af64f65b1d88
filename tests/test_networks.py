"""Networks, heads and normalisation against torch's own or a direct computation."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from metarl.distributions import Categorical, Gaussian
from metarl.networks import (
    CategoricalHead,
    EnsembleMLP,
    GaussianHead,
    RunningNorm,
    prefers_onednn,
    relu_mlp,
)


def test_running_norm_equals_the_statistics_of_all_rows() -> None:
    rows = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([1.0, 10.0, 0.1]) + 5.0
    norm = RunningNorm(3)
    for part in rows.split([10, 1, 0, 489, 500]):
        norm.update(part)
    torch.testing.assert_close(norm.mean, rows.mean(0), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(norm.var, rows.var(0, correction=0), rtol=1e-12, atol=0.0)
    expected = ((rows - rows.mean(0)) / rows.std(0, correction=0)).clamp(-10, 10)
    torch.testing.assert_close(norm(rows), expected, rtol=1e-6, atol=1e-6)


def test_gaussian_equals_torch() -> None:
    head = GaussianHead(4, 2, log_std=-0.5)
    ours, action = head(torch.randn(5, 4)), torch.randn(5, 2)
    assert torch.equal(ours.mode(), ours.mean)
    other = Gaussian(torch.randn(5, 2), torch.randn(2))
    theirs = [Independent(Normal(p.mean, p.log_std.exp()), 1) for p in (ours, other)]
    torch.testing.assert_close(ours.log_prob(action), theirs[0].log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs[0].entropy())
    torch.testing.assert_close(ours.kl(other), kl_divergence(*theirs))


def test_categorical_equals_torch() -> None:
    head = CategoricalHead(4, 3)
    ours, action = head(torch.randn(5, 4)), torch.tensor([0, 1, 2, 1, 0])
    other = Categorical(torch.randn(5, 3))
    theirs = [torch.distributions.Categorical(logits=p.logits) for p in (ours, other)]
    torch.testing.assert_close(ours.log_prob(action), theirs[0].log_prob(action))
    torch.testing.assert_close(ours.entropy(), theirs[0].entropy())
    torch.testing.assert_close(ours.kl(other), kl_divergence(*theirs))
    assert torch.equal(ours.mode(), theirs[0].probs.argmax(-1))


def test_samples_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    choice = Categorical(torch.tensor([5.0, 3.0, 2.0]).log().expand(100_000, 3))
    counts = choice.sample(generator).bincount() / 100_000
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.2]), atol=0.01, rtol=0.0)
    draws = Gaussian(torch.full((100_000, 1), 3.0), torch.tensor([0.7])).sample(generator)
    assert abs(float(draws.mean()) - 3.0) < 0.03
    assert abs(float(draws.std().log()) - 0.7) < 0.01


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
@pytest.mark.parametrize("frozen", [False, True])
def test_wide_and_narrow_layers_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    """What oneDNN is given and what torch keeps agree, values and gradients, to rounding."""
    torch.manual_seed(0)
    critics, actor = EnsembleMLP(2, [9, 128, 128], last=0.1), relu_mlp([9, 128, 128], 3)
    x = torch.randn(16, 40, 9, requires_grad=True)
    results, used = [], []
    for allowed in (True, False):
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda allowed=allowed: allowed)
        used.append(prefers_onednn(x.flatten(0, 1), 128))
        q, mean = critics(x, frozen), actor(x)
        assert q.shape == (2, 16, 40) and mean.shape == (16, 40, 3)
        over = [x, *([] if frozen else critics.parameters()), *actor.parameters()]
        loss = q.square().sum() + mean.square().sum()
        results.append([q, mean, *torch.autograd.grad(loss, over)])
    assert used == [True, False]
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-4)
    expected = torch.stack([_by_hand(x, critics, head) for head in range(2)])
    torch.testing.assert_close(results[0][0], expected, rtol=1e-4, atol=1e-4)


def _by_hand(x: torch.Tensor, critics: EnsembleMLP, head: int) -> torch.Tensor:
    for k, (weight, bias) in enumerate(zip(critics.weights, critics.biases, strict=True)):
        x = (x.relu() if k else x) @ weight[head] + bias[head]
    return x.squeeze(-1)
