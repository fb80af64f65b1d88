"""Bandits and tabular MDPs are the published distributions, and play by them."""

import pytest
import torch

from metarl.envs.registry import make_family
from metarl.errors import UsageError


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def is_held_out_stripe(u):
    """Whether numbers in [0, 1) lie in a held-out stripe: every fifth of 1000."""
    return (u.double() * 1000).floor() % 5 == 4


def run(env, choose, steps):
    """Rewards `[steps, W]` of playing the actions that `choose(obs)` returns."""
    obs, _ = env.reset()
    rewards = []
    for _ in range(steps):
        obs, reward, *_ = env.step(choose(obs))
        rewards.append(reward)
    return torch.stack(rewards)


# --- bandits -----------------------------------------------------------------------------------


def test_arms_pay_with_their_probability():
    family = make_family("bandit", arms=3)
    tasks = family.sample_tasks(3, "train", generator())
    env = family.make_worlds(3 * 20_000)
    env.set_tasks(tasks)
    for arm in range(3):
        rewards = run(env, lambda _, arm=arm: torch.full((env.num_envs,), arm), 5)
        assert set(rewards.unique().tolist()) == {0.0, 1.0}
        rate = rewards.view(5, 3, -1).mean((0, 2))
        torch.testing.assert_close(rate, tasks.probability[:, arm], rtol=0, atol=0.006)


def test_pulls_of_one_arm_are_independent_in_time_and_between_worlds():
    family = make_family("bandit")
    env = family.make_worlds(1000)
    env.set_tasks(
        type(tasks := family.sample_tasks(1, "train", generator()))(
            probability=torch.full_like(tasks.probability, 0.5)
        )
    )
    rewards = run(env, lambda _: torch.zeros(1000, dtype=torch.int64), 200) - 0.5
    assert (rewards[1:] * rewards[:-1]).mean().abs() < 0.003
    assert (rewards[:, 1:] * rewards[:, :-1]).mean().abs() < 0.003


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_arm_probabilities_are_uniform_and_the_first_tells_the_split(split):
    p = make_family("bandit").sample_tasks(40_000, split, generator()).probability
    assert p.shape == (40_000, 5)
    ordered = p.sort(dim=0).values
    even = (torch.arange(40_000) + 0.5) / 40_000
    assert (ordered - even.unsqueeze(-1)).abs().max() < 0.012
    assert is_held_out_stripe(p[:, 0]).all() if split == "held-out" else True
    assert not is_held_out_stripe(p[:, 0]).any() if split == "train" else True


def test_random_and_oracle_play_earn_what_theory_says():
    family = make_family("bandit")
    tasks = family.sample_tasks(20_000, "held-out", generator())
    env = family.make_worlds(20_000)
    env.set_tasks(tasks)
    pulls = generator(1)
    at_random = run(env, lambda _: torch.randint(5, (20_000,), generator=pulls), 10)
    best = run(env, lambda _: tasks.probability.argmax(-1), 10)
    # 10 pulls of a uniform probability, and of the largest of five.
    assert float(at_random.sum(0).mean()) == pytest.approx(5.0, abs=0.05)
    assert float(best.sum(0).mean()) == pytest.approx(10 * 5 / 6, abs=0.05)


@pytest.mark.parametrize("options", [{"arms": 1}, {"arms": 2.0}])
def test_bad_arms_are_refused(options):
    with pytest.raises(
        UsageError, match="family bandit: arms must be a whole number of at least 2"
    ):
        make_family("bandit", **options)


# --- tabular MDPs --------------------------------------------------------------------------------


def test_tabular_tasks_follow_the_published_distribution():
    family = make_family("tabular-mdp")
    tasks = family.sample_tasks(4000, "train", generator())
    mean, transition = tasks.reward_mean, tasks.transition
    assert mean.shape == (4000, 10, 5)
    assert transition.shape == (4000, 10, 5, 10)
    assert float(mean.mean()) == pytest.approx(1.0, abs=0.01)
    assert float(mean.std()) == pytest.approx(1.0, abs=0.01)
    assert float(mean[:, 0, 0].mean()) == pytest.approx(1.0, abs=0.06)
    torch.testing.assert_close(transition.sum(-1), torch.ones(4000, 10, 5))
    assert (transition >= 0).all()
    # Dirichlet(1, ..., 1) over 10: every share has mean 1/10 and variance 9 / (100 * 11).
    assert float(transition.mean()) == pytest.approx(0.1, abs=1e-6)
    assert float(transition.var()) == pytest.approx(9 / 1100, rel=0.02)


def test_tabular_splits_differ_in_the_first_mean_reward():
    family = make_family("tabular-mdp", states=2, actions=2)
    for split in ("train", "held-out"):
        mean = family.sample_tasks(5000, split, generator()).reward_mean[:, 0, 0]
        quantile = torch.special.ndtr(mean.double() - 1.0)
        assert (is_held_out_stripe(quantile) == (split == "held-out")).all()


def test_tabular_worlds_play_by_their_tables():
    family = make_family("tabular-mdp", states=4, actions=2, horizon=50)
    tasks = family.sample_tasks(1, "train", generator())
    env = family.make_worlds(2000)
    env.set_tasks(tasks)
    obs, _ = env.reset()
    assert (obs.argmax(-1) == 0).all()
    choices = generator(1)
    counts, rewards = torch.zeros(8, 4), [[] for _ in range(8)]
    for _ in range(100):
        action = torch.randint(2, (2000,), generator=choices)
        pair = 2 * obs.argmax(-1) + action
        obs, reward, _, truncated, info = env.step(action)
        after = info["final_obs"]
        assert (after.sum(-1) == 1).all()
        assert (obs[truncated].argmax(-1) == 0).all()
        counts.index_put_((pair, after.argmax(-1)), torch.ones(2000), accumulate=True)
        for i in range(8):
            rewards[i].append(reward[pair == i])
    visits = counts.sum(-1)
    assert visits.min() > 1000
    expected = tasks.transition.view(8, 4)
    spread = (expected * (1 - expected) / visits.unsqueeze(-1)).sqrt()
    assert ((counts / visits.unsqueeze(-1) - expected).abs() < 4.5 * spread + 1e-6).all()
    for i, seen in enumerate(torch.cat(r) for r in rewards):
        error = 4.5 / len(seen) ** 0.5
        assert float(seen.mean()) == pytest.approx(float(tasks.reward_mean.view(8)[i]), abs=error)
        assert float(seen.std()) == pytest.approx(1.0, abs=error)


def test_random_play_in_tabular_mdps_earns_the_published_figure():
    family = make_family("tabular-mdp")
    env = family.make_worlds(2000)
    env.set_tasks(family.sample_tasks(2000, "held-out", generator()))
    choices = generator(1)
    rewards = run(env, lambda _: torch.randint(5, (2000,), generator=choices), 100)
    assert float(rewards.sum(0).mean()) == pytest.approx(100.1, abs=1.5)
