"""Inner gradients and meta-gradients of MAML: the per-task loop's, and finite differences'."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fewshot_oracles import assert_finite_differences, assert_same, gradients
from gradient_oracles import (
    GAUSSIAN,
    SPECS,
    Plain,
    Steps,
    maml_losses,
    random_rounds,
    shaken,
)

from metarl.agents import gradient_agent
from metarl.agents.gradient_adaptation import inner_loss, kl_from_old
from metarl.agents.maml import MAML, MAMLConfig

SMALL = MAMLConfig(
    layers=(5, 4), inner_rate=0.2, context=2, meta_batch=3, rollouts=4, baseline="none"
)
SETTINGS = {
    "one step": {},
    "three steps": {"inner_steps": 3},
    "first order": {"second_order": False},
    "first order, three steps": {"second_order": False, "inner_steps": 3},
    "ratio": {"inner_loss": "likelihood-ratio", "inner_steps": 2},
    "meta-sgd": {"inner": "meta-sgd", "inner_steps": 2},
    "meta-sgd, first order": {"inner": "meta-sgd", "inner_steps": 2, "second_order": False},
    "cavia": {"inner": "cavia"},
    "cavia, three steps by ratio": {
        "inner": "cavia",
        "inner_steps": 3,
        "inner_loss": "likelihood-ratio",
    },
    "cavia, first order": {"inner": "cavia", "inner_steps": 2, "second_order": False},
    "exploration": {"exploration": 0.7, "inner_steps": 2},
    "exploration, cavia": {"exploration": 0.7, "inner": "cavia"},
}
EVERY = pytest.mark.parametrize("setting", SETTINGS)
BOTH = pytest.mark.parametrize("kind", SPECS)


def setup(kind, setting):
    """An agent in float64, and rounds that it did not collect itself."""
    config = replace(SMALL, **SETTINGS[setting])
    agent = MAML(config, SPECS[kind])
    shaken(agent.network)
    return agent, random_rounds(SPECS[kind], config)


@BOTH
@EVERY
def test_losses_and_meta_gradient_are_those_of_the_plain_loop(kind, setting):
    agent, rounds = setup(kind, setting)
    plain = Plain(agent.network)
    expected = maml_losses(plain, rounds)
    losses, _ = agent.meta_loss(rounds)
    torch.testing.assert_close(losses, expected, rtol=1e-10, atol=1e-12)
    value = agent.meta_gradient(rounds)
    assert value == pytest.approx(float(expected.detach().mean()), rel=1e-6)  # summed in float32
    found = [p.grad for p in agent.meta_parameters]
    assert_same(found, gradients(expected.mean(), plain.leaves), 1e-8)


@BOTH
@pytest.mark.parametrize("setting", [name for name in SETTINGS if "first" not in name])
def test_meta_gradient_equals_finite_differences(kind, setting):
    agent, rounds = setup(kind, setting)
    agent.meta_gradient(rounds)
    found = [p.grad.clone() for p in agent.meta_parameters]
    assert_finite_differences(
        lambda: agent.meta_loss(rounds)[0].mean(), agent.meta_parameters, found
    )


@BOTH
@pytest.mark.parametrize("inner", ["sgd", "meta-sgd", "cavia"])
@pytest.mark.parametrize("loss", ["log-likelihood", "likelihood-ratio"])
def test_a_step_without_derivative_is_the_plain_loops(kind, inner, loss):
    """What collecting and the adaptive policy do."""
    config = replace(SMALL, inner=inner, inner_loss=loss)
    agent = MAML(config, SPECS[kind])
    shaken(agent.network)
    batch = random_rounds(SPECS[kind], config)[0]
    plain = Plain(agent.network)
    with torch.no_grad():
        adapted = agent.network.adapted([batch], second_order=False)
    assert not any(p.requires_grad for p in adapted.values())
    for task in range(len(batch)):
        steps, start = Steps(batch, task), plain.start()
        slope = steps.inner_loss(plain.policy(start, steps.obs), loss)
        expected = plain.step(start, slope, second_order=False)
        found = [adapted[name][task] for name in expected]
        assert_same(found, list(expected.values()))


@BOTH
@pytest.mark.parametrize("inner", ["sgd", "meta-sgd", "cavia"])
def test_the_steps_move_the_policy_as_far_as_the_meta_gradient_needs_to_notice(kind, inner):
    """Otherwise first and second order would agree, and the tests above see nothing."""
    config = replace(SMALL, inner=inner)
    grads = []
    for second_order in (True, False):
        agent = MAML(replace(config, second_order=second_order), SPECS[kind])
        shaken(agent.network)
        agent.meta_gradient(random_rounds(SPECS[kind], config))
        grads.append(torch.cat([p.grad.flatten() for p in agent.meta_parameters]))
    assert float((grads[0] - grads[1]).norm()) > 1e-3 * float(grads[0].norm())


@pytest.mark.parametrize("setting", ["one step", "meta-sgd", "cavia", "exploration"])
def test_the_gradient_does_not_depend_on_how_tasks_are_split(monkeypatch, setting):
    found = []
    for rows in (10**6, 12, 1):  # 6 steps a task: all three together, two and one, one by one
        monkeypatch.setattr(gradient_agent, "ROWS", rows)
        agent, rounds = setup("gaussian", setting)
        sizes = [len(part[0]) for part in agent.parts(rounds)]
        assert sizes == {10**6: [3], 12: [2, 1], 1: [1, 1, 1]}[rows]
        agent.meta_gradient(rounds)
        found.append([p.grad.clone() for p in agent.meta_parameters])
        together = agent.meta_loss(rounds)[0].detach().mean()
        assert float(agent.evaluate(rounds)[0]) == pytest.approx(float(together), rel=1e-12)
    assert_same(found[1], found[0], 1e-12)
    assert_same(found[2], found[0], 1e-12)


@BOTH
@EVERY
def test_steps_that_do_not_count_have_no_influence_whatever_they_hold(kind, setting):
    agent, rounds = setup(kind, setting)
    agent.meta_gradient(rounds)
    expected = [p.grad.clone() for p in agent.meta_parameters]
    odd = []
    for batch in rounds:
        out = batch.weight == 0
        wide = out.unsqueeze(-1)
        assert bool(out.any())
        action = batch.action.masked_fill(wide if batch.action.dim() == 3 else out, 2)
        odd.append(
            replace(
                batch,
                obs=batch.obs.masked_fill(wide, 50.0),
                action=action,
                advantage=batch.advantage.masked_fill(out, -3.0),
                log_prob=batch.log_prob.masked_fill(out, -7.0),
                returns=batch.returns.masked_fill(out, 1e6),
            )
        )
    agent.meta_gradient(odd)
    assert_same([p.grad for p in agent.meta_parameters], expected, 1e-12)


@BOTH
def test_inner_loss_and_kl_of_each_task_are_the_plain_formulas(kind):
    agent, rounds = setup(kind, "one step")
    plain, batch = Plain(agent.network), rounds[0]
    chances = agent.network.chances({}, batch.obs)
    for name in ("log-likelihood", "likelihood-ratio"):
        steps = [Steps(batch, task) for task in range(3)]
        expected = [s.inner_loss(plain.policy({}, s.obs), name) for s in steps]
        torch.testing.assert_close(inner_loss(chances, batch, name), torch.stack(expected))
    expected = torch.stack([s.kl(plain.policy({}, s.obs)) for s in steps])
    torch.testing.assert_close(kl_from_old(batch, chances), expected)
    assert float(expected.detach().min()) > 1e-3


def test_at_the_policy_that_acted_both_inner_losses_have_the_same_gradient():
    agent, rounds = setup("gaussian", "one step")
    batch = rounds[0]
    with torch.no_grad():
        own = agent.network.chances({}, batch.obs).log_prob(batch.action)
    found = []
    for kind in ("log-likelihood", "likelihood-ratio"):
        chances = agent.network.chances({}, batch.obs)
        loss = inner_loss(chances, replace(batch, log_prob=own), kind).sum()
        found.append(gradients(loss, agent.meta_parameters))
    assert_same(found[0], found[1], 1e-12)


def test_a_context_is_not_meta_learned():
    agent, rounds = setup("gaussian", "cavia")
    agent.meta_gradient(rounds)
    context = agent.network.policy.context
    assert not any(p is context for p in agent.meta_parameters)
    assert not context.any()
    # The weights that read it are, through the steps only.
    reading = agent.network.policy.hidden[0].weight.grad[:, GAUSSIAN.obs_dim :]
    assert float(reading.abs().min()) > 0.0
