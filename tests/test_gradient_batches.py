"""Episodes made ready for a policy gradient: against a loop over single episodes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from gradient_oracles import SPECS, shaken

from metarl.agents.gradient_adaptation import (
    AdaptationConfig,
    AdaptingPolicy,
    Episodes,
    no_baseline,
    prepare,
)
from metarl.linear_baseline import fit_predict

CONFIG = AdaptationConfig(layers=(4,), gamma=0.9)
TASKS, WORLDS, TIME = 3, 2, 14


def random_episodes(kind="gaussian", seed=0):
    """Worlds with episodes of 1 to 5 steps, tails that do not count, and unsound last steps."""
    g = torch.Generator().manual_seed(seed)
    shape = (TIME, TASKS, WORLDS)
    length = torch.randint(1, 6, (TASKS, WORLDS, TIME), generator=g)
    done, elapsed = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.int64)
    for n in range(TASKS):
        for w in range(WORLDS):
            clock, episode = 0, 0
            for t in range(TIME):
                elapsed[t, n, w], clock = clock, clock + 1
                if clock == length[n, w, episode]:
                    done[t, n, w], clock, episode = True, 0, episode + 1
    valid = torch.ones(shape, dtype=torch.bool)
    for n in range(TASKS):
        for w in range(WORLDS):
            ends = done[:, n, w].nonzero().squeeze(1)
            # A trial ends with the last whole episode, or two before it.
            valid[ends[-1 if w else -3] + 1 :, n, w] = False
    unsound = done & (torch.rand(shape, generator=g) < 0.2)
    reward = torch.randn(shape, generator=g)
    reward = torch.where(unsound | ~valid, torch.tensor(1e9), reward)
    valid &= ~unsound
    assert bool((unsound & valid.roll(1, 0)).any())
    obs = torch.randn(*shape, 3, generator=g)
    action = (
        torch.randn(*shape, 2, generator=g)
        if kind == "gaussian"
        else torch.randint(0, 3, shape, generator=g)
    )
    return Episodes(obs, action, reward, done, valid, elapsed)


def single_episodes(episodes):
    """Task, world, the times of the steps that count, and the time that follows each of them."""
    for n in range(TASKS):
        for w in range(WORLDS):
            times = []
            for t in range(TIME):
                times.append(t)
                if episodes.done[t, n, w]:
                    # An unsound step ends its episode, and counts nowhere.
                    counted = [u for u in times if episodes.valid[u, n, w]]
                    yield n, w, counted, dict(pairwise(times))
                    times = []


def discounted(numbers, factor):
    """Their sum, each discounted by how late it comes."""
    return sum(factor**k * x for k, x in enumerate(numbers))


def slow(episodes, predict, config):
    """Returns, advantages and credits by single episodes, in float64 by numpy."""
    shape, gamma = (TIME, TASKS, WORLDS), config.gamma
    reward = episodes.reward.numpy().astype(np.float64)
    returns, advantage = np.zeros(shape), np.zeros(shape)
    first = [[] for _ in range(TASKS)]
    for n, w, times, _ in single_episodes(episodes):
        for k, t in enumerate(times):
            returns[t, n, w] = discounted(reward[times[k:], n, w], gamma)
        first[n] += [returns[t, n, w] for t in times[:1]]
    value = predict(returns)
    for n, w, times, after in single_episodes(episodes):
        following = [value[after[t], n, w] if t in after else 0.0 for t in times]
        delta = reward[times, n, w] + gamma * np.array(following) - value[times, n, w]
        for k, t in enumerate(times):
            advantage[t, n, w] = discounted(delta[k:], gamma * config.lam)
    for n in range(TASKS):
        own = episodes.valid[:, n].numpy()
        mean, spread = advantage[:, n][own].mean(), advantage[:, n][own].std()
        advantage[:, n] = np.where(own, (advantage[:, n] - mean) / spread, 0.0)
    mean = np.array([np.mean(x) for x in first])
    return returns, advantage, (mean - mean.mean()) / mean.std()


def by_task(x):
    """`[T, N, W]` to `[N, T * W]`, one world and step at a time."""
    rows = [[x[t, n, w] for t in range(TIME) for w in range(WORLDS)] for n in range(TASKS)]
    return torch.tensor(np.array(rows))


def network(kind):
    policy = AdaptingPolicy(SPECS[kind], CONFIG)
    return shaken(policy).float()


@pytest.mark.parametrize("lam", [1.0, 0.6, 0.0])
@pytest.mark.parametrize("baseline", ["none", "time", "linear"])
def test_returns_and_advantages_are_those_of_single_episodes(lam, baseline):
    episodes, policy = random_episodes(), network("gaussian")
    config = replace(CONFIG, lam=lam)
    seen = []

    def by_time(obs, elapsed, returns, weight):
        return 0.3 * elapsed + obs[..., 0]

    def spied(*args):
        seen.append({"none": no_baseline, "time": by_time, "linear": fit_predict}[baseline](*args))
        return seen[-1]

    batch = prepare(episodes, lambda obs: policy.chances({}, obs), config, spied)

    def predict(returns):
        """What the baseline says; that the linear one is right is proved elsewhere."""
        if baseline == "none":
            return np.zeros_like(returns)
        if baseline == "time":
            return (0.3 * episodes.elapsed + episodes.obs[..., 0]).numpy().astype(np.float64)
        return seen[0].view(TASKS, TIME, WORLDS).movedim(0, 1).numpy().astype(np.float64)

    returns, advantage, credit = slow(episodes, predict, config)
    weight = by_task(episodes.valid.numpy()).bool()
    assert torch.equal(batch.weight.bool(), weight)
    close = {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(batch.returns[weight], by_task(returns)[weight], **close)
    torch.testing.assert_close(batch.advantage, by_task(advantage), **close)
    torch.testing.assert_close(batch.elapsed, by_task(episodes.elapsed.numpy()))
    assert not batch.returns[~weight].any()
    # A first step that is unsound has no return; the loop leaves such episodes out as well.
    torch.testing.assert_close(batch.credit, torch.tensor(credit), **close)


@pytest.mark.parametrize("kind", SPECS)
def test_steps_keep_their_place_and_know_the_policy_that_acted(kind):
    episodes, policy = random_episodes(kind), network(kind)
    batch = prepare(episodes, lambda obs: policy.chances({}, obs), CONFIG, no_baseline)
    for n in range(TASKS):
        for t in range(TIME):
            for w in range(WORLDS):
                m = t * WORLDS + w
                assert torch.equal(batch.obs[n, m], episodes.obs[t, n, w])
                assert torch.equal(batch.action[n, m], episodes.action[t, n, w])
    chances = policy.chances({}, batch.obs)
    assert torch.equal(batch.log_prob, chances.log_prob(batch.action))
    old = type(chances)(*batch.old)
    assert not old.kl(chances).abs().gt(1e-6).any()
    part = batch[1:3]
    assert len(part) == 2
    assert all(len(x) == 2 for x in part.old)
    assert torch.equal(part.log_prob, batch.log_prob[1:3])


def test_what_a_step_that_does_not_count_brought_changes_nothing():
    episodes, policy = random_episodes(), network("gaussian")
    out = ~episodes.valid
    # A sound state in which an unsound step began is where the step before it led.
    led_to = torch.zeros_like(out)
    led_to[1:] = (episodes.valid & ~episodes.done)[:-1]
    other = replace(
        episodes,
        reward=episodes.reward.masked_fill(out, float("nan")),
        action=episodes.action.masked_fill(out.unsqueeze(-1), 30.0),
        obs=episodes.obs.masked_fill((out & ~led_to).unsqueeze(-1), 50.0),
    )
    one, two = (
        prepare(e, lambda obs: policy.chances({}, obs), CONFIG, fit_predict)
        for e in (episodes, other)
    )
    keep = one.weight > 0
    assert torch.equal(one.advantage[keep], two.advantage[keep])
    assert torch.equal(one.returns, two.returns)
    assert torch.equal(one.credit, two.credit)
    assert bool(two.advantage.isfinite().all())


def test_a_task_whose_returns_are_all_alike_has_advantages_of_zero():
    episodes, policy = random_episodes(), network("gaussian")
    same = replace(episodes, reward=torch.zeros_like(episodes.reward))
    batch = prepare(same, lambda obs: policy.chances({}, obs), CONFIG, no_baseline)
    assert not batch.advantage.any()
    assert not batch.credit.any()
