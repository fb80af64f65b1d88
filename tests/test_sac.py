"""SAC: the density of squeezed actions, twin critics, and which loss reaches which network."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Independent, Normal

from metarl.agents.sac import SACConfig, SoftActorCritic, actor_losses, bellman, next_value
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.networks import EnsembleMLP, TanhGaussianHead, relu_mlp

LOW, HIGH = np.array([-1.0, 2.0, -5.0]), np.array([1.0, 3.0, 0.0])
VARIANTS = ("modern", "paper")
S, A = 4, 3


def actions(low=LOW, high=HIGH):
    return gym.spaces.Box(low.astype(np.float32), high.astype(np.float32))


def agent(variant, layers=(8, 8)):
    """Networks in float64 with weights large enough for every term to matter."""
    torch.manual_seed(2)
    sac = SoftActorCritic(S, actions(), layers, variant).double()
    with torch.no_grad():
        for parameter in sac.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return sac


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def log_density(mean, log_std, u):
    """What the head says about tanh(u)."""
    return TanhGaussianHead.log_prob((u - mean) / log_std.exp(), log_std, u)


# --- the policy's density ----------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.0), (-1.5, 0.4)])
def test_the_density_is_the_slope_of_the_distribution_function(mean, log_std):
    """Change of variables done by numbers: p(a) = dP(A < a)/da, and all of it sums to 1."""
    mean, log_std = (torch.tensor([x], dtype=torch.float64) for x in (mean, log_std))
    a = torch.linspace(-0.999, 0.999, 1999, dtype=torch.float64)
    found = log_density(mean, log_std, a.atanh().unsqueeze(-1)).exp()
    below = [Normal(mean, log_std.exp()).cdf((a + h).atanh()) for h in (-1e-6, 1e-6)]
    torch.testing.assert_close(found, (below[1] - below[0]) / 2e-6, rtol=1e-5, atol=1e-7)
    u = torch.linspace(-30.0, 30.0, 2_000_001, dtype=torch.float64)
    mass = torch.trapezoid(log_density(mean, log_std, u.unsqueeze(-1)).exp(), u.tanh())
    assert float(mass) == pytest.approx(1.0, abs=1e-6)


def test_the_density_is_that_of_the_normal_less_the_jacobian():
    mean, log_std, u = random(A), 0.3 * random(A, seed=1), random(A, seed=2)
    jacobian = torch.autograd.functional.jacobian(torch.tanh, u)
    expected = Normal(mean, log_std.exp()).log_prob(u).sum() - jacobian.logdet()
    torch.testing.assert_close(log_density(mean, log_std, u), expected)


def test_the_density_has_the_gradients_of_the_plain_formula():
    # Small enough for the plain formula, which loses its digits where tanh saturates.
    mean = (0.5 * random(50, A)).requires_grad_()
    log_std = (0.3 * random(50, A, seed=1)).requires_grad_()
    noise = random(50, A, seed=2).clamp(-2.0, 2.0)
    u = mean + log_std.exp() * noise
    normal = Independent(Normal(mean, log_std.exp()), 1)
    found = TanhGaussianHead.log_prob(noise, log_std, u)
    expected = normal.log_prob(u) - (1 - u.tanh().square()).log().sum(-1)
    torch.testing.assert_close(found, expected)
    over = (mean, log_std)
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), over, retain_graph=True),
        torch.autograd.grad(expected.sum(), over),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [5.0, 20.0, 100.0, 1e4])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_where_tanh_saturates_density_and_gradients_stay_finite_and_right(size, sign):
    mean = torch.tensor([sign * size], requires_grad=True)
    log_std = torch.zeros(1, requires_grad=True)
    found = TanhGaussianHead.log_prob(torch.zeros(1), log_std, mean)
    # log(1 - tanh²u) = log 4 - 2|u| to within e^-2|u|
    expected = -0.5 * math.log(2.0 * math.pi) - (math.log(4.0) - 2.0 * size)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-4)
    for gradient in torch.autograd.grad(found.sum(), (mean, log_std)):
        assert bool(gradient.isfinite().all())


def test_samples_come_with_the_density_of_what_was_drawn():
    torch.manual_seed(0)
    head = TanhGaussianHead(4, A).double()
    mean, log_std = random(1000, A), random(1000, A, seed=1).clamp(max=0.0)
    action, log_prob = head.sample(mean, log_std, torch.Generator().manual_seed(3))
    assert action.abs().max() < 1.0
    torch.testing.assert_close(
        log_prob, log_density(mean, log_std, action.atanh()), rtol=1e-5, atol=1e-5
    )
    z = (action.atanh() - mean) / log_std.exp()
    assert abs(float(z.mean())) < 0.05 and abs(float(z.std()) - 1.0) < 0.05


def test_the_policys_standard_deviation_is_kept_within_its_published_bounds():
    head = TanhGaussianHead(1, 2)
    with torch.no_grad():
        head.body[-1].weight.zero_()
        head.body[-1].bias.copy_(torch.tensor([9.0, -9.0, 50.0, -50.0]))
    mean, log_std = head(torch.zeros(3, 1))
    assert mean.tolist() == [[9.0, -9.0]] * 3
    assert log_std.tolist() == [[2.0, -20.0]] * 3


# --- networks ----------------------------------------------------------------------------------


def separate(critics):
    """The same critics, one `nn.Sequential` for each."""
    networks = []
    for head in range(len(critics.weights[0])):
        layers = []
        for weight, bias in zip(critics.weights, critics.biases, strict=True):
            layer = nn.Linear(*weight.shape[1:])
            layer.weight = nn.Parameter(weight[head].detach().T.clone())
            layer.bias = nn.Parameter(bias[head, 0].detach().clone())
            layers += [layer, nn.ReLU()]
        networks.append(nn.Sequential(*layers[:-1]))
    return networks


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [(7,), (5, 7), ()])
def test_an_ensemble_is_as_many_networks(frozen, shape):
    torch.manual_seed(0)
    critics = EnsembleMLP(3, [S, 8, 6], last=0.5).double()
    x = random(*shape, S).requires_grad_()
    twin = x.detach().clone().requires_grad_()
    networks = separate(critics)
    found = critics(x, frozen=frozen)
    expected = torch.stack([network(twin).squeeze(-1) for network in networks])
    assert found.shape == (3, *shape)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, twin.grad)
    if frozen:
        assert all(p.grad is None for p in critics.parameters())
        return
    for head, network in enumerate(networks):
        for k, layer in enumerate(network[::2]):
            torch.testing.assert_close(critics.weights[k].grad[head].T, layer.weight.grad)
            torch.testing.assert_close(critics.biases[k].grad[head, 0], layer.bias.grad)


def test_weights_start_as_published():
    torch.manual_seed(0)
    network = relu_mlp([100, 400], 50, last=3e-3)
    hidden, relu, last = network
    assert isinstance(relu, nn.ReLU)
    critics = EnsembleMLP(2, [100, 400], last=3e-3)
    for weight in (hidden.weight.detach(), *critics.weights[0].detach()):
        assert 0.099 < float(weight.abs().max()) <= 0.1
        assert float(weight.std()) == pytest.approx(0.1 / math.sqrt(3.0), rel=0.02)
    for bias in (hidden.bias, critics.biases[0]):
        assert torch.equal(bias, torch.full_like(bias, 0.1))
    for parameter in (last.weight, last.bias, critics.weights[1], critics.biases[1]):
        assert 0 < float(parameter.detach().abs().max()) <= 3e-3
    assert not torch.equal(critics.weights[0][0], critics.weights[0][1])


@pytest.mark.parametrize("variant", VARIANTS)
def test_targets_start_equal_follow_by_tau_and_are_never_trained(variant):
    sac = SoftActorCritic(S, actions(), (8,), variant)
    followed = sac.value if variant == "paper" else sac.critics
    mine, theirs = list(sac.target.parameters()), list(followed.parameters())
    assert all(map(torch.equal, mine, theirs))
    assert not any(p.requires_grad for p in mine)
    assert not {id(p) for p in mine} & {id(p) for p in theirs}
    before = [p.clone() for p in mine]
    with torch.no_grad():
        for parameter in theirs:
            parameter.add_(torch.randn_like(parameter))
    after = [p.clone() for p in theirs]
    sac.follow(0.1)
    for old, new, target, source in zip(before, after, mine, theirs, strict=True):
        torch.testing.assert_close(target.detach(), 0.9 * old + 0.1 * new)
        assert torch.equal(source, new)
    assert "target.weights.0" in sac.state_dict()


def test_actions_are_mapped_to_the_familys_and_back():
    sac = SoftActorCritic(S, actions(), (8,), "modern").double()
    ends = torch.tensor([[-1.0] * A, [1.0] * A, [0.0] * A], dtype=torch.float64)
    low, high = torch.from_numpy(LOW), torch.from_numpy(HIGH)
    torch.testing.assert_close(sac.to_env(ends), torch.stack([low, high, (low + high) / 2]))
    inside = torch.rand(100, A, dtype=torch.float64) * 2 - 1
    torch.testing.assert_close(sac.from_env(sac.to_env(inside)), inside)


def test_acting_by_the_mean_or_by_chance():
    sac, state = agent("modern"), random(4000, S)
    steady = torch.arange(4000) % 2 == 0
    with torch.no_grad():
        mean, log_std = sac.policy(state)
        taken = sac.act(*sac.policy(state), steady, torch.Generator().manual_seed(0))
        again = sac.act(*sac.policy(state), steady, torch.Generator().manual_seed(1))
    torch.testing.assert_close(taken[steady], sac.to_env(mean.tanh())[steady])
    assert torch.equal((taken == again).all(-1), steady)
    low, high = torch.from_numpy(LOW), torch.from_numpy(HIGH)
    assert (taken >= low).all() and (taken <= high).all()
    u = sac.from_env(taken).clamp(-1 + 1e-12, 1 - 1e-12).atanh()
    z = ((u - mean) / log_std.exp())[~steady]
    for share, quantile in ((0.1587, -1.0), (0.5, 0.0), (0.8413, 1.0)):
        assert float(z.quantile(share)) == pytest.approx(quantile, abs=0.06)


# --- losses ------------------------------------------------------------------------------------


def groups(sac):
    """Parameters by the loss that alone may reach them."""
    named = {"bellman": sac.critics, "target": sac.target}
    found = {name: list(module.parameters()) for name, module in named.items()}
    found["policy"] = [*sac.actor.parameters(), *sac.head.parameters()]
    if sac.variant == "paper":
        return {**found, "value": list(sac.value.parameters())}
    return {**found, "temperature": [sac.log_alpha]}


def reached(loss, parameters):
    """Whether the gradient of `loss` reaches any, or all, or none of `parameters`."""
    parameters = [p for p in parameters if p.requires_grad]
    if not parameters:
        return []
    gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return [g is not None and bool((g != 0).any()) for g in gradients]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_loss_reaches_its_own_network_and_no_other(variant):
    sac, state, generator = agent(variant), random(6, S), torch.Generator().manual_seed(1)
    action, target = random(6, A, seed=1).tanh(), random(6, seed=2)
    terms = {"bellman": bellman(sac, state, action, target)}
    terms |= actor_losses(sac, state, generator)
    own = groups(sac)
    assert terms.keys() == own.keys() - {"target"}
    for name, loss in terms.items():
        for group, parameters in own.items():
            hit = reached(loss, parameters)
            assert all(hit) if name == group else not any(hit), (name, group)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_value_of_the_next_state_carries_no_gradient(variant):
    sac, state = agent(variant), random(6, S).requires_grad_()
    assert not next_value(sac, state, torch.Generator()).requires_grad


def test_the_bellman_loss_is_a_mean_over_transitions_and_a_sum_over_critics():
    sac, state, action = agent("modern"), random(3, 5, S), random(3, 5, A, seed=1)
    target = random(3, 5, seed=2)
    expected = 0.0
    for network in separate(sac.critics):
        q = network(torch.cat([state, action], -1)).squeeze(-1)
        expected += sum(float(e) ** 2 for e in (q - target).detach().flatten()) / 15
    found = bellman(sac, state, action, target)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)


def test_the_temperature_rises_where_the_policy_is_too_sure_and_falls_where_it_is_not():
    state, generator = random(500, S), torch.Generator().manual_seed(0)
    for log_std, sign in ((-5.0, -1.0), (-0.5, 1.0)):
        sac = agent("modern")
        with torch.no_grad():
            sac.head.body[-1].weight.zero_()
            sac.head.body[-1].bias.copy_(torch.tensor([0.0] * A + [log_std] * A))
        loss = actor_losses(sac, state, generator)["temperature"]
        slope = torch.autograd.grad(loss, sac.log_alpha)[0]
        # A gradient step goes against the slope; the entropy that is wanted is -A.
        assert math.copysign(1.0, slope) == sign
        mean, spread = sac.policy(state)
        log_prob = sac.head.sample(mean, spread, torch.Generator().manual_seed(1))[1]
        expected = -(float(log_prob.mean().detach()) - A)
        assert float(slope) == pytest.approx(expected, rel=0.05, abs=0.1)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(4),
        gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
        gym.spaces.Box(np.array([-1.0, 0.0]), np.array([1.0, np.inf]), dtype=np.float64),
    ],
)
def test_actions_that_cannot_be_squeezed_are_refused(space):
    with pytest.raises(UsageError, match=r"sac: actions must be continuous and bounded, .*are "):
        SoftActorCritic(S, space, (8,), "modern")


def test_the_families_with_bounded_actions_are_accepted():
    for name in ("point-dense", "half-cheetah-vel"):
        spec = make_family(name).spec()
        SoftActorCritic(spec.obs_dim, spec.action_space, (8,), "modern")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"updates": 0}, "updates must be a finite number of at least 1, got 0"),
        ({"batch": 0}, "batch must be a finite number of at least 1, got 0"),
        ({"gamma": 1.5}, r"gamma must be a finite number in \[0, 1\], got 1.5"),
        ({"tau": math.nan}, r"tau must be a finite number in \[0, 1\], got nan"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0"),
        ({"reward_scale": -1.0}, "reward_scale must be a finite number above 0, got -1"),
        ({"layers": ()}, "layers must be one or more widths above 0"),
        ({"capacity": 10, "batch": 11}, r"capacity must be at least one batch \(11\), got 10"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings, expected):
    with pytest.raises(UsageError, match=rf"^sac: {expected}"):
        SACConfig(**settings)
