"""MAML and ProMP as agents: what they refuse, survive, remember and learn."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from ragged import Ragged

from metarl.adaptation import evaluate
from metarl.agents.gradient_agent import GradientAgent
from metarl.agents.maml import MAML, MAMLConfig
from metarl.agents.promp import ProMP, ProMPConfig
from metarl.envs.registry import make_family
from metarl.errors import TrainingError, UsageError

SMALL = {"layers": (8,), "meta_batch": 4, "rollouts": 4, "inner_rate": 0.1, "context": 2}
VARIANTS = {
    "trpo": (MAML, {}),
    "trpo, linear": (MAML, {"baseline": "linear", "inner_steps": 2}),
    "trpo, value": (MAML, {"baseline": "value"}),
    "trpo, first order": (MAML, {"second_order": False}),
    "trpo, meta-sgd": (MAML, {"inner": "meta-sgd"}),
    "trpo, cavia": (MAML, {"inner": "cavia"}),
    "trpo, normalised": (MAML, {"normalize": True, "inner_steps": 2}),
    "trpo, exploration": (MAML, {"exploration": 0.5}),
    "vpg": (MAML, {"outer": "vpg", "learning_rate": 1e-2}),
    "vpg, value": (MAML, {"outer": "vpg", "baseline": "value"}),
    "reptile": (MAML, {"outer": "reptile", "learning_rate": 0.5}),
    "promp": (ProMP, {}),
    "promp, meta-sgd": (ProMP, {"inner": "meta-sgd", "inner_steps": 2}),
    "promp, cavia": (ProMP, {"inner": "cavia"}),
    "promp, adaptive": (ProMP, {"adaptive_kl": True, "kl_weight": 0.1, "inner_steps": 2}),
    "promp, normalised": (ProMP, {"normalize": True}),
    "promp, value": (ProMP, {"baseline": "value"}),
}
EVERY = pytest.mark.parametrize("variant", VARIANTS)


def make(variant, family, seed=0, **more):
    kind, options = VARIANTS[variant]
    config = {**SMALL, "baseline": "none", **options, **more}
    settings = MAMLConfig if kind is MAML else ProMPConfig
    return kind(settings(**config), family.spec(), seed=seed)


def flat(state, path=""):
    """All tensors and numbers of a state, copied, by path."""
    if isinstance(state, dict | list | tuple):
        pairs = state.items() if isinstance(state, dict) else enumerate(state)
        parts = [flat(value, f"{path}/{key}") for key, value in pairs]
        return {name: x for part in parts for name, x in part.items()}
    return {path: state.clone() if isinstance(state, torch.Tensor) else state}


def changed(one, other):
    """The paths at which two flat states differ."""
    differ = one.keys() ^ other.keys()
    for path in one.keys() & other.keys():
        a, b = one[path], other[path]
        if not (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b):
            differ.add(path)
    return differ


RANDOM = {"/generator", "/task_generator", "/skipped"}
"""What an iteration changes that is skipped"""


# --- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [MAMLConfig, ProMPConfig])
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"inner_steps": 0}, "inner_steps must be a finite number of at least 1, got 0"),
        ({"meta_batch": 0}, "meta_batch must be a finite number of at least 1"),
        ({"rollouts": 0}, "rollouts must be"),
        ({"context": 0}, "context must be"),
        ({"gamma": 1.1}, r"gamma must be a finite number in \[0, 1\], got 1.1"),
        ({"lam": -0.1}, "lam must be"),
        ({"lam": float("nan")}, "lam must be"),
        ({"inner_rate": 0.0}, "inner_rate must be a finite number above 0"),
        ({"last_layer": 0.0}, "last_layer must be"),
        ({"log_std": -20.0}, "log_std must be a finite number of at least -13.8"),
        ({"max_skipped": -1}, "max_skipped must be"),
        ({"worlds_per_task": -1}, "worlds_per_task must be"),
        ({"layers": ()}, "layers must be one or more widths"),
        ({"layers": (8, 0)}, "layers must be one or more widths"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
    ],
)
def test_settings_that_cannot_train_are_refused(kind, options, words):
    with pytest.raises(UsageError, match=words):
        kind(**options)


@pytest.mark.parametrize(
    ("kind", "options", "words"),
    [
        (MAMLConfig, {"max_kl": 0.0}, "maml: max_kl"),
        (MAMLConfig, {"damping": -1.0}, "maml: damping"),
        (MAMLConfig, {"exploration": -1.0}, "maml: exploration"),
        (MAMLConfig, {"cg_iterations": 0}, "maml: cg_iterations"),
        (MAMLConfig, {"outer": "reptile", "inner": "meta-sgd"}, "reptile .* sgd only, got meta"),
        (MAMLConfig, {"outer": "reptile", "inner": "cavia"}, "reptile .* sgd only, got cavia"),
        (ProMPConfig, {"clip": 0.0}, "promp: clip"),
        (ProMPConfig, {"epochs": 0}, "promp: epochs"),
        (ProMPConfig, {"kl_weight": -1.0}, "promp: kl_weight"),
        (ProMPConfig, {"target_kl": 0.0}, "promp: target_kl"),
        (ProMPConfig, {"final_learning_rate": -1.0}, "promp: final_learning_rate"),
    ],
)
def test_settings_of_one_method_that_cannot_train_are_refused(kind, options, words):
    with pytest.raises(UsageError, match=words):
        kind(**options)


def test_episodes_too_short_for_the_linear_baseline_are_refused():
    family = make_family("bandit", episodes=4)  # a constant: 6 coefficients
    with pytest.raises(UsageError, match=r"4 rollouts of 1 steps .* 6 coeff.* more than 6 roll"):
        make("trpo, linear", family)
    with pytest.raises(UsageError, match="more than 6 rollouts"):
        make("trpo, linear", family, rollouts=6)
    make("trpo, linear", family, rollouts=7)
    make("trpo, value", family)


@pytest.mark.parametrize("worlds", [18, 4 * 3, 4 * 8, 2])
def test_worlds_that_cannot_be_shared_evenly_are_refused(worlds):
    family = Ragged(episodes=2)
    agent = make("trpo", family)
    with pytest.raises(
        UsageError, match=rf"{worlds} worlds .* meta-batch of 4 .* 4 rollouts .* 16"
    ):
        agent.train_step(family.make_worlds(worlds), 0.0)


@pytest.mark.parametrize("worlds", [4, 8, 16])
def test_rollouts_may_come_one_after_the_other(worlds):
    family = Ragged(episodes=2, ragged=False)
    figures = make("trpo", family).train_step(family.make_worlds(worlds), 0.0)
    assert figures["steps"] == 4 * 4 * 5 * 2  # tasks, rollouts, steps, rounds


# --- gradients that are not finite -------------------------------------------------------------


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("poisoned_from", [0, 8], ids=["before", "after adaptation"])
@EVERY
def test_a_task_that_is_not_finite_costs_an_iteration_and_nothing_else(
    variant, poisoned_from, poison
):
    family = Ragged(ragged=False, poison=poison, poisoned_from=poisoned_from, episodes=2)
    agent, env = make(variant, family, max_skipped=1), family.make_worlds(16)
    before = flat(agent.state_dict())
    with pytest.warns(RuntimeWarning) as seen:
        figures = agent.train_step(env, 0.0)
    assert figures["skipped"] == 1.0
    assert figures["steps"] == 4 * 4 * 5 * (agent.config.inner_steps + 1)
    assert changed(before, flat(agent.state_dict())) == RANDOM
    targets = env.tasks.target
    task = int(targets.argmax())
    (message,) = [str(w.message) for w in seen if "skipped" in str(w.message)]
    assert message == (
        f"{agent.name}: the meta-gradient is not finite, caused by task {task} "
        f"({float(targets[task]):.4g}); the iteration is skipped, 1 of at most 1 in a run"
    )
    with pytest.raises(TrainingError, match=r"caused by task \d .* it is iteration 2 of this kind"):
        agent.train_step(env, 0.0)


def test_training_goes_on_after_a_skipped_iteration():
    family = Ragged(ragged=False, poison=float("nan"), poisoned_from=0, episodes=2)
    agent, env = make("trpo, value", family), family.make_worlds(16)
    with pytest.warns(RuntimeWarning, match="skipped"):
        agent.train_step(env, 0.0)
    env.steps = -1000
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        figures = agent.train_step(env, 0.0)
    assert figures["skipped"] == 1.0
    assert figures["loss/step"] > 0.0
    assert figures["loss/value"] > 0.0


def test_an_epoch_of_promp_that_is_not_finite_takes_back_those_before_it(monkeypatch):
    family = Ragged(episodes=2)
    agent, env = make("promp, adaptive", family), family.make_worlds(16)
    agent.train_step(env, 0.0)  # so that Adam has something to remember
    calls, plain = [], GradientAgent.meta_gradient

    def poisoned(self, rounds, kept=None):
        calls.append(1)
        if len(calls) < 3:
            return plain(self, rounds, kept)
        advantage = rounds[-1].advantage.clone()
        advantage[2] = float("nan")
        return plain(self, [*rounds[:-1], replace(rounds[-1], advantage=advantage)], kept)

    monkeypatch.setattr(GradientAgent, "meta_gradient", poisoned)
    before = flat(agent.state_dict())
    with pytest.warns(RuntimeWarning, match=r"caused by task 2 \("):
        agent.train_step(env, 0.0)
    assert len(calls) == 3
    assert changed(before, flat(agent.state_dict())) == RANDOM


def test_a_sum_that_is_not_finite_blames_no_task(monkeypatch):
    family = Ragged(episodes=2)
    agent, env = make("vpg", family), family.make_worlds(16)
    monkeypatch.setattr(GradientAgent, "_finite", lambda self, loss: torch.tensor(False))
    with pytest.warns(RuntimeWarning, match="not finite, only in the sum over tasks; the iter"):
        agent.train_step(env, 0.0)


def test_a_policy_does_not_take_a_step_that_is_not_finite():
    family = Ragged(ragged=False, poison=float("nan"), poisoned_from=0, episodes=3)
    agent, env = make("trpo", family), family.make_worlds(16)
    policy = agent.policy()
    env.set_tasks(tasks := family.sample_tasks(4, "train", torch.Generator().manual_seed(0)))
    curve = evaluate(policy, env, tasks, 3)  # no action is refused for not being finite
    worst = int(tasks.target.argmax())
    start = agent.network.start()
    for name, p in policy.params.items():
        assert bool(p.isfinite().all())
        assert torch.equal(p[worst], start[name].detach())
        assert not torch.equal(p[(worst + 1) % 4], start[name].detach())
    assert curve.episodes == 3


# --- state -------------------------------------------------------------------------------------


@EVERY
def test_state_goes_on_exactly(variant):
    family = Ragged(episodes=2)
    agents = [make(variant, family, seed=s) for s in (0, 1)]
    envs = [family.make_worlds(16, seed=s) for s in (0, 1)]
    for _ in range(2):
        agents[0].train_step(envs[0], 0.0)
    assert "/network/policy.last.weight" in changed(*(flat(a.state_dict()) for a in agents))
    agents[1].load_state_dict(agents[0].state_dict())
    envs[1].load_state_dict(envs[0].state_dict())
    for _ in range(2):
        figures = [a.train_step(e, 0.5) for a, e in zip(agents, envs, strict=True)]
        assert figures[0] == figures[1]
    assert changed(*(flat(a.state_dict()) for a in agents)) == set()


@EVERY
def test_the_same_seed_gives_the_same_result_and_every_variant_moves_its_parameters(variant):
    family, states = Ragged(episodes=2), []
    for seed in (3, 3, 4):
        agent, env = make(variant, family, seed=seed), family.make_worlds(16, seed=1)
        start = {n: p.detach().clone() for n, p in agent.network.named_parameters()}
        for _ in range(2):
            torch.rand(3)  # what others draw is of no matter
            agent.train_step(env, 0.0)
        for name, p in agent.network.named_parameters():
            assert torch.equal(p, start[name]) == (name == "policy.context"), name
        states.append(flat(agent.state_dict()))
    assert changed(states[0], states[1]) == set()
    assert "/network/policy.last.weight" in changed(states[0], states[2])


@pytest.mark.parametrize("variant", ["trpo", "promp, value"])
def test_the_global_random_state_is_left_alone(variant):
    family = Ragged(episodes=2)
    env = family.make_worlds(16)
    before = torch.get_rng_state()
    agent = make(variant, family)
    agent.train_step(env, 0.0)
    evaluate(agent.policy(), env, env.tasks, 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_observations_are_normalised_by_all_that_counted_in_the_iterations_before(monkeypatch):
    family = Ragged(episodes=2)
    agent, env = make("trpo, normalised", family), family.make_worlds(16)
    plain, seen, used = MAML.learn, [], []

    def watched(self, rounds, progress):
        seen.extend(batch.obs[batch.weight > 0] for batch in rounds)
        used.append(self.network.obs_norm.mean.clone())
        # What collected and what learns see the same: no ratio is off before the first step.
        chances = self.network.chances({}, rounds[0].obs)
        off = (chances.log_prob(rounds[0].action) - rounds[0].log_prob).detach()
        assert float(off.abs().max()) < 1e-5
        return plain(self, rounds, progress)

    monkeypatch.setattr(MAML, "learn", watched)
    for _ in range(3):
        before = torch.cat(seen).double() if seen else torch.zeros(1, 2)
        agent.train_step(env, 0.0)
        torch.testing.assert_close(used[-1], before.mean(0), check_dtype=False)
    every = torch.cat(seen).double()
    torch.testing.assert_close(agent.network.obs_norm.mean, every.mean(0))
    torch.testing.assert_close(agent.network.obs_norm.var, every.var(0, correction=0))


def test_figures_are_those_of_the_trust_region():
    family = Ragged(episodes=2)
    agent, env = make("trpo", family, max_kl=1e-3), family.make_worlds(16)
    for _ in range(3):
        figures = agent.train_step(env, 0.0)
        assert 0.0 < figures["loss/kl"] <= 1e-3
        assert 0.0 < figures["loss/step"] <= 1.0
        assert figures["loss/meta"] < 0.0


# --- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (MAMLConfig, {}),
        (MAMLConfig, {"inner": "cavia", "context": 4, "normalize": True}),
        (ProMPConfig, {"learning_rate": 5e-3}),
    ],
    ids=["trpo", "cavia", "promp"],
)
def test_one_step_leads_further_than_any_policy_that_does_not_adapt(kind, options):
    family = make_family("navigation-2d", horizon=15, episodes=2)
    few = {"layers": (32,), "meta_batch": 20, "rollouts": 10, "inner_rate": 0.5, "log_std": -0.7}
    config = kind(**few, gamma=0.95, **options)
    agent = (MAML if kind is MAMLConfig else ProMP)(config, family.spec(), seed=0)
    env = family.make_worlds(200, seed=0)
    for k in range(25):
        agent.train_step(env, k / 25)
    tasks = family.sample_tasks(40, "held-out", torch.Generator().manual_seed(1))
    curve = evaluate(agent.policy(), family.make_worlds(400, seed=3), tasks, 2)
    _, adapted = curve.summary().mean
    # Who does not know the goal can do no better than to be at the best place from the start.
    grid = torch.cartesian_prod(*[torch.linspace(-0.5, 0.5, 21)] * 2)
    unaware = -15.0 * float(torch.cdist(grid, tasks.goal).mean(1).min())
    assert adapted > 0.7 * unaware
