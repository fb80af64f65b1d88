"""VariBAD's evidence lower bound and its parts, against slow and plain versions of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import gymnasium as gym
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Categorical, Normal, kl_divergence

from metarl.agents import task_inference
from metarl.agents.task_inference import (
    LOG_STD,
    InferenceConfig,
    PairMLP,
    RewardHeads,
    RewardRegression,
    StateRegression,
    TaskPrediction,
    TaskVAE,
    Trials,
    draw,
    elbo,
    kl_chain,
)
from metarl.distributions import Gaussian
from metarl.envs.registry import make_family
from metarl.errors import UsageError
from metarl.tasks import Spec
from metarl.vector import box

STEPS, TRIALS, OBS, ACTIONS, TASK = 6, 5, 3, 2, 4
LENGTHS = (6, 3, 1, 6, 2)
UNSOUND = ((1, 0), (2, 1), (0, 4), (1, 4))
"""(step, trial): the last trial has no sound step at all"""
SMALL = {"embedding": 4, "hidden": 5, "latent": 2, "decoder_layers": (4, 3)}
WHOLE = {**SMALL, "beliefs": 0, "decodes": 0, "kl_weight": 0.3}
GARBAGE = 1e3
DECODERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "regression": ({"reward_weight": 0.7}, {}),
    "cells": ({"reward_decoder": "heads"}, {"reward_site": "next-obs"}),
    "arms": ({"reward_decoder": "heads", "reward_weight": 1.9}, {"reward_site": "action"}),
    "state": ({"reward_decoder": "none", "state_weight": 0.6}, {}),
    "numbers": ({"reward_weight": 0.0, "task_weight": 1.4}, {"task_kind": "continuous"}),
    "choice": ({"reward_decoder": "none", "task_weight": 0.5}, {"task_kind": "one-hot"}),
    "all": ({"state_weight": 0.6, "task_weight": 1.4}, {"task_kind": "continuous"}),
    "all of a grid": (
        {"reward_decoder": "heads", "state_weight": 2.0, "task_weight": 0.5},
        {"reward_site": "next-obs", "task_kind": "one-hot"},
    ),
}
"""settings, and what they need of the family"""


def spec_of(**options: Any) -> Spec:
    discrete = options.get("reward_site") == "action"
    actions = gym.spaces.Discrete(ACTIONS) if discrete else box(-1.0, 1.0, ACTIONS)
    return Spec(box(-9.0, 9.0, OBS), actions, TASK, 2, STEPS // 2, **options)


def build(name: str, **changes: Any) -> tuple[TaskVAE, InferenceConfig]:
    settings, needs = DECODERS[name]
    config, spec = InferenceConfig(**{**WHOLE, **settings, **changes}), spec_of(**needs)
    config.check(spec)
    torch.manual_seed(1)
    return TaskVAE(spec, config).double(), config


def normal(*shape: int, seed: int = 0, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(*shape, generator=generator, dtype=torch.float64)


def trials_of(seed: int = 0, garbage: int = 0) -> Trials:
    """Trials of different lengths with unsound steps; `garbage` fills what must not matter."""
    time = torch.arange(STEPS).unsqueeze(1)
    active = time < torch.tensor(LENGTHS)
    valid = active.clone()
    for step, trial in UNSOUND:
        valid[step, trial] = False

    def fill(good: Tensor, where: Tensor, k: int) -> Tensor:
        bad = normal(*good.shape, seed=100 * garbage + k, size=GARBAGE)
        return torch.where(where.view(*where.shape, *[1] * (good.dim() - 2)), good, bad)

    sites = torch.Generator().manual_seed(seed)
    site = torch.randint(ACTIONS, (STEPS, TRIALS), generator=sites)
    other = torch.randint(ACTIONS, site.shape, generator=sites.manual_seed(garbage + 1))
    task = F.one_hot(torch.arange(TRIALS) % TASK, TASK).double()
    return Trials(
        # What an unsound step brought is seen by the encoder, as it was when acting.
        x=fill(normal(STEPS, TRIALS, OBS + ACTIONS + 2, seed=seed + 1), active, 1),
        step=fill(normal(STEPS, TRIALS, 2 * OBS + ACTIONS, seed=seed + 2), valid, 2),
        reward=fill(normal(STEPS, TRIALS, seed=seed + 3), valid, 3),
        site=torch.where(valid, site, other),
        task=task,
        active=active,
        valid=valid,
    )


# --- the slow version ----------------------------------------------------------------------------


def layers(network: Any, x: Tensor) -> Tensor:
    """Linear layers with ReLU between them."""
    linears = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
    for layer in linears[:-1]:
        x = (layer.weight @ x + layer.bias).relu()
    return linears[-1].weight @ x + linears[-1].bias


def gru_cell(gru: torch.nn.GRU, x: Tensor, h: Tensor) -> Tensor:
    """One step of a GRU, gate by gate (Cho et al. 2014, in torch's variant)."""
    of_x = (gru.weight_ih_l0 @ x + gru.bias_ih_l0).chunk(3)
    of_h = (gru.weight_hh_l0 @ h + gru.bias_hh_l0).chunk(3)
    r, z = ((a + b).sigmoid() for a, b in zip(of_x[:2], of_h[:2], strict=True))
    n = (of_x[2] + r * of_h[2]).tanh()
    return (1 - z) * n + z * h


def belief_of(vae: TaskVAE, h: Tensor) -> tuple[Tensor, Tensor]:
    out = vae.head.weight @ h + vae.head.bias
    mean, log_std = out.chunk(2)
    return mean, log_std.clamp(*LOG_STD)


def encode(vae: TaskVAE, x: Tensor) -> list[tuple[Tensor, Tensor]]:
    """The beliefs before each of the steps `x` `[L, X]` and after the last."""
    h = torch.zeros(vae.memory.hidden, dtype=x.dtype)
    beliefs = [belief_of(vae, h)]
    (linear, _) = vae.memory.embed
    for one in x:
        h = gru_cell(vae.memory.gru, (linear.weight @ one + linear.bias).relu(), h)
        beliefs.append(belief_of(vae, h))
    return beliefs


def log_p(name: str, decoder: Any, z: Tensor, trials: Trials, i: int, m: int) -> Tensor:
    """What `decoder` says of step `i` of trial `m`."""
    step = trials.step[i, m]
    before, after = step[: OBS + ACTIONS], step[OBS + ACTIONS :]
    if name == "state":
        error = after - layers(decoder.body.body, torch.cat([z, before]))
        return -(error**2).sum() / OBS
    if isinstance(decoder, RewardRegression):
        return -((trials.reward[i, m] - layers(decoder.body.body, torch.cat([z, step]))[0]) ** 2)
    chance = layers(decoder.body, z)[trials.site[i, m]].sigmoid()
    return chance.log() if trials.reward[i, m] > 0 else (1 - chance).log()


def log_p_task(decoder: Any, z: Tensor, task: Tensor) -> Tensor:
    out = layers(decoder.body, z)
    if decoder.choice:
        return Categorical(logits=out).log_prob(task.argmax())
    return -((out - task) ** 2).sum() / TASK


def slow_elbo(
    vae: TaskVAE,
    trials: Trials,
    config: InferenceConfig,
    noise: Tensor,
    which: tuple[Tensor | None, Tensor] = (None, torch.empty(0)),
    index: tuple[Tensor | None, Tensor] = (None, torch.empty(0)),
) -> dict[str, Tensor]:
    """Term by term; `which` and `index` are the beliefs and steps that were drawn, weighted."""
    sums: dict[str, list[Tensor]] = {name: [] for name in (*vae.decoders, "kl", "total")}
    for m in range(trials.x.shape[1]):
        length = int(trials.active[:, m].sum())
        terms = {name: torch.zeros((), dtype=torch.float64) for name in sums}
        beliefs = encode(vae, trials.x[:length, m])
        before = Normal(torch.zeros(config.latent).double(), torch.ones(config.latent).double())
        for mean, log_std in beliefs:
            now = Normal(mean, log_std.exp())
            terms["kl"] = terms["kl"] + kl_divergence(now, before).sum()
            before = now
        all_beliefs = [(t, t, 1.0) for t in range(length + 1)]
        all_steps = [(i, 1.0) for i in range(length) if trials.valid[i, m]]
        if which[0] is not None:
            drawn = zip(which[0][:, m].tolist(), which[1][:, m].tolist(), strict=True)
            all_beliefs = [(e, t, w) for e, (t, w) in enumerate(drawn) if w]
        if index[0] is not None:
            drawn = zip(index[0][:, m].tolist(), index[1][:, m].tolist(), strict=True)
            all_steps = [(i, w) for i, w in drawn if w]
        for e, t, belief_weight in all_beliefs:
            mean, log_std = beliefs[t]
            z = mean + log_std.exp() * noise[e, m]
            for name, decoder in vae.decoders.items():
                if name == "task":
                    term = log_p_task(decoder, z, trials.task[m])
                    terms[name] = terms[name] + belief_weight * term
                    continue
                for i, weight in all_steps:
                    term = log_p(name, decoder, z, trials, i, m)
                    terms[name] = terms[name] + belief_weight * weight * term
        weights = {n: getattr(config, f"{n}_weight") for n in vae.decoders}
        terms["total"] = (
            sum(w * terms[n] for n, w in weights.items()) - config.kl_weight * (terms["kl"])
        )
        for name, term in terms.items():
            sums[name].append(term)
    return {name: torch.stack(parts) for name, parts in sums.items()}


def gradients(vae: TaskVAE, value: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*vae.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(value, parameters), strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("name", DECODERS)
def test_the_bound_and_its_gradient_are_those_of_the_double_loop(name: str) -> None:
    vae, config = build(name)
    trials = trials_of()
    found = elbo(vae, trials, config, torch.Generator().manual_seed(3))
    noise = torch.Generator().manual_seed(3)
    drawn = torch.randn(STEPS + 1, TRIALS, config.latent, generator=noise)
    expected = slow_elbo(vae, trials, config, drawn)
    assert_same(found, expected)
    assert bool((expected["kl"] > 0).all()) and bool((expected["total"] != 0).all())
    # Trials weigh differently, so that none can stand for another.
    weight = torch.arange(1.0, TRIALS + 1)
    of_found, of_slow = (gradients(vae, (x["total"] * weight).sum()) for x in (found, expected))
    assert_same(of_found, of_slow)
    assert all(bool(g.any()) for g in of_slow.values())


@pytest.mark.parametrize(("beliefs", "decodes"), [(2, 0), (0, 2), (3, 4), (7, 6)])
def test_drawn_terms_are_those_of_the_double_loop(beliefs: int, decodes: int) -> None:
    vae, config = build("all", beliefs=beliefs, decodes=decodes)
    trials = trials_of()
    found = elbo(vae, trials, config, torch.Generator().manual_seed(3))
    again = torch.Generator().manual_seed(3)
    there = torch.cat([torch.ones(1, TRIALS, dtype=torch.bool), trials.active])
    which, index = draw(there, beliefs, again), draw(trials.valid, decodes, again)
    noise = torch.randn(len(which[1]), TRIALS, config.latent, generator=again)
    expected = slow_elbo(vae, trials, config, noise, which, index)
    # The weights are float32: a quotient of two counts.
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("beliefs", "decodes"), [(0, 0), (3, 2)])
@pytest.mark.parametrize("name", ["all", "all of a grid"])
def test_nothing_depends_on_what_lies_beyond_a_trial_or_is_unsound(
    name: str, beliefs: int, decodes: int
) -> None:
    vae, config = build(name, beliefs=beliefs, decodes=decodes)
    one, other = trials_of(garbage=1), trials_of(garbage=2)
    assert float((one.x - other.x).abs().max()) > GARBAGE
    assert float((one.reward - other.reward).abs().max()) > GARBAGE
    found = [elbo(vae, x, config, torch.Generator().manual_seed(3)) for x in (one, other)]
    assert_same(*found)
    assert_same(*(gradients(vae, x["total"].sum()) for x in found))


def test_the_bound_does_depend_on_all_else() -> None:
    vae, config = build("all")
    trials = trials_of()
    fields = {n: getattr(trials, n).clone().requires_grad_() for n in ("x", "step", "reward")}
    total = elbo(vae, replace(trials, **fields), config, torch.Generator())["total"].sum()
    of = dict(zip(fields, torch.autograd.grad(total, list(fields.values())), strict=True))
    # The last input of a trial makes its last belief, which is decoded, too.
    assert torch.equal(of["x"].ne(0).any(-1), trials.active)
    assert torch.equal(of["step"].ne(0).any(-1), trials.valid)
    assert torch.equal(of["reward"].ne(0), trials.valid)


def test_every_belief_decodes_past_and_future() -> None:
    """The gradient of any step's likelihood reaches the belief before the trial and after it."""
    vae, config = build("regression", kl_weight=0.0)
    trials = trials_of()
    full = trials.active.all(0)
    for only in range(STEPS):
        valid = torch.zeros_like(trials.valid)
        valid[only] = full
        x = trials.x.clone().requires_grad_()
        one = replace(trials, valid=valid, x=x)
        (grad,) = torch.autograd.grad(elbo(vae, one, config, torch.Generator())["total"].sum(), [x])
        assert bool(grad[:, full].ne(0).any(-1).all())


def test_sums_not_means() -> None:
    """Two steps that are alike count twice, and so do two beliefs."""
    vae, config = build("cells")
    with torch.no_grad():
        vae.head.weight.zero_()
        vae.head.bias.copy_(torch.tensor([0.3, -0.2, -20.0, -20.0]))
    same = dict(vars(copies_of_one(1)))
    for name in ("x", "step", "reward"):
        same[name] = same[name][:1].expand_as(same[name])
    every = torch.ones(STEPS, 1, dtype=torch.bool)
    totals = []
    for length in (1, 2, 4):
        there = every.clone()
        there[length:] = False
        trials = Trials(**{**same, "active": there, "valid": there})
        terms = elbo(vae, trials, config, torch.Generator())
        totals.append(float(terms["reward"].detach()))
        # All beliefs are equal: only the first one's distance to N(0, I) counts.
        here = Normal(torch.tensor([0.3, -0.2]).double(), torch.tensor(LOG_STD[0]).double().exp())
        kl = kl_divergence(here, Normal(torch.zeros(2).double(), torch.ones(2).double())).sum()
        torch.testing.assert_close(terms["kl"], kl.view(1))
    single = totals[0] / 2
    # z is a mean with hardly any noise: each of (L + 1) L pairs has the same likelihood.
    assert totals == pytest.approx([2 * single, 6 * single, 20 * single], rel=1e-3)


# --- the chain of beliefs ------------------------------------------------------------------------


def test_the_chain_is_that_of_torch() -> None:
    mean, log_std = normal(5, 3, 4, seed=1), normal(5, 3, 4, seed=2, size=0.5)
    chain = kl_chain(Gaussian(mean, log_std))
    assert chain.shape == (5, 3)
    for t in range(5):
        previous = (mean[t - 1], log_std[t - 1].exp()) if t else (torch.zeros(()), torch.ones(()))
        now = Normal(mean[t], log_std[t].exp())
        expected = kl_divergence(now, Normal(*(x.double().expand(3, 4) for x in previous))).sum(-1)
        torch.testing.assert_close(chain[t], expected, rtol=1e-12, atol=1e-12)


def test_a_belief_that_stays_costs_nothing() -> None:
    still = Gaussian(normal(1, 3, 4).expand(5, 3, 4), normal(1, 3, 4, seed=1).expand(5, 3, 4))
    assert float(kl_chain(still)[1:].abs().max()) < 1e-12
    standard = Gaussian(torch.zeros(5, 3, 4), torch.zeros(5, 3, 4))
    assert not kl_chain(standard).any()


def test_gradients_of_the_chain() -> None:
    def chain(mean: Tensor, log_std: Tensor) -> Tensor:
        return kl_chain(Gaussian(mean, log_std))

    inputs = normal(3, 2, 2), normal(3, 2, 2, seed=1, size=0.5)
    assert torch.autograd.gradcheck(chain, [x.requires_grad_() for x in inputs])


def test_log_standard_deviations_stay_within_their_bounds() -> None:
    vae, _ = build("all")
    with torch.no_grad():
        vae.head.weight.mul_(1e4)
        belief = vae.belief(normal(50, SMALL["hidden"]))
    assert (float(belief.log_std.min()), float(belief.log_std.max())) == LOG_STD
    assert float(belief.mean.abs().max()) > 100


# --- draws ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, STEPS, STEPS + 3])
def test_all_steps_are_taken_as_they_are(count: int) -> None:
    valid, generator = trials_of().valid, torch.Generator()
    before = generator.get_state()
    index, weight = draw(valid, count, generator)
    assert index is None
    assert torch.equal(weight, valid.float())
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("count", range(1, STEPS))
def test_draws_are_of_different_steps_that_exist(count: int) -> None:
    valid = trials_of().valid
    index, weight = draw(valid, count, torch.Generator().manual_seed(count))
    assert index.shape == weight.shape == (count, TRIALS)
    for m in range(TRIALS):
        total = int(valid[:, m].sum())
        taken = index[:, m][weight[:, m] > 0].tolist()
        assert len(set(taken)) == len(taken) == min(count, total)
        assert all(valid[i, m] for i in taken)
        weights = weight[:, m][weight[:, m] > 0].tolist()
        assert weights == pytest.approx([total / min(count, total)] * len(taken) if total else [])


def test_every_subset_is_as_likely_as_any_other() -> None:
    there = torch.tensor([True, True, False, True, True]).unsqueeze(1).expand(5, 12_000)
    index, weight = draw(there, 2, torch.Generator().manual_seed(0))
    assert torch.equal(weight, torch.full_like(weight, 2.0))
    counts = Counter(tuple(sorted(pair)) for pair in index.T.tolist())
    assert counts.keys() == set(combinations([0, 1, 3, 4], 2))
    # 2000 of each; 200 is five standard deviations.
    assert all(abs(count - 2000) < 200 for count in counts.values())


def test_the_weighted_sum_of_a_draw_is_right_on_average() -> None:
    """Exactly so, where every subset is counted as often as the test above says."""
    values = torch.tensor([3.0, -1.0, 50.0, 7.0, 0.5])
    there = torch.tensor([True, True, False, True, True])
    subsets = list(combinations([0, 1, 3, 4], 2))
    weight = float(draw(there.unsqueeze(1), 2, torch.Generator())[1][0])
    mean = sum(weight * float(values[list(s)].sum()) for s in subsets) / len(subsets)
    assert mean == pytest.approx(float((values * there).sum()))


def test_the_gradient_of_drawn_terms_is_right_on_average() -> None:
    vae, config = build("all", decoder_layers=(3,))
    with torch.no_grad():  # beliefs without noise, so that only the draws are left to chance
        vae.head.weight[SMALL["latent"] :] = 0.0
        vae.head.bias[SMALL["latent"] :] = -20.0
    copies = 4000
    many = copies_of_one(copies)
    found = {}
    for drawn in ({"beliefs": 0, "decodes": 0}, {"beliefs": 2, "decodes": 1}):
        terms = elbo(vae, many, replace(config, **drawn), torch.Generator().manual_seed(0))
        flat = [g.flatten() for g in gradients(vae, terms["total"].mean()).values()]
        found[drawn["beliefs"]] = terms["total"].detach(), torch.cat(flat)
    (full, of_full), (some, of_some) = found[0], found[2]
    spread = float(some.std()) / copies**0.5
    assert float(full.std()) < 1e-3 < spread
    assert abs(float(some.mean() - full.mean())) < 4 * spread
    assert float((of_some - of_full).norm() / of_full.norm()) < 0.05


def copies_of_one(copies: int) -> Trials:
    """The same whole trial, with one unsound step, over and over."""
    active = torch.ones(STEPS, copies, dtype=torch.bool)
    valid = active.clone()
    valid[2] = False
    return Trials(
        x=normal(STEPS, 1, OBS + ACTIONS + 2, seed=8).expand(-1, copies, -1),
        step=normal(STEPS, 1, 2 * OBS + ACTIONS, seed=9).expand(-1, copies, -1),
        reward=normal(STEPS, 1, seed=10).expand(-1, copies),
        site=torch.zeros(STEPS, copies, dtype=torch.int64),
        task=normal(1, TASK, seed=11).expand(copies, -1),
        active=active,
        valid=valid,
    )


# --- decoders ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A decoder with something to decode."""

    decoder: Any
    z: Tensor
    trials: Trials
    weight: Tensor


def case(kind: type, **needs: Any) -> Case:
    torch.manual_seed(2)
    decoder = kind(spec_of(**needs), SMALL["latent"], (4, 3)).double()
    generator = torch.Generator().manual_seed(5)
    weight = torch.rand(STEPS, TRIALS, generator=generator, dtype=torch.float64)
    fields = {"step": normal(STEPS, TRIALS, 2 * OBS + ACTIONS, seed=9)}
    trials = replace(trials_of(), reward=normal(STEPS, TRIALS, seed=10), **fields)
    return Case(decoder, normal(4, TRIALS, SMALL["latent"]), trials, weight)


CASES = {
    "regression": (RewardRegression, {}),
    "cells": (RewardHeads, {"reward_site": "next-obs"}),
    "arms": (RewardHeads, {"reward_site": "action"}),
    "state": (StateRegression, {}),
    "numbers": (TaskPrediction, {"task_kind": "continuous"}),
    "choice": (TaskPrediction, {"task_kind": "one-hot"}),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_of_the_likelihoods(name: str) -> None:
    kind, needs = CASES[name]
    c = case(kind, **needs)
    parameters = list(c.decoder.parameters())

    def likelihood(z: Tensor, *_: Tensor) -> Tensor:
        return c.decoder.log_likelihood(z, c.trials, c.weight)

    assert likelihood(c.z).shape == (4, TRIALS)
    assert torch.autograd.gradcheck(likelihood, (c.z.requires_grad_(), *parameters))


@pytest.mark.parametrize("site", ["next-obs", "action"])
def test_counting_is_the_same_as_one_step_after_the_other(site: str) -> None:
    c = case(RewardHeads, reward_site=site)
    assert c.decoder.sites == (OBS if site == "next-obs" else ACTIONS)
    logits = c.decoder.predict(c.z)
    total = torch.zeros(4, TRIALS, dtype=torch.float64)
    for i in range(STEPS):
        for m in range(TRIALS):
            high = (c.trials.reward[i, m] > 0).double().expand(4)
            said = logits[:, m, c.trials.site[i, m]]
            loss = F.binary_cross_entropy_with_logits(said, high, reduction="none")
            total[:, m] -= c.weight[i, m] * loss
    found = c.decoder.log_likelihood(c.z, c.trials, c.weight)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("cached", [1, 2 * STEPS * TRIALS, 10**6])
@pytest.mark.parametrize("widths", [(6,), (6, 5), (6, 5, 4)])
def test_pairs_are_what_the_plain_network_makes_of_them(
    monkeypatch: Any, widths: tuple[int, ...], cached: int
) -> None:
    """In however many parts they are computed."""
    monkeypatch.setattr(task_inference, "CACHED_ROWS", cached)
    torch.manual_seed(0)
    network = PairMLP(2, 3, widths, 2).double()
    z, step = normal(5, TRIALS, 2, seed=1), normal(STEPS, TRIALS, 3, seed=2)
    found = network(z, step)
    assert found.shape == (5, STEPS, TRIALS, 2)
    shape = (5, STEPS, TRIALS)
    pairs = torch.cat([z.unsqueeze(1).expand(*shape, 2), step.expand(*shape, 3)], -1)
    torch.testing.assert_close(found, network.body(pairs), rtol=1e-12, atol=1e-12)
    x = normal(STEPS, TRIALS, 3, seed=2).requires_grad_(), z.clone().requires_grad_()
    parameters = list(network.parameters())
    ours = torch.autograd.grad(network(x[1], x[0]).square().sum(), [*x, *parameters])
    pairs = torch.cat([x[1].unsqueeze(1).expand(*shape, 2), x[0].expand(*shape, 3)], -1)
    plain = torch.autograd.grad(network.body(pairs).square().sum(), [*x, *parameters])
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["continuous", "one-hot"])
def test_the_task_is_predicted_once_for_each_belief(kind: str) -> None:
    c = case(TaskPrediction, task_kind=kind)
    found = c.decoder.log_likelihood(c.z, c.trials, c.weight)
    assert torch.equal(found, c.decoder.log_likelihood(c.z, c.trials, 9 * c.weight))
    for e in range(4):
        for m in range(TRIALS):
            expected = log_p_task(c.decoder, c.z[e, m], c.trials.task[m])
            torch.testing.assert_close(found[e, m], expected, rtol=1e-12, atol=1e-12)


def test_gradients_of_the_whole_bound() -> None:
    tiny = {"embedding": 2, "hidden": 2, "latent": 1, "decoder_layers": (2,)}
    vae, config = build("all of a grid", **tiny, beliefs=3, decodes=4)
    trials = trials_of()
    parameters = list(vae.parameters())

    def bound(*_: Tensor) -> Tensor:
        return elbo(vae, trials, config, torch.Generator().manual_seed(0))["total"]

    assert torch.autograd.gradcheck(bound, parameters, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_without_weight_are_left_away(name: str) -> None:
    vae, config = build(name)
    wanted = {n for n in ("reward", "state", "task") if getattr(config, f"{n}_weight") > 0}
    assert set(vae.decoders) == wanted - ({"reward"} if config.reward_decoder == "none" else set())


# --- settings that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"reward_decoder": "none"}, "nothing to decode"),
        ({"reward_weight": 0.0}, "nothing to decode"),
        ({"latent": 0}, "latent must be a finite number of at least 1, got 0"),
        ({"hidden": -1}, "hidden"),
        ({"embedding": 0}, "embedding"),
        ({"kl_weight": -0.1}, "kl_weight"),
        ({"kl_weight": float("nan")}, "kl_weight"),
        ({"reward_weight": -1.0}, "reward_weight"),
        ({"state_weight": -1.0}, "state_weight"),
        ({"task_weight": float("inf")}, "task_weight"),
        ({"beliefs": -1}, "beliefs"),
        ({"decodes": -1}, "decodes"),
        ({"decoder_layers": ()}, "decoder_layers"),
        ({"decoder_layers": (8, 0)}, "decoder_layers"),
    ],
)
def test_settings_that_cannot_train_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        InferenceConfig(**settings)


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("half-cheetah-vel", {"reward_decoder": "heads"}, "reward_decoder heads .* regression"),
        ("point-dense", {"reward_decoder": "heads"}, "reward_decoder heads .* regression"),
        ("maze", {"task_weight": 1.0}, "task_weight must be 0 .* got 1.0"),
        ("gridnavi", {"beliefs": 62}, "fewer beliefs than 62; choose 0 .all. to 61"),
        ("gridnavi", {"decodes": 61}, "fewer decodes than 61; choose 0 .all. to 60"),
    ],
)
def test_settings_that_do_not_fit_the_family_are_refused(
    family: str, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        InferenceConfig(**settings).check(make_family(family).spec())


@pytest.mark.parametrize(
    ("family", "options", "settings"),
    [
        ("half-cheetah-vel", {}, {"task_weight": 1.0}),
        ("point-dense", {}, {"task_weight": 1.0}),
        ("gridnavi", {}, {"reward_decoder": "heads", "task_weight": 1.0}),
        ("gridnavi", {}, {"beliefs": 61, "decodes": 60}),
        ("bandit", {}, {"reward_decoder": "heads", "beliefs": 11, "decodes": 10}),
        ("maze", {}, {"state_weight": 1.0}),
    ],
)
def test_settings_that_fit(family: str, options: dict[str, Any], settings: dict[str, Any]) -> None:
    spec = make_family(family, **options).spec()
    config = InferenceConfig(**{"beliefs": 0, "decodes": 0, **settings})
    config.check(spec)
    assert TaskVAE(spec, config).decoders


def test_cells_need_a_grid_that_shows_them_one_by_one() -> None:
    config = InferenceConfig(reward_decoder="heads", beliefs=0, decodes=0)
    with pytest.raises(UsageError, match="reward_decoder heads"):
        config.check(make_family("gridnavi", observation="xy").spec())
