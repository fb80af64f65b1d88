"""ProMP: its gradient by the per-task loop, and its curvature on a bandit where all is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fewshot_oracles import assert_finite_differences, assert_same, gradients
from gradient_oracles import (
    CATEGORICAL,
    SPECS,
    Plain,
    Steps,
    adapt,
    promp_losses,
    random_rounds,
    shaken,
)
from ragged import Ragged

from metarl.agents import gradient_agent
from metarl.agents.gradient_adaptation import Batch, inner_loss
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.promp import ProMP, ProMPConfig, adapt_weight, clipped_loss

SMALL = ProMPConfig(
    layers=(5, 4), inner_rate=0.2, context=2, meta_batch=3, rollouts=4, baseline="none", clip=0.1
)
SETTINGS = {
    "one step": {},
    "three steps": {"inner_steps": 3},
    "log-likelihood": {"inner_loss": "log-likelihood", "inner_steps": 2},
    "meta-sgd": {"inner": "meta-sgd", "inner_steps": 2},
    "cavia": {"inner": "cavia", "inner_steps": 2},
    "wide clip": {"clip": 100.0},
}
EVERY = pytest.mark.parametrize("setting", SETTINGS)
BOTH = pytest.mark.parametrize("kind", SPECS)


def setup(kind, setting):
    """An agent in float64 with a weight of its own for the KL of each step; and rounds."""
    config = replace(SMALL, **SETTINGS[setting])
    agent = ProMP(config, SPECS[kind])
    shaken(agent.network)
    agent.kl_weight = torch.tensor([0.7, 0.3, 0.2][: config.inner_steps]).double()
    agent.kl = torch.zeros_like(agent.kl_weight)
    return agent, random_rounds(SPECS[kind], config, steps=8)


@BOTH
@EVERY
def test_losses_and_meta_gradient_are_those_of_the_plain_loop(kind, setting):
    agent, rounds = setup(kind, setting)
    plain = Plain(agent.network)
    expected = promp_losses(plain, rounds, agent.kl_weight)
    losses, _ = agent.meta_loss(rounds)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    agent.meta_gradient(rounds)
    found = [p.grad for p in agent.meta_parameters]
    assert_same(found, gradients(expected.mean(), plain.leaves), 1e-8)


@BOTH
@EVERY
def test_meta_gradient_equals_finite_differences(kind, setting):
    agent, rounds = setup(kind, setting)
    agent.meta_gradient(rounds)
    found = [p.grad.clone() for p in agent.meta_parameters]
    assert_finite_differences(
        lambda: agent.meta_loss(rounds)[0].mean(), agent.meta_parameters, found, tolerance=2e-5
    )


@BOTH
def test_some_ratios_are_cut_and_some_are_not(kind):
    """Otherwise the tests above see nothing of the clip."""
    agent, rounds = setup(kind, "one step")
    _, chances = agent.meta_loss(rounds)
    after = rounds[-1]
    ratio = (chances.log_prob(after.action) - after.log_prob).exp().detach()
    gain = after.advantage * (ratio - 1.0)
    cut = (gain > 0.1 * after.advantage.abs()) & (after.weight > 0)
    assert 0 < int(cut.sum()) < int((after.weight > 0).sum())
    slack = clipped_loss(chances, after, 100.0) - clipped_loss(chances, after, 0.1)
    assert float(slack.detach().abs().max()) > 1e-3


def test_the_gradient_and_the_kl_do_not_depend_on_how_tasks_are_split(monkeypatch):
    found, kls = [], []
    for rows in (10**6, 16, 1):
        monkeypatch.setattr(gradient_agent, "ROWS", rows)
        agent, rounds = setup("gaussian", "three steps")
        assert len(list(agent.parts(rounds))) == {10**6: 1, 16: 2, 1: 3}[rows]
        agent.meta_gradient(rounds)
        found.append([p.grad.clone() for p in agent.meta_parameters])
        kls.append(agent.kl / 3)
    for k in (1, 2):
        assert_same(found[k], found[0], 1e-12)
        torch.testing.assert_close(kls[k], kls[0])
    plain = Plain(agent.network)
    expected = [adapt(plain, rounds[:-1], task)[1] for task in range(3)]
    means = torch.stack([torch.stack(kl) for kl in expected]).mean(0).detach()
    torch.testing.assert_close(kls[0], means)


@BOTH
def test_steps_that_do_not_count_have_no_influence(kind):
    agent, rounds = setup(kind, "three steps")
    agent.meta_gradient(rounds)
    expected = [p.grad.clone() for p in agent.meta_parameters]
    odd = []
    for batch in rounds:
        out = batch.weight == 0
        wide = out.unsqueeze(-1)
        old = tuple(
            x.masked_fill(wide, 4.0) if x.shape[1] == out.shape[1] else x for x in batch.old
        )
        obs, advantage = batch.obs.masked_fill(wide, 50.0), batch.advantage.masked_fill(out, -3.0)
        odd.append(replace(batch, obs=obs, advantage=advantage, old=old))
    agent.meta_gradient(odd)
    assert_same([p.grad for p in agent.meta_parameters], expected, 1e-12)


# --- a bandit: every action with its probability, so that expectations are exact ------------------

PAY = torch.tensor([[1.0, -0.5, 0.3], [-0.2, 0.1, 0.9]], dtype=torch.float64)
"""what the arms of two bandits pay"""
OBS = torch.tensor([0.4, -1.0, 0.7], dtype=torch.float64)


def exact_batch(network, params, tasks=2):
    """All arms, each weighed by how probable `params` make it: sums over it are expectations."""
    obs = OBS.expand(tasks, 3, 3)
    action = torch.arange(3).expand(tasks, 3)
    with torch.no_grad():
        chances = network.chances(params, obs)
        log_prob = chances.log_prob(action)
    zeros = torch.zeros(tasks, 3, dtype=torch.float64)
    old = (chances.logits.expand(tasks, 3, 3),)
    return Batch(obs, action, PAY[:tasks], log_prob.exp(), log_prob, old, zeros, zeros, zeros[:, 0])


def bandit(kind="likelihood-ratio", **options):
    config = replace(
        SMALL, layers=(3,), inner_loss=kind, clip=1e6, kl_weight=0.0, meta_batch=2, **options
    )
    agent = ProMP(config, CATEGORICAL)
    shaken(agent.network)
    return agent


def expected_pay(plain, params, task):
    """E[r] under a policy: the true objective."""
    return (plain.policy(params, OBS.view(1, 3)).probs[0] * PAY[task]).sum()


def kept_gradients(number, leaves):
    """The gradient; the graph may be used again."""
    return torch.autograd.grad(number, leaves, retain_graph=True, materialize_grads=True)


def true_value(plain, task, steps=1):
    """E[r] after `steps` steps up the true gradient of E[r]: what meta-learning is after."""
    params = plain.start()
    for _ in range(steps):
        params = plain.step(params, -expected_pay(plain, params, task), second_order=True)
    return expected_pay(plain, params, task)


@pytest.mark.parametrize("kind", ["likelihood-ratio", "log-likelihood"])
def test_the_gradient_of_either_inner_loss_is_the_policy_gradient(kind):
    agent = bandit(kind)
    batch, plain = exact_batch(agent.network, {}), Plain(agent.network)
    for task in range(2):
        loss = inner_loss(agent.network.chances({}, batch.obs), batch, kind)[task]
        score = sum(
            plain.policy({}, OBS.view(1, 3)).log_prob(torch.tensor(a)).squeeze() * float(weight)
            for a, weight in enumerate(batch.weight[task] * PAY[task])
        )
        true = gradients(expected_pay(plain, {}, task), plain.leaves)
        assert_same(gradients(score, plain.leaves), true, 1e-10)
        found = gradients(-loss, agent.meta_parameters)
        assert_same(found, true, 1e-10)


@pytest.mark.parametrize("kind", ["likelihood-ratio", "log-likelihood"])
def test_only_through_the_ratio_is_the_derivative_of_a_step_the_true_curvature(kind):
    """Rothfuss et al. 2019, section 4."""
    agent = bandit(kind)
    batch, plain = exact_batch(agent.network, {}), Plain(agent.network)
    adapted = agent.network.adapted([batch])
    apart = []
    for task in range(2):
        true = plain.step(plain.start(), -expected_pay(plain, {}, task), second_order=True)
        for name, expected in true.items():
            here = adapted[name][task]
            torch.testing.assert_close(here, expected, rtol=1e-10, atol=1e-12)  # the step itself
            for k in range(min(2, expected.numel())):  # and rows of its Jacobian
                found = kept_gradients(here.flatten()[k], agent.meta_parameters)
                wanted = kept_gradients(expected.flatten()[k], plain.leaves)
                apart += [float((a - b).abs().max()) for a, b in zip(found, wanted, strict=True)]
    if kind == "likelihood-ratio":
        assert max(apart) < 1e-12
    else:
        assert max(apart) > 1e-2


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("kind", ["likelihood-ratio", "log-likelihood"])
def test_the_meta_gradient_is_that_of_what_is_earned_after_adaptation(kind, steps):
    agent = bandit(kind, inner_steps=steps)
    network, plain = agent.network, Plain(agent.network)
    rounds, params = [], {}
    for _ in range(steps + 1):
        rounds.append(exact_batch(network, params))
        params = {n: p.detach() for n, p in network.adapted(rounds).items()}
    agent.meta_gradient(rounds)
    found = torch.cat([p.grad.flatten() for p in agent.meta_parameters])
    value = sum(true_value(plain, task, steps) for task in range(2)) / 2
    true = torch.cat([g.flatten() for g in gradients(-value, plain.leaves)])
    off = float((found - true).norm() / true.norm())
    assert off < 1e-10 if kind == "likelihood-ratio" else off > 1e-2


# --- the agent -----------------------------------------------------------------------------------


def test_the_weight_of_the_kl_is_halved_below_its_target_and_doubled_above():
    weight = torch.tensor([1.0, 1.0, 1.0, 3.0, 3.0])
    kl = torch.tensor([0.0066, 0.0067, 0.0149, 0.0151, float("nan")])
    assert adapt_weight(weight, kl, 0.01).tolist() == [0.5, 1.0, 1.0, 6.0, 3.0]


@pytest.mark.parametrize(("target", "factor"), [(1e3, 0.5), (1e-9, 2.0)])
def test_the_agent_adapts_the_weight_of_each_step(target, factor):
    family = Ragged(episodes=2)
    config = replace(
        SMALL, layers=(8,), adaptive_kl=True, target_kl=target, kl_weight=0.25, inner_steps=2
    )
    agent, env = ProMP(config, family.spec()), family.make_worlds(12)
    for k in range(1, 4):
        figures = agent.train_step(env, 0.0)
        assert agent.kl_weight.tolist() == [0.25 * factor**k] * 2
        assert figures["loss/kl_weight"] == 0.25 * factor**k
        assert figures["loss/inner_kl"] > 1e-7  # after all epochs; at first θ is what acted
    still = ProMP(replace(config, adaptive_kl=False), family.spec())
    still.train_step(env, 0.0)
    assert still.kl_weight.tolist() == [0.25] * 2


def test_the_step_size_is_annealed():
    family = Ragged(episodes=2)
    config = replace(SMALL, layers=(8,), learning_rate=1e-2, final_learning_rate=0.0)
    agent, env = ProMP(config, family.spec()), family.make_worlds(12)
    agent.train_step(env, 0.75)
    assert agent.optimizer.param_groups[0]["lr"] == pytest.approx(2.5e-3)
    before = [p.detach().clone() for p in agent.meta_parameters]
    agent.train_step(env, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.meta_parameters, strict=True))


def test_without_clip_and_penalty_it_has_the_meta_gradient_of_maml():
    rounds = random_rounds(SPECS["gaussian"], SMALL)
    free = replace(SMALL, clip=1e6, kl_weight=0.0)
    maml = MAMLConfig(layers=(5, 4), inner_rate=0.2, meta_batch=3, rollouts=4, baseline="none")
    grads = []
    for agent in (
        ProMP(free, SPECS["gaussian"]),
        MAML(replace(maml, inner_loss="likelihood-ratio"), SPECS["gaussian"]),
    ):
        shaken(agent.network)
        agent.meta_gradient(rounds)
        grads.append([p.grad for p in agent.meta_parameters])
    assert_same(*grads, 1e-12)


def test_plain_ratios_are_those_of_the_old_policy():
    """The oracle's own footing: at the policy that acted its ratios are 1 and its KL 0."""
    agent = bandit()
    batch = exact_batch(agent.network, {})
    steps, plain = Steps(batch, 0), Plain(agent.network)
    policy = plain.policy({}, steps.obs)
    torch.testing.assert_close(steps.ratio(policy), torch.ones(3).double())
    assert abs(float(steps.kl(policy).detach())) < 1e-12
