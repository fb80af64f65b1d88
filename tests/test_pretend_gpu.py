"""The pretended GPU computes as the CPU does, refuses what CUDA refuses, and sees every wait."""

from copy import deepcopy

import pytest
import torch
from pretend_gpu import CUDA, PretendTensor, WaitingError, pretend_gpu
from torch import nn
from torch.func import functional_call

from metarl.optimization import gradient_step


@pytest.fixture
def gpu():
    with pretend_gpu() as gpu:
        yield gpu


def on_both(compute):
    """What `compute(device)` gives on the CPU and on the pretended device, the latter brought home.

    Everything that comes back must be on the device.
    """
    plain = list(compute(torch.device("cpu")))
    with pretend_gpu():
        there = list(compute(torch.device("cuda")))
        assert all(isinstance(x, PretendTensor) and x.device == CUDA for x in there)
        return plain, [x.detach().cpu() for x in there]


def numbers(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def train(module, x, steps=3, **options):
    """The parameters of `module` after some steps of Adam on a loss of `x`."""
    optimizer = torch.optim.Adam(module.parameters(), **options)
    for _ in range(steps):
        out = module(x)
        loss = (out[0] if isinstance(out, tuple) else out).square().mean()
        gradient_step(loss, optimizer, 0.01, "test")
    return [loss, *module.parameters()]


def mlp(device):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).to(device)
    return train(module, numbers(5, 4).to(device), lr=0.1)


def moved_after_its_optimizer_was_made(device):
    torch.manual_seed(0)
    module = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module(numbers(5, 4)).sum().backward()
    module.to(device)
    optimizer.zero_grad()
    module(numbers(5, 4).to(device)).square().sum().backward()
    optimizer.step()
    return module.parameters()


def fused(device):
    torch.manual_seed(0)
    return train(nn.Linear(4, 2).to(device), numbers(5, 4).to(device), fused=True)


def gru(device):
    torch.manual_seed(0)
    return train(nn.GRU(4, 6).to(device), numbers(7, 3, 4).to(device))


def cell(device):
    torch.manual_seed(0)
    return train(nn.GRUCell(4, 6).to(device), numbers(3, 4).to(device))


def second_order(device):
    torch.manual_seed(0)
    module, x = nn.Linear(4, 1).to(device), numbers(5, 4).to(device)
    params = dict(module.named_parameters())
    loss = functional_call(module, params, (x,)).square().mean()
    grads = torch.autograd.grad(loss, list(params.values()), create_graph=True)
    moved = {n: p - 0.1 * g for (n, p), g in zip(params.items(), grads, strict=True)}
    functional_call(module, moved, (x,)).square().mean().backward()
    return [p.grad for p in module.parameters()]


def gradients_by_func(device):
    x, w = numbers(5, 4).to(device), numbers(6, 4).to(device)
    loss = torch.func.grad(lambda w: (x @ w).tanh().sum())
    return [loss(w[0]), torch.func.vmap(loss)(w)]


def drawn(device):
    generator = torch.Generator(device).manual_seed(5)
    state = generator.get_state()
    first = torch.randn(4, generator=generator, device=device)
    more = torch.empty(4, device=device).exponential_(generator=generator)
    order = torch.randperm(9, generator=generator, device=device)
    generator.set_state(state)
    return [first, more, order, torch.rand(4, generator=generator, device=device)]


def changed_in_place(device):
    x, base = numbers(4, 3).to(device), torch.zeros(6, 3, device=device)
    view = base[1:5]
    view += x
    base[0] = 7.0
    base[:, 1].masked_fill_(base[:, 1] > 0, -1.0)
    base[torch.arange(2, device=device), 2] = x[:2, 0]
    base[base < -1.0] = 0.5
    base[[0, 5], 1:] = 3.0
    return [base, view]


def made(device):
    x = numbers(3).to(device)
    like = [x.new_zeros(2), torch.full_like(x, 2.0), torch.zeros_like(x, dtype=torch.int64)]
    fresh = [torch.tensor([1, 2], device=device), x.new_tensor([1.0]), torch.eye(2, device=device)]
    return [*like, *fresh, torch.as_tensor(x, device=device), deepcopy(x), x.double()]


@pytest.mark.parametrize(
    "compute",
    [
        *[mlp, moved_after_its_optimizer_was_made, fused, gru, cell, second_order],
        *[gradients_by_func, drawn, changed_in_place, made],
    ],
    ids=lambda f: f.__name__,
)
def test_values_are_those_of_the_cpu_bit_for_bit(compute):
    plain, there = on_both(compute)
    assert len(plain) == len(there)
    for x, y in zip(plain, there, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    "mix",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: there.add_(here),
        lambda there, here: here.add_(there),
        lambda there, here: here.sum().add_(there.sum()),
        lambda there, here: there[torch.tensor([0, 1])],
        lambda there, here: here[torch.tensor([0, 1], device="cuda")],
        lambda there, here: torch.where(there > 0, there, here),
        lambda there, here: nn.Linear(3, 3)(there),
        lambda there, here: torch.randn(3, device="cuda", generator=torch.Generator()),
        lambda there, here: torch.randn(3, generator=torch.Generator("cuda")),
        lambda there, here: torch.empty(3, device="cuda").exponential_(generator=torch.Generator()),
    ],
)
def test_both_sides_do_not_mix(gpu, mix):
    with pytest.raises(RuntimeError, match=r"device|CPU"):
        mix(torch.ones(3, device="cuda"), torch.ones(3))


def test_plain_numbers_may_mix(gpu):
    there = torch.ones(3, device="cuda")
    assert (there * torch.tensor(2.0)).device == CUDA
    assert gpu.waits == gpu.uploads == []


def test_a_tensor_on_the_device_becomes_no_array(gpu):
    with pytest.raises(TypeError, match="CPU first"):
        torch.ones(3, device="cuda").numpy()


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: float(x[0]),
        lambda x: bool((x > 0).any()),
        lambda x: x[0].item(),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: torch.empty(3).copy_(x),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.__setitem__(x > 0, x.clone()),
        lambda x: x.masked_select(x > 0),
        lambda x: x.unique(),
        lambda x: torch.equal(x, x),
        lambda x: x.repeat_interleave(x.long()),
    ],
)
def test_waits_are_seen(gpu, wait):
    x = torch.ones(3, device="cuda")
    assert gpu.waits == []
    wait(x)
    assert len(gpu.waits) == 1
    assert "test_pretend_gpu.py" in gpu.waits[0].where
    with gpu.no_waiting(), pytest.raises(WaitingError):
        wait(x)


def test_copies_to_the_device_are_counted_apart(gpu):
    x = torch.ones(3)
    x.to("cuda")
    torch.tensor([1.0], device="cuda")
    assert (len(gpu.waits), len(gpu.uploads)) == (0, 2)
    with gpu.no_waiting():
        x.to("cuda", non_blocking=True)
        with pytest.raises(WaitingError):
            x.to("cuda")


def test_what_stays_on_the_device_waits_for_nothing(gpu):
    x = torch.ones(3, device="cuda")
    with gpu.no_waiting():
        y = torch.where(x > 0, x, 0.0).cumsum(0).to("cuda").repeat_interleave(2)
        y[0] = 1.0
        y[y > 2.0] = 0.0
        nn.functional.one_hot(y.long().clamp(0, 3), 4)
    assert gpu.waits == gpu.uploads == []


def test_a_tensor_that_is_there_already_is_not_copied(gpu):
    x = torch.ones(3, device="cuda")
    assert x.to("cuda") is x
    assert x.to(x.device) is x
