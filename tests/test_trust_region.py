"""Natural steps and their line search."""

from __future__ import annotations

import pytest
import torch

from metarl.trust_region import flatten, line_search, natural_step, unflatten


def spd(size=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, dtype=torch.float64, generator=g)
    return root @ root.mT / size, torch.randn(size, dtype=torch.float64, generator=g)


def test_flat_vectors_come_apart_as_they_were_put_together():
    parts = [torch.randn(2, 3), torch.randn(()), torch.randn(4, 1)]
    vector = flatten(parts)
    assert vector.shape == (11,)
    for one, other in zip(unflatten(vector, parts), parts, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("damping", [0.0, 0.3])
@pytest.mark.parametrize("max_kl", [0.01, 2.0])
def test_a_natural_step_goes_down_the_natural_gradient_as_far_as_allowed(damping, max_kl):
    matrix, g = spd()
    step = natural_step(lambda v: matrix @ v, g, max_kl, 50, damping)
    system = matrix + damping * torch.eye(6).double()
    way = -torch.linalg.solve(system, g)
    torch.testing.assert_close(step / step.norm(), way / way.norm(), rtol=1e-8, atol=1e-9)
    assert float(0.5 * step @ system @ step) == pytest.approx(max_kl, rel=1e-8)


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_a_step_broken_off_early_is_as_long_and_leads_down(iterations):
    matrix, g = spd()
    step = natural_step(lambda v: matrix @ v, g, 0.01, iterations, 0.1)
    system = matrix + 0.1 * torch.eye(6).double()
    assert float(0.5 * step @ system @ step) == pytest.approx(0.01, rel=1e-8)
    assert float(step @ g) < 0.0


def test_in_float32_a_step_of_the_usual_size_is_as_long_as_allowed():
    matrix, g = (x.float() for x in spd(400))
    step = natural_step(lambda v: matrix @ v, 1e-3 * g, 0.01, 10, 1e-5)
    length = 0.5 * step @ (matrix @ step + 1e-5 * step)
    assert float(length) == pytest.approx(0.01, rel=1e-3)


def test_where_nothing_curves_upwards_there_is_no_step():
    _, g = spd()
    assert not natural_step(lambda v: -v, g, 0.01, 10, 0.1).any()
    assert not natural_step(lambda v: v, torch.zeros_like(g), 0.01, 10, 0.1).any()
    assert not natural_step(lambda v: v * float("nan"), g, 0.01, 10, 0.1).any()


class Bowl:
    """Loss (x - 1)² summed, and a KL of `stretch` times the way squared, from x = `start`."""

    def __init__(self, start=0.0, stretch=0.0):
        self.x = [torch.full((2,), start), torch.full((1,), start)]
        self.start, self.stretch, self.tried = flatten(self.x).clone(), stretch, []

    def __call__(self):
        x = flatten(self.x)
        self.tried.append(float(x[0]))
        kl = self.stretch * (x - self.start).square().sum()
        return (x - 1.0).square().sum(), kl

    def search(self, way, max_kl=1.0, **options):
        before = float(self()[0])
        self.tried.clear()
        return line_search(self.x, torch.full((3,), way), self, before, max_kl, **options)


def test_the_full_step_is_taken_if_it_will_do():
    bowl = Bowl()
    done = bowl.search(0.5)
    assert (done.accepted, done.share) == (True, 1.0)
    assert done.loss == pytest.approx(0.75)
    assert flatten(bowl.x).tolist() == [0.5] * 3
    assert bowl.tried == [0.5]


def test_the_first_share_that_lowers_the_loss_is_taken():
    bowl = Bowl()
    done = bowl.search(3.6, ratio=0.5)  # the loss falls below 2: the second try, not the best
    assert (done.accepted, done.share) == (True, 0.5)
    assert bowl.tried == pytest.approx([3.6, 1.8])
    torch.testing.assert_close(flatten(bowl.x), torch.full((3,), 1.8))
    assert done.loss == pytest.approx(3 * 0.64)


def test_the_first_share_within_the_kl_is_taken():
    bowl = Bowl(stretch=1.0)
    done = bowl.search(1.0, max_kl=0.5)  # KL 3 share²: the share is at most 0.408
    assert done.accepted
    assert done.share == pytest.approx(0.8**5)
    assert done.kl == pytest.approx(3 * 0.8**10)
    assert len(bowl.tried) == 6


ODD = [1e-45, -0.0, 3.4e38, 1.0000001, -1e-30, 7.77e22]


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda: (torch.tensor(1.0), torch.tensor(0.0)),  # neither up nor down
        lambda: (torch.tensor(2.0), torch.tensor(0.0)),
        lambda: (torch.tensor(0.5), torch.tensor(0.011)),
        lambda: (torch.tensor(float("nan")), torch.tensor(0.0)),
        lambda: (torch.tensor(0.5), torch.tensor(float("nan"))),
        lambda: (torch.tensor(float("inf")), torch.tensor(float("inf"))),
    ],
)
@pytest.mark.parametrize("step", [0.3, 1e38, float("nan")])
def test_without_success_every_parameter_is_as_it_was_bit_for_bit(evaluate, step):
    x = [torch.nn.Parameter(torch.tensor(ODD)), torch.nn.Parameter(torch.randn(3, 2))]
    before = [p.detach().clone() for p in x]
    tries = []

    def counted():
        tries.append(not torch.equal(x[1], before[1]))
        return evaluate()

    done = line_search(x, torch.full((12,), step), counted, 1.0, 0.01, attempts=4)
    assert (done.accepted, done.share, done.loss, done.kl) == (False, 0.0, 1.0, 0.0)
    assert tries == [True] * 4
    for p, was in zip(x, before, strict=True):
        assert torch.equal(p.view(torch.int32), was.view(torch.int32))


def test_every_try_starts_from_the_same_place():
    x = [torch.tensor(ODD[2:5])]
    seen = []

    def watched():
        seen.append(x[0].clone())
        return torch.tensor(2.0), torch.tensor(0.0)

    line_search(x, torch.ones(3), watched, 1.0, 0.01, attempts=3)
    for k, found in enumerate(seen):
        assert torch.equal(found, torch.tensor(ODD[2:5]) + 0.8**k * torch.ones(3))
